# ---
# jupyter:
#   adadfq_lab:
#     built: e129b2713a91ce75
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from solutions/00_welcome.py, edit there; then: adadfq course build -->
# # 00 · Welcome
#
# A network P was trained on images that are gone: private, lost, or simply too many. You want it on a chip that calculates
# with three bits. Rounding ruins it, repairing it takes data, and there are none. So two networks play a game: one imagines
# images, the other learns from them. In this notebook you play it once, from start to end, before the others take it apart.
#
# **Objectives.** You will know that your machine can run the course; who P, Q and G are; how exercises and quizzes answer;
# and what a game looks like while it is played.
#
# **Prerequisites.** Python, a little PyTorch, what a classifier and a softmax are. No GPU, no download, no paper read yet.
#
# **Minutes.** 1 Your machine: 3 · 2 The players: 11 · 3 How exercises answer: 5 · 4 The game, live: 7 · 5 The game, recorded:
# 6 · 6 Where to go: 1
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | P | `P = lab.load_teacher(...)` | the teacher: trained, full precision, frozen | section 2 |
# | Q | `Q = lab.quantize(P, "3w3a")` | the student: P on few bits | section 2 |
# | G | `game.generator` | the generator: makes images from noise and a class | section 2 |
# | z_p, z_q | `P(x)`, `Q(x)` | their logits, shape (N, classes) | Def. 1 |
# | H' | `record.h_prime` | agreement of P and Q on a sample, 0 to 1 (notebook 01) | Eq. (3) |
# | λ_l, λ_u | `lab.Bounds(0.1, 0.8)` | the band G keeps H' in (notebook 06) | Eq. (10) |

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
# ## 1 · Your machine (3 minutes)
# The lines above say what runs here. If they appeared, everything the course needs is installed. Run a cell with Shift+Enter;
# run them in order. A few habits that help:
#
# - A cell is stopped with the square button, or by Interrupt in the Kernel menu. Nothing here takes longer than three minutes.
# - Below each figure there is a description to unfold, for those who cannot see it and those who want the numbers.
# - `ADADFQ_LAB_FAST=1`, set before the kernel starts, cuts everything short: seconds instead of minutes, and pictures to match.

# %%
import torch

print(f"torch {torch.__version__} uses {torch.get_num_threads()} threads; fast mode is {'on' if lab.fast() else 'off'}")

# %% [markdown]
# ## 2 · The players (11 minutes)
# The whole paper in one picture:

# %%
lab.show(lab.figures.story())

# %% [markdown]
# *Read it:* G turns noise z and a class y into an image x. Teacher P and student Q both look at it. How much they disagree
# goes back as two wishes: G should make images on which they disagree *neither too much nor too little*; Q should disagree
# less.
#
# ### The promise, in a plane
# The same game with players on two inputs, so that all of it can be drawn. A point is an "image", a dot is a sample of G. P,
# whose borders are solid, was trained on three spiral arms of points; they are gone. Q, dashed, is P on 2 bits. Where the
# plane is dark they disagree.
#
# *Predict* before you press play: will the dashed borders move to the solid ones, though nobody shows Q a point of the arms?

# %% tags=["figure"]
plane = lab.plane_explorer(lab.Dials())
untrained = plane.agreement
plane

# %% [markdown]
# The next cell plays on, in case you did not press play, and counts.

# %%
plane.play(20 if lab.fast() else 150)
print(f"P and Q see the same class on {untrained:.1%} of the plane at first")
print(f"and on {plane.agreement:.1%} after {plane.game.index} rounds")

# %% [markdown]
# *Read it:* that is the promise of this course: a student repaired by samples that somebody imagined. The rest is about what
# it costs, when it works, and how one knows. Now with images.
#
# ### P, the teacher
# P is a ResNet-20 trained on Fashion-MNIST, ten classes of clothing. Its training images are *not* here. The 2,000 test
# images that come with the package serve for one thing only: to measure.

# %%
P = lab.load_teacher("fashion_mnist_resnet20")
data = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else 400)
print(f"{P.info.name}: {sum(p.numel() for p in P.parameters()):,} parameters, classes {', '.join(P.info.classes)}")

# %%
names = [name.split("/")[0] for name in data.classes]
first = torch.stack([data.images[int((data.labels == c).nonzero()[0])] for c in range(10)]).float() / 255
lab.show(lab.figures.image_grid(first, names, rows=["real"], title="Test images", x="class", y="images"))

