# ---
# jupyter:
#   adadfq_lab:
#     built: 87f32a442db7e4de
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from solutions/05_two_kinds_of_sample.py, edit there; then: adadfq course build -->
# # 05 · Two kinds of sample
#
# If G only maximised disagreement, its images could be any noise that P and Q happen to differ on. AdaDFQ asks for two
# kinds of image: ones that P gets right and Q does not, and ones that both get right. This notebook writes both losses and
# takes them away again.
#
# **Objectives.** You will be able to write L_ds, L_as and L_bal; to say which way each pulls H'; and to read an ablation,
# including what it cannot show.
#
# **Prerequisites.** p_ds and H' (notebook 01), the game (notebook 04).
#
# **Minutes.** 1 Two definitions: 6 · 2 Eq. (6): 8 · 3 Eq. (7)-(9): 13 · 4 Which way they pull: 8 · 5 Ablation: 8 · 6 Live: 5
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | L_ds | `lab.loss_ds(z_p, z_q, y)` | P sees class y and Q does not [nats] | Eq. (6) |
# | p_as | `lab.p_as(z_p, z_q)` | softmax(z_p + z_q) | Eq. (7) |
# | L_as | `lab.loss_as(z_p, z_q, y)` | P and Q both see class y [nats] | Eq. (8) |
# | L_bal | `lab.loss_balance(z_p, z_q, y)` | 0.2 L_ds + 0.1 L_as | Eq. (9) |
# | α_ds, α_as | `alpha_ds`, `alpha_as` | their weights | section 3.1 |

# %% tags=["setup"] cellView="form"
# @title Run this first (on Colab it installs adadfq_lab; elsewhere it only looks around)
import importlib.util
import subprocess
import sys

SOURCE = ""  # where Colab gets adadfq_lab from; set by `adadfq course badges OWNER/REPO@TAG`
NEEDS = ["safetensors", "tyro"]

if "google.colab" in sys.modules and SOURCE:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if importlib.util.find_spec("adadfq_lab") is None:
        subprocess.run([*pip, "--no-deps", f"adadfq-lab @ {SOURCE}"], check=True)
    if absent := [name for name in NEEDS if importlib.util.find_spec(name.split(">")[0]) is None]:
        subprocess.run([*pip, *absent], check=True)
if importlib.util.find_spec("adadfq_lab") is None:
    raise ImportError(f"adadfq_lab is not installed for {sys.executable}: choose the kernel that has it, or install it")

import adadfq_lab as lab

lab.check_env()

# %% [markdown]
# ## 1 · Two definitions (6 minutes)
# **Definition 1.** x, asked to be of class y, is a *disagreement sample* if P says y and Q says something else.
# **Definition 2.** It is an *agreement sample* if P and Q say the same.
#
# Both are yes-or-no. What G can follow is a gradient, so the paper turns each into a cross-entropy.

# %%
import numpy as np
import torch
import torch.nn.functional as F

people = lab.load_population()
y = torch.from_numpy(people.labels)
z_p = torch.from_numpy(people.teacher_logits)
z_of = {bits: torch.from_numpy(logits) for bits, logits in people.student_logits.items()}
for bits in (2, 3, 5, 8):
    p_right, same = z_p.argmax(1) == y, z_p.argmax(1) == z_of[bits].argmax(1)
    disagreement, agreement = (p_right & ~same).float().mean(), same.float().mean()
    neither = 1 - disagreement - agreement
    print(f"{bits} bits: {disagreement:4.0%} disagreement samples, {agreement:4.0%} agreement samples, {neither:4.0%} neither")
print(f"P sees the class asked for in {(z_p.argmax(1) == y).float().mean():.1%} of these images; chance is 10 %")

# %% [markdown]
# The same 480 recorded images are of one kind or the other depending on who looks: with more bits, disagreement samples
# become agreement samples. What is informative is not a property of an image but of an image *and* a student. The two kinds are
# not all there is: if P does not see the class asked for and Q says something else again, a sample is neither. There are many
# here, because this G, after 300 rounds, does not make classes yet. Keep that in mind in section 5.

# %% [markdown]
# ## 2 · L_ds: P sees it, Q does not (8 minutes)
# p_ds = softmax(z_p - z_q) is large at class c where P's logit exceeds Q's. Asking p_ds to be the requested class y,
#
# $$L_{ds} = E[H_{CE}(p_{ds}, y)]$$
#
# asks that P's advantage over Q be in class y. A cross-entropy of a softmax takes logits, and the logits are z_p - z_q.

# %%
z_q = z_of[3]
by_hand = -torch.log_softmax(z_p - z_q, dim=-1)[torch.arange(len(y)), y].mean()  # Eq. (6)
assert torch.isclose(by_hand, lab.loss_ds(z_p, z_q, y))
print(f"L_ds = {by_hand:.3f} nats at 3 bits; a P and Q that always agree have log C = {torch.tensor(10.0).log():.3f}")

