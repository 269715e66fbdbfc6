# ---
# jupyter:
#   adadfq_lab:
#     built: b774ada5ff8c9150
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from solutions/09_full_training.py, edit there; then: adadfq course build -->
# # 09 · Full training on CUDA
#
# Everything so far took minutes and a game that was cut short. The figures of the paper's Table 2 come from 80,000 rounds. This
# notebook plays the same game at that scale: a published schedule by name, its time and memory *before* it starts, a view of
# it while it plays, and a run that loses nothing when it is stopped. On a GPU it plays the recipe for some minutes; on a CPU it
# takes the same path with a shorter schedule.
#
# **Objectives.** You will be able to read a published schedule as rounds, images and updates; to estimate a run's time from ten
# seconds of it; to say where its memory goes, and what to give up when there is too little; to stop, resume and repair a run.
#
# **Prerequisites.** Notebook 04. No GPU is needed; with one, sections 2 to 6 show what it is worth.
#
# **Minutes.** 1 The recipe: 9 · 2 The time: 11 · 3 The memory: 10 · 4 The game, live: 6 · 5 Stopped and resumed: 10 · 6 The
# result: 6
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | | `lab.recipes.recipe(name)` | a published schedule, one cell of Table 2 | section 3.1 |
# | N | `config.schedule.batch` | images a round | |
# | | `config.schedule.warmup` | rounds in which only G learns | |
# | λ_l, λ_u | `config.lower`, `config.upper` | the band, where a recipe moves it | Eq. (10) |
# | | `lab.estimate(config)` | seconds and megabytes, before the run | |
# | | `lab.run(config, folder)` | the whole run, into a folder | |

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
# ## 1 · The recipe (9 minutes)
# A recipe is a method on a cell of Table 2, with what its authors set for it: fifteen for AdaDFQ.

# %%
import contextlib
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

for r in lab.recipes.recipes("adadfq"):
    s = r.config().schedule
    print(f"{r.name:26} warm-up {s.warmup:6,}  Q's rate {s.student_lr:g}  {dict(r.plan.settings)}")

# %% [markdown]
# *Read it:* the paper's text names one set of constants for all; the released configurations do not. ImageNet's ResNets move
# λ_l up to 0.4, and α_ds with the bits. A recipe keeps what was run, so that you can see it.

# %%
recipe = lab.recipes.recipe("cifar10-resnet20-3w3a")
print(lab.recipes.summary(recipe.name, recipe.config())[1])

# %% [markdown]
# Three numbers say how large that is. Work them out for any schedule.
#
# ### Exercise 1 ●○○ (3 minutes): images and updates
# `rounds` in all, of which the first `warmup` train G only; `batch` images a round. Return (images drawn, steps of Q).


# %% tags=["stub"]
def counts(rounds, warmup, batch):
    """(images drawn, student updates)."""
    images = ...
    raise NotImplementedError("who draws in the warm-up, and who steps?")


# %%
lab.check.counts(counts)

# %% [markdown]
# GDFQ draws 200 images a round on CIFAR, AdaDFQ 16. As many updates, a twelfth of the images.

# %%
for name in ("cifar10-resnet20-3w3a", "gdfq-cifar10-resnet20-3w3a", "imagenet-resnet50-3w3a"):
    r = lab.recipes.recipe(name)
    print(f"{name:28} {r.images:12,} images  {r.student_updates:8,} updates of Q")

# %% [markdown]
# ## 2 · The time (11 minutes)
# What of that fits here? With a GPU, the recipe as it stands, on the CIFAR-10 teacher that comes with the package. Without,
# the same schedule on small grey images. A probe plays some seconds of each phase, in a game of its own.

# %%
card = torch.cuda.is_available()
changes = ("teacher=cifar10_resnet20",) if card else ("teacher=fashion_mnist_resnet20", "data=fashion_mnist", "stub=true")
full = lab.recipes.override(recipe.config(), *changes)
found = lab.estimate(full, seconds=1 if lab.fast() else 8)
print(found.table())

# %%
hours = {
    "warm-up": found.warmup_rounds * found.warmup_round / 3600,
    "play": (found.rounds - found.warmup_rounds) * found.play_round / 3600,
    "measuring": found.evaluations * found.evaluation / 3600,
    "saving": found.checkpoints * found.checkpoint / 3600,
}
lab.show(lab.figures.bars(hours, title="Where the hours of 80,000 rounds go", x="part of the run", y="time [h]"))

