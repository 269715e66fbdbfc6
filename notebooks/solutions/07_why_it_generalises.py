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
# # 07 · Why it generalises
#
# *Solution copy.*
#
# Section 2.4 of the paper explains with a bound from statistical learning theory why samples of middling adaptability
# should be best, and Fig. 1 shows what goes wrong otherwise. This notebook makes the bound something to drag, and measures
# Fig. 1.
#
# **Objectives.** You will be able to write the bounds of Eq. (14) to (17) and to tell estimation from approximation error;
# to say what such a bound can and cannot explain; and to recognise under- and overfitting in two curves, or their absence.
#
# **Prerequisites.** The game (04), the band (06).
#
# **Minutes.** 1 A bound: 8 · 2 Adding up: 8 · 3 What it explains: 8 · 4 Fig. 1: 10 · 5 Overfitting: 6 · 6 Your own game: 15 ·
# 7 Live: 5
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | R(f_q) - R(f_r) | `lab.bound_total(n, ...)` | excess error of Q over the labels | Eq. (14), (17) |
# | R(f_p) - R(f_r) | `lab.bound_teacher_label(...)` | that of P | Eq. (15) |
# | R(f_q) - R(f_p) | `lab.bound_student_teacher(...)` | Q against P | Eq. (16) |
# | abs(F_q)_C, n, α_qp | `capacity_q`, `n`, `rate_qp` | capacity, number of samples, learning rate | Eq. (16) |
# | ε_qp | `epsilon_qp` | approximation error: what Q cannot follow | Eq. (16) |

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
# ## 1 · A bound (8 minutes)
# Learning theory splits the error of a learner into two parts: how far the *best* function it could choose is off
# (approximation error ε), and how far the one it *did* choose from n samples is from that best (estimation error). Eq. (14)
# to (16) all read
#
# $$R(f) - R(f') \le O(|F|_C / n^{\alpha}) + \varepsilon, \qquad \tfrac12 \le \alpha \le 1.$$
#
# The rate α is near ½ (slow) where samples carry much information for Q and near 1 (fast) where they carry little.

# %%
import numpy as np
import torch
import torch.nn.functional as F

n = np.logspace(1, 6, 61)
rates = {f"alpha = {alpha}": 8 / n**alpha for alpha in (0.5, 0.75, 1.0)}  # capacity 8, constant 1
alt = "Three falling curves of the estimation error against log10 n; the larger the rate, the faster they fall."
lab.show(lab.figures.curves(rates, np.log10(n), title="Estimation error", x="log10 n", y="8 / n^α", alt=alt))

# %% [markdown]
# *Read it:* with α = 1 a thousand samples leave 0.008 of a capacity of 8; with α = ½ it takes a million. Note what is on
# the axes: n is the number of *generated* samples, and capacity and constant are not known for any network of interest.

# %% [markdown]
# ### Exercise 1 ●○○ (2 minutes): estimation error
# |F|_C / n^α with the constant 1.


# %% tags=["stub"]
def estimation_error(capacity, n, rate):
    error = ...
    raise NotImplementedError("the first term of Eq. (14)")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def estimation_error(capacity, n, rate):
    return capacity / n**rate


# %%
lab.check.estimation_error(estimation_error)

# %% [markdown]
# ### Exercise 2 ●●○ (3 minutes): how many samples?
# At which n is the estimation error `target`? A real number will do: do not round.


# %% tags=["stub"]
def samples_needed(capacity, rate, target):
    n = ...
    raise NotImplementedError("solve capacity / n**rate = target for n")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def samples_needed(capacity, rate, target):
    return (capacity / target) ** (1 / rate)


# %%
lab.check.samples_needed(samples_needed)

# %% [markdown]
# ## 2 · Adding up (8 minutes)
# Q never sees a label. It learns from P, which learned from labels, so Eq. (17) inserts R(f_p) and adds Eq. (15) and (16):
#
# $$R(f_q) - R(f_r) \le O(|F_q|_C / n^{\alpha_{qp}}) + O(|F_p|_C / n^{\alpha_{pr}}) + \varepsilon_{qp} + \varepsilon_{pr}$$
#
# ### Exercise 3 ●○○ (3 minutes): the bound of Eq. (17)
# All constants 1. The arguments are n, then capacity, rate and ε of Q against P, then those of P against the labels.


