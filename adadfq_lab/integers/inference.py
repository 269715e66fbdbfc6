"""Runs the student on its integers, with nothing simulated: proof that a fake-quantised network is an integer network.

    acc = sum (q_x - zero_point_x)(q_w - zero_point_w)            int32, exact
    y   = acc * (scale_x * scale_w) + bias                        one float multiplication and addition per output
    q_y = clamp(round(y / scale_y) + zero_point_y)                the next layer's integers

Slow and clear. This and Q's forward round their floats in different places, so a code may differ if y / scale_y lies on a
rounding tie within float precision, and only then; `compare_layers` counts these codes.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.integers.layers import IntegerLayer, Integers, snapshot, to_integers
from adadfq_lab.integers.operations import Operation, forward_values, operations
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.student import Student

TIE = 1e-3  # in steps: a value within TIE of k + 1/2 has its code decided by float rounding


@dataclass(frozen=True)
class Quantity:
    """A tensor on a grid while the network runs: (codes - zero_point) * scale, codes int32.

    scale: 0-dim; or `(1, ...)`, the scale of each number of an image, if its channels come from several grids
    """

    codes: Tensor
    zero_point: int
    scale: Tensor

    @property
    def centred(self) -> Tensor:
        return self.codes - self.zero_point

    def real(self) -> Tensor:
        return self.centred.to(self.scale.dtype) * self.scale


@dataclass(frozen=True)
class LayerComparison:
    """Integers against Q's fake-quantised forward, for one operation that was given Q's own inputs.

    elements:   numbers compared: a layer's outputs, or an activation's codes
    difference: the largest absolute difference, divided by the largest absolute output
    differing:  codes that differ (activations only)
    ties:       those of them that float rounding decides: y / scale within TIE of k + 1/2
    """

    name: str
    kind: str
    elements: int
    difference: float
    differing: int = 0
    ties: int = 0

    def __str__(self) -> str:
        counts = f", {self.differing} codes differ, {self.ties} of them ties" if self.kind == "activation" else ""
        return f"{self.name} ({self.kind}): {self.elements:,} elements, largest difference {self.difference:.1e}{counts}"


@torch.no_grad()
def run_integer(student: Student, x: Tensor, *, input_bits: int = 24, table: Integers | None = None) -> Tensor:
    """The logits of normalised images `x` `(N, C, H, W)`, every convolution and linear layer on integers with int32 sums.

    What Q leaves float at a layer's input (the image, unless `every_input`) becomes integers of `input_bits` bits over the
    its range, in planes of eight: x = s (q_1 + q_2/254 + q_3/254^2), one int32 sum for each. 24 bits are what a float32
    holds; 8 are one plane. Sums over a pool's window are integers too, so a pooled vector stays exact.

    table: other integers than `to_integers(student)`, such as those read back from a packed file

    Raises UserError if `x` is not a batch of finite images that the student takes, or the student has no integers.
    """
    student, x = snapshot(student), _checked(x, input_bits)
    table = table or to_integers(student)
    values: dict[str, Quantity | Tensor] = {}
    steps = operations(student, tuple(x.shape[1:]))
    for step in steps:
        values[step.name] = _apply(step, [values[i] for i in step.inputs], student, table, x, input_bits)
    return _real(values[steps[-1].name])


@torch.no_grad()
def compare_layers(
    student: Student, x: Tensor, *, input_bits: int = 24, table: Integers | None = None
) -> list[LayerComparison]:
    """Compares each convolution, linear layer and activation, in integers on Q's own inputs, with Q's forward.

    table: as for `run_integer`
    """
    student, x = snapshot(student), _checked(x, input_bits)
    table, reference = table or to_integers(student), forward_values(student, x)
    values: dict[str, Quantity | Tensor] = {}
    rows: list[LayerComparison] = []
    for step in operations(student, tuple(x.shape[1:])):
        value = _apply(step, [values[i] for i in step.inputs], student, table, x, input_bits)
        expected = reference[step.name]
        if step.kind in ("conv", "linear", "activation"):
            difference = float((_real(value) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if step.kind in ("conv", "linear"):
            rows.append(LayerComparison(step.name, step.kind, expected.numel(), difference))
        elif step.kind == "activation" and isinstance(value, Quantity):
            grid = table.activations[step.target.removeprefix("activations.")]
            own = grid.codes(expected)
            wrong = own != value.codes
            y = reference[step.inputs[0]][wrong] / grid.scale
            ties = ((y - y.floor() - 0.5).abs() < TIE).sum()
            rows.append(LayerComparison(step.name, step.kind, own.numel(), difference, int(wrong.sum()), int(ties)))
            value = Quantity(own, grid.zero_point, grid.scale)  # the next layer starts from Q's own numbers
        values[step.name] = value
    return rows


def _checked(x: Tensor, input_bits: int) -> Tensor:
    if input_bits not in (8, 16, 24):
        raise UserError(f"input_bits must be 8, 16 or 24, not {input_bits}")
    if x.dim() != 4 or not len(x) or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise UserError(f"images must be (N, C, H, W), one or more, normalised and finite, not {tuple(x.shape)} of {x.dtype}")
    return x.cpu()


def _real(value: Quantity | Tensor) -> Tensor:
    return value.real() if isinstance(value, Quantity) else value


def _apply(
    step: Operation, inputs: list[Quantity | Tensor], student: Student, table: Integers, x: Tensor, input_bits: int
) -> Quantity | Tensor:
    """One operation, on integers if its input is integers."""
    if step.kind == "input":
        return x
    if step.kind in ("conv", "linear"):
        return _multiply_accumulate(step, inputs[0], student, table.layers[step.target], input_bits)
    if step.kind == "activation":
        grid = table.activations[step.target.removeprefix("activations.")]
        return Quantity(grid.codes(_real(inputs[0])), grid.zero_point, grid.scale)
    first = inputs[0]
    quantities = [value for value in inputs if isinstance(value, Quantity)]
    if step.kind in MOVES and len(quantities) == len(inputs):
        if all(_same_grid(v, quantities[0]) for v in quantities):
            zero, scale = quantities[0].zero_point, quantities[0].scale
            return Quantity(MOVES[step.kind](step, [v.codes for v in quantities], zero), zero, scale)
        scales = moved_places(step, [v.scale.expand(1, *v.codes.shape[1:]) for v in quantities])
        if scales is not None:
            return Quantity(MOVES[step.kind](step, [v.centred for v in quantities], 0), 0, scales)
    reals = [_real(v) for v in inputs]
    if step.kind in MOVES:
        return MOVES[step.kind](step, reals, 0)
    if step.kind == "average_pool":
        return _average(step, first)
    return _FLOATS[step.kind](step.options, reals).reshape(-1, *step.shape)


# Functions of two tensors, and ONNX's names for them.
ARITHMETIC: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "add": (operator.add, "Add"),
    "sub": (operator.sub, "Sub"),
    "mul": (operator.mul, "Mul"),
    "truediv": (operator.truediv, "Div"),
    "pow": (operator.pow, "Pow"),
    "maximum": (torch.maximum, "Max"),
    "minimum": (torch.minimum, "Min"),
}


def _arithmetic(options: dict[str, Any], reals: list[Tensor]) -> Tensor:
    operands = iter(reals)
    left, right = (next(operands) if number is None else number for number in options["operands"])
    function, _ = ARITHMETIC[options["function"]]
    out: Tensor = function(torch.as_tensor(left, dtype=reals[0].dtype), torch.as_tensor(right, dtype=reals[0].dtype))
    return out


def _elementwise(options: dict[str, Any], reals: list[Tensor]) -> Tensor:
    rest = {name: value for name, value in options.items() if name != "function"}
    out: Tensor = getattr(torch.ops.aten, options["function"])(reals[0], **rest)
    return out


def _batch_norm(o: dict[str, Any], reals: list[Tensor]) -> Tensor:
    return F.batch_norm(reals[0], o["mean"], o["variance"], o["weight"], o["bias"], eps=o["eps"])


def _layer_norm(o: dict[str, Any], reals: list[Tensor]) -> Tensor:
    return F.layer_norm(reals[0], reals[0].shape[-o["over"] :], o["weight"], o["bias"], o["eps"])


# Operations on floats: their options and inputs to the result, before it is given its shape.
_FLOATS: dict[str, Callable[[dict[str, Any], list[Tensor]], Tensor]] = {
    "arithmetic": _arithmetic,
    "elementwise": _elementwise,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "adaptive_pool": lambda o, reals: F.adaptive_avg_pool2d(reals[0], o["after"]),
    "reduce_mean": lambda o, reals: reals[0].mean(o["dims"]),
    "reduce_sum": lambda o, reals: reals[0].sum(o["dims"]),
}


def _same_grid(a: Quantity, b: Quantity) -> bool:
    return a.scale.dim() == b.scale.dim() == 0 and a.zero_point == b.zero_point and bool(a.scale == b.scale)


def moved_places(step: Operation, maps: list[Tensor]) -> Tensor | None:
    """Which grid each number of an image lies on after a move, from the same before it; None if it mixes them.

    maps: for each input a tensor `(1, ...)` of the shape of one image that has a number for each grid
    """
    if step.kind in ("max_pool", "pad"):
        (only,) = maps
        first = only[..., :1, :1]
        return first.expand(1, *step.shape) if only.dim() == 4 and bool((only == first).all()) else None
    if step.kind.startswith("reduce"):
        return None
    return MOVES[step.kind](step, maps, 0)


def _multiply_accumulate(
    step: Operation, value: Quantity | Tensor, student: Student, layer: IntegerLayer, input_bits: int
) -> Tensor:
    """acc * scale + bias of a convolution or linear layer, acc in int32."""
    module = student.graph.get_submodule(step.target)
    shape = (-1, 1, 1) if isinstance(module, QuantConv2d) else (-1,)
    out = layer.bias.view(shape)
    for plane in _one_grid_each(value) if _fits(value, layer) else split_planes(_real(value), input_bits):
        q = plane.centred
        acc = convolve(q, layer.centred, module) if isinstance(module, QuantConv2d) else q @ layer.centred.T
        out = acc.to(plane.scale.dtype) * (plane.scale * layer.scale).view(shape) + out
    return out


def _one_grid_each(value: Quantity | Tensor) -> list[Quantity]:
    """A tensor on several grids as a sum of tensors on one each, which are 0 elsewhere."""
    assert isinstance(value, Quantity)
    if value.scale.dim() == 0:
        return [value]
    scales = value.scale.unique().unbind()
    return [Quantity(torch.where(value.scale == scale, value.centred, 0), 0, scale) for scale in scales]


def _fits(value: Quantity | Tensor, layer: IntegerLayer) -> bool:
    """Whether these are integers whose sums an int32 holds; those of a pool's window may be wider than eight bits."""
    reach = int(layer.centred.abs().flatten(1).sum(1).max())
    return isinstance(value, Quantity) and int(value.centred.abs().max()) * reach < 2**31


