# ---
# jupyter:
#   adadfq_lab:
#     built: 7db647f34e566136
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from solutions/03_imagining_data.py, edit there; then: adadfq course build -->
# # 03 · Imagining data
#
# Q lost accuracy to rounding, and the training data are gone. What is left of them is inside P: its weights, and in each
# batch norm the mean and variance of what passed through. This notebook turns that memory into images and trains Q on them:
# GDFQ, the method that the paper starts from.
#
# **Objectives.** You will be able to compute L_BNS of Eq. (11); to say how a label enters the generator; to write GDFQ's loss
# and run it; and to say what the images show and what they need not show.
#
# **Prerequisites.** Batch normalisation; notebook 02 for Q.
#
# **Minutes.** 1 What P remembers: 13 · 2 The generator: 9 · 3 GDFQ: 12 · 4 How much memory?: 7 · 5 Real and imagined: 5
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | G, z, y | `game.generator`, `z`, `y` | generator, noise (N, 100), class asked for (N,) | Def. 1 |
# | x = G(z given y) | `game.generate(y)` | generated images, normalised, (N, 1, 28, 28) | Def. 1 |
# | μ_m, σ_m | `running_mean`, `running_var` | what batch norm m of P remembers; σ is the *variance* | Eq. (11) |
# | μ_m^g, σ_m^g | `mean`, `var` | the same of the generated batch | Eq. (11) |
# | L_BNS | `lab.loss_bns(statistics)` | how far apart they are | Eq. (11) |
# | L_CE | `F.cross_entropy(z_p, y)` | P does not see the class asked for | GDFQ |

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
# ## 1 · What P remembers (13 minutes)
# While P was trained, each of its 21 batch norms kept a running mean and variance of its input, for every channel. They were
# meant for inference. They are also a summary of the training data, seen from 21 depths.
#
# ### Exercise 1 ●○○ (3 minutes): the statistics of a batch
# For `u` of shape (N, C, H, W), return mean and variance of each channel, both (C,). The variance is the biased one: divided by
# N·H·W, which is what a batch norm uses.


# %% tags=["stub"]
def channel_statistics(u):
    """(mean, variance) of each channel of u (N, C, H, W), both of shape (C,)."""
    dims = ...
    raise NotImplementedError("average over samples, rows and columns")


# %%
lab.check.channel_statistics(channel_statistics)

# %% [markdown]
# Compare that with what a batch norm remembers. By hand, for the first one, on real images:

# %%
import dataclasses

import torch
import torch.nn.functional as F

P = lab.load_teacher("fashion_mnist_resnet20")
data = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else 500)
real = P.normalize(data.images)
with torch.no_grad():
    u = P.network.conv1(real)
variance, memory = u.var(dim=(0, 2, 3), unbiased=False), P.network.bn1.running_var
print("variance seen      ", [f"{v:.3f}" for v in variance[:6].tolist()])
print("variance remembered", [f"{v:.3f}" for v in memory[:6].tolist()])

# %% [markdown]
# The test images were not in the training set, and still P finds in them, channel by channel, what it remembers. The paper
# makes that a loss, to be summed over all M batch norms:
#
# $$\mathcal{L}_{BNS} = \sum_{m=1}^M \left(\|\mu_m^g - \mu_m\|_2^2 + \|\sigma_m^g - \sigma_m\|_2^2\right) \tag{11}$$
#
# The released code takes means instead of both sums: over a layer's channels, then over layers. That is another weight for each
# layer and a far smaller number. This package sums, as printed; here we begin with the mean, and section 4 compares the two.
#
# ### Exercise 2 ●●○ (5 minutes): L_BNS, the mean form
# `statistics` is a list, one entry for each batch norm, with `.mean`, `.var`, `.running_mean` and `.running_var`, all (c,).
# In each layer average the squared differences over channels, for mean and variance; add the two; then average over layers.


# %% tags=["stub"]
def loss_bns(statistics):
    """Mean over layers of mean squared differences of means and of variances, 0-dim. Eq. (11), as released."""
    layers = [... for s in statistics]
    raise NotImplementedError("squared differences, averaged over channels, then over layers")


# %%
lab.check.loss_bns(loss_bns)

# %% [markdown]
# `WithStatistics` is P that also returns these statistics. How much further than real images is noise from P's memory?

# %%
watched = lab.WithStatistics(P)


@torch.no_grad()
def bns(x):
    """L_BNS of each batch norm on the images x, a list of 21."""
    return [float(lab.loss_bns([layer], reduction="mean")) for layer in watched(x)[1]]


noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
distances = {"real images": bns(real), "noise": bns(noise)}
lab.show(lab.figures.bns_by_layer(distances))

