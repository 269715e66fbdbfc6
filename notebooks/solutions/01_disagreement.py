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
# # 01 · Disagreement
#
# *Solution copy.*
#
# A teacher P and a student Q look at the same image. How much do they disagree, in one number? This notebook writes that number
# by hand, Eq. (1) to (3) of the paper, and finds out what it sees and what it does not.
#
# **Objectives.** You will be able to write p_ds, H_info, H' and the adaptability H_nor; to say why H' depends on a sample's
# company; and to say which end of H' invites underfitting and which overfitting.
#
# **Prerequisites.** Softmax, entropy, a little PyTorch; notebook 00 for how checks work.
#
# **Minutes.** 1 Two opinions: 6 · 2 Eq. (1): 8 · 3 Eq. (2): 8 · 4 What H sees: 6 · 5 Eq. (3): 10 · 6 Which end is which: 7
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | P, Q | `P`, `Q` | teacher, student: the same network on few bits | section 2 |
# | z_p, z_q | `z_p`, `z_q` | their logits on the same images, shape (N, C) | Def. 1 |
# | p_ds | `lab.p_ds(z_p, z_q)` | where P sees a class and Q does not, (N, C) | Eq. (1) |
# | H_info | `lab.entropy(p)`, `lab.disagreement_entropy(z_p, z_q)` | its entropy in nats, (N,) | Eq. (2) |
# | H' | `lab.normalized_entropy(H, C)` | H_info on the scale 0 to 1, (N,) | Eq. (3) |
# | H_nor | `lab.adaptability(h_prime)` | 1 - H', how much a sample has to teach Q | Eq. (3) |

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
# ## 1 · Two opinions (6 minutes)
# P is a ResNet-20 trained on Fashion-MNIST. Q is the same network with weights and activations rounded to a few bits; how
# that is done is notebook 02. Here Q has learned nothing since it was rounded, and all we need are logits.
#
# The images are the ones shipped with the package. The method itself never sees a real image: it makes its own. We use real
# ones because everybody can tell what they show.

# %%
import math

import torch

P = lab.load_teacher("fashion_mnist_resnet20")
data = lab.load_data("fashion_mnist", stub=True).take(96 if lab.fast() else 320)
x = P.normalize(data.images)


def student_logits(bits):
    """Logits of a student of so many bits on x, fresh from rounding, shape (N, C)."""
    Q = lab.quantize(P, f"{bits}w{bits}a")
    with torch.no_grad():
        Q(x[:96])  # the first batch shows it what range its activations take
        with Q.frozen():
            return Q(x)


# %%
z_p = P(x)
z_of = {bits: student_logits(bits) for bits in (2, 3, 5, 8)}
z_q = z_of[3]  # the student of this notebook, unless said otherwise
N, C = z_p.shape
same = z_p.argmax(dim=-1) == z_q.argmax(dim=-1)
print(f"{N} images, {C} classes; at 3 bits Q says what P says on {100 * same.float().mean():.1f} % of them")

# %% [markdown]
# The two networks mostly say the same. By **Definition 1** a *disagreement sample* is one that P gets right and on which Q
# says something else. Let us take the first one.

# %%
right = z_p.argmax(dim=-1) == data.labels
i = int((right & ~same).nonzero()[0])
softmaxes = {"P": z_p[i].softmax(dim=-1), "Q": z_q[i].softmax(dim=-1)}
lab.show(lab.figures.probability_bars(softmaxes, data.classes, title=f"Image {i}: {data.classes[data.labels[i]]}"))

# %% [markdown]
# *Read it:* each network has its favourite, and they differ. A yes or no ("same class?") would throw away how far apart the two
# are, and it has no gradient. A generator that is to *learn* to make such images needs a number that changes smoothly.

# %% [markdown]
# ## 2 · Eq. (1): where they disagree (8 minutes)
# The paper encodes the disagreement as a probability vector:
#
# $$p_{ds} = \operatorname{softmax}(z_p - z_q) \in \mathbb{R}^C \tag{1}$$
#
# It is large for a class that P favours *more than Q does*. By hand, for one image:

