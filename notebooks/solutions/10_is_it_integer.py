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
# # 10 · Is it really integer?
#
# *Solution copy.*
#
# Save the student, and the file is as large as the teacher's. Print a weight, and it is a float. Was anything quantised at
# all? Until now the integers were *simulated*. This notebook gets them out, computes one convolution with them by hand, then
# the whole network, writes a file that runs, and asks the runtime what it really executed.
#
# **Objectives.** You will be able to read codes, scale and zero point off any layer; to fold a batch norm into them; to compute
# a convolution on integers and hand its result to the next; to store n bits as n bits; and to tell an integer file from one
# that only looks like one.
#
# **Prerequisites.** Notebook 02. Sections 5 to 7 need `pip install onnx "onnxruntime>=1.27"`; without, they say so and go on.
#
# **Minutes.** 1 A fake: 5 · 2 One layer: 11 · 3 One convolution: 14 · 4 The whole network: 8 · 5 The file: 7 · 6 What the
# bits are worth: 11 · 7 Your own model: 4
#
# | symbol | in code | what it is | source |
# |---|---|---|---|
# | q_x, q_w | `grid.codes(y)`, `layer.codes` | codes of an activation and of a weight | Eq. (18) |
# | | `grid.zero_point`, `layer.zero_point` | the codes that stand for 0 | |
# | | `layer.scale`, `layer.bias` | per output channel, the batch norm folded in | |
# | acc | `integer_conv(...)` | a sum of products of integers, int32 | |
# | | `lab.run_integer(Q, x)` | the logits, computed on integers | |
# | | `lab.export_onnx(Q, path, P)` | a file that computes on integers | |

# %% tags=["setup"] cellView="form"
# @title Run this first (on Colab it installs adadfq_lab; elsewhere it only looks around)
import importlib.util
import subprocess
import sys

SOURCE = ""  # where Colab gets adadfq_lab from; set by `adadfq course badges OWNER/REPO@TAG`
NEEDS = ["safetensors", "tyro", "onnx", "onnxruntime>=1.27"]

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
# ## 1 · A fake (5 minutes)
# A 3-bit student, and a short game that sets its activation ranges on generated images.

# %%
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

P = lab.load_teacher("fashion_mnist_resnet20")
data = lab.load_data("fashion_mnist", stub=True).take(64 if lab.fast() else 500)
x = P.normalize(data.images)
folder = Path(tempfile.mkdtemp())


def student(bits):
    """Q after a short warm-up: ranges observed on G's images, weights untouched."""
    q = lab.quantize(P, bits)
    for _ in lab.Game(P, q, lab.adadfq(), schedule=lab.Schedule(warmup=100), seed=0).play(6 if lab.fast() else 60):
        pass
    q.observing = False
    return q


Q = student("3w3a")
print("P:", lab.accuracy(P, data, P.normalize), "  Q:", lab.accuracy(Q, data, P.normalize))

# %%
conv = Q.layers()["stage1.0.conv1"]
torch.save(Q.state_dict(), folder / "student.pt")
torch.save(P.network.state_dict(), folder / "teacher.pt")
print(f"its weight is {conv.weight.dtype}, and so is the rounded one: {conv.quantized_weight().dtype}")
print(f"teacher {(folder / 'teacher.pt').stat().st_size:,} bytes, student {(folder / 'student.pt').stat().st_size:,} bytes")
print(f"but one channel's rounded weights are only {conv.quantized_weight()[0].unique().numel()} numbers")

# %% [markdown]
# *Read it:* the tensors are floats and the file has not shrunk. Only the *values* are special: at most eight a channel. In
# training that is what one wants, for gradients need floats. "Fake quantization" is the field's own name for it.

# %% [markdown]
# ## 2 · One layer (11 minutes)
# Behind the eight numbers stand eight codes. `lab.to_integers` gives all there is, as plain tensors; printed, it is a table.