def convolve(q: Tensor, weight: Tensor, module: QuantConv2d) -> Tensor:
    """The convolution of `module` on int32 tensors, int32; torch neither dilates these nor pads them by other than zeros."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    q = F.pad(q.double(), module._pad, mode).to(torch.int32)
    spread = [d * (k - 1) + 1 for d, k in zip(module.dilation, weight.shape[2:], strict=True)]
    dilated = weight.new_zeros(*weight.shape[:2], *spread)
    dilated[:, :, :: module.dilation[0], :: module.dilation[1]] = weight
    return F.conv2d(q, dilated, None, module.stride, groups=module.groups)


def split_planes(value: Tensor, bits: int) -> list[Quantity]:
    """Integers of eight bits each that add up to a float tensor: over its range, then over what rounding left, and so on.

    254 and not 256, so that what rounding left of one plane lies within +-127 of the next.
    """
    scale = (value.max().clamp(min=0) - value.min().clamp(max=0)).clamp(min=1e-8) / 255
    planes, rest = [], value
    for _ in range(bits // 8):
        planes.append(Quantity((rest / scale).round().to(torch.int32), 0, scale))
        rest, scale = rest - planes[-1].real(), scale / 254
    return planes


def _average(step: Operation, value: Quantity | Tensor) -> Quantity | Tensor:
    """A window's sum of codes divided by its size: integers on a finer grid, if all windows are whole."""
    (kh, kw), (sh, sw), padding = (step.options[k] for k in ("kernel", "stride", "padding"))
    whole = not step.options["ceil"] and (padding == (0, 0) or step.options["include_pad"])
    if isinstance(value, Quantity) and value.scale.dim() == 0 and whole:
        centred = F.pad(value.centred, (padding[1], padding[1], padding[0], padding[0]))
        sums = centred.unfold(2, kh, sh).unfold(3, kw, sw).sum((-1, -2), dtype=torch.int32)
        return Quantity(sums.reshape(-1, *step.shape), 0, value.scale / (kh * kw))
    real = _real(value)
    pooled = F.avg_pool2d(real, (kh, kw), (sh, sw), padding, step.options["ceil"], step.options["include_pad"])
    return pooled.reshape(-1, *step.shape)