# %%
d = z_p[i] - z_q[i]
by_hand = d.exp() / d.exp().sum()
assert torch.allclose(by_hand, lab.p_ds(z_p[i], z_q[i]))

# %% [markdown]
# ### Exercise 1 ●○○ (3 minutes): p_ds for a batch
# Write Eq. (1) for logits of shape (N, C). Which dimension does the softmax run over?


# %% tags=["stub"]
def p_ds(z_p, z_q):
    """softmax(z_p - z_q), shape (N, C). Eq. (1)."""
    difference = ...
    raise NotImplementedError("take the softmax of the difference over classes")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def p_ds(z_p, z_q):
    """softmax(z_p - z_q), shape (N, C). Eq. (1)."""
    return torch.softmax(z_p - z_q, dim=-1)


# %%
lab.check.p_ds(p_ds)

# %%
lab.show(lab.figures.probability_bars({**softmaxes, "p_ds": lab.p_ds(z_p[i], z_q[i])}, data.classes, title=f"Image {i}"))

# %% [markdown]
# *Read it:* p_ds puts its weight where P is surer than Q. It is not a mixture of the other two: a class that both find
# impossible may still get weight, if Q finds it *more* impossible than P does.

# %% [markdown]
# ## 3 · Eq. (2): how much they disagree (8 minutes)
# A vector is not a number yet. The paper takes its entropy:
#
# $$\mathcal{H}_{info}(p_{ds}) = \sum_{c=1}^C p_{ds}(c) \log \frac{1}{p_{ds}(c)} \tag{2}$$
#
# If all of p_ds sits on one class, the entropy is 0: there is one class on which they differ by far. If P and Q agree,
# z_p - z_q = 0, p_ds is uniform, and the entropy is the largest there is, log C. So **large entropy is agreement**. That is the
# wrong way round for most first readers; say it aloud once.
#
# ### Exercise 2 ●●○ (4 minutes): the entropy of a probability vector
# One number for each row, in nats (natural logarithm). Mind p = 0: there, 0 log 0 is 0, but a computer says NaN.


# %% tags=["stub"]
def entropy(p):
    """sum_c p(c) log 1/p(c), shape (N,), for p of shape (N, C). Eq. (2)."""
    terms = ...
    raise NotImplementedError("sum p log 1/p over classes, with 0 log 0 = 0")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def entropy(p):
    """sum_c p(c) log 1/p(c), shape (N,), for p of shape (N, C). Eq. (2)."""
    safe = torch.where(p == 0, 1, p)
    return -(p * safe.log()).sum(dim=-1)


# %%
lab.check.entropy(entropy)

# %% [markdown]
# From here on we use the library. `disagreement_entropy` is Eq. (2) of Eq. (1) straight from logits, which avoids the NaN.

# %%
H = lab.disagreement_entropy(z_p, z_q)
assert torch.allclose(H, lab.entropy(lab.p_ds(z_p, z_q)), atol=1e-5)
groups = {"3 bits": H, "5 bits": lab.disagreement_entropy(z_p, z_of[5])}
lab.show(lab.figures.histograms(groups, title="Entropy of real images", x="H_info [nats]", limits=(0, math.log(C))))

# %% [markdown]
# *Read it:* nothing lies right of log 10 = 2.30 nats. The 5-bit student crowds against that wall: it agrees with P almost
# everywhere. The 3-bit student is spread over the whole scale.

# %% [markdown]
# ## 4 · What H sees, and what it does not (6 minutes)
# Move P's and Q's logits yourself and watch p_ds and H_info (the H' shown beside it is H_info / log C; section 5 defines it).
# Two things to try: add the same number to all of Q's logits;
# then make Q's logits half of P's.

# %% tags=["figure"]
lab.logit_playground()

