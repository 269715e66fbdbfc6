# ---
# jupyter:
#   adadfq_lab:
#     built: 076f34e138396d48
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["title"]
# <!-- generated from solutions/04_zero_sum_game.py, edit there; then: adadfq course build -->
# # 04 · The zero-sum game
#
# The paper casts data-free quantization as a game: the generator G raises the disagreement of P and Q, the student Q lowers
# it. This notebook writes the game's value, measures what each move does to it, live, and asks in which sense the sum is
# zero.
#
# **Objectives.** You will be able to write the value of the game, Eq. (4), and both players' gains; to test an equilibrium,
# Eq. (5); and to say what is zero-sum here and what is not.
#
# **Prerequisites.** H' and the adaptability (notebook 01), the generator and L_BNS (notebook 03).
#
# **Minutes.** 0 Two coins: 6 · 1 Value: 6 · 2 Moves and gains: 14 · 3 Live: 8 · 4 Does it sum to zero?: 8 · 5 Equilibrium: 5
# · 6 AdaSG: 3
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | H(θ_g, θ_q) | `lab.game_value(h_prime)` | value of the game, E[1 - H'] | Eq. (4) |
# | (θ_g*, θ_q*) | `lab.is_equilibrium(...)` | nobody gains by moving alone | Eq. (5) |
# | min over θ_q | `lab.student_objective(h_prime)` | what Q minimises, as printed | Eq. (13) |
# | Δ_G, Δ_Q | `record.gain_g`, `record.gain_q` | change of disagreement by one step [nats] | Fig. 3 |
# | G, Q | `game.generator`, `game.student` | the players; P is the referee and never moves | section 2.2 |

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
# ## 0 · Max and min, by two coins (6 minutes)
# Matching pennies: G shows heads with probability p, Q with probability q; if the coins *differ*, Q pays one coin to G, else
# G to Q. G's expected gain is v = -(2p - 1)(2q - 1). G climbs v, Q descends it, in turns. *Predict:* where do p and q come to
# rest?

# %%
p, q, path = 0.7, 0.5, []
for _ in range(200):
    p = min(max(p - 0.1 * 2 * (2 * q - 1), 0), 1)  # G: up the slope of v in p
    q = min(max(q + 0.1 * 2 * (2 * p - 1), 0), 1)  # Q: down the slope of v in q
    path.append((p, q))
coins = {"G": [p for p, _ in path], "Q": [q for _, q in path]}
alt = "Two waves around one half, a quarter of a period apart, which do not die away."
lab.show(lab.figures.curves(coins, range(200), title="Matching pennies", x="turn", y="probability of heads", alt=alt))

# %% [markdown]
# *Read it:* they chase each other around (1/2, 1/2) and never get there. That point is the equilibrium: nobody gains by moving
# alone. Sums of gains are zero at every turn, and still nothing settles: *zero-sum* and *at rest* are two things.
#
# Now the plane of notebook 00 with the band wide open, once with Q held and once with Q learning. *Predict:* in which one will
# P and Q be closer on G's samples after the same number of rounds?

# %%
for learns in (False, True):
    dials = lab.Dials(lab.Bounds(0.1, 0.7), floor="zero", beta=0.0, gamma=0.0, student_learns=learns)
    *_, last = lab.plane_game(dials).play(20 if lab.fast() else 200)
    print(f"Q {'learns' if learns else 'is held'}: H_info of G's samples {last.entropy.mean():.3f} of at most 1.099 nats")

# %% [markdown]
# *Read it:* held, Q pays what G asks: the samples sit where the two disagree. When Q learns, it closes the gap wherever G has
# just gone, and little is left: one number, pulled both ways.
#
# ## 1 · The value of the game (6 minutes)
# Two players, one number. Eq. (4) takes the expected adaptability, E[1 - H'], over the images that G makes: G wants it large
# (images that Q has something to learn from), Q wants it small (nothing left to learn).
#
# Eq. (4) prints *min over G, max over Q*. The text around it, Eq. (5), (12) and (13) all mean **max over G, min over Q**,
# and so does this package: a sign to keep in mind when you read the paper.

# %%
import numpy as np
import torch

people = lab.load_population()
h_prime = torch.from_numpy(people.h_prime(3))
value = (1 - h_prime).mean()  # Eq. (4), by hand
assert torch.isclose(value, lab.game_value(h_prime))
print(f"{len(h_prime)} recorded images, 3-bit Q: the value of the game is {value:.3f}")

# %% [markdown]
# The images are recorded: a generator that had played 300 rounds of AdaDFQ made them, and P and several untrained students
# looked at them. The recording holds the logits, so nothing has to be trained before you can compute.
#
# ### Exercise 1 ●○○ (2 minutes): the value of the game
# Write Eq. (4) for a batch: `h_prime` has shape (N,), the answer is one number.


# %% tags=["stub"]
def game_value(h_prime):
    adaptability = ...
    raise NotImplementedError("the expected adaptability of the batch")


# %%
lab.check.game_value(game_value)

# %%
values = {f"{bits} bits": float(lab.game_value(torch.from_numpy(people.h_prime(bits)))) for bits in (2, 3, 4, 5, 8)}
agree = {bits: (people.teacher_logits.argmax(1) == people.student_logits[bits].argmax(1)).mean() for bits in (2, 3, 5, 8)}
print("P and Q say the same on", ", ".join(f"{100 * share:.0f} % ({bits} bits)" for bits, share in agree.items()))
lab.show(lab.figures.bars(values, title="Value of the game on the same images", x="Q has", y="E[1 - H']"))

# %% [markdown]
# *Read it:* the 2-bit student disagrees with P on most images, and the value is highest. From 3 to 8 bits the value hardly
# moves and has no order, though the 8-bit student agrees with P on almost every image and the 3-bit one does not. That is
# Eq. (3) at work: H' is measured against the smallest entropy *of the batch*, so it ranks samples; it does not say how far
# apart P and Q are.

# %% [markdown]
# ## 2 · Moves and gains (14 minutes)
# One round: G makes images and takes an Adam step, then Q takes an SGD step. To see what each step did, evaluate the
# disagreement log C - E[H_info] on the *same* z and y before the round, after G's step, and after Q's:
#
# - Δ_G: after G's step, minus before. The paper's Fig. 3 has Δ_G > 0: G made the images harder for Q.
# - Δ_Q: after Q's step, minus after G's. The paper's Fig. 3 has Δ_Q < 0: Q learned.
#
# `Game(..., gains_every=1)` measures both in every round; that costs half a round more.

# %%
P = lab.load_teacher("fashion_mnist_resnet20")
schedule = lab.Schedule(batch=16, warmup=20, observe=60, student_lr=1e-3)
game = lab.Game(P, lab.quantize(P, "3w3a"), lab.adadfq(), schedule=schedule, gains_every=1, seed=0)
for record in game.play(2):
    print(f"round {record.index} ({record.phase}): Δ_G = {record.gain_g:+.4f}, Δ_Q = {record.gain_q:+.4f} nats")

# %% [markdown]
# In the warm-up only G moves, so Δ_Q is exactly 0. Later both are of the size of a few hundredths of a nat, out of log 10 =
# 2.30 nats that two networks can be apart.
#
# ### Exercise 2 ●●○ (4 minutes): the gains
# Given H_info of the batch before the round, after G's step and after Q's, each of shape (N,) in nats, return (Δ_G, Δ_Q).


# %% tags=["stub"]
def gains(before, after_g, after_q):
    delta_g = ...
    raise NotImplementedError("what each step did to the mean disagreement log C - H")


# %%
lab.check.gains(gains)

# %% [markdown]
# ### Exercise 3 ●●○ (4 minutes): a step of Q
# Q moves by gradient descent with Nesterov momentum and weight decay. With g = gradient + decay · weight, the new velocity is
# v = momentum · velocity + g, and the weight moves by -rate · (g + momentum · v). Return (new weight, new velocity) and leave
# the arguments as they are. What would change if momentum were 0?


# %% tags=["stub"]
def student_step(weight, gradient, velocity, rate, momentum, decay):
    """(weight, velocity) after one step of SGD with Nesterov momentum and weight decay."""
    g = ...
    raise NotImplementedError("decay joins the gradient, then the velocity, then the step")


# %%
lab.check.student_step(student_step)

# %% [markdown]
# ## 3 · The game, live (8 minutes)
# The next cell plays in the background and returns at once. **Pause** holds the game between two rounds, **Stop** ends it and
# keeps what was played. The game begins with 20 rounds of warm-up; then Q's lines appear.

# %% tags=["live"]
test = lab.load_data("fashion_mnist", stub=True).take(200)
run = lab.LiveRun(game, rounds=150, data=test, evaluate_every=50)
run.start()

# %% [markdown]
# *Read it:* the panel of gains first. Does Δ_G lie above zero, and Δ_Q below? Each jitters so much that one has to count.
# Then the two losses: both *fall*. If G's gain were Q's loss, one of them would have to rise. Hold that until section 4.


# %%
def reading(history):
    played = history["gain_g"][20:]
    if not len(played):
        return f"<p>{len(history)} rounds were played; the warm-up alone takes 20.</p>"
    up, down = (played > 0).mean(), (history["gain_q"][20:] < 0).mean()
    return f"<p>{len(history)} rounds: Δ_G was positive in {up:.0%} of the rounds, Δ_Q negative in {down:.0%}.</p>"


run.then(reading)

# %% [markdown]
# ## 4 · Does it sum to zero? (8 minutes)
# The same game was recorded over 300 rounds, with the gains of every second round. The figure adds them up.

# %%
history = lab.load_recording("adadfq_3w3a").history
measured = np.isfinite(history["gain_g"]) & (history["round"] >= 60)
at, g, q = (history[name][measured] for name in ("round", "gain_g", "gain_q"))
series = {"G": g.cumsum(), "Q": q.cumsum(), "sum": (g + q).cumsum()}
alt = f"Three lines: the summed gains of G end at {g.sum():.1f} nats, those of Q at {q.sum():.1f}, their sum between."
lab.show(lab.figures.curves(series, at, title="Gains, added up", x="round", y="cumulative gain [nats]", alt=alt))

# %% [markdown]
# *Read it:* G's line ends above zero, Q's below, and the sum lies between them, as in the paper's Fig. 3(a). Is it near zero?
# The rule, fixed before looking (`adadfq evidence fig3`): both signs in most rounds, and a sum of at most 10 % of the way
# that both players moved.

# %%
way, gap = np.abs(g).sum() + np.abs(q).sum(), np.abs((g + q).sum())
print(f"Δ_G > 0 in {(g > 0).mean():.0%}, Δ_Q < 0 in {(q < 0).mean():.0%} of the rounds; the sum is {gap / way:.0%} of the way")
for name, gain in (("G", g), ("Q", q)):
    print(f"{name}: {gain.sum():+.2f} ± {1.96 * gain.std() * len(gain) ** 0.5:.2f} nats in {len(gain)} rounds (95 %)")

# %% [markdown]
# By that rule Fig. 3 is reproduced. But what does such a rule reject? Try it on noise: gains drawn at random around 0, as large
# as those measured, of two players who have nothing to do with each other.

# %%
random = np.random.default_rng(0)
noise_g, noise_q = (random.normal(0, gain.std(), (2000, len(gain))) for gain in (g, q))
parts = np.abs((noise_g + noise_q).sum(1)) / (np.abs(noise_g) + np.abs(noise_q)).sum(1)
signs = ((noise_g > 0).mean(1) > 0.5) & ((noise_q < 0).mean(1) > 0.5)
print(
    f"noise: {(parts <= 0.1).mean():.0%} within 10 % of the way, {((parts <= 0.1) & signs).mean():.0%} with both signs as well"
)

# %% [markdown]
# Most pure noise sums to within 10 % of its way, and one noise in five passes the whole rule: a sum near zero is weak evidence.
# Now look at the intervals: G's sum cannot be told from zero, Q's hardly, and the sum of both is as large as G's. Two players
# who achieve next to nothing have gains that cancel, too. Most of what G minimises is L_BNS (the figure below counts), so its
# steps raise the disagreement by the way only. The same game with L_BNS *averaged*, as released, was recorded as well:

# %%
averaged = lab.load_recording("adadfq_averaged").history
for name, one in {"summed": history, "averaged": averaged}.items():
    moves = [one[column][measured] for column in ("gain_g", "gain_q")]
    of_g, of_q = (float(move.sum()) for move in moves)
    part = abs(of_g + of_q) / sum(np.abs(move).sum() for move in moves)
    change = float(one["entropy"][60:80].mean() - one["entropy"][-20:].mean())  # of log C - H_info
    print(f"L_BNS {name:8}: gains G {of_g:+.2f}, Q {of_q:+.2f}, both {of_g + of_q:+.2f} nats, {part:.0%} of the way")
    print(f"{'':15} the disagreement itself changed by {change:+.2f} nats")

# %% [markdown]
# Averaged, G raises the disagreement, Q does not lower it, and the sum is half of the way: not reproduced. One divisor in one
# loss term decides.
#
# And though both players' gains add up to more than eight nats there, the disagreement *fell*. A gain is measured on the z
# and y of its own round, which G has just been fitted to; the next round draws new ones, where most of that gain is gone.
#
# What is zero-sum here, and what is not:
#
# | claim | holds? | why |
# |---|---|---|
# | Eq. (4) is a zero-sum game | yes, by definition | one number; G's gain is Q's loss |
# | G maximises it in Eq. (12) | no | Eq. (12) holds H' *inside* a band, and adds L_bal and L_BNS |
# | Q minimises it in Eq. (13) | as printed | the released code minimises -T² H at T = 20 instead |
# | Δ_G + Δ_Q is near 0 | measured, not implied | here: within the rule, from gains that are hardly any |

# %%
both = {"G": history.total("generator"), "Q": history.total("student")}
late = slice(60, None)
r = np.corrcoef(both["G"][late], both["Q"][late])[0, 1]
alt = f"Two falling curves of losses; after round 60 their correlation is {r:.2f}."
fig = lab.figures.curves(both, history["round"], title="What the players minimise", x="round", y="loss (log scale)", alt=alt)
lab.show(fig.update_yaxes(type="log", exponentformat="power"))
print(f"correlation of the two losses after round 60: {r:+.2f} (a zero-sum game has -1)")
steps = np.corrcoef(np.diff(both["G"][late]), np.diff(both["Q"][late]))[0, 1]
print(f"of their changes from round to round, without the trends: {steps:+.2f}")
print(f"of what G minimises, L_BNS is {history['generator.bns'][late].mean() / both['G'][late].mean():.0%}")

# %% [markdown]
# *Read it:* both losses fall, and that alone makes their correlation positive: two trends in the same direction. From round to
# round hardly any correlation is left, neither positive nor the -1 of a zero-sum game: most of what G minimises does not
# concern Q.
#
# ## 5 · An equilibrium (5 minutes)
# Eq. (5): at (θ_g*, θ_q*) no other G raises the value, and no other Q lowers it.
#
# ### Exercise 4 ●○○ (3 minutes): is it at rest?
# `value` is H(g*, q*), `values_g` are the values with other generators, `values_q` those with other students. Either list may
# be empty, and a move that leaves the value as it is does not pay.


# %% tags=["stub"]
def is_equilibrium(value, values_g, values_q):
    g_cannot_gain = ...
    raise NotImplementedError("both inequalities of Eq. (5)")


# %%
lab.check.is_equilibrium(is_equilibrium)

# %%
other_students = [values[f"{bits} bits"] for bits in (4, 5, 8)]
print("at rest, if Q might have more bits:", lab.is_equilibrium(values["3 bits"], [], other_students))

# %% [markdown]
# It is not: against the same generator, the 8-bit student reaches a lower value. Eq. (5) asks less: its Θ_q holds students of
# the same 3 bits only, and finding the best of them would take a training of its own. Nobody has shown that AdaDFQ's training
# reaches an equilibrium, in theory or by measurement; "until reaching a Nash equilibrium" in the paper is a hope, not a result.
#
# ## 6 · AdaSG, the game without the fine print (3 minutes)
# AdaSG, the predecessor, has the same trainer with other constants: λ_l = 0.3 instead of 0.1, and disagreement and agreement
# weighted alike. `lab.adasg()` says exactly that.

# %%
runs = {"AdaDFQ": lab.load_recording("adadfq_3w3a"), "AdaSG": lab.load_recording("adasg_3w3a")}
h_of = {name: one.history.upto(150).last_samples(320) for name, one in runs.items()}
shares = {name: (h < lab.adasg().bounds.lower).mean() for name, h in h_of.items()}
print("below 0.3:", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
lab.show(lab.figures.histograms(h_of, title="H' after 150 rounds", x="H'", limits=(0, 1), bins=20))

# %% [markdown]
# *Read it:* AdaSG asks for fewer samples below 0.3 and has a few *more* than AdaDFQ. The hinge hardly moves H' (notebook 06
# asks why), so the two distributions are close, and so are the two methods in Table 2 of the paper: at most 2.1 points apart
# in any row.

# %%
lab.quiz("04")

# %% [markdown]
# ## What you can now do
# - write the value of the game, Eq. (4), and say which player wants it large;
# - measure Δ_G and Δ_Q, and say why their sum need be neither zero nor the change over the run;
# - test Eq. (5), and say why a training curve is no proof of an equilibrium;
# - start, pause, resume and stop a game while it is played.
#
# Next: [05 · Two kinds of sample](05_two_kinds_of_sample.ipynb), which images G should make.