# %% tags=["stub"]
def error_bound(n, c_q, rate_q, eps_q, c_p, rate_p, eps_p):
    estimation = ...
    raise NotImplementedError("Eq. (17)")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def error_bound(n, c_q, rate_q, eps_q, c_p, rate_p, eps_p):
    estimation = c_q / n**rate_q + c_p / n**rate_p
    return estimation + eps_q + eps_p


# %%
lab.check.error_bound(error_bound)

# %%
known = {"capacity_p": 8.0, "rate_pr": 0.8, "epsilon_pr": 0.05}
by_hand = 8 / 1e4**0.6 + 8 / 1e4**0.8 + 0.1 + 0.05
assert np.isclose(by_hand, lab.bound_total(1e4, capacity_q=8.0, rate_qp=0.6, epsilon_qp=0.1, **known))
print(f"at n = 10,000 the bound is {by_hand:.3f}")

# %% tags=["figure"]
lab.error_bound_explorer()

# %% [markdown]
# *Read it:* drag ε_qp: the whole curve shifts, and no number of samples helps. Drag α_qp: the curve's slope changes, and with a
# million samples nothing of it is left. P's own terms, capacity 8, α = 0.8 and ε = 0.05, are held fixed.

# %% [markdown]
# ## 3 · What the bound explains, and what it does not (8 minutes)
# The paper's argument: samples of *too large* H' (P and Q agree) make ε_qp small in training and the estimation error large
# in testing, overfitting; samples of *too small* H' make both large, underfitting. The band avoids both.
#
# Three things to notice before you believe it:
#
# 1. Eq. (14) prints α_qp where its text defines α_qr; the text is meant.
# 2. By the text, samples with little information have the *fast* rate, α near 1, for which the estimation error is *small*.
#    The argument for overfitting calls the estimation error of the same samples *large*. Both cannot follow from one
#    formula.
# 3. ε is a property of the class of functions that Q can be; changing samples changes n, α or what Q chooses, but a network
#    of 3 bits stays the network of 3 bits.

# %%
easy = lab.decompose_bound(n, capacity_q=8.0, rate_qp=1.0, epsilon_qp=0.02, **known)
hard = lab.decompose_bound(n, capacity_q=8.0, rate_qp=0.5, epsilon_qp=0.2, **known)
pair = {"easy samples (α = 1, ε = 0.02)": easy.total, "hard samples (α = ½, ε = 0.2)": hard.total}
alt = "Two falling curves; the one of easy samples lies below the other for every n."
lab.show(lab.figures.curves(pair, np.log10(n), title="Eq. (17) taken at its word", x="log10 n", y="bound", alt=alt))

# %% [markdown]
# *Read it:* taken at its word the bound prefers easy samples at every n: it has no term that says they teach nothing. It
# *describes* two ways to fail, and the band is a reasonable answer to them, but it does not *derive* the band. That needs
# measuring.

# %% [markdown]
# ## 4 · Fig. 1, measured (10 minutes)
# The paper's Fig. 1 compares GDFQ and AdaDFQ on MobileNetV2 and ImageNet: training loss, on generated images, and testing
# loss, on real ones. *Underfitting*: both stay large. *Overfitting*: the training loss is small, the testing loss is not.
#
# Recorded here: ResNet-20 on Fashion-MNIST; cross-entropy of Q every 30 rounds, on 64 generated images with the classes
# asked of G and on 500 real ones. Q's learning rate is 1e-3 for AdaDFQ and 1e-4 for GDFQ, whose loss is steeper.

# %%
files = [(f"{name} {bits} bits", f"{name.lower()}_{bits}w{bits}a") for bits in (3, 5) for name in ("AdaDFQ", "GDFQ")]
whole = {name: lab.load_recording(file).history for name, file in files}
histories = {name: history.upto(150) for name, history in whole.items()}
some = histories["AdaDFQ 3 bits"]
at = np.isfinite(some["test.loss"]) & (some["round"] > 10)
tests = {name: history["test.loss"][at] for name, history in histories.items()}
ends = ", ".join(f"{name} {values[-1]:.2f}" for name, values in tests.items())
labels = {"x": "round", "y": "loss on real images [nats]", "alt": f"Testing loss of four runs; it ends at: {ends}."}
lab.show(lab.figures.curves(tests, some["round"][at], title="Testing loss", **labels))

