"""The faster arithmetic of an exported file: convolutions that put out eight bits (QLinearConv), as most integer kernels do.

Every tensor between two operations is on a grid here, written as QuantizeLinear, Clip, DequantizeLinear around float operations
(QCDQ): a runtime fuses DequantizeLinear - Conv - QuantizeLinear to a convolution that reads and writes uint8. What Q leaves
float then has 8 bits, over a range that is known or estimated. That costs fidelity where Q's own grid is coarse, for at three
bits a code that rounds the other way is 1/7 of the range: `arithmetic="exact"` has no such steps.

Two things make it nearer to Q than fusing alone:

    bias      a fused convolution adds an integer, round(bias / (scale_x scale_w)), and at few bits these steps are coarse. Its
              weights are therefore m (q - zero_point) with scale scale_w / m, m as large as int8 allows: m-fold finer steps.
    gamma < 0 a scale must be positive, so m is negative for that channel.
"""

from typing import Any

import torch
from torch import Tensor

from adadfq_lab.integers import Grid, IntegerLayer
from adadfq_lab.layers import QuantConv2d
from adadfq_lab.onnx_graph import INT32, OnnxGraph, Value, padded
from adadfq_lab.operations import Operation, forward_values, users_of
from adadfq_lab.student import Student

INT8 = 3  # ONNX's number for it
LARGEST_PAIR = 2**15 - 1  # two products of uint8 and int8 are added in 16 bits where a processor has no dot product of bytes
DEVIATIONS = 6  # of a batch norm's output, taken as its range: beta +- 6 gamma


def qlinear_layer(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """A convolution or linear layer between DequantizeLinear nodes."""
    layer, module = graph.table.layers[step.target], graph.student.graph.get_submodule(step.target)
    assert value.grid is not None
    op, attributes = "Gemm", dict[str, Any]()
    if isinstance(module, QuantConv2d):
        op, (value, attributes) = "Conv", padded(graph, step.name, value, module)
    assert value.grid is not None
    scale_x, levels = value.grid.scale.double(), 2**value.grid.bits - 1
    multiplier, offset, zero_point = _stored_weights(layer, levels)
    scale = layer.scale.double().abs() / multiplier.abs().clamp(min=1)
    bias = layer.bias.double()
    # gamma = 0, or next to it: the channel is its bias, which must still fit the int32 it is rounded to
    dead = bias.abs() >= scale_x * scale * 2**30
    multiplier, offset, zero_point = (torch.where(dead, 0, t) for t in (multiplier, offset, zero_point))
    scale = torch.where(dead, bias.abs().clamp(min=1e-30) / scale_x / 2**20, scale).float().double()
    weight = _weight(graph, layer, multiplier, offset, zero_point, scale)
    steps = (scale_x * scale).float()
    rounded = graph.constant(f"{step.name}.bias", (bias / steps.double()).round(), "int32")
    steps_name = graph.constant(f"{step.name}.bias.scale", steps)
    bias_name = graph.node("DequantizeLinear", [rounded, steps_name], f"{step.name}.bias.float", axis=0)
    return Value(graph.node(op, [graph.floats(value), weight, bias_name], step.name, **attributes))


def _stored_weights(layer: IntegerLayer, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(m, o, z), each int32 (out,): the file computes with q m + o, an int8, and z; q m + o - z = m (q - zero_point)."""
    largest = layer.centred.abs().flatten(1).amax(1).clamp(min=1)
    zero_point, sign = layer.zero_point.to(torch.int32), torch.where(layer.scale < 0, -1, 1).to(torch.int32)
    if int(largest.max()) > 127:  # at 8 bits q - zero_point may need nine: then the zero point stays, and -1 - q stands for -q
        return sign, (sign - 1) // 2, sign * zero_point + (sign - 1) // 2
    multiplier = sign * (min(127, LARGEST_PAIR // (2 * levels)) // largest).clamp(min=1).to(torch.int32)
    return multiplier, -multiplier * zero_point, torch.zeros_like(zero_point)


def _weight(graph: OnnxGraph, layer: IntegerLayer, m: Tensor, o: Tensor, z: Tensor, scale: Tensor) -> str:
    """The float form of the weight: Q's codes, made into what is computed with, dequantised."""
    name, column = f"{layer.name}.weight", (-1,) + (1,) * (layer.codes.dim() - 1)
    if f"{name}.float" in graph.made:  # the layer is called twice
        return f"{name}.float"
    wide = graph.node("Cast", [graph.constant(name, layer.codes, "int8")], f"{name}.int32", to=INT32)
    times = graph.node("Mul", [wide, graph.constant(f"{name}.m", m.view(column), "int32")], f"{name}.times")
    moved = graph.node("Add", [times, graph.constant(f"{name}.o", o.view(column), "int32")], f"{name}.moved")
    plain = graph.node("Cast", [moved], f"{name}.int8", to=INT8)
    axis = 0
    if layer.kind == "linear":
        plain, axis = graph.node("Transpose", [plain], f"{name}.transposed", perm=[1, 0]), 1
    zero_point = graph.constant(f"{name}.zero_point", z, "int8")
    return graph.node(
        "DequantizeLinear", [plain, graph.constant(f"{name}.scale", scale), zero_point], f"{name}.float", axis=axis
    )


class EightBits:
    """Puts float tensors on grids of 8 bits: every one but the logits and what Q's own activations quantise anyway."""

    def __init__(self, student: Student, steps: list[Operation], images: Tensor | None) -> None:
        self.users, self.last = users_of(steps), steps[-1].name
        self.ranges = _ranges(student, steps, images)

    def __call__(self, graph: OnnxGraph, step: Operation, value: Value) -> Value:
        needed = any(user.kind != "activation" for user in self.users[step.name])
        if value.codes or step.name == self.last or not needed:
            return value
        low, high = value.bounds or self.ranges[step.name]
        low, high = min(low, 0.0), max(high, 0.0)
        scale = torch.tensor(max(high - low, 1e-8) / 255)
        grid = Grid(8, scale, round(-low / float(scale)) - 128, "none")
        scale_name, zero_point = graph.grid(f"{step.name}.grid", grid)
        codes = graph.node("QuantizeLinear", [value.floats, scale_name, zero_point], f"{step.name}.codes")
        return Value(codes=codes, grid=grid, bounds=value.bounds)


@torch.no_grad()
def _ranges(student: Student, steps: list[Operation], images: Tensor | None) -> dict[str, tuple[float, float]]:
    """Between which floats the value of each step lies: as seen on `images`, or without any as its batch norm remembers."""
    shape = next(step.shape for step in steps if step.kind == "input")
    seen = images if images is not None else torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    values = forward_values(student, seen.to(next(student.parameters())))
    ranges = {step.name: (float(values[step.name].min()), float(values[step.name].max())) for step in steps}
    for step in steps:
        module = student.graph.get_submodule(step.target) if step.kind == "conv" else None
        if images is None and isinstance(module, QuantConv2d) and module.bn is not None and module.bn.weight is not None:
            beta, gamma = module.bn.bias, DEVIATIONS * module.bn.weight.abs()
            ranges[step.name] = (float((beta - gamma).min()), float((beta + gamma).max()))
    return ranges