# %% [markdown]
# ### Exercise 1 ●○○ (3 minutes): L_ds
# `z_p`, `z_q` are (N, C), `y` is (N,). Use `F.cross_entropy`.


# %% tags=["stub"]
def loss_ds(z_p, z_q, y):
    logits = ...
    raise NotImplementedError("Eq. (6)")


# %%
lab.check.loss_ds(loss_ds)

# %% [markdown]
# ## 3 · L_as and the balance (13 minutes)
# Eq. (7) adds the logits instead: p_as = softmax(z_p + z_q) is certain where *both* are. Eq. (8) asks that it be class y.

# %% [markdown]
# ### Exercise 2 ●○○ (2 minutes): L_as


# %% tags=["stub"]
def loss_as(z_p, z_q, y):
    logits = ...
    raise NotImplementedError("Eq. (8)")


# %%
lab.check.loss_as(loss_as)

# %% [markdown]
# ### Exercise 3 ●○○ (2 minutes): the balance
# Eq. (9) with the paper's α_ds = 0.2 and α_as = 0.1. You may use `lab.loss_ds` and `lab.loss_as`.


# %% tags=["stub"]
def loss_balance(z_p, z_q, y):
    balance = ...
    raise NotImplementedError("Eq. (9)")


# %%
lab.check.loss_balance(loss_balance)

# %% [markdown]
# ### What they do, in the plane
# The plane of notebook 00, Q held still, and G with nothing but the hinge and L_bal. *Predict* before you run the next cell:
# with which losses do G's samples land in the class asked for? With which are most of them disagreement samples?

# %%
plane = {}
for name, weights in {"L_ds": (1.0, 0.0), "L_as": (0.0, 1.0), "L_bal": (0.2, 0.1)}.items():
    method = lab.adadfq(alpha_ds=weights[0], alpha_as=weights[1])
    plane[name] = lab.plane_explorer(lab.Dials(gamma=0.0, student_learns=False), method=method)
    plane[name].play(10 if lab.fast() else 120)
    game, asked = plane[name].game, torch.arange(300) % 3
    x = game.generate(asked)
    of_p, of_q = game.teacher(x).argmax(1), game.student(x).argmax(1)
    right, kind = (of_p == asked).float().mean(), ((of_p == asked) & (of_q != asked)).float().mean()
    print(f"{name:5}: P sees the class asked for in {right:4.0%} of the samples; {kind:4.0%} are disagreement samples")

# %% tags=["figure"]
plane["L_bal"]

# %% [markdown]
# *Read it:* L_ds alone leaves the class to chance: P's advantage over Q may be in class y while both see another. L_as is
# what makes classes. Together they send samples to borders that Q has in the wrong place: look where the dots lie. Replace
# "L_bal" by another name to see the others.

# %% [markdown]
# ## 4 · Which way they pull (8 minutes)
# Take one sample on which P and Q are equally sure of class 0, and move Q's logit of that class from far below P's to far
# above.

# %%
gap = torch.linspace(-8, 8, 81)
one_p = torch.zeros(81, 10)
one_p[:, 0] = 4.0
one_q = one_p.clone()
one_q[:, 0] -= gap
zero = torch.zeros(81, dtype=torch.long)
per_sample = {
    "L_ds": F.cross_entropy(one_p - one_q, zero, reduction="none"),
    "L_as": F.cross_entropy(one_p + one_q, zero, reduction="none"),
    "H_info": lab.disagreement_entropy(one_p, one_q),
}
alt = "L_ds falls and L_as rises as P's logit exceeds Q's; the entropy peaks where the logits are equal."
lab.show(lab.figures.curves(per_sample, gap, title="One sample", x="z_p - z_q at class y", y="nats", alt=alt))

# %% [markdown]
# *Read it:* to the right P is surer of class y than Q: L_ds is small, L_as grows, and the entropy falls. To the left Q is
# surer than P. L_ds punishes that; the entropy hardly sees it, for p_ds then misses one class of ten: log 9 instead of log
# 10, its value in the middle, where they agree. So minimising L_ds lowers H' and minimising L_as raises it: the arrows of
# the paper's Fig. 2.

# %%
names = {"AdaDFQ": "adadfq_3w3a", "case A: no L_as": "no_as_3w3a", "case B: no L_ds": "no_ds_3w3a"}
recorded = {name: lab.load_recording(file).history.upto(150) for name, file in names.items()}
samples = {name: history.last_samples(320) for name, history in recorded.items()}
lab.show(lab.figures.histograms(samples, title="H' after 150 rounds, 3 bits", x="H'", limits=(0, 1), bins=20))