def _max_pool(step: Operation, xs: list[Tensor], _: int) -> Tensor:
    o = step.options
    real = xs[0].float() if xs[0].dtype == torch.int32 else xs[0]  # codes are exact in float32; int32 has no max_pool2d
    return F.max_pool2d(real, o["kernel"], o["stride"], o["padding"], o["dilation"], o["ceil"]).to(xs[0].dtype)


def _slice(step: Operation, xs: list[Tensor], _: int) -> Tensor:
    out = xs[0]
    for dim, start, stop, stride in step.options["cuts"]:
        out = out[(slice(None),) * dim + (slice(start, stop, stride),)]
    return out.reshape(-1, *step.shape)


def _pad(step: Operation, xs: list[Tensor], zero: int) -> Tensor:
    amounts, mode = step.options["amounts"], step.options["mode"]
    if step.options["lowest"]:
        lowest = float(torch.iinfo(torch.int32).min) if xs[0].dtype == torch.int32 else -math.inf
        return F.pad(xs[0].double(), amounts, value=lowest).to(xs[0].dtype)
    if mode == "constant":
        return F.pad(xs[0], amounts, value=zero)
    return F.pad(xs[0].double(), amounts, mode).to(xs[0].dtype)  # which torch does not do with int32


def _largest(step: Operation, xs: list[Tensor], _: int) -> Tensor:
    reduce = torch.amax if step.kind == "reduce_max" else torch.amin
    return reduce(xs[0], step.options["dims"]).reshape(-1, *step.shape)


def _gather(step: Operation, xs: list[Tensor], _: int) -> Tensor:
    return xs[0].index_select(step.options["axis"], torch.tensor(step.options["index"]))


# Operations whose results are among their inputs, and zeros: they give the same result on codes as on real numbers.
MOVES: dict[str, Callable[[Operation, list[Tensor], int], Tensor]] = {
    "max_pool": _max_pool,
    "slice": _slice,
    "gather": _gather,
    "concat": lambda step, xs, zero: torch.cat(xs, step.options["axis"]),
    "stack": lambda step, xs, zero: torch.stack(xs, step.options["axis"]),
    "expand": lambda step, xs, zero: xs[0].expand(-1, *step.shape),
    "pad": _pad,
    "reduce_max": _largest,
    "reduce_min": _largest,
    "reshape": lambda step, xs, zero: xs[0].reshape(-1, *step.shape),
    "transpose": lambda step, xs, zero: xs[0].permute(step.options["order"]),
}
