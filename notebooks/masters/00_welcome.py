# %% [markdown] tags=["title"]
# # 00 · Welcome
# Hello.

# %% tags=["setup"]

# %% [markdown]
# ### Exercise 1 ●○○ (2 minutes): agreement

# %% tags=["stub"]
def agreement(z_p, z_q):
    same = ...
    raise NotImplementedError("share")


# %% tags=["solution"]
def agreement(z_p, z_q):
    return (z_p.argmax(dim=-1) == z_q.argmax(dim=-1)).float().mean()


# %%
lab.check.agreement(agreement)

# %% [markdown]
# ## What you can now do