# %%
table = lab.to_integers(Q)
print("\n".join(str(table).splitlines()[:6]))
layer = table.layers["stage1.0.conv1"]
print(f"\n{layer.codes.dtype}, {tuple(layer.codes.shape)}; one 3x3 filter:\n{layer.codes[0, 0].tolist()}")

# %% [markdown]
# A weight is (code - zero point) · scale, with a scale and a zero point for each output channel. Exactly so:

# %%
by_hand = (layer.codes.int() - layer.zero_point.int().view(-1, 1, 1, 1)) * layer.weight_scale.view(-1, 1, 1, 1)
assert torch.equal(by_hand, conv.quantized_weight())
shares = {str(c): 100 * float((layer.codes == c).float().mean()) for c in range(-4, 4)}
lab.show(lab.figures.bars(shares, title="2,304 weights on 3 bits", x="code", y="share of the weights [%]"))

# %% [markdown]
# *Read it:* the four codes in the middle hold nine of ten weights: most weights are small. The outer codes are there for the
# few large ones that set the range. This is all the layer is, two numbers a channel aside.
#
# The batch norm after it is bn(u) = γ (u - μ) / √(σ² + 10⁻⁵) + β, in which σ² is `var`. To multiply it into the *codes* would
# ruin them. But u = (a sum of integers) · scale: so it can go into the scale.
#
# ### Exercise 1 ●●○ (4 minutes): fold a batch norm
# `scale` is the step of the weights, and the convolution has no bias. All arguments have shape (out,). Return the new scale and
# the bias, so that new scale · sum + bias = bn(scale · sum).


# %% tags=["stub"]
def fold(scale, gamma, beta, mean, var):
    """(scale, bias) with the batch norm folded in, both (out,)."""
    a = ...
    raise NotImplementedError("write bn(u) as a u + b")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def fold(scale, gamma, beta, mean, var):
    """(scale, bias) with the batch norm folded in, both (out,)."""
    a = gamma / (var + 1e-5).sqrt()
    return scale * a, beta - mean * a


# %%
lab.check.fold(fold)

# %% [markdown]
# `layer.scale` and `layer.bias` are these two. A negative γ makes a negative scale: no harm done, the codes stay as they are.
#
# ## 3 · One convolution (14 minutes)
# What comes in is on a grid as well: the ReLU before it left one of eight codes for each pixel.

# %%
grid = table.activations["relu"]
with torch.no_grad():
    y = Q.layers()["conv1"](x[:8])  # what the first convolution puts out, floats
q_x = grid.codes(y)
print(f"{grid}\ncodes in use: {q_x.unique().tolist()}")

# %% [markdown]
# Now multiply. The sum over a window is of products (q_x - zero point of x) · (q_w - zero point of w), all integers.
#
# ### Exercise 2 ●●● (6 minutes): a convolution on integers
# 3x3, stride 1, padding 1. `q_x` (N, C, H, W) and `q_w` (out, C, 3, 3) are int32, `zero_x` is a number, `zero_w` (out,). Return
# int32. `F.conv2d` takes int32 tensors. Mind the border: it pads with 0, and what stands for 0 there?


# %% tags=["stub"]
def integer_conv(q_x, zero_x, q_w, zero_w):
    """sum (q_x - zero_x)(q_w - zero_w) over each window, int32."""
    centred = ...
    raise NotImplementedError("take the zero points off, then convolve")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def integer_conv(q_x, zero_x, q_w, zero_w):
    """sum (q_x - zero_x)(q_w - zero_w) over each window, int32."""
    centred = q_w - zero_w.view(-1, 1, 1, 1)
    return F.conv2d(q_x - zero_x, centred, padding=1)


# %%
lab.check.integer_conv(integer_conv)

# %% [markdown]
# How large do these sums get? An int32 holds two thousand million.

