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
at 3 bits such a file agreed with Q on 74 % of the images. At 8 bits, if only an activation follows, there is nothing
to lose, and "exact" has them too.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.integers.layers import IntegerLayer
from adadfq_lab.integers.onnx_file.graph import MIDDLE, Bounds, OnnxGraph, Value, byte_of, padded, saturates
from adadfq_lab.integers.onnx_file.operations import write_operation
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
    shapes = {step.name: step.shape for step in steps}
    calls, users, ranges = Counter(step.target for step in steps), users_of(steps), Ranges(graph.student, steps)
    for step in steps:
        inputs = [values[i] for i in step.inputs]
        before_activation = [user.kind for user in users[step.name]] == ["activation"]
        if step.kind == "input":
            value = Value(IMAGES, bounds=images)
        elif step.kind in ("conv", "linear"):
            first, lossy = inputs[0], form == "qcdq" and step.kind == "conv"
            if lossy and first.grid is None and (first.floats != IMAGES or graph.input_bits == 8):
                first = on_eight_bits(graph, f"{step.name}.input", first, ranges.of(step.inputs[0], first.bounds))
            alone = before_activation and calls[step.target] == 1
            fused = first.grid is not None and (_fuses_well(graph, step) if lossy else alone and _loses_nothing(graph, step))
            value = qdq_convolution(graph, step, first) if fused else _layer(graph, step, first)
            if lossy and not before_activation:
                value = on_eight_bits(graph, step.name, value, ranges.after(step))
        else:
            value = write_operation(graph, step, inputs, [shapes[i] for i in step.inputs])
        values[step.name] = value
    graph.node("Identity", [graph.floats(values[steps[-1].name])], LOGITS)


@dataclass(frozen=True)
class Plane:
    """uint8 codes that enter an integer layer.

    scale:    a number; one for each output channel; or the name of a tensor that holds it at run time
    channels: which of the layer's input channels these are, None for all
    """

    codes: str
    zero_point: str
    scale: float | str | Tensor
    channels: Tensor | None = None


def _layer(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """acc * scale + bias of a convolution or linear layer, for each plane of its input."""
    layer, module = graph.table.layers[step.target], graph.student.graph.get_submodule(step.target)
    attributes: dict[str, Any] = {}
    if isinstance(module, QuantConv2d):
        value, attributes = padded(graph, step.name, value, module)
    axis = 1 if layer.kind == "conv" else len(step.shape)  # of the output channels: a linear layer's are the last dimension
    total = graph.constant(f"{layer.name}.bias", layer.bias.view((-1, 1, 1) if layer.kind == "conv" else -1))
    planes = _grids(graph, step.name, value, layer, attributes)
    if not planes and value.grid is None:
        graph.left.append(layer.name)
    for i, plane in enumerate(planes or _planes(graph, step.name, value)):
        name = f"{step.name}.{i}" if i else step.name
        part = layer
        if plane.channels is not None:
            part = replace(layer, name=f"{step.name}.part{i}", codes=layer.codes[:, plane.channels].contiguous())
        acc = _convolution(graph, name, part, plane, attributes) if attributes else _product(graph, name, part, plane)
        real = graph.node("DequantizeLinear", [acc, _scale(graph, name, layer, plane.scale)], f"{name}.real", axis=axis)
        total = graph.node("Add", [real, total], f"{name}.out")
    return Value(total)


def _grids(graph: OnnxGraph, name: str, value: Value, layer: IntegerLayer, attributes: dict[str, Any]) -> list[Plane]:
    """A plane for each grid that the input channels lie on, one for all if groups keep them apart; none if neither is possible.

    The layer's channels of one grid are a layer of their own: together they are as many products as the whole.
    """
    mixed = value.mixed
    if mixed is None:
        return []
    rows = mixed.places[0].flatten(1) if attributes else mixed.places.flatten(0, -2).T
    if not bool((rows == rows[:, :1]).all()):
        return []
    of_channel, groups = rows[:, 0], attributes.get("group", 1)
    if groups > 1:
        of_group, zero = of_channel.view(groups, -1), mixed.zero()
        if zero is None or not bool((of_group == of_group[:, :1]).all()):
            return []
        scales = torch.stack([grid.scale.float() for grid in mixed.grids])[of_group[:, 0]]
        return [Plane(value.codes, graph.byte(zero), scales.repeat_interleave(len(layer.codes) // groups))]
    planes = []
    for i in sorted(set(of_channel.tolist())):
        grid, channels = mixed.grids[i], (of_channel == i).nonzero()[:, 0]
        codes = value.codes
        if len(channels) < len(of_channel):
            index = graph.integers(f"{name}.channels{i}", *channels.tolist())
            codes = graph.node("Gather", [codes, index], f"{name}.codes{i}", axis=1 if attributes else -1)
        planes.append(Plane(codes, graph.byte(byte_of(grid, grid.zero_point)), float(grid.scale), channels))
    return planes


def _loses_nothing(graph: OnnxGraph, step: Operation) -> bool:
    """Whether a layer before an activation may add its bias as an integer: at 8 bits, whose sums are fine enough."""
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


def _scale(graph: OnnxGraph, name: str, layer: IntegerLayer, scale: float | str | Tensor) -> str:
    """scale_x * scale_w per output channel, in float32 as `run_integer` multiplies."""
    if isinstance(scale, str):
        return graph.node("Mul", [graph.constant(f"{layer.name}.scale", layer.scale), scale], f"{name}.step")
    return graph.constant(f"{name}.scale", layer.scale.float() * torch.as_tensor(scale))


def _planes(graph: OnnxGraph, name: str, value: Value) -> list[Plane]:
    """The uint8 tensors that stand for `value` at an integer layer: its codes, or one to three planes of a float tensor."""
    if value.grid is not None:
        return [Plane(value.codes, graph.byte(byte_of(value.grid, value.grid.zero_point)), float(value.grid.scale))]
    codes, scale, zero_point = f"{name}.plane", f"{name}.plane.scale", f"{name}.plane.zero_point"
    step: float | str = scale
    if value.bounds is None:  # the range is that of the numbers that come
        graph.node("DynamicQuantizeLinear", [graph.floats(value)], codes, scale, zero_point)
    else:
        low, high = min(value.bounds[0], 0.0), max(value.bounds[1], 0.0)
        step = max(high - low, 1e-8) / 255
        zero_point = graph.byte(round(-low / step))
        graph.node("QuantizeLinear", [graph.floats(value), graph.constant(scale, step), zero_point], codes)
    planes, rest = [Plane(codes, zero_point, step)], graph.floats(value)
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