# %% [markdown]
# *Read it:* 5 bits lie below 3, and at either width AdaDFQ ends below GDFQ. Q begins to learn in round 60. From there on
# AdaDFQ's 3-bit student stays about where observed activation ranges alone had brought it. GDFQ's seems to get worse, but that
# is where this figure ends. The recordings at 3 bits go on:

# %%
for name in ("AdaDFQ 3 bits", "GDFQ 3 bits"):
    losses = whole[name]["test.loss"][[59, 149, 299]]
    print(f"{name:14} testing loss after 60, 150, 300 rounds:", ", ".join(f"{loss:.2f}" for loss in losses))

# %% [markdown]
# By round 300 GDFQ's testing loss is as low as before Q's first step. One measurement is not a trend.

# %%
trains = {name: history["train.loss"][at] for name, history in histories.items()}
ends = ", ".join(f"{name} {values[-1]:.2f}" for name, values in trains.items())
labels = {"x": "round", "y": "loss on generated images [nats]", "alt": f"Training loss; it ends at: {ends}."}
lab.show(lab.figures.curves(trains, some["round"][at], title="Training loss", **labels))

# %% [markdown]
# *Read it:* GDFQ's training loss falls at either width, AdaDFQ's less. Does AdaDFQ's Q underfit, then? Before you say
# so, ask what P itself would score on images of this G, by the classes that G was asked for.

# %%
people = lab.load_population()  # 480 images of the G of AdaDFQ 3 bits, after 300 rounds
z_p, y = torch.from_numpy(people.teacher_logits), torch.from_numpy(people.labels)
print(f"P: {F.cross_entropy(z_p, y):.2f} nats, and sees the class asked for in {(z_p.argmax(1) == y).float().mean():.0%}")
for name, history in whole.items():
    test, train, accuracy = (history[column][-1] for column in ("test.loss", "train.loss", "test.accuracy"))
    print(f"{name:14} training {train:.2f}, testing {test:.2f} nats, accuracy {accuracy:.1f} % after {len(history)} rounds")

# %% [markdown]
# P scores no better than Q: this G serves L_BNS first (notebook 06, section 4) and has not learned yet to make classes. A
# training loss by the classes asked for then measures G, not Q.
#
# Set this beside the paper's Fig. 1. A training loss that falls while the testing loss does not is the shape of *overfitting*:
# GDFQ has it at both widths, also at 3 bits, where the paper has it *underfit*. There is no underfitting here, for a
# 3-bit ResNet-20 on Fashion-MNIST loses 4 points where a 3-bit MobileNetV2 on ImageNet loses nearly everything. That AdaDFQ
# ends lower in testing loss at both widths is as in the paper; after 300 rounds and on all 2,000 images the 3-bit accuracies
# are within each other's interval. **At this scale Fig. 1 is not reproduced**, but for the order of its testing losses.

# %%
for name in ("adadfq_3w3a", "gdfq_3w3a"):
    top1 = lab.load_recording(name).meta["final"]["test.accuracy"]
    low, high = lab.wilson(round(20 * top1), 2000)
    print(f"{name:12} after 300 rounds {top1:.1f} % [{low:.1f}, {high:.1f}] on 2,000 images")

# %% [markdown]
# ## 5 · Agreement is not knowledge (6 minutes)
# Overfitting in the paper's sense, agreement on generated samples without improvement on real ones, can be looked for
# directly: plot how often Q says what P says, on generated and on real images.

# %%
five = histories["AdaDFQ 5 bits"]
width = 30
generated = [five["agreement"][max(0, i - width) : i + 1].mean() for i in np.flatnonzero(at)]
shares = {"generated": generated, "real": five["test.agreement"][at]}
ends = ", ".join(f"{name} {values[-1]:.2f}" for name, values in shares.items())
labels = {"x": "round", "y": "share on which Q says what P says", "alt": f"Agreement of Q with P; it ends at: {ends}."}
lab.show(lab.figures.curves(shares, five["round"][at], title="AdaDFQ, 5 bits", **labels))
for name in ("AdaDFQ 5 bits", "GDFQ 5 bits"):
    print(f"{name}: Q says what P says on {whole[name]['agreement'][-30:].mean():.0%} of the last generated images")