# %%
acc = F.conv2d(q_x - grid.zero_point, layer.centred, padding=1)
assert acc.dtype == torch.int32
groups = {"sums of the first 8 images": acc.float()}
lab.show(lab.figures.histograms(groups, title="Sums of 144 products", x="sum (an integer)", limits=(-150, 90), bins=40))

# %% [markdown]
# *Read it:* most sums lie within a few dozen of 0. At three bits 144 products of at most 7 · 7 would fit 16 bits; at eight bits
# 144 products of up to 255 · 255 are more than 24 bits hold. Hence int32 everywhere.
#
# What does the next layer need? Codes again. The one place where a float appears is between them.
#
# ### Exercise 3 ●●○ (4 minutes): from sums to codes
# relu(acc · scale + bias), per output channel, on the grid 0, step, 2 step, ... of n bits. Number the codes from 0, as files
# do: 0 to 2^n - 1, int32. Where is the ReLU?


# %% tags=["stub"]
def requantize(acc, scale, bias, step, bits):
    """The codes 0 .. 2^bits - 1 of relu(acc * scale + bias), int32, (N, out, H, W)."""
    real = ...
    raise NotImplementedError("scale and bias per channel, then divide, round, clamp")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def requantize(acc, scale, bias, step, bits):
    """The codes 0 .. 2^bits - 1 of relu(acc * scale + bias), int32, (N, out, H, W)."""
    real = acc * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return (real / step).round().clamp(0, 2**bits - 1).to(torch.int32)


# %%
lab.check.requantize(requantize)

# %% [markdown]
# Does it give what Q's floats gave? By the steps just written, with the library's numbers:

# %%
after = table.activations["stage1_0_relu"]
out = acc * (grid.scale * layer.scale).view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
with torch.no_grad():
    theirs = conv((q_x - grid.zero_point) * grid.scale)
print(f"largest difference {float((out - theirs).detach().abs().max()):.1e}, of outputs up to {float(theirs.abs().max()):.1f}")
print(f"codes that differ: {int((after.codes(out) != after.codes(theirs)).sum())} of {out.numel():,}")

# %% [markdown]
# *Read it:* the floats differ in their last digit, since one multiplies integers first and the other scales first. A code
# could only differ where y / step lies that close to a half: a rounding *tie*.
#
# ## 4 · The whole network (8 minutes)
# `lab.run_integer` does this for every layer, residual sums and pooling included. `lab.compare_layers` gives each layer Q's own
# inputs and counts.

# %%
rows = lab.compare_layers(Q, x[:32])
sizes = [max(r.difference, 1e-9) for r in rows if r.kind != "activation"]
differing, ties = (sum(getattr(r, what) for r in rows) for what in ("differing", "ties"))
print(f"{differing} of {sum(r.elements for r in rows if r.kind == 'activation'):,} codes differ, {ties} of them by a tie")
place = {"x": "layer, from the image to the logits", "y": "largest difference [of the largest output]"}
fig = lab.figures.curves({"integers against floats": sizes}, range(1, len(sizes) + 1), title="Layer by layer", **place)
lab.show(fig.update_yaxes(type="log", exponentformat="power", range=[-9, 0]))

# %% [markdown]
# *Read it:* every layer agrees to about seven digits, which is all that a float32 has. Differing codes, if any, are ties. So Q,
# as trained and as measured, *is* an integer network. One thing is left: the image, which Q takes as a float. It becomes
# integers of 8 bits at a time, x = s (q₁ + q₂/254 + q₃/254²), one convolution for each. How many are needed?

# %%
with torch.no_grad():
    logits = Q(x[:64])
for bits in (8, 16, 24):
    error = (lab.run_integer(Q, x[:64], input_bits=bits) - logits).abs().amax(1)
    print(f"{bits:2} bits: the logits are off by {float(error.median()):.1e} (median image), {float(error.max()):.1e} (worst)")

