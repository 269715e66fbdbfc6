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
# # 02 · Quantization
#
# *Solution copy.*
#
# A network on three bits has eight different weights a channel and eight different activations a layer. This notebook rounds
# a real ResNet-20 that far, by hand first, and watches where its accuracy goes.
#
# **Objectives.** You will be able to compute scale, zero point and codes of Eq. (18); to say why each output channel gets a
# range of its own; to pass a gradient through a rounding; and to read off at how many bits plain quantization breaks down.
#
# **Prerequisites.** Convolutions and gradients in PyTorch; notebook 01 for the words P and Q.
#
# **Minutes.** 1 A staircase: 8 · 2 Range, scale, zero point: 10 · 3 Weights: 9 · 4 Activations: 6 · 5 The gradient: 9 · 6 The
# cliff: 6
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | θ, θ_q | `theta`, `codes(...)` | a float and its integer code of n bits | Eq. (18) |
# | n | `bits` | 2 to 8 here | Eq. (18) |
# | θ_min, θ_max | `low`, `high` | the range the codes are spread over | Eq. (18) |
# | | `scale` | width of one step, (high - low) / (2^n - 1) | |
# | | `zero_point` | the code that stands for 0 | |
# | | `quant_min`, `quant_max` | smallest and largest code, `lab.quant_range(bits)` | |
# | | `lab.fake_quantize(x, ...)` | x̂ = (code - zero_point) · scale, with a gradient | |
# | 3w3a | `lab.quantize(P, "3w3a")` | 3-bit weights, 3-bit activations | Table 2 |

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
# ## 1 · A staircase (8 minutes)
# P's weights are 32-bit floats. Take the 144 weights of one output channel of its second convolution.

# %%
import torch

P = lab.load_teacher("fashion_mnist_resnet20")
data = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else 500)
Q = lab.quantize(P, "3w3a")
layer = Q.layers()["stage1.0.conv1"]
theta = layer.weight[0].detach().flatten()
print(f"{len(theta)} weights from {theta.min():.3f} to {theta.max():.3f}, {len(theta.unique())} different values")

# %% [markdown]
# The paper rounds them to n bits like this:
#
# $$\theta_q = \operatorname{round}\left[(2^n - 1)\,\frac{\theta - \theta_{min}}{\theta_{max} - \theta_{min}} - 2^{n-1}\right]
# \tag{18}$$
#
# The fraction runs from 0 to 1, so the code runs from -2^(n-1) to 2^(n-1) - 1: the signed integers of n bits. By hand, for n
# = 3:

# %%
fraction = (theta - theta.min()) / (theta.max() - theta.min())
by_hand = ((2**3 - 1) * fraction - 2**2).round()
assert torch.equal(by_hand.int(), lab.quantize_linear(theta, 3))
print(f"codes {sorted(set(by_hand.int().tolist()))}")

# %% [markdown]
# A code stands for a float again: its step on a staircase. Move the slider through the bit widths.

# %% tags=["figure"]
lab.quantizer_staircase()

# %% [markdown]
# *Read it:* each bit more doubles the number of steps and halves their height. Beyond the range the staircase is flat: those
# values are *clipped* to the first or last step.

# %% [markdown]
# ## 2 · Range, scale, zero point (10 minutes)
# Eq. (18) is one line; a computer does it in two halves. From the range come two numbers,
#
# $$\text{scale} = \frac{high - low}{2^n - 1}, \qquad \text{zero point} = quant\_min - \operatorname{round}(low /
# \text{scale}),$$
#
# and from them codes, and floats again. The paper calls this quantizer symmetric; it is not: low and high need not be opposite.
#
# ### Exercise 1 ●●○ (4 minutes): scale and zero point
# `low` and `high` are tensors of one shape, `bits` is n. Return both, elementwise. quant_min is -2^(n-1).


# %% tags=["stub"]
def qparams(low, high, bits):
    """(scale, zero_point) of the grid of `bits` bits over [low, high]."""
    scale = ...
    raise NotImplementedError("compute the width of a step, then the code that stands for 0")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def qparams(low, high, bits):
    """(scale, zero_point) of the grid of `bits` bits over [low, high]."""
    scale = (high - low) / (2**bits - 1)
    quant_min = -(2 ** (bits - 1))
    return scale, quant_min - (low / scale).round()


# %%
lab.check.qparams(qparams)

# %% [markdown]
# ### Exercise 2 ●●○ (4 minutes): codes
# Divide, shift, round, and keep the result among the codes there are. Return int32.


# %% tags=["stub"]
def codes(x, scale, zero_point, bits):
    """The integer codes of x, int32, within [-2^(bits-1), 2^(bits-1) - 1]. Eq. (18)."""
    q = ...
    raise NotImplementedError("x / scale + zero_point, rounded and clamped")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def codes(x, scale, zero_point, bits):
    """The integer codes of x, int32, within [-2^(bits-1), 2^(bits-1) - 1]. Eq. (18)."""
    q = (x / scale + zero_point).round()
    return q.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int32)


# %%
lab.check.codes(codes)

