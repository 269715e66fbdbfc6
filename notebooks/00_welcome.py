# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from masters/00_welcome.py, edit there; then: adadfq course build -->
# # 00 · Welcome
#
# [![Open this notebook in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPO/blob/main/notebooks/00_welcome.ipynb)
# Hello.

# %% tags=["setup"] cellView="form"
# @title Run this first (on Colab it installs adadfq_lab; elsewhere it only looks around)
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("adadfq_lab") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "adadfq-lab @ git+https://github.com/OWNER/REPO.git@main"], check=True)
    absent = [name for name in ("tyro", "safetensors") if importlib.util.find_spec(name) is None]
    if absent:
        subprocess.run([*pip, *absent], check=True)

import adadfq_lab as lab

lab.check_env()

# %% [markdown]
# ### Exercise 1 ●○○ (2 minutes): agreement


# %% tags=["stub"]
def agreement(z_p, z_q):
    same = ...
    raise NotImplementedError("share")


# %%
lab.check.agreement(agreement)

# %% [markdown]
# ## What you can now do