# %% [markdown]
# *Read it:* for this grey image 16 bits are as good as 24; 8 bits are too few, though these pixels had 8 bits to begin with:
# 256 steps over the same range meet each of them only up to the last digit, and a 3-bit code somewhere downstream turns that
# into a whole step. Colour images are worse off: each channel is normalised by itself, so one grid meets none of the three
# exactly. For their sake files are written with 24. (`quantize(..., every_input=True)` gives the image n bits like everything
# else: one convolution, and at 3 bits a loss.)

# %% [markdown]
# ## 5 · The file (7 minutes)
# The same arithmetic as ONNX nodes. *ONNX Runtime* optimises a file before it runs it; what it then executes can be written out
# and counted. `lab.verify` does that, and compares the file with Q image by image.

# %%
runtime = all(find_spec(name) for name in ("onnx", "onnxruntime"))
if runtime:
    done = lab.export_onnx(Q, folder / "q.onnx", P)
    found = lab.verify(done.file, data, repeats=20)
    print(f"{found.table()}\n\n" + "\n".join(done.notes))
else:
    print('this section needs two more packages: pip install onnx "onnxruntime>=1.27"; then restart and run all')

# %% [markdown]
# *Read it:* no float convolution, the same top-1, nearly every prediction the same. There are more integer convolutions than Q
# has layers, since the image takes three. What float operations remain are scale, bias, residual sums and the pool.
#
# Would `verify` notice a fake? The commonest one is a file full of quantizers whose convolutions are float after all, and
# nobody sees it in the accuracy. Here one float convolution is smuggled in: it copies the image, and no prediction changes.

# %%
if runtime:
    import onnx

    fake = onnx.load(done.file)
    weight = onnx.numpy_helper.from_array(torch.ones(1, 1, 1, 1).numpy(), "identity")
    for node in fake.graph.node:
        node.input[:] = ["copied" if name == "images" else name for name in node.input]
    fake.graph.initializer.append(weight)
    fake.graph.node.insert(0, onnx.helper.make_node("Conv", ["images", "identity"], ["copied"]))
    (folder / "q.onnx").write_bytes(fake.SerializeToString())
    print("\n".join(lab.verify(folder / "q.onnx", data, repeats=1).table().splitlines()[:4]))

# %% [markdown]
# *Read it:* one float convolution, as harmless as can be, and the verdict is NOT. On the command line `adadfq verify` then ends
# with status 1.
#
# ## 6 · What the bits are worth (11 minutes)
# The ONNX file holds each 3-bit code in a byte, for no processor reads 3 bits. On disk they need not be wasted.
#
# ### Exercise 4 ●●● (6 minutes): pack n bits
# `codes` is int8, any shape. Add 2^(n-1), so that all are positive; write each with n binary digits, the highest first, one
# after the other; fill the last byte up with zeros. Return uint8. (-4, 3, 0 at n = 3: 000 111 100, so 30 and 0.)


# %% tags=["stub"]
def pack_bits(codes, bits):
    """The stream of `bits`-bit numbers as bytes, uint8 (ceil(n bits / 8),)."""
    digits = ...
    raise NotImplementedError("shift, take the digits apart, join eight to a byte")


# %% tags=["solution"] cellView="form" jupyter={"source_hidden": true}
# @title Solution
def pack_bits(codes, bits):
    """The stream of `bits`-bit numbers as bytes, uint8 (ceil(n bits / 8),)."""
    digits = codes.flatten().to(torch.int32) + 2 ** (bits - 1)
    ones = (digits[:, None] >> torch.arange(bits - 1, -1, -1) & 1).flatten()
    ones = F.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
    return (ones << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)


# %%
lab.check.pack_bits(pack_bits)