# %% [markdown]
# From here on the library's functions. `fake_quantize` is codes and back in one step: what a network in training computes with.
# Its floats lie on the grid, so an integer machine could do the same arithmetic (notebook 10 lets one do it).

# %%
scale, zero_point = lab.qparams(theta.min(), theta.max(), 3)
x_hat = lab.fake_quantize(theta, scale, zero_point, 3)
assert torch.equal(x_hat, lab.dequantize(lab.codes(theta, scale, zero_point, 3), scale, zero_point))
for rule in ("real", "rounded"):
    s, z = lab.qparams(theta.min(), theta.max(), 3, zero_point=rule)
    print(f"zero point {rule:7}: {z:+.3f}, so that 0 becomes {lab.fake_quantize(torch.zeros(()), s, z, 3):+.4f}")

# %% [markdown]
# *Read it:* with Eq. (18) to the letter ("real") a zero is no zero after rounding. Padding and ReLU put many exact zeros into a
# network, and all of them would be off by the same amount. The released code rounds the zero point, and so does this package.

# %% [markdown]
# ## 3 · The weights of a real network (9 minutes)
# What is the range of a layer? One pair (low, high) for all its weights, or one for each output channel?
#
# ### Exercise 3 ●○○ (3 minutes): a range for each channel
# `weight` has shape (out, ...). Return (low, high), each of shape (out,).


# %% tags=["stub"]
def channel_range(weight):
    """Smallest and largest weight of each output channel, two tensors of shape (out,)."""
    rows = ...
    raise NotImplementedError("one row for each output channel, then minimum and maximum of each row")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def channel_range(weight):
    """Smallest and largest weight of each output channel, two tensors of shape (out,)."""
    rows = weight.flatten(1)
    return rows.amin(dim=1), rows.amax(dim=1)


# %%
lab.check.channel_range(channel_range)


# %%
def error(weight, scale, zero_point, bits):
    """Root-mean-square rounding error in percent of the weights' own size."""
    off = lab.fake_quantize(weight, scale, zero_point, bits) - weight
    return 100 * (off.square().mean() / weight.square().mean()).sqrt()


errors = {"one range a layer": [], "one range a channel": []}
for quantised in Q.layers().values():
    w = quantised.weight.detach()
    errors["one range a layer"].append(error(w, *lab.qparams(w.min(), w.max(), 3), 3))
    errors["one range a channel"].append(error(w, *lab.weight_qparams(w, 3), 3))
place = {"x": "layer, from the image to the logits", "y": "rounding error [% of the weights]"}
lab.show(lab.figures.curves(errors, range(1, len(Q.layers()) + 1), title="Weights on 3 bits", **place))

# %% [markdown]
# *Read it:* a range of its own for each channel lowers the error in every layer, because a channel of small weights no longer
# pays for a neighbour of large ones. It costs two numbers a channel. The paper's line of work, and this package, do so.

# %%
lab.show(lab.figures.weights_on_grid(theta, 3, title="One channel of 144 weights and its 8 levels"))

# %% [markdown]
# *Read it:* the levels are spread evenly from the smallest to the largest weight, while most weights are near zero. The few
# large ones decide how coarse the grid is for all others.

# %%
bits = list(range(2, 9))
by_bits = {"stage1.0.conv1": [error(layer.weight.detach(), *lab.weight_qparams(layer.weight, b), b) for b in bits]}
by_bits["halved with each bit"] = [by_bits["stage1.0.conv1"][-1] * 2 ** (8 - b) for b in bits]
fig = lab.figures.curves(by_bits, bits, title="Each bit halves the error", x="bits", y="rounding error [% of the weights]")
lab.show(fig.update_yaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50]))

# %% [markdown]
# *Read it:* on a logarithmic axis the error falls along a straight line, by a factor of two for each bit. Nothing dramatic
# happens to any *weight* between 4 bits and 2. Hold on to that until section 6.

# %% [markdown]
# ## 4 · Activations: a range one has to guess (6 minutes)
# Weights are known; activations depend on the images. Their range is *observed*, batch by batch, and then frozen. Three rules
# are about: the running minimum and maximum, an exponential moving average (EMA), and the EMA of the code this family of
# methods was released with. Here each rule watches the largest activation after P's first convolution.

# %%
rules = {rule: lab.Range(rule) for rule in ("minmax", "ema", "ema_gdfq")}
highs = {rule: [] for rule in rules}
updates = 160
for images in data.images.repeat(20, 1, 1, 1)[: 8 * updates].split(8):
    activation = torch.relu(P.network.bn1(P.network.conv1(P.normalize(images))))
    for rule, observer in rules.items():
        observer.update(activation.min(), activation.max())
        highs[rule].append(float(observer.high))
labels = {"x": "batches seen", "y": "observed maximum (log scale)"}
fig = lab.figures.curves(highs, range(1, updates + 1), title="The range of one activation", **labels)
lab.show(fig.update_yaxes(type="log", exponentformat="power"))