# %% [markdown]
# *Read it:* noise with the right mean and variance in every *pixel* is far from P's memory in every layer, by orders of
# magnitude, because P's filters look at neighbouring pixels. Real images lie close in all of them. The gap is a gradient
# waiting to be used.

# %% [markdown]
# ## 2 · The generator (9 minutes)
# G maps noise z and a label y to an image. The label enters by multiplication: each class has a learned vector as long as z,
# and z is multiplied by the vector of the class asked for.
#
# ### Exercise 3 ●○○ (3 minutes): how the label enters
# `table` has one row for each class. Return z times the row of its label, for each sample.


# %% tags=["stub"]
def conditioned(z, y, table):
    """z (N, latent) times row y[i] of table (classes, latent) for sample i, shape (N, latent)."""
    rows = ...
    raise NotImplementedError("look up a row for each label, then multiply")


# %%
lab.check.conditioned(conditioned)

# %% [markdown]
# The rest of G are a linear layer, two upsamplings and three convolutions; a last batch norm gives each batch of images mean
# 0 and variance 1. Here is the whole game of notebook 00 with the method GDFQ, not yet played, and what its G imagines.

# %%
schedule = lab.Schedule(batch=16, warmup=60, observe=100, student_lr=1e-3)
averaged = dataclasses.replace(lab.fidelity.fidelity("corrected"), bns_reduction="mean")
game = lab.Game(P, lab.quantize(P, "3w3a"), lab.gdfq(), seed=0, schedule=schedule, fidelity=averaged)
asked = torch.arange(10).repeat(4)  # G normalises over its batch: always ask for a mixed one


def imagine(game):
    """One image of each class as G makes it now, pixels in [0, 1], (10, 1, 28, 28)."""
    return P.denormalize(game.generate(asked))[:10]


with torch.no_grad():
    said = P(game.generate(asked)).argmax(dim=1)
print(
    f"{sum(p.numel() for p in game.generator.parameters()):,} parameters; P sees the class asked for in "
    f"{100 * (said == asked).float().mean():.0f} % of the images"
)

# %% [markdown]
# ## 3 · GDFQ (12 minutes)
# *Generative low-bitwidth data-free quantization* (ECCV 2020) asks two things of G: P shall see the class y in the image, and
# find its own statistics in the batch.
#
# $$\mathcal{L}_G = \mathcal{H}_{CE}(z_p, y) + 0.1\,\mathcal{L}_{BNS}$$
#
# Q learns from the images by their labels and by P's logits. Note who is missing: **G's loss does not contain Q.** G makes
# the same images for a 3-bit student as for an 8-bit one. That is what the paper sets out to change.
#
# ### Exercise 4 ●○○ (2 minutes): what G minimises
# `z_p` are P's logits (N, C), `y` the classes asked for, `bns` is L_BNS, already computed.


# %% tags=["stub"]
def gdfq_loss(z_p, y, bns):
    """Cross-entropy of P's logits with the class asked for, plus 0.1 L_BNS; 0-dim."""
    label = ...
    raise NotImplementedError("F.cross_entropy takes logits and classes")


# %%
lab.check.gdfq_loss(gdfq_loss)

# %% [markdown]
# Now play. In these rounds only G learns; we keep an image of each class on the way.

# %%
stops = (0, 2, 4, 6) if lab.fast() else (0, 10, 30, 60)
records, album = [], []
for start, stop in zip((0, *stops), stops, strict=False):
    records += game.play(stop - start)
    album.append(imagine(game))
names = [name.split("/")[0] for name in data.classes]
rounds = [str(stop) for stop in stops]
lab.show(lab.figures.image_grid(torch.cat(album), names, rows=rounds, title="G begins", x="class asked for", y="round"))

# %% [markdown]
# *Read it:* specks grow into blots, as large as parts of clothes: P's first filters then see about the variance they remember.
# Whatever class is asked for, P recognises few. That takes G some thousand rounds, longer than a lesson; here are 1,200 of
# them, recorded.

# %%
long = {"averaged": "gdfq_long", "summed": "gdfq_long_sum", "left out": "gdfq_long_label"}
games = {name: lab.load_recording(recording) for name, recording in long.items()}
one = games["averaged"]
images = torch.from_numpy(one.images).view(-1, 1, 28, 28) / 255
rounds = [str(at) for at in one.image_rounds]
lab.show(lab.figures.image_grid(images, names, rows=rounds, title="G goes on", x="class asked for", y="round"))

# %% [markdown]
# *Read it:* from round 300 on the columns differ: each class has strokes of its own. Nobody showed G a picture; and nobody
# would take these for clothes.

# %%
lab.show(lab.figures.loss_curves(one.history, title="GDFQ's loss terms"))