# %%
packed = lab.pack(Q, folder / "packed.safetensors")
again = lab.unpack(packed)
assert torch.equal(lab.run_integer(Q, x[:8], table=again), lab.run_integer(Q, x[:8]))
weights = sum(v.codes.numel() for v in table.layers.values())
sizes = {"float32": 4 * weights, "ONNX": done.bytes if runtime else weights, "packed": packed.stat().st_size}
kilobytes = {name: size / 1e3 for name, size in (sizes | {"3 bits each": 3 * weights / 8}).items()}
lab.show(lab.figures.bars(kilobytes, title="A 3-bit ResNet-20 on disk", x="form", y="size [kB]"))

# %% [markdown]
# *Read it:* bytes make a quarter of the floats, three bits less than half of that again; the packed file is within a tenth of
# the bits alone, and what `lab.unpack` reads gives the same logits bit by bit. This is where three bits pay on any machine.
#
# And speed? Measured here, on your machine, one image at a time on one thread:

# %%
if runtime:
    import time
    import warnings

    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's older exporter, which needs no package more, says that it is the older
        torch.onnx.export(P, (x[:1],), folder / "float.onnx", dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session, times = onnxruntime.InferenceSession(folder / "float.onnx", options), []
    for _ in range(40):
        start = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
        times.append(1e3 * (time.perf_counter() - start))
    same = float(np.median(times))

# %%
if runtime:
    speed = {}
    for bits, q in {3: Q, 8: student("8w8a")}.items():
        made = lab.export_onnx(q, folder / f"q{bits}.onnx", P)
        measured = lab.verify(made.file, data.take(64), repeats=40)
        speed = {"float32, torch": measured.ms_float, "float32": same} | speed | {f"{bits} bits": measured.ms_file}
        print(f"{bits} bits: the same class as Q for {measured.agreement:.1f} %, {measured.float_convs} float convolutions")
    print(measured.cpu)
    lab.show(lab.figures.bars(speed, title="Time for one image on one thread", x="file", y="median [ms]"))

# %% [markdown]
# *Read it:* the first two bars are float32, by torch and by the runtime that runs the integers too; only the second is a fair
# comparison of number formats, and there integers need not win: the runtime has fast float convolutions, and the integer file
# has work between its convolutions that the float file has not. Three bits are, on a quiet machine, *not* faster than eight: a
# CPU treats a 3-bit network as an int8 network with fewer levels. What pays on any machine is the size on disk; to see three
# bits run faster one needs an FPGA, or kernels made for them. Figures differ between machines, and so may their order; a number
# without hardware and thread count means nothing. (There is a faster form, `lab.export_onnx(..., form="qcdq")`, which rounds
# the output of every convolution to 8 bits. Try it, and watch the agreement with Q at 3 bits.)
#
# ## 7 · Your own model (4 minutes)
# Any network that can be traced goes the same way: torchvision's MobileNetV2, never seen before in this course, with depthwise
# convolutions and ReLU6. (Random weights; yours are trained.) More in docs/bring_your_own_model.md.

# %%
import torchvision

network = torchvision.models.mobilenet_v2(num_classes=10)  # yours
mine = lab.wrap_teacher(network, input_shape=(3, 32, 32), classes=10, name="mine")
photos = mine.normalize(torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
q = lab.quantize(mine, "8w8a")
with torch.no_grad():
    q(photos)  # so that its activations have ranges; a game does that too
q.observing = False
print(f"{len(lab.to_integers(q).layers)} layers, left float: {', '.join(q.left_float()[:3])}, ...")
if runtime:
    lab.export_onnx(q, folder / "mine.onnx", mine)
    print("\n".join(lab.verify(folder / "mine.onnx", photos, student=q, repeats=5).table().splitlines()[:5]))

# %%
lab.quiz("10")

# %%
lab.progress()

# %% [markdown]
# ## What you can now do
# - Say what is simulated in a fake-quantised network, and take its integers out.
# - Fold a batch norm into a scale, convolve integers, and hand codes to the next layer.
# - Read from the executed graph whether a file is integer, and know what in it is still float.
# - Say what three bits are worth: on disk, on a CPU, and elsewhere.
#
# This was the last notebook. Bring your own model.
