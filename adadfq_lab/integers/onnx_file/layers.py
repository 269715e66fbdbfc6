"""A student's convolutions and linear layers as ONNX nodes on integers, and the whole student, operation by operation.

Between two activations of Q the file does, node by node, the arithmetic of `run_integer`:

    ConvInteger        acc = sum (q_x - zero_point_x)(q_w - zero_point_w)    uint8 times uint8 in int32, exact
    DequantizeLinear   acc * (scale_x * scale_w)                             batch norm folded into scale_w ...
    Add                y = ... + bias                                        ... and bias

and so gives what Q gives, but for rounding ties. Weights are raw int8 initialisers that hold Q's own codes. The three nodes
that make uint8 of them have constant inputs: a runtime computes them once, on loading.

Where Q leaves a layer's input float, it enters as 24-bit integers in three uint8 planes, x = s (q_1 + q_2/254 + q_3/254^2), and
the layer is three integer convolutions. 254, and not 256, so that what rounding left of one plane fits the next.

That is the form "exact". The form "qcdq" has the convolutions of `qdq`, faster and less faithful: on CIFAR-10
at 3 bits such a file agreed with Q on 74 % of the images. At 8 bits, where nothing but an activation follows, there is nothing
to lose, and "exact" has them too.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from adadfq_lab.integers.layers import IntegerLayer
from adadfq_lab.integers.onnx_file.graph import MIDDLE, Bounds, OnnxGraph, Value, byte_of, padded, saturates
from adadfq_lab.integers.onnx_file.operations import WRITERS
from adadfq_lab.integers.onnx_file.qdq import Ranges, on_eight_bits, qdq_convolution
from adadfq_lab.integers.operations import Operation, users_of
from adadfq_lab.student.layers import QuantConv2d

Form = Literal["exact", "qcdq"]
IMAGES, LOGITS = "images", "logits"
FINER = 254  # how many times finer each plane is than the one before


def write_operations(graph: OnnxGraph, steps: list[Operation], images: Bounds, form: Form) -> None:
    """Writes `steps` into `graph`, from the tensor IMAGES to the tensor LOGITS.

    images: between which floats the normalised images lie
    """
    values: dict[str, Value] = {}
    calls, users, ranges = Counter(step.target for step in steps), users_of(steps), Ranges(graph.student, steps)
    for step in steps:
        inputs = [values[i] for i in step.inputs]
        before_activation = [user.kind for user in users[step.name]] == ["activation"]
        if step.kind == "input":
            value = Value(IMAGES, bounds=images)
        elif step.kind in ("conv", "linear"):
            first, lossy = inputs[0], form == "qcdq" and step.kind == "conv"
            if lossy and not first.codes and (first.floats != IMAGES or graph.input_bits == 8):
                first = on_eight_bits(graph, f"{step.name}.input", first, ranges.of(step.inputs[0], first.bounds))
            alone = before_activation and calls[step.target] == 1
            fused = bool(first.codes) and (_fuses_well(graph, step) if lossy else alone and _loses_nothing(graph, step))
            value = qdq_convolution(graph, step, first) if fused else _layer(graph, step, first)
            if lossy and not before_activation:
                value = on_eight_bits(graph, step.name, value, ranges.after(step))
        else:
            value = WRITERS[step.kind](graph, step, inputs)
        values[step.name] = value
    graph.node("Identity", [graph.floats(values[steps[-1].name])], LOGITS)


@dataclass(frozen=True)
class Plane:
    """uint8 codes that enter an integer layer; `scale` is a number, or the name of a tensor that holds it at run time."""

    codes: str
    zero_point: str
    scale: float | str


def _layer(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """acc * scale + bias of a convolution or linear layer, for each plane of its input."""
    layer, module = graph.table.layers[step.target], graph.student.graph.get_submodule(step.target)
    attributes: dict[str, Any] = {}
    if isinstance(module, QuantConv2d):
        value, attributes = padded(graph, step.name, value, module)
    axis = 1 if layer.kind == "conv" else len(step.shape)  # of the output channels: a linear layer's are the last dimension
    total = graph.constant(f"{layer.name}.bias", layer.bias.view((-1, 1, 1) if layer.kind == "conv" else -1))
    for i, plane in enumerate(_planes(graph, step.name, value)):
        name = f"{step.name}.{i}" if i else step.name
        acc = _convolution(graph, name, layer, plane, attributes) if attributes else _product(graph, name, layer, plane)
        real = graph.node("DequantizeLinear", [acc, _scale(graph, name, layer, plane.scale)], f"{name}.real", axis=axis)
        total = graph.node("Add", [real, total], f"{name}.out")
    return Value(total)


def _loses_nothing(graph: OnnxGraph, step: Operation) -> bool:
    """Whether a layer before an activation may add its bias as an integer: at 8 bits, where the sums are fine enough."""
    layer = graph.table.layers[step.target]
    plain = bool((layer.scale > 0).all())  # else the file could not hold Q's own codes: a QLinearConv has no negative scale
    return step.kind == "conv" and _takes_nine_bits(layer) and plain and _fuses_well(graph, step)


def _fuses_well(graph: OnnxGraph, step: Operation) -> bool:
    """Whether a QLinearConv is faster: not with groups and a zero point for each channel, as 8-bit weights have."""
    module = graph.student.graph.get_submodule(step.target)
    assert isinstance(module, QuantConv2d)
    return module.groups == 1 or not _takes_nine_bits(graph.table.layers[step.target])


def _takes_nine_bits(layer: IntegerLayer) -> bool:
    """Whether q_w - zero_point_w does not fit a byte."""
    return int(layer.centred.abs().max()) >= MIDDLE


def _product(graph: OnnxGraph, name: str, layer: IntegerLayer, plane: Plane) -> str:
    """sum (q_x - zero_point_x)(q_w - zero_point_w) of a linear layer; MatMulInteger has a zero point per column."""
    weight, codes, zero_point = f"{layer.name}.weight", layer.codes.numpy(), layer.zero_point.numpy().astype(np.int32)
    wide = saturates(codes)
    if (transposed := f"{layer.name}.transposed") not in graph.made:  # else the layer is called twice
        stored = graph.uint8(f"{layer.name}.uint8", weight, codes) if wide else graph.constant(weight, codes, np.int8)
        graph.node("Transpose", [stored], transposed, perm=[1, 0])
    zero = graph.constant(
        f"{layer.name}.zero_point", zero_point + MIDDLE if wide else zero_point, np.uint8 if wide else np.int8
    )
    return graph.node("MatMulInteger", [plane.codes, transposed, plane.zero_point, zero], f"{name}.acc")


def _convolution(graph: OnnxGraph, name: str, layer: IntegerLayer, plane: Plane, attributes: dict[str, Any]) -> str:
    """sum (q_x - zero_point_x)(q_w - zero_point_w) of a convolution; ConvInteger has one zero point for all channels.

    q_w - zero_point_w fits a byte below 8 bits. At 8 it takes nine: then the weights are q_w, and zero_point_w times the sum
    of the inputs, which is a convolution with ones, is taken off.
    """
    nine_bits, column = _takes_nine_bits(layer), (-1, *(1 for _ in layer.codes.shape[1:]))
    zero_point = torch.zeros_like(layer.zero_point) if nine_bits else layer.zero_point
    centre, inputs = zero_point.int().view(column) - MIDDLE, [plane.zero_point, graph.byte(MIDDLE)]
    weight = graph.uint8(f"{layer.name}.uint8", f"{layer.name}.weight", layer.codes.numpy(), centre)
    acc = graph.node("ConvInteger", [plane.codes, weight, *inputs], f"{name}.acc", **attributes)
    if not nine_bits:
        return acc
    shape = (len(layer.codes) if attributes["group"] > 1 else 1, *layer.codes.shape[1:])
    ones = graph.constant("ones." + "x".join(map(str, shape)), np.full(shape, MIDDLE + 1), np.uint8)
    window = graph.node("ConvInteger", [plane.codes, ones, *inputs], f"{name}.ones", **attributes)
    zeros = graph.constant(f"{layer.name}.zero_point", layer.zero_point.int().view(-1, 1, 1), np.int32)
    return graph.node("Sub", [acc, graph.node("Mul", [window, zeros], f"{name}.taken")], f"{name}.sum")


def _scale(graph: OnnxGraph, name: str, layer: IntegerLayer, scale: float | str) -> str:
    """scale_x * scale_w per output channel, in float32 as `run_integer` multiplies."""
    if isinstance(scale, str):
        return graph.node("Mul", [graph.constant(f"{layer.name}.scale", layer.scale), scale], f"{name}.step")
    return graph.constant(f"{name}.scale", layer.scale.float() * torch.tensor(scale))


def _planes(graph: OnnxGraph, name: str, value: Value) -> list[Plane]:
    """The uint8 tensors that stand for `value` at an integer layer: its codes, or one to three planes of a float tensor."""
    if value.codes:
        assert value.grid is not None
        return [Plane(value.codes, graph.byte(byte_of(value.grid, value.grid.zero_point)), float(value.grid.scale))]
    codes, scale, zero_point = f"{name}.plane", f"{name}.plane.scale", f"{name}.plane.zero_point"
    step: float | str = scale
    if value.bounds is None:  # the range is that of the numbers that come
        graph.node("DynamicQuantizeLinear", [value.floats], codes, scale, zero_point)
    else:
        low, high = min(value.bounds[0], 0.0), max(value.bounds[1], 0.0)
        step = max(high - low, 1e-8) / 255
        zero_point = graph.byte(round(-low / step))
        graph.node("QuantizeLinear", [value.floats, graph.constant(scale, step), zero_point], codes)
    planes, rest = [Plane(codes, zero_point, step)], value.floats
    for i in range(1, graph.input_bits // 8):
        back = graph.node("DequantizeLinear", [codes, scale, zero_point], f"{codes}.back")
        rest = graph.node("Sub", [rest, back], f"{codes}.rest")
        codes, zero_point, coarse = f"{name}.plane{i}", graph.byte(MIDDLE), scale
        if isinstance(step, str):
            step = scale = graph.node("Mul", [coarse, graph.constant("finer", 1 / FINER)], f"{codes}.scale")
        else:
            step = step / FINER
            scale = graph.constant(f"{codes}.scale", step)
        graph.node("QuantizeLinear", [rest, scale, zero_point], codes)
        planes.append(Plane(codes, zero_point, step))
    return planes