# %% [markdown]
# *Read it:* nearly all of it is play. Measuring and saving cost little because they are rare; measured after each of the 400
# epochs, as the released code does, they would cost ten times as much.
#
# ### Exercise 2 ●●○ (5 minutes): how long will it take?
# The first `warmup` rounds take `warm_round` seconds each, the others `play_round`. After every `every`-th round (`every`, 2
# `every`, ...) the test images are looked at, which takes `look` seconds, but only past the warm-up. Return seconds.


# %% tags=["stub"]
def total_seconds(rounds, warmup, warm_round, play_round, every, look):
    """Seconds that the whole run takes."""
    looks = ...
    raise NotImplementedError("two phases, each at its own pace, and the looks")


# %%
lab.check.total_seconds(total_seconds)

# %% [markdown]
# Turn it round: how many rounds do the minutes at hand pay for? `shortened` keeps the shares of the schedule.

# %%
budget = 600 if card else 10  # seconds
rounds = 8 if lab.fast() else min(full.rounds, max(60, int(budget / found.play_round)))
config = lab.recipes.shortened(full, rounds)
changed = {"warmup": rounds // 3, "observe": rounds // 2, "evaluate_every": rounds // 2, "save_every": rounds // 4}
config = lab.recipes.override(config, *(f"{key}={max(2, value)}" for key, value in changed.items()))
print(lab.recipes.summary("in short", config)[1])

# %% [markdown]
# *Read it:* a shortened schedule would have a warm-up of a hundredth, in which G learns nothing when rounds are few, and a look
# at the images every other round. Both are changed here: the result is no longer the recipe's, as `config.json` will say.
#
# ## 3 · The memory (10 minutes)
# Weights, gradients, what optimizers remember: this part can be counted by hand. The rest are activations, which grow with N.
#
# ### Exercise 3 ●●○ (3 minutes): what the players hold
# `generator` and `student` are numbers of weights, float32. Adam keeps two numbers for each weight of G, SGD with momentum one
# for each of Q; either needs the gradients too. Return MB, of 2^20 bytes.


# %% tags=["stub"]
def state_megabytes(generator, student):
    """Weights, gradients and optimizer state of both players, MB."""
    numbers = ...
    raise NotImplementedError("how many numbers for each weight of G, and of Q?")


# %%
lab.check.state_megabytes(state_megabytes)

# %%
players = {"CIFAR-10, ResNet-20": (1_052_139, 272_474), "ImageNet, ResNet-18": (41_405_315, 11_689_512)}
players["ImageNet, ResNet-50"] = (41_405_315, 25_557_032)
held = {name: 4 * (4 * g + 3 * q) / 2**20 for name, (g, q) in players.items()}
lab.show(lab.figures.bars(held, title="What both players hold, before any image", x="recipe", y="memory [MB]"))

# %% [markdown]
# *Read it:* on ImageNet the *generator* is the larger player, and one linear layer of 40 million weights is nearly all of it.
# All of this fits any GPU; it is the activations of N images, at 224 x 224, that do not. When memory runs out, N is what to
# give up, after precision. Ask for four times the images, and pretend that this machine had only 100 MB more than above:

# %%
wish = lab.recipes.override(config, f"batch={32 if lab.fast() else 64}")
try:
    fits, again, tried = lab.largest_that_fits(wish, limit_mb=found.peak_mb + 100, seconds=0.2)
    print("\n".join(tried) or "nothing was too much")
    print(f"fits: {fits.schedule.batch} images a round in {fits.precision}, {again.peak_mb:,.0f} MB")
except lab.UserError as error:
    print(error)

# %% [markdown]
# *Read it:* a setting that is too large, by an out-of-memory error or by a limit, is answered with the next smaller one: bf16
# where there is a GPU, then half the images, down to four. (Memory here is the whole process's on a CPU, the GPU's own on one.)
# Fewer images are no free choice. Batch statistics become noisier, and H' is relative to the batch's smallest entropy.

# %%
for batch in (16, 8, 4):
    P = lab.load_teacher(config.teacher)
    game = lab.Game(P, lab.quantize(P, "3w3a"), lab.adadfq(), schedule=lab.Schedule(batch=batch, warmup=2, observe=3))
    low = [float(r.entropy.min()) for r in game.play(4 if lab.fast() else 12)]
    print(f"{batch:2} images: H_min, the reference of H', moves between {min(low):.2f} and {max(low):.2f} nats")

# %% [markdown]
# ## 4 · The game, live (6 minutes)
# The very game that the run below plays, from the same configuration, with its dashboard. Pause it, resume it, stop it.

# %% tags=["live"]
P = lab.load_teacher(config.teacher)
images = lab.load_data(config.data, stub=config.stub).take(200)
live = lab.LiveRun(lab.build_game(config, P), rounds=min(config.rounds, 400), data=images, evaluate_every=20)
live.start()

# %% [markdown]
# Watch H' first: in the warm-up G alone moves it. Then Q begins to step, at a third of the rounds, and the agreement rises.


# %%
def reading(h):
    first, last = h["agreement"][:5].mean(), h["agreement"][-5:].mean()
    return f"{len(h)} rounds; agreement {100 * first:.0f} % at first, {100 * last:.0f} % at last"


live.then(reading)

# %% [markdown]
# ## 5 · Stopped and resumed (10 minutes)
# A day of computing meets power cuts and impatient colleagues. `lab.run` plays into a folder; here somebody presses Ctrl-C in
# the middle of it.

# %%
with contextlib.suppress(TimeoutError):
    if live.state == "running":
        live.wait(2 if lab.fast() else 60)  # Run All lets it play for a minute; Stop goes on at once
live.stop()
config = lab.recipes.shortened(config, 8 if lab.fast() else min(config.rounds, 40))
folder = Path(tempfile.mkdtemp()) / "run"
half = config.rounds // 2


def ctrl_c(record):
    if record.index == half:
        raise KeyboardInterrupt


try:
    lab.run(config, folder, on_record=ctrl_c, quiet=True)
except KeyboardInterrupt:
    print("interrupted; in the folder:", ", ".join(sorted(p.name for p in folder.iterdir() if p.name != ".lock")))

# %% [markdown]
# The round was finished and saved before the interrupt went on. `adadfq watch` reads the log, from any machine that sees the
# folder:

# %%
watch = lab.Watch(folder)
print(watch.look().frame(watch.title))

# %% [markdown]
# Now something worse: a byte of the newest checkpoint is flipped, as a failing disk does.

# %%
newest = max(folder.glob("*.ckpt"))
content = bytearray(newest.read_bytes())
content[len(content) // 2] ^= 1
newest.write_bytes(content)
try:
    lab.run(config, folder, resume=True, quiet=True)
except lab.UserError as error:
    print(error)

# %% [markdown]
# *Read it:* one bit in a million bytes is noticed, since a checkpoint carries a checksum of itself; and the one before it is
# offered. Rounds in between are played again. Do they come out the same? Let a run that nobody disturbs tell.

# %%
before = min(int(path.stem.split("_")[1]) for path in folder.glob("*.ckpt"))
result = lab.run(config, folder, from_round=before, quiet=True)
calm = folder.parent / "undisturbed"
lab.run(config, calm, quiet=True)
one, two = (load_file(place / "student.safetensors") for place in (folder, calm))
same = all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
print("the two students are the same, bit for bit" if same else "the two students differ")

# %% [markdown]
# *Read it:* weights, both optimizers, ranges and the state of the random generator were saved, so the rounds after a resume are
# the rounds that would have been. (On a GPU some kernels add up in any order; then the students agree to rounding.)
#
# ## 6 · The result (6 minutes)
# The table, and the accuracy along the way.

# %%
print(result.table())
records = lab.read_records(folder / "records.jsonl")
lab.show(lab.report.accuracy_figure(records, result.as_json()))

# %% [markdown]
# *Read it:* the last point is the result; the highest is none, since it was chosen on these images. After so few rounds Q may
# be no better than the untrained student with ranges from G's images: on a CPU this is a rehearsal, not a training.

# %%
top1 = {"plainly quantised": result.plain.top1, "student, here": result.student.top1, "teacher": result.teacher.top1}
print({name: f"{value:.1f} %" for name, value in top1.items()}, f"after {result.rounds:,} of {full.rounds:,} rounds")
print(f"the whole recipe from a terminal: adadfq train {recipe.name} --seed 0")

# %% [markdown]
# A published 84.89 % (Table 2, 3w3a) is the best epoch on the test set, of one seed, with another teacher. Before comparing
# anything with it, ask for the last round, for more seeds, and for the teacher's own accuracy on the same images.

# %%
lab.quiz("09")

# %%
lab.progress()

# %% [markdown]
# ## What you can now do
# - Read a schedule as rounds, images and updates, and shorten it knowing what that changes.
# - Estimate a run's hours and megabytes from seconds of it, and choose what to give up.
# - Watch a run from its log, stop it, resume it, and repair it after damage, with the same end to the bit.
#
# Next: [10 · Is it really integer?](10_is_it_integer.ipynb), where the student becomes integers.