# %% [markdown]
# *Read it:* `minmax` only ever grows, `ema` settles at once. The released `ema_gdfq` corrects its start-up bias and stores the
# *corrected* value, so that the correction is applied again and again: the range is thousands of times too wide for dozens
# of batches, and every activation falls on one code meanwhile. It has recovered after about 150; our default is `ema`.

# %% [markdown]
# ## 5 · The gradient of a staircase (9 minutes)
# Q is to be *trained*. A staircase is flat almost everywhere, so its true gradient is zero and nothing would move. The
# *straight-through estimator* (STE) pretends, in the backward pass only, that rounding was the identity.
#
# ### Exercise 4 ●●○ (4 minutes): rounding with a gradient
# Return round(x) with the gradient of x. It is one line; `.detach()` cuts a value off from the gradient.


# %% tags=["stub"]
def round_ste(x):
    """round(x), whose gradient with respect to x is 1."""
    rounding = ...
    raise NotImplementedError("x plus what rounding adds, the latter without gradient")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def round_ste(x):
    """round(x), whose gradient with respect to x is 1."""
    return x + (x.round() - x).detach()


# %%
lab.check.round_ste(round_ste)

# %% [markdown]
# Does a wrong gradient help? A smallest possible training: 32 numbers, rounded, are to become 32 given integers.

# %%
target = torch.randint(-4, 4, (32,), generator=torch.Generator().manual_seed(0)).float()
one = torch.ones(())
losses = {"true gradient": [], "straight through": []}
for name in losses:
    w = torch.zeros(32, requires_grad=True)
    for _ in range(40):
        rounded = w.round() if name == "true gradient" else lab.fake_quantize(w, one, 0 * one, 8)
        loss = (rounded - target).square().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 2 * gradient).detach().requires_grad_()
        losses[name].append(loss.item())
lab.show(lab.figures.curves(losses, range(40), title="Learning through a rounding", x="step", y="squared error"))

# %% [markdown]
# *Read it:* with the true gradient, zero, nothing ever moves. With the straight-through gradient every number walks to its
# target and stops there. Q's weights will learn this way, and G's gradient passes through Q the same way.

# %%
line = torch.linspace(-2, 3, 251)
slopes = {}
for ste in ("identity", "clipped"):
    at = line.clone().requires_grad_()
    s, z = lab.qparams(-one, 2 * one, 3)
    (slopes[ste],) = torch.autograd.grad(lab.fake_quantize(at, s, z, 3, ste=ste).sum(), at)
lab.show(lab.figures.curves(slopes, line, title="Two straight-through gradients, range [-1, 2]", x="x", y="gradient of x̂"))

# %% [markdown]
# *Read it:* `identity` passes every gradient, also of values beyond the range, which the forward pass clipped; `clipped`
# stops those, from half a step beyond the outermost levels on. The paper does not say which; the released code has
# `identity`, and so is it here unless you ask for the other.

# %% [markdown]
# ## 6 · The cliff (6 minutes)
# Now all together, with nothing learned: every weight and every activation of ResNet-20 on n bits. Ranges are observed on 128
# real images that are not scored; a data-free method must do without them, and with generated ones it will (notebook 03).


# %%
def plain(bits):
    """Top-1 of a student that was only rounded, `bits` such as "3w3a"."""
    student = lab.quantize(P, bits)
    with torch.no_grad():
        student(P.normalize(others[-128:]))
    return lab.accuracy(student, data, P.normalize)


others = lab.load_data("fashion_mnist", stub=True).images  # 2,000; `data` are the first of them
teacher = lab.accuracy(P, data, P.normalize)
cliff = {b: plain(f"{b}w{b}a") for b in ((2, 3, 8) if lab.fast() else (2, 3, 4, 5, 6, 8))}
lab.show(lab.figures.accuracy_cliff(cliff, teacher))
for mixed in ("3w8a", "8w3a", "2w8a", "8w2a"):
    print(f"{mixed}: {plain(mixed)}")

# %% [markdown]
# *Read it:* down to 5 bits nothing is lost that this many images could show; 4 bits lose a little, 3 bits visibly more, and
# at 2 bits Q guesses. Each bit less doubles the step of every weight and activation; through twenty layers the errors pile up,
# until classes change. This is the gap that a data-free method has to close without a single real image.
#
# Who is to blame, weights or activations? Here, activations: with 8 bits for them, 3-bit weights lose nothing that this many
# images could show, while 3-bit activations alone cost nearly as much as both together. (In brackets: the 95 % interval.)

# %% [markdown]
# ## Quiz
# Open an answer to see whether it is right, and why.

# %%
lab.quiz("02")

# %%
lab.progress()

# %% [markdown]
# ## What you can now do
# - Turn floats into codes of n bits and back, with scale and zero point, and say why the zero point is rounded.
# - Say why each output channel has a range of its own, and what observing an activation's range can do wrong.
# - Pass a gradient through a rounding, and say what is pretended.
# - Tell at how many bits plain quantization of this network breaks down, with an interval.
#
# Next: [03 · Imagining data](03_imagining_data.ipynb): where do images come from when there are none?