# %% [markdown]
# *Read it:* raising all of Q's logits together changes nothing, since a softmax cannot see a constant. Halving them changes H,
# though P and Q still say the same class. The same two facts on all our images:

# %%
calm = z_p / 2  # a student that is right about everything and half as sure
print(f"Q = P + 5: entropy {lab.disagreement_entropy(z_p, z_p + 5).mean():.3f}, the largest is {math.log(C):.3f} nats")
print(f"Q = P / 2: entropy {lab.disagreement_entropy(z_p, calm).mean():.3f}, yet all {N} classes agree")

# %% [markdown]
# So "P and Q agree" in the sense of Eq. (2) means *equal logits up to a constant*, which is more than *equal class*. A student
# that is less sure than P counts as disagreeing, and Eq. (13) will push it to be as sure as P.

# %% [markdown]
# ## 5 · Eq. (3): on a scale from 0 to 1 (10 minutes)
# log C depends on the data set, so the paper normalises:
#
# $$\mathcal{H}'_{info} = \frac{\mathcal{H}_{info} - \min(\mathcal{H}_{info})}{\log C - \min(\mathcal{H}_{info})}, \qquad
# \mathcal{H}_{nor} = 1 - \mathcal{H}'_{info} \tag{3}$$
#
# The maximum is the constant log C; the minimum is **that of the batch**. H_nor is the sample's *adaptability*.
#
# ### Exercise 3 ●●○ (4 minutes): H'
# `H` holds the entropies of one batch, `num_classes` is C. Return H', shape (N,).


# %% tags=["stub"]
def normalized_entropy(H, num_classes):
    """(H - H_min) / (log C - H_min), shape (N,). Eq. (3)."""
    lowest, highest = ..., ...
    raise NotImplementedError("put H on the scale from the batch's minimum to log C")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def normalized_entropy(H, num_classes):
    """(H - H_min) / (log C - H_min), shape (N,). Eq. (3)."""
    lowest, highest = H.min(), math.log(num_classes)
    return (H - lowest) / (highest - lowest)


# %%
lab.check.normalized_entropy(normalized_entropy)

# %% [markdown]
# Why does the minimum of the *batch* matter? Take one sample and put it into two batches of 16. Its logits stay the same.

# %%
company_1, company_2 = H[:16], torch.cat([H[:1], H.topk(15).values])
for name, batch in (("with its neighbours", company_1), ("among samples P and Q agree on", company_2)):
    print(f"H = {batch[0]:.2f} nats is H' = {lab.normalized_entropy(batch, C)[0]:.2f} {name}")

# %% [markdown]
# H' says where a sample stands *among these N*; the smallest always has H' = 0. What that does to a comparison of students is
# best seen beside the alternative with the floor 0, `floor="zero"`, which gives a sample the same H' in any company.

# %%
medians = {"minimum of the batch, Eq. (3)": [], "0, comparable between batches": []}
for z_b in z_of.values():
    batches = lab.disagreement_entropy(z_p, z_b).split(16)
    for values, floor in zip(medians.values(), ("batch", "zero"), strict=True):
        values.append(torch.cat([lab.normalized_entropy(h, C, floor=floor) for h in batches]).median())
labels = {"x": "bits of weights and activations", "y": "median H' over batches of 16"}
lab.show(lab.figures.curves(medians, list(z_of), title="What H_min is, matters", **labels))

# %% [markdown]
# *Read it:* with the floor 0, H' tells students apart: 2 bits near 0, 8 bits at 1. With the batch's minimum, the 5-bit and the
# 8-bit student look alike, and neither gets near 1: however well they agree with P, *some* sample of the batch has H' = 0. H'
# in Eq. (3) is relative to the batch's worst sample. Keep this in mind when a band is drawn around it in notebook 06.