# %% [markdown]
# This is Fig. 5(a) in small: three recorded games, 150 rounds each, H' of the last 320 samples. The next cell puts numbers
# to it.

# %%
for name, history in recorded.items():
    h, nats = history.last_samples(320), history["entropy"][-20:]
    parts = [history[f"generator.{term}"][-20:].mean() for term in ("ds", "as", "bns")]
    losses = ", ".join(f"{value:.1f}" for value in parts)
    print(f"{name:16} mean H' {h.mean():.2f}, H_info {nats.mean():.2f} nats; L_ds, L_as, L_BNS as weighted: {losses}")

# %% [markdown]
# *Read it:* in H' and in nats the three hardly differ, and H' not in the paper's order (A, AdaDFQ, B): the clear separation
# of Fig. 5 does not show at this scale. The losses say why. L_BNS is still six to eight times each of the others: in 150
# rounds G has followed P's memory, and taking L_ds or L_as away takes little away. (nan: left out.) The paper's G had 400
# epochs on ImageNet.

# %% [markdown]
# ## 5 · Taking things away (8 minutes)
# Table 3 of the paper removes one part of AdaDFQ after the other, on ImageNet, and finds that without L_BNS 17 points are
# lost, without L_ds 19, without L_as 7, without the band 6. Here is the same table in miniature: 150 rounds, one seed, 500
# real images.

# %%
rows = {"all": "adadfq_3w3a", "no L_ds": "no_ds_3w3a", "no L_as": "no_as_3w3a"}
rows |= {"neither": "no_bal_3w3a", "no band": "no_band_3w3a", "no L_BNS": "no_bns_3w3a"}
ends = {name: lab.load_recording(file).history.upto(150) for name, file in rows.items()}
table = {name: history["test.accuracy"][-1] for name, history in ends.items()}
half = [(high - low) / 2 for low, high in (lab.wilson(round(5 * a), 500) for a in table.values())]
lab.show(lab.figures.bars(table, title="Table 3 in small: 3 bits", x="what was left out", y="accuracy of Q [%]", errors=half))

# %% [markdown]
# *Read it:* all six lie within four points, and each has an interval of about five: no order can be read off. A count of right
# answers on 500 images is too coarse. The testing loss is finer, and three measurements are better than one:

# %%
for name, history in ends.items():
    three = history["test.loss"][np.isfinite(history["test.loss"])][-3:]
    print(f"{name:9} test loss after 90, 120, 150 rounds: {', '.join(f'{v:.2f}' for v in three)}; mean {three.mean():.2f} nats")

# %% [markdown]
# One row stands apart: without L_BNS Q is worse at every measurement, as in Table 3. The other five lie on each other: without
# L_ds, without L_as, without both and without the band nothing is lost, where the paper loses 19, 7, 20 and 6 points. One seed,
# 150 rounds, a task on which 3 bits cost little, and a G that does not make classes yet, so that L_ds and L_as have nothing to
# act on (section 1): this does not refute Table 3. It says that what matters *early* is L_BNS, and that the rest, if it
# matters, takes longer.

# %% tags=["figure"]
lab.sample_gallery(["adadfq_3w3a", "no_ds_3w3a", "no_as_3w3a"])

# %% [markdown]
# One image of each class, from the same z each time; drag the snapshot back to round 0 to see where G began. None of them
# would fool a person. They need not: they only have to move Q's weights the right way.

# %% [markdown]
# ## 6 · Change the balance yourself (5 minutes)
# `lab.adadfq(alpha_ds=..., alpha_as=...)` takes any weights; 0 drops a term. Try `alpha_as=0.0` and watch the histogram.

# %%
P = lab.load_teacher("fashion_mnist_resnet20")
schedule = lab.Schedule(batch=16, warmup=10, observe=40, student_lr=1e-3)
game = lab.Game(P, lab.quantize(P, "3w3a"), lab.adadfq(alpha_ds=0.2, alpha_as=0.1), schedule=schedule, seed=1)

# %% tags=["live"]
run = lab.LiveRun(game, rounds=100)
run.start()

# %% [markdown]
# *What to look for:* "agrees with P (generated)" is the share of agreement samples of Definition 2. Does it end higher with
# L_as than without? One game of 100 rounds each will hardly tell; say so.

# %%
run.then(lambda history: f"<p>{len(history)} rounds; mean H' of the last samples {history.last_samples(320).mean():.2f}.</p>")

# %%
lab.quiz("05")

# %% [markdown]
# ## What you can now do
# - tell a disagreement sample from an agreement sample, and say why that depends on Q;
# - write L_ds, L_as and L_bal, and say which way each moves H';
# - read an ablation with its intervals, and say what so short a one can and cannot show.
#
# Next: [06 · The band](06_the_band.ipynb), how hard they should be.