# %% [markdown]
# *Read it:* grey images of 28 x 28 pixels, one of each class. P sees them normalised, and answers with ten logits each:

# %%
x = P.normalize(data.images[:8])
z_p = P(x)
print("logits of the first image:", [f"{v:.1f}" for v in z_p[0].tolist()])
print(f"P says {data.classes[z_p[0].argmax()]}, and it is: {data.classes[data.labels[0]]}")

# %%
teacher = lab.accuracy(P, data, P.normalize)
print(f"P is right on {teacher} of {teacher.images} images")

# %% [markdown]
# The brackets are a 95 % interval: with so few images, a point more or less means nothing. The course gives one everywhere.
#
# ### Q, the student
# Q is P with every weight and every activation rounded to a few bits; `3w3a` says three for each. Rounding is notebook 02.

# %%
Q = lab.quantize(P, "3w3a")
print(Q.report())

# %%
with torch.no_grad():
    Q(torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)))  # noise sets the range of its activations
print(f"Q, rounded and nothing else: {lab.accuracy(Q, data, P.normalize)}")

# %% [markdown]
# Rounding costs most of P's accuracy here: Q has the right weights, nearly, but no idea what to expect, since nothing but
# noise was there to set the range of its activations. It needs images. Real ones are not allowed.
#
# ### G, the generator
# G has never seen an image either. A `Game` puts the three at a table; `lab.adadfq()` is the paper's method.

# %%
schedule = lab.Schedule(batch=16, warmup=40, observe=80, student_lr=1e-4)
game = lab.Game(P, Q, lab.adadfq(), seed=0, schedule=schedule, gains_every=1)
asked = torch.arange(10).repeat(4)  # four images of each class
before = P.denormalize(game.generate(asked))[:10]
parameters = sum(p.numel() for p in game.generator.parameters())
print(f"G has {parameters:,} parameters; its first images have shape {tuple(before.shape)}")

# %% [markdown]
# ## 3 · How exercises answer (5 minutes)
# Each notebook has a few exercises. A cell gives you a function with a gap; you fill it in, run it, and run the check below
# it. The check tries your function on cases you cannot see and answers at once. Wrong is fine: it says what differs and adds a
# hint, one more after each attempt: a nudge, the formula, the code, each behind a fold. Nothing is sent anywhere.
#
# ### Exercise 1 ●○○ (2 minutes): agreement
# `z_p` and `z_q` are logits, shape (N, C). Return the share of samples on which both say the same class, a number from 0 to
# 1. Run the check once before you write anything, to see what it says.


# %% tags=["stub"]
def agreement(z_p, z_q):
    """Share of the samples that P and Q give the same class, 0 to 1."""
    same = ...
    raise NotImplementedError("compare the classes with the largest logit, then average")


# %%
lab.check.agreement(agreement)

# %% [markdown]
# The solution copy of every notebook, in `solutions/`, has the answer folded below its exercise. What passed is kept in
# `my_answers.json` beside the notebook, for the later notebooks: in 07 your functions play a whole game. If your lecturer asks
# for your answers, `lab.hand_in("your name")` writes them to one file.

# %%
lab.progress()

# %% [markdown]
# ## 4 · The game, live (7 minutes)
# The next cell starts the game in the background and comes back at once; the buttons work while it is played. First only G
# moves, to learn what P knows; from round 40 on Q learns as well. It takes half a minute to three, depending on your machine.

# %% tags=["live"]
run = lab.LiveRun(game, rounds=120, data=data.take(200), evaluate_every=40)
run.start()

# %% [markdown]
# *Read it:* in the first panel the mean of H' moves between the two bounds, λ_l = 0.1 and λ_u = 0.8, that G is asked to keep
# to; the second shows all recent samples. Near 1 P and Q agree and Q has nothing to learn; near 0 they disagree more than Q
# can mend. The last panel is the aim: Q on real images. It rises as soon as generated images, not noise, set the range of Q's
# activations.
#
# When it is over (or you pressed Stop), the next cell says what happened.


# %%
def reading(history):
    """One sentence about a run, as HTML."""
    agreed, h = history["agreement"][-20:].mean(), history["h_prime"][-20:].mean()
    return f"<p>{len(history)} rounds. In the last 20, P and Q agreed on {agreed:.0%} of the samples; mean H' {h:.2f}.</p>"


run.then(reading)