# %% [markdown]
# ## 6 · Which end is which (7 minutes)
# The paper wants H' neither too small nor too large: between λ_l and λ_u. Which end of Fig. 2 is underfitting and which is
# overfitting is easily confused; section 2.2 of the paper says it in words, and the definitions above agree:
#
# - **H' near 0** is disagreement. The sample asks more than a weak Q can follow: *underfitting*.
# - **H' near 1** is agreement. The sample has nothing left to teach; Q's loss is small while it still errs elsewhere:
#   *overfitting*.
#
# In terms of adaptability H_nor = 1 - H' it is the other way round, which is where the confusion comes from.
#
# ### Exercise 4 ●○○ (3 minutes): name the side
# For each H', return -1 if the sample is at or beyond the bound that invites underfitting, +1 for overfitting, 0 within, as
# integers (`.long()`). `bounds.lower` is λ_l, `bounds.upper` is λ_u.


# %% tags=["stub"]
def fitting_risk(h_prime, bounds):
    """-1 underfitting, +1 overfitting, 0 within the band; int64, shape (N,)."""
    too_hard, too_easy = ..., ...
    raise NotImplementedError("compare H' with both bounds")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def fitting_risk(h_prime, bounds):
    """-1 underfitting, +1 overfitting, 0 within the band; int64, shape (N,)."""
    too_hard, too_easy = h_prime <= bounds.lower, h_prime >= bounds.upper
    return too_easy.long() - too_hard.long()


# %%
lab.check.fitting_risk(fitting_risk)

# %% [markdown]
# That was the definition. Here is the measurement: how much is there to learn from a sample with a given H'? Q learns by
# following P, so we take the divergence of their predictions, KL(P ‖ Q), for each real image and three students.

# %%
points = {}
for bits in (2, 3, 5):
    z_b = z_of[bits]
    kl = (z_p.softmax(-1) * (z_p.log_softmax(-1) - z_b.log_softmax(-1))).sum(-1)
    points[f"{bits} bits"] = (lab.normalized_entropy(lab.disagreement_entropy(z_p, z_b), C, floor="zero"), kl)
lab.show(lab.figures.ends_of_the_band(points, lab.Bounds(0.1, 0.8)))
for name, (h, kl) in points.items():
    ends = {"H' <= λ_l": kl[h <= 0.1], "H' >= λ_u": kl[h >= 0.8]}
    print(name, *(f"{len(end)} with {where}: {end.mean():.3f} nats" for where, end in ends.items() if len(end)), sep="; ")

# %% [markdown]
# *Read it:* at the left end the divergence is several nats and comes from the 2-bit student: these samples ask most of the
# student that can follow least. At the right end it is far smaller (the printed means): a 5-bit student has little to learn
# from such samples. Nothing was trained here; the figure shows what a sample asks for. Left invites underfitting, right
# overfitting.

# %%
h_prime = torch.cat([lab.normalized_entropy(h, C) for h in H.split(16)])
lab.show(lab.figures.entropy_histogram(h_prime, lab.Bounds(0.1, 0.8), title="3 bits, real images, λ_l = 0.1, λ_u = 0.8"))
print(f"mean adaptability E[1 - H'] = {lab.adaptability(h_prime).mean():.3f}, the value of the game in Eq. (4)")

# %% [markdown]
# *Read it:* these are images nobody chose for this student, and already most lie within the paper's default band; the samples
# on either side are what G will be asked to avoid. That the leftmost bar is never empty is the batch minimum again.

# %% [markdown]
# ## Quiz
# Open an answer to see whether it is right, and why.

# %%
lab.quiz("01")

# %%
lab.progress()

# %% [markdown]
# ## What you can now do
# - Write p_ds, H_info, H' and H_nor from logits, and name the library's functions for them.
# - Say why large entropy is agreement, and why a constant added to logits is not seen.
# - Explain why H' of Eq. (3) depends on the batch, and what `floor="zero"` changes.
# - Say which end of H' invites underfitting (0, disagreement) and which overfitting (1, agreement), and show it.
#
# Next: [02 · Quantization](02_quantization.ipynb), where the few bits come from.
