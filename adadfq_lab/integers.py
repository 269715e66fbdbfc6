"""The integers of a student, and the student run on them: what "3 bits" means, with nothing simulated.

Q's forward is fake: floats that lie on grids. Here the same network is computed on the integers behind the grids,

    acc = sum (q_x - zero_point_x)(q_w - zero_point_w)            int32, exact
    y   = acc * (scale_x * scale_w) + bias                        one float multiplication and addition per output
    q_y = clamp(round(y / scale_y) + zero_point_y)                the next layer's integers

with the batch norm y -> a y + b folded into scale_w and bias per output channel, which leaves the integers alone. Slow and
clear. Both forwards round in different places, so a code may differ where y / scale_y lies on a rounding tie within float
precision, and only there; `compare_layers` counts.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError
from adadfq_lab.layers import QuantConv2d, QuantLayer
from adadfq_lab.operations import Operation, forward_values, operations
from adadfq_lab.quantizer import QuantActivation, codes, quant_range
from adadfq_lab.student import KEEPS_GRID, KEEPS_GRID_FUNCTIONS, KEEPS_GRID_METHODS, Student

TIE = 1e-3  # of a step: how near to k + 1/2 a value must lie for float rounding to decide its code


@dataclass(frozen=True)
class Grid:
    """The numbers an activation tensor may hold: (q - zero_point) * scale for the integers q of `bits` bits.

    scale is 0-dim; relu is "none", "relu" or "relu6". After a ReLU zero_point = quant_min: the grid starts at 0.
    """

    bits: int
    scale: Tensor
    zero_point: int
    relu: str

    def codes(self, y: Tensor) -> Tensor:
        """The integers of `y`, int32; rounded exactly as the fake quantiser of Q rounds."""
        if self.relu == "none":
            return codes(y, self.scale, torch.tensor(float(self.zero_point), dtype=y.dtype, device=y.device), self.bits)
        return (y / self.scale).round().clamp(0, 2**self.bits - 1).to(torch.int32) + self.zero_point

    def __str__(self) -> str:
        low, high = ((q - self.zero_point) * float(self.scale) for q in quant_range(self.bits))
        return f"{self.bits} bits on [{low:.4g}, {high:.4g}], scale {float(self.scale):.4g}, zero point {self.zero_point}"


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or linear layer as integers; `out` is its number of output channels.

    codes:        int8, in [-2^(bits-1), 2^(bits-1) - 1], in the weight's shape (out, in/groups, kh, kw) or (out, in)
    zero_point:   int8 (out,), one of the codes: what stands for 0
    weight_scale: (out,), the step of the weight's grid
    scale:        (out,), the same times gamma/sigma of the batch norm folded in: negative where gamma is, 0 where it is 0
    bias:         (out,), float, with the batch norm's shift folded in
    input:        the grid of what comes in, None where Q leaves that float
    """

    name: str
    kind: str
    bits: int
    codes: Tensor
    zero_point: Tensor
    weight_scale: Tensor
    scale: Tensor
    bias: Tensor
    input: Grid | None

    @property
    def centred(self) -> Tensor:
        """q - zero_point, int32: the multiples of the scale that the weights are."""
        shape = (-1,) + (1,) * (self.codes.dim() - 1)
        return self.codes.to(torch.int32) - self.zero_point.to(torch.int32).view(shape)


@dataclass(frozen=True)
class Integers:
    """Everything integer about a student: its layers and the grids of its activations, by name, in order of execution."""

    layers: Mapping[str, IntegerLayer]
    activations: Mapping[str, Grid]

    def table(self) -> str:
        """A line per layer: shape, bits, the codes in use, scales and the grid of the input."""
        name = max(len(n) for n in self.layers)
        lines = [f"{'layer':{name}}  {'weight':>15}  bits  codes used   {'zero points':>11}  {'scale (median)':>14}  input"]
        for layer in self.layers.values():
            used = f"{int(layer.codes.min())} .. {int(layer.codes.max())}"
            zeros = f"{int(layer.zero_point.min())} .. {int(layer.zero_point.max())}"
            shape = "x".join(map(str, layer.codes.shape))
            start = f"{layer.name:{name}}  {shape:>15}  {layer.bits:4}  {used:>10}   {zeros:>11}"
            lines.append(f"{start}  {float(layer.weight_scale.median()):14.4g}  {layer.input or 'float'}")
        return "\n".join(lines)