# %% [markdown]
# Every plot, table and test of this package reads the same stream of records that you have just watched. By hand it is a
# loop. Two loops must not play one game at a time, so `run.wait()` first waits for the end of yours; in a hurry, press Stop
# before you run this cell.

# %%
run.wait()
for record in game.play(2):
    print(
        f"round {record.index}: H' from {record.h_prime.min():.2f} to {record.h_prime.max():.2f}, terms {sorted(record.terms)}"
    )

# %%
after = P.denormalize(game.generate(asked))[:10]
titles = {"title": "What G imagines", "x": "class asked for", "y": "your game"}
lab.show(lab.figures.image_grid(torch.cat([before, after]), names, rows=["before", "after"], **titles))

# %% [markdown]
# *Read it:* from noise to smooth blotches in a few rounds. They do not look like clothes, and need not: P finds in them,
# layer by layer, the statistics it remembers from its training data. Notebook 03 shows how.

# %%
watched = run.history["test.accuracy"]  # on the first 200 images; Q's first step comes after round 40
print(f"P                         {teacher}")
if len(watched) > 40:
    print(f"Q, calibrated (round 40)  {watched[39]:.1f} % of 200 images")
print(f"Q, learned as well        {lab.accuracy(game.student, data, P.normalize)}")

# %% [markdown]
# Q is usable again, without one real image. Two things did that, and they are worth telling apart. *Calibration*: G's images,
# not noise, set the ranges of Q's activations; no weight changes. *Learning*: from round 40 on, Q's weights follow P. Compare
# the last two lines: which of the two did it here? The next recording played longer and measured both.

# %% [markdown]
# ## 5 · The game, recorded (6 minutes)
# The package carries recorded games, so that a class without time or GPU sees the whole. This one played 300 rounds with the
# same players. Drag through it.

# %% tags=["figure"]
lab.replay("adadfq_3w3a")

# %% [markdown]
# *Read it:* early rounds on the left, later ones on the right; the band stays, the samples move. The same as one static
# picture:

# %%
recording = lab.load_recording("adadfq_3w3a")
lab.show(lab.figures.training_curves(recording.history, title="AdaDFQ at 3 bits, 300 recorded rounds"))

# %% [markdown]
# *Read it:* the mean of H' hardly ever leaves the band; its spread does not shrink, since in every batch *some* sample has
# H' = 0 by definition (notebook 01). P and Q differ on about every third sample to the end: G is not asked to make easy
# ones.

# %%
final, agreed = recording.meta["final"], recording.history["agreement"]
measured = recording.history["test.accuracy"]  # on 500 images, every 30 rounds; Q's first step is in round 60
steps = {"1 round": measured[0], "calibrated, round 60": measured[59], "learned, round 300": measured[299]}
half = [(high - low) / 2 for low, high in (lab.wilson(round(5 * a), 500) for a in steps.values())]
lab.show(lab.figures.bars(steps, title="What calibration gives, and learning", x="Q after", y="accuracy [%]", errors=half))
print(f"P and Q agreed on {agreed[60:90].mean():.0%} of the samples when Q began, on {agreed[-30:].mean():.0%} in the end")
print(f"Q after {recording.meta['rounds']} rounds: {final['test.accuracy']:.2f} % on {recording.meta['final_on']}")
everything = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else None)
print(f"P on the same images: {lab.accuracy(P, everything, P.normalize)}")

# %% [markdown]
# *Read it:* on this easy task calibration gives everything that 500 images can show; what Q learns afterwards does not raise
# its accuracy beyond the interval. A table of methods therefore needs a column for each (notebook 08).
#
# ## 6 · Where to go (1 minute)
# 01 measures disagreement, 02 rounds, 03 imagines; 04 to 07 are the paper's game, its two kinds of sample, its band and why
# it generalises; 08 compares eight methods, 09 trains for real, 10 runs on integers. The [table of contents](index.md)
# links them.

# %% [markdown]
# ## Quiz
# Three questions, ungraded. Open an answer to see whether it is right, and why.

# %%
lab.quiz("00")

# %% [markdown]
# ## What you can now do
# - Run the course on your machine, offline, and stop what you started.
# - Say who P, Q and G are, what each is given and what each wants.
# - Have an exercise checked, and hand in what you passed.
# - Start a game, watch it, stop it, and read H' and accuracy off its figure.
#
# Next: [01 · Disagreement](01_disagreement.ipynb).