# %% [markdown]
# *Read it:* on real images the 5-bit Q says what P says in about 99 of 100 cases, on generated ones in less than nine of ten.
# G's images are unlike real ones, and P and Q differ more on them. That alone does not show that G looked for disagreement:
# GDFQ's G, which is never told about Q, makes images on which they differ as well (printed below the figure). High agreement on
# generated images would be no evidence of a good Q, and lower agreement, as here, is none of a bad one.

# %% [markdown]
# ## 6 · Your own game (15 minutes)
# You have written every part of AdaDFQ by now. One is missing: the round in which they meet.
#
# ### Exercise 4 ●●● (10 minutes): a whole round
# `G(z, y)` makes images, `P(x)` returns (logits, statistics), `Q(x)` logits. G takes one step down Eq. (12): hinge, L_bal and
# L_BNS, as `lab.generator_objective`, `lab.loss_balance` and `lab.loss_bns` have them. Then Q takes one step down Eq. (13),
# `lab.game_value`, on the images as they were before G's step. Each player moves on its own loss only, and old gradients must
# not count. H' is `lab.normalized_entropy(lab.disagreement_entropy(z_p, z_q), classes)`. Return both losses.


# %% tags=["stub"]
def play_round(G, P, Q, optimizer_g, optimizer_q, z, y, bounds):
    """One round of AdaDFQ: both players step once; returns (loss of G, loss of Q)."""
    x = ...
    raise NotImplementedError("make images, look at them, step G, then step Q")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def play_round(G, P, Q, optimizer_g, optimizer_q, z, y, bounds):
    """One round of AdaDFQ: both players step once; returns (loss of G, loss of Q)."""
    x = G(z, y)
    z_p, statistics = P(x)
    z_q, classes = Q(x), z_p.shape[1]
    h_prime = lab.normalized_entropy(lab.disagreement_entropy(z_p, z_q), classes)
    loss_g = lab.generator_objective(h_prime, lab.loss_balance(z_p, z_q, y), lab.loss_bns(statistics), bounds)
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()
    entropy = lab.disagreement_entropy(z_p.detach(), Q(x.detach()))
    loss_q = lab.game_value(lab.normalized_entropy(entropy, classes))
    optimizer_q.zero_grad()
    loss_q.backward()
    optimizer_q.step()
    return loss_g, loss_q


# %%
lab.check.play_round(play_round)

# %% [markdown]
# Now everything you wrote plays: 17 functions from notebooks 01 to 07, those that a check accepted. For the others you borrow
# the library's. Beside yours plays the library's game, from the same weights and with the same draws. **Predict first:** in
# which round will the losses differ, if in any? It takes some ten seconds.

# %%
lab.capstone()

# %% [markdown]
# *Read it:* a row for the first and last rounds, then which functions are yours. If all rounds are equal, you have written
# AdaDFQ. If the games part, look at a function of yours that is only nearly right: a few rounds amplify a small difference.
# What would change if Q stepped before G? In which round would it show?
#
# ## 7 · Measure it yourself (5 minutes)
# Change the method, the bits or the learning rate and compare: `lab.gdfq()`, "5w5a", `student_lr=1e-4`.

# %%
P = lab.load_teacher("fashion_mnist_resnet20")
schedule = lab.Schedule(batch=16, warmup=10, observe=40, student_lr=1e-3)
game = lab.Game(P, lab.quantize(P, "3w3a"), lab.adadfq(), schedule=schedule, seed=2)

# %% tags=["live"]
real = lab.load_data("fashion_mnist", stub=True).take(300)
run = lab.LiveRun(game, rounds=120, data=real, evaluate_every=30)
run.start()

# %% [markdown]
# *Read it:* the dots of the last panel are Q's accuracy on real images: most of what 3-bit rounding had cost comes back in
# the first 30 rounds, while activation ranges are observed and before Q has learned much.

# %%
run.then(
    lambda history: f"<p>{len(history)} rounds; accuracy measured: {history['test.accuracy'][history['test.accuracy'] > 0]}</p>"
)

# %%
lab.quiz("07")

# %% [markdown]
# ## What you can now do
# - write Eq. (14) to (17), and say which part shrinks with samples and which does not;
# - name the two places where the paper's argument disagrees with its own formulas;
# - tell under- from overfitting by a pair of curves, and say when the curves show neither;
# - play a round of AdaDFQ with functions of your own.
#
# Next: [08 · Eight methods, one protocol](08_eight_methods.ipynb).