# %% [markdown]
# *Read it:* G's BN term falls first, within fifty rounds, and stays; its label term takes hundreds. Q's terms begin with Q, in
# round 600. After 1,200 rounds:

# %%
rounded = lab.quantize(P, "3w3a")
with torch.no_grad():
    rounded(torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)))  # ranges from noise, as in notebook 00
everything = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else None)
print(f"P                    {lab.accuracy(P, everything, P.normalize)}")
print(f"Q, only rounded      {lab.accuracy(rounded, everything, P.normalize)}")
print(f"Q, after GDFQ        {one.meta['final']['test.accuracy']:.2f} % of {one.meta['final_on']}")
print(f"P recognises {one.meta['recognised']} % of the images that G makes in the end")

# %% [markdown]
# The real images served for nothing but these measurements. Most of the rise is not learning yet: images of G, unlike
# noise, show Q what range its activations take. Read the third line as what imagined images are worth, not as what Q's
# steps added.

# %% [markdown]
# ## 4 · How much memory? (7 minutes)
# What does L_BNS do? Leave it out, and compare. A method is a record of functions, so a new one is a line: the same, with
# another loss of G. The third game adds L_BNS up as Eq. (11) prints it: in round 0 that is 700 times as much.


# %%
def label_only(r):
    """GDFQ's loss of G without L_BNS."""
    return {"label": F.cross_entropy(r.teacher_logits, r.labels)}


forgetful = dataclasses.replace(lab.gdfq(), name="GDFQ without L_BNS", generator_loss=label_only)
other = lab.Game(P, lab.quantize(P, "3w3a"), forgetful, seed=0, schedule=schedule)
print({name: round(float(term), 2) for record in other.play(1) for name, term in record.terms.items()})

# %% [markdown]
# So it runs. 1,200 rounds of each kind, recorded; all three began with the same G and the same noise:

# %%
last = torch.stack([torch.from_numpy(one.images[-1]) for one in games.values()]).view(-1, 1, 28, 28) / 255
words = {"title": "Three ways to remember", "x": "class asked for", "y": "L_BNS"}
lab.show(lab.figures.image_grid(last, names, rows=list(games), **words))

# %% [markdown]
# *Read it:* without L_BNS there are stripes from edge to edge, and they hardly differ from those with L_BNS *averaged*: a tenth
# of a mean is little beside the label term. Summed, it makes compact light shapes on a dark ground, as clothes are.

# %%
for name, one in games.items():
    final = one.meta["final"]["test.accuracy"]
    mean = sum(one.meta["bns"]) / len(one.meta["bns"])
    print(f"{name:9} P recognises {one.meta['recognised']} %; L_BNS {mean:.4f}; Q is right on {final:.2f} %")
    distances[f"L_BNS {name}"] = one.meta["bns"]
lab.show(lab.figures.bns_by_layer(distances))

# %% [markdown]
# *Read it:* summed, the images lie nearest to P's memory; averaged, they are a little nearer than without L_BNS. P recognises
# as many stripes as anything else: **being recognised is easy, being typical is not.** The Q that learned from the most typical
# images is right most often, though P recognises fewest of them. But nearer is not always better: averaged, Q is right on fewer
# images than without L_BNS. One seed, one small task, so no proof; but it is what the paper's Table 3 says of AdaDFQ on
# ImageNet: 20.99 % without L_BNS, 38.10 % with it.

# %% [markdown]
# ## 5 · Real and imagined (5 minutes)
# The first real image of each class beside the last imagined ones.

# %%
first = torch.stack([data.images[int((data.labels == c).nonzero()[0])] for c in range(10)]).float() / 255
both = torch.cat([first, torch.from_numpy(games["summed"].images[-1]).unsqueeze(1) / 255])
words = {"title": "Real and imagined", "x": "class", "y": "images"}
lab.show(lab.figures.image_grid(both, names, rows=["real", "imagined"], **words))

# %% [markdown]
# *Read it:* nobody would sell these clothes. They need not be beautiful: they need to make P and Q produce the logits Q must
# learn. Which of them *this* Q should learn from, GDFQ does not ask. The next notebook does.

# %% [markdown]
# ## Quiz
# Open an answer to see whether it is right, and why.

# %%
lab.quiz("03")

# %%
lab.progress()

# %% [markdown]
# ## What you can now do
# - Compute L_BNS of a batch, in the paper's form and the released one, and say what each sums or averages.
# - Say how a class enters the generator, and why to ask for mixed batches.
# - Write and run GDFQ, change its loss in a line, and say what G's loss does not contain.
# - Judge generated images by what they do to P and Q rather than by their looks.
#
# Next: [04 · The zero-sum game](04_zero_sum_game.ipynb), in which Q gets a say in what is generated.