def integers(student: Student) -> Integers:
    """The integer weights, scales, zero points, bit widths and activation grids of `student`, as plain tensors.

    Raises UserError where the student has no integers: real zero points (fidelity "paper"), a batch norm in training mode, or
    activation ranges that have seen no batch.
    """
    if student.quantization.zero_point != "rounded":
        raise UserError('this student has real zero points, which no integer stands for; quantize with zero_point="rounded"')
    grids = {name: _grid(name, module) for name, module in student.activations().items()}
    modules = dict(student.graph.named_modules())
    layers: dict[str, IntegerLayer] = {}
    for node in student.graph.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantLayer):
            source = str(_source(node.all_input_nodes[0], modules).target).removeprefix("activations.")
            known = layers.get(str(node.target))
            if known is None or known.input == grids.get(source):
                layers[str(node.target)] = _layer(str(node.target), layer, grids.get(source))
            else:  # one layer, called on two grids: the integers are the same, the inputs' grid is not one
                layers[str(node.target)] = _layer(str(node.target), layer, None)
    return Integers(layers, grids)


def _grid(name: str, module: QuantActivation) -> Grid:
    if not bool(module.range.batches):
        raise UserError(f"activation {name} has seen no batch, so it has no grid; let the student observe images first")
    scale, zero_point = module.qparams()
    return Grid(module.bits, scale.detach(), int(zero_point), module.relu)


@torch.no_grad()
def _layer(name: str, layer: QuantLayer, grid: Grid | None) -> IntegerLayer:
    weight_scale, zero_point = (q.flatten() for q in layer.qparams())
    scale, bias = weight_scale, getattr(layer, "bias", None)
    bias = torch.zeros_like(scale) if bias is None else bias.detach()
    if isinstance(layer, QuantConv2d) and layer.bn is not None:
        affine = layer.affine()
        if affine is None:
            raise UserError(
                f"the batch norm of {name} works on the batch's own statistics, which cannot be folded; use running ones"
            )
        a, b = affine
        scale, bias = weight_scale * a, torch.addcmul(b, bias, a)
    plain = layer.integer_weight().to(torch.int8).contiguous()
    kind = "conv" if isinstance(layer, QuantConv2d) else "linear"
    return IntegerLayer(name, kind, layer.bits, plain, zero_point.to(torch.int8), weight_scale, scale, bias, grid)


