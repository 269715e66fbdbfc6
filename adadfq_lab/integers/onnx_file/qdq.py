"""Convolutions in the form that runtimes know best: DequantizeLinear - Conv - QuantizeLinear, which they fuse to a QLinearConv.

A fused convolution reads bytes, adds an integer bias and writes bytes; nothing between two layers is a float, and it is three
to four times as fast as exact sums. The price is that each output is rounded to 8 bits and the bias to a multiple of scale_x *
scale_w. Where nothing but an 8-bit activation follows, that is what happens to it anyway. Elsewhere, before a residual add, the
range of the output is taken from its batch norm, beta +- 6 gamma; at 3 or 4 bits the rounding flips codes of Q.

Two things keep such a file near to Q. The codes of few bits are multiplied by m, as large as a byte allows, and the scale
divided by it: the bias then has steps m times finer. And a negative gamma is a negative m, for scales must be positive.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.integers.layers import Grid, IntegerLayer
from adadfq_lab.integers.onnx_file.graph import LARGEST_PAIR, MIDDLE, Bounds, OnnxGraph, Value, padded, saturates
from adadfq_lab.integers.operations import Operation, forward_values
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.student import Student

DEVIATIONS = 6  # of a batch norm's output, taken as its range


class Ranges:
    """The ranges of a student's tensors that are on no grid."""

    def __init__(self, student: Student, steps: list[Operation]) -> None:
        self.student = student
        self.shape = next(step.shape for step in steps if step.kind == "input")

    @cached_property
    def _noise(self) -> dict[str, Tensor]:
        images = torch.randn(64, *self.shape, generator=torch.Generator().manual_seed(0))
        return forward_values(self.student, images.to(next(self.student.parameters())))

    def of(self, name: str, bounds: Bounds = None) -> tuple[float, float]:
        """Of the tensor `name`: `bounds` if they are known, else what it reaches on standard-normal images."""
        return bounds or (float(self._noise[name].min()), float(self._noise[name].max()))

    def after(self, step: Operation) -> tuple[float, float]:
        """Of a convolution's output: what its batch norm remembers, else as `of`."""
        module = self.student.graph.get_submodule(step.target)
        bn = module.bn if isinstance(module, QuantConv2d) else None
        if bn is None or bn.weight is None or bn.bias is None:
            return self.of(step.name)
        shift, reach = bn.bias.detach(), DEVIATIONS * bn.weight.detach().abs()
        return float((shift - reach).min()), float((shift + reach).max())


def on_eight_bits(graph: OnnxGraph, name: str, value: Value, reach: tuple[float, float]) -> Value:
    """`value` rounded to 256 numbers over `reach`, widened to contain 0."""
    low, high = min(reach[0], 0.0), max(reach[1], 0.0)
    scale = torch.tensor(max(high - low, 1e-8) / 255)
    grid = Grid(8, scale, round(-low / float(scale)) - 128, "none")
    codes = graph.node("QuantizeLinear", [graph.floats(value), *graph.grid(f"{name}.eight", grid)], f"{name}.codes")
    return Value(codes=codes, grid=grid, bounds=(low, high))


def qdq_convolution(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """A convolution of codes between DequantizeLinear nodes, its bias an int32 of scale scale_x * scale_w."""
    layer, module = graph.table.layers[step.target], graph.student.graph.get_submodule(step.target)
    assert isinstance(module, QuantConv2d) and value.grid is not None
    scale_x, levels = value.grid.scale.double(), 2**value.grid.bits - 1
    value, attributes = padded(graph, step.name, value, module)
    m, offset, zero_point = _stored_weights(layer, levels)
    scale, bias = layer.scale.double().abs() / m.abs(), layer.bias.double()
    # gamma = 0, or next to it: the channel is its bias, which must still fit the int32 it is rounded to
    dead = bias.abs() >= scale_x * scale * 2**30
    m, offset, zero_point = (torch.where(dead, 0, t) for t in (m, offset, zero_point))
    scale = torch.where(dead, bias.abs().clamp(min=1e-30) / scale_x / 2**20, scale).float()
    steps = scale_x.float() * scale
    rounded = graph.constant(f"{step.name}.bias", (bias / steps.double()).round(), np.int32)
    real = graph.node(
        "DequantizeLinear", [rounded, graph.constant(f"{step.name}.scale", steps)], f"{step.name}.bias.real", axis=0
    )
    inputs = [graph.floats(value), _weight(graph, step.name, layer, levels, m, offset, zero_point, scale), real]
    return Value(graph.node("Conv", inputs, f"{step.name}.out", **attributes))


def _stored_weights(layer: IntegerLayer, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(m, o, z), each int32 (out,): the file computes with q m + o, an int8, and z; q m + o - z = m (q - zero_point)."""
    largest = layer.centred.abs().flatten(1).amax(1).clamp(min=1)
    zero_point, sign = layer.zero_point.to(torch.int32), torch.where(layer.scale < 0, -1, 1).to(torch.int32)
    if int(largest.max()) > 127:  # at 8 bits q - zero_point takes nine: then the zero point stays, and -1 - q stands for -q
        return sign, (sign - 1) // 2, sign * zero_point + (sign - 1) // 2
    m = sign * (min(127, LARGEST_PAIR // (2 * levels)) // largest).clamp(min=1).to(torch.int32)
    return m, -m * zero_point, torch.zeros_like(zero_point)


def _weight(
    graph: OnnxGraph, use: str, layer: IntegerLayer, levels: int, m: Tensor, o: Tensor, z: Tensor, scale: Tensor
) -> str:
    """The float form of the weight for one `use` of it; its integers are Q's own codes wherever m = 1."""
    column = (-1,) + (1,) * (layer.codes.dim() - 1)
    name = f"{layer.name if bool((m == 1).all() and (o == 0).all()) else use}.weight"
    stored = (layer.codes.to(torch.int32) * m.view(column) + o.view(column)).numpy()
    if saturates(stored, levels):
        weight = graph.uint8(f"{name}.uint8", name, stored)
        zero = graph.constant(f"{use}.weight.zero", z + MIDDLE, np.uint8)
    else:
        weight, zero = graph.constant(name, stored, np.int8), graph.constant(f"{use}.weight.zero", z, np.int8)
    rest = [graph.constant(f"{use}.weight.scale", scale), zero]
    return graph.node("DequantizeLinear", [weight, *rest], f"{use}.weight.real", axis=0)