def _source(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The node on whose grid the tensor of `node` lies, back through operations that only move numbers."""
    while node.all_input_nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        moves = isinstance(module, KEEPS_GRID) or node.target in (*KEEPS_GRID_FUNCTIONS, *KEEPS_GRID_METHODS)
        if not moves:
            break
        node = node.all_input_nodes[0]
    return node


@dataclass(frozen=True)
class Quantity:
    """A tensor on a grid while the network runs: (codes - zero_point) * scale, codes int32."""

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
    range it has, in planes of eight: x = s (q_1 + q_2/256 + q_3/65536), one int32 sum for each. 24 bits are what a float32
    holds; 8 are one plane. Sums over a pool's window are integers too, so a pooled vector stays exact.

    table: other integers than `integers(student)`, such as those read back from a packed file
    """
    table = table or integers(student)
    values: dict[str, Quantity | Tensor] = {}
    steps = operations(student, tuple(x.shape[1:]))
    for step in steps:
        values[step.name] = _apply(step, [values[i] for i in step.inputs], student, table, x, input_bits)
    return _real(values[steps[-1].name])


@torch.no_grad()
def compare_layers(student: Student, x: Tensor, *, input_bits: int = 24) -> list[LayerComparison]:
    """Each convolution, linear layer and activation, in integers on Q's own inputs, against what Q's forward makes of them."""
    table, reference = integers(student), forward_values(student, x)
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


def _real(value: Quantity | Tensor) -> Tensor:
    return value.real() if isinstance(value, Quantity) else value


def _apply(
    step: Operation, inputs: list[Quantity | Tensor], student: Student, table: Integers, x: Tensor, input_bits: int
) -> Quantity | Tensor:
    """One operation on integers where its input is integers."""
    if step.kind == "input":
        return x
    if step.kind in ("conv", "linear"):
        return _multiply_accumulate(step, inputs[0], student, table.layers[step.target], input_bits)
    if step.kind == "activation":
        grid = table.activations[step.target.removeprefix("activations.")]
        return Quantity(grid.codes(_real(inputs[0])), grid.zero_point, grid.scale)
    first = inputs[0]
    if step.kind in _MOVES and all(isinstance(v, Quantity) and _same_grid(v, first) for v in inputs):
        assert isinstance(first, Quantity)
        moved = _MOVES[step.kind](step, [v.codes for v in inputs if isinstance(v, Quantity)], first.zero_point)
        return Quantity(moved, first.zero_point, first.scale)
    if step.kind in _MOVES:
        return _MOVES[step.kind](step, [_real(v) for v in inputs], 0)
    if step.kind == "average_pool":
        return _average(step, first)
    reals = [_real(v) for v in inputs]
    if step.kind == "arithmetic":
        operands = iter(reals)
        left, right = (next(operands) if number is None else number for number in step.options["operands"])
        out: Tensor = getattr(operator, step.options["function"])(left, right)
    elif step.kind == "batch_norm":
        out = student.graph.get_submodule(step.target)(reals[0])
    elif step.options["function"] == "clamp":
        out = reals[0].clamp(*step.options["limits"])
    else:
        out = _FUNCTIONS[step.options["function"]](reals[0])
    return out


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


def _same_grid(a: Quantity | Tensor, b: Quantity | Tensor) -> bool:
    return isinstance(a, Quantity) and isinstance(b, Quantity) and a.zero_point == b.zero_point and bool(a.scale == b.scale)


def _multiply_accumulate(
    step: Operation, value: Quantity | Tensor, student: Student, layer: IntegerLayer, input_bits: int
) -> Tensor:
    """acc * scale + bias of a convolution or linear layer, acc in int32."""
    module, weight = student.graph.get_submodule(step.target), layer.centred
    shape = (-1, 1, 1) if isinstance(module, QuantConv2d) else (-1,)
    out = layer.bias.view(shape)
    for plane in [value] if isinstance(value, Quantity) else _planes(value, input_bits):
        q = plane.centred
        acc = _convolve(q, weight, module) if isinstance(module, QuantConv2d) else q @ weight.T
        out = acc.to(plane.scale.dtype) * (plane.scale * layer.scale).view(shape) + out
    return out


def _convolve(q: Tensor, weight: Tensor, module: QuantConv2d) -> Tensor:
    """The convolution of `module` on int32 tensors, for which torch neither dilates nor pads by other values than zero."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    q = F.pad(q.double(), module._pad, mode).to(torch.int32)
    spread = [d * (k - 1) + 1 for d, k in zip(module.dilation, weight.shape[2:], strict=True)]
    dilated = weight.new_zeros(*weight.shape[:2], *spread)
    dilated[:, :, :: module.dilation[0], :: module.dilation[1]] = weight
    return F.conv2d(q, dilated, None, module.stride, groups=module.groups)


def _planes(value: Tensor, bits: int) -> list[Quantity]:
    """Integers of eight bits each that add up to a float tensor: over its range, then over what rounding left, and so on."""
    scale = (value.max().clamp(min=0) - value.min().clamp(max=0)).clamp(min=1e-8) / 255
    planes, rest = [], value
    for _ in range(bits // 8):
        planes.append(Quantity((rest / scale).round().to(torch.int32), 0, scale))
        rest, scale = rest - planes[-1].real(), scale / 256
    return planes


def _average(step: Operation, value: Quantity | Tensor) -> Quantity | Tensor:
    """A window's sum of codes over its size: integers, on a grid so many times finer, where windows are whole."""
    (kh, kw), (sh, sw), padding = (step.options[k] for k in ("kernel", "stride", "padding"))
    whole = not step.options["ceil"] and (padding == (0, 0) or step.options["include_pad"])
    if isinstance(value, Quantity) and whole:
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
    return out


# Operations whose results are among their inputs, and zeros: on codes they are what they are on numbers.
_MOVES: dict[str, Callable[[Operation, list[Tensor], int], Tensor]] = {
    "max_pool": _max_pool,
    "slice": _slice,
    "concat": lambda step, xs, zero: torch.cat(xs, 1),
    "pad": lambda step, xs, zero: F.pad(xs[0], step.options["amounts"], value=zero),
    "reshape": lambda step, xs, zero: xs[0].reshape(-1, *step.shape),
    "transpose": lambda step, xs, zero: xs[0].permute(step.options["order"]),
}
