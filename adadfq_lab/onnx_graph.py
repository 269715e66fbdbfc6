"""A student's operations as ONNX nodes, every convolution an integer convolution.

A tensor comes in two forms: *codes*, uint8 on the grid of an activation, and *floats*. Between two activations of Q the file
does, node by node, the arithmetic of `run_integer`:

    ConvInteger      acc = sum (q_x - zero_point_x)(q_w - zero_point_w)    uint8 times uint8 in int32, exact
    Cast, Mul, Add   y = acc * (scale_x * scale_w) + bias                  batch norm folded into scale_w and bias
    QuantizeLinear   q_y = round(y / scale_y) + zero_point_y               uint8; the ReLU is its clamp at 0
    Clip             q_y = min(q_y, 2^n - 1)                               on integers

and so gives what Q gives, but for rounding ties. Q's signed codes are stored with quant_min taken off, which makes the zero
point of a ReLU's grid 0. Weights are raw int8 initialisers that hold Q's own codes, with a zero point per output channel. The
few nodes that make one uint8 tensor of both have constant inputs: a runtime computes them once, on loading.

Where Q leaves a layer's input float, it enters as 16-bit integers in two uint8 planes, x = s (hi - z) + s/256 (lo - 128), and
the layer is two integer convolutions.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from adadfq_lab.integers import Grid, IntegerLayer, Integers
from adadfq_lab.layers import QuantConv2d
from adadfq_lab.operations import Operation
from adadfq_lab.quantizer import quant_range
from adadfq_lab.student import Student

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Bounds = tuple[float, float] | None
IMAGES, LOGITS = "images", "logits"
UINT8, INT32 = 2, 6  # ONNX's numbers for types
OFFSET = 128  # of uint8 weights: what stands for 0


@dataclass(frozen=True)
class Value:
    """A tensor of the file: the names of its forms, "" for one it does not have.

    grid:   of the codes
    bounds: floats between which its numbers lie, None where that takes a look at data
    """

    floats: str = ""
    codes: str = ""
    grid: Grid | None = None
    bounds: Bounds = None


LayerWriter = Callable[["OnnxGraph", Operation, Value], Value]
Settler = Callable[["OnnxGraph", Operation, Value], Value]


@dataclass(frozen=True)
class Plane:
    """uint8 codes that enter an integer layer; `scale` is a number, or the name of a tensor that holds it at run time."""

    codes: str
    zero_point: str
    scale: float | str


@dataclass
class OnnxGraph:
    """Nodes and initialisers under construction, and how the student is being written."""

    student: Student
    table: Integers
    input_bits: int = 16
    nodes: list["onnx.NodeProto"] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def constant(self, name: str, array: Any, dtype: npt.DTypeLike = np.float32) -> str:
        """An initialiser; returns its name."""
        value = np.asarray(array, dtype, order="C")
        assert np.array_equal(self.constants.setdefault(name, value), value), f"two constants are called {name}"
        return name

    def integers(self, name: str, *numbers: int) -> str:
        """An initialiser of int64, as shapes are."""
        return self.constant(name, numbers, np.int64)

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; returns the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, list(outputs), **attributes))
        self.made.update(outputs)
        return outputs[0]

    def grid(self, name: str, grid: Grid) -> tuple[str, str]:
        """Names of the scale and the zero point, uint8, of an activation's grid."""
        zero_point = grid.zero_point - quant_range(grid.bits)[0]
        return self.constant(f"{name}.scale", float(grid.scale)), self.constant(f"{name}.zero_point", zero_point, np.uint8)

    def floats(self, value: Value) -> str:
        """The name of the float form of `value`, dequantised on first use."""
        if value.floats:
            return value.floats
        name = f"{value.codes}.float"
        if name not in self.made:
            assert value.grid is not None
            self.node("DequantizeLinear", [value.codes, *self.grid(f"{name}.of", value.grid)], name)
        return name


def write_operations(
    graph: OnnxGraph, steps: list[Operation], images: Bounds, layer: LayerWriter | None = None, settle: Settler | None = None
) -> None:
    """Writes `steps` into `graph`, from the tensor IMAGES to the tensor LOGITS.

    images: between which floats the normalised images lie
    layer:  writes a convolution or linear layer, by default with exact sums in int32
    settle: sees each value when it is made and may put it on a grid
    """
    values: dict[str, Value] = {}
    for step in steps:
        inputs = [values[i] for i in step.inputs]
        if step.kind == "input":
            value = Value(IMAGES, bounds=images)
        elif step.kind in ("conv", "linear"):
            value = (layer or exact_layer)(graph, step, inputs[0])
        else:
            value = _WRITERS[step.kind](graph, step, inputs)
        values[step.name] = settle(graph, step, value) if settle else value
    graph.node("Identity", [graph.floats(values[steps[-1].name])], LOGITS)


# Layers


def exact_layer(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """acc * scale + bias of a convolution or linear layer, for each plane of its input."""
    layer, module = graph.table.layers[step.target], graph.student.graph.get_submodule(step.target)
    attributes: dict[str, Any] = {}
    if isinstance(module, QuantConv2d):
        value, attributes = padded(graph, step.name, value, module)
    terms: list[str] = []
    for plane, part in zip(_planes(graph, step.name, value), ("", ".low"), strict=False):
        acc = _sum(graph, f"{step.name}{part}", layer, plane, attributes, step.shape)
        scale = _scale(graph, f"{step.name}{part}", layer, plane.scale)
        terms.append(graph.node("DequantizeLinear", [acc, scale], f"{step.name}{part}.float", axis=1))
    terms.append(graph.constant(f"{layer.name}.bias", layer.bias.view((-1, 1, 1) if layer.kind == "conv" else -1)))
    total = terms[0]
    for i, term in enumerate(terms[1:]):
        total = graph.node("Add", [total, term], step.name if i == len(terms) - 2 else f"{step.name}.planes")
    return Value(total)


def _sum(
    graph: OnnxGraph, name: str, layer: IntegerLayer, plane: Plane, attributes: dict[str, Any], shape: tuple[int, ...]
) -> str:
    """sum (q_x - zero_point_x)(q_w - zero_point_w) in int32, of the shape `shape` for one image.

    At 8 bits q_w - zero_point_w takes nine. Then the weights go in as q_w, with one more output channel (of each group) whose
    weights are 1, and zero_point_w times that channel is taken off.
    """
    op = "ConvInteger" if layer.kind == "conv" else "MatMulInteger"
    groups, out = attributes.get("group", 1), len(layer.codes)
    nine_bits = int(layer.centred.abs().max()) > 127
    weight = f"{layer.name}.weight.uint8"
    if weight not in graph.made:  # else the layer is called twice
        _uint8_weight(graph, layer, groups if nine_bits else 0)
    zero = graph.constant("weight.zero", OFFSET, np.uint8)
    acc = graph.node(op, [plane.codes, weight, plane.zero_point, zero], f"{name}.acc", **attributes)
    if not nine_bits:
        return acc
    each, rest = out // groups, shape[1:]
    grouped = graph.node(
        "Reshape", [acc, graph.integers(f"{name}.grouped", -1, groups, each + 1, *rest)], f"{name}.acc.grouped"
    )
    graph.node("Split", [grouped, graph.integers(f"{name}.parts", each, 1)], f"{name}.raw", f"{name}.ones", axis=2)
    zero_point = layer.zero_point.view(groups, each, *(1 for _ in rest))
    taken = [f"{name}.ones", graph.constant(f"{layer.name}.weight.zero_point", zero_point, np.int32)]
    centred = graph.node("Sub", [f"{name}.raw", graph.node("Mul", taken, f"{name}.taken")], f"{name}.centred")
    return graph.node("Reshape", [centred, graph.integers(f"{name}.shape", -1, *shape)], f"{name}.sum")


def _scale(graph: OnnxGraph, name: str, layer: IntegerLayer, scale: float | str) -> str:
    """scale_x * scale_w per output channel, in float32 as Q multiplies."""
    if isinstance(scale, str):
        return graph.node("Mul", [graph.constant(f"{layer.name}.weight.scale", layer.scale), scale], f"{name}.scale")
    return graph.constant(f"{name}.scale", layer.scale * scale)


def _uint8_weight(graph: OnnxGraph, layer: IntegerLayer, groups: int) -> None:
    """Nodes from Q's codes, int8, to q - zero_point as uint8, OFFSET for 0; where groups > 0: q and channels of ones."""
    name, shape = f"{layer.name}.weight", tuple(layer.codes.shape)
    wide = graph.node("Cast", [graph.constant(name, layer.codes, np.int8)], f"{name}.int32", to=INT32)
    if groups == 0:
        zero_point = layer.zero_point.view(-1, *(1 for _ in shape[1:]))
        zero = graph.node("Cast", [graph.constant(f"{name}.zero_point", zero_point, np.int8)], f"{name}.zero", to=INT32)
        wide = graph.node("Sub", [wide, zero], f"{name}.centred")
    else:
        size = graph.integers(f"{name}.size", groups, 1, *shape[1:])
        ones = graph.node("Expand", [graph.constant("one", 1, np.int32), size], f"{name}.ones")
        grouped = graph.node("Reshape", [wide, graph.integers(f"{name}.groups", groups, -1, *shape[1:])], f"{name}.grouped")
        both = graph.node("Concat", [grouped, ones], f"{name}.both", axis=1)
        wide = graph.node("Reshape", [both, graph.integers(f"{name}.shape", -1, *shape[1:])], f"{name}.extended")
    if layer.kind == "linear":
        wide = graph.node("Transpose", [wide], f"{name}.transposed", perm=[1, 0])
    moved = graph.node("Add", [wide, graph.constant("weight.offset", OFFSET, np.int32)], f"{name}.moved")
    graph.node("Cast", [moved], f"{name}.uint8", to=UINT8)


def padded(graph: OnnxGraph, name: str, value: Value, module: QuantConv2d) -> tuple[Value, dict[str, Any]]:
    """The input of a convolution, and the attributes of its node; padding by other values than zero is a node of its own."""
    left, right, top, bottom = module._pad
    if module.padding_mode != "zeros":
        value = _pad_by(graph, f"{name}.padded", value, list(module._pad), _PAD_MODES[module.padding_mode])
        left = right = top = bottom = 0
    return value, {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
        "pads": [top, left, bottom, right],
    }


def _planes(graph: OnnxGraph, name: str, value: Value) -> list[Plane]:
    """The uint8 tensors that stand for `value` at an integer layer: its codes, or one or two planes of a float tensor."""
    if value.codes:
        assert value.grid is not None
        _, zero_point = graph.grid(f"{name}.input", value.grid)
        return [Plane(value.codes, zero_point, float(value.grid.scale))]
    high, scale, zero_point = f"{name}.high", f"{name}.high.step", f"{name}.high.zero"
    step: float | str = scale
    if value.bounds is None:  # the range is that of the numbers that come
        graph.node("DynamicQuantizeLinear", [value.floats], high, scale, zero_point)
        scale_low = graph.node("Mul", [scale, graph.constant("1/256", 1 / 256)], f"{name}.low.step")
        step_low: float | str = scale_low
    else:
        low, up = min(value.bounds[0], 0.0), max(value.bounds[1], 0.0)
        step = float(np.float32((up - low) / 255))
        step_low = step / 256
        graph.constant(scale, step), graph.constant(zero_point, round(-low / step), np.uint8)
        graph.node("QuantizeLinear", [value.floats, scale, zero_point], high)
        scale_low = graph.constant(f"{name}.low.step", step_low)
    planes = [Plane(high, zero_point, step)]
    if graph.input_bits > 8:
        back = graph.node("DequantizeLinear", [high, scale, zero_point], f"{high}.float")
        rest = graph.node("Sub", [value.floats, back], f"{name}.rest")
        middle = graph.constant("low.zero", OFFSET, np.uint8)
        low_plane = graph.node("QuantizeLinear", [rest, scale_low, middle], f"{name}.low")
        planes.append(Plane(low_plane, middle, step_low))
    return planes


def _activation(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    grid = graph.table.activations[step.target.removeprefix("activations.")]
    codes = graph.node("QuantizeLinear", [graph.floats(inputs[0]), *graph.grid(step.name, grid)], f"{step.name}.rounded")
    levels = 2**grid.bits - 1
    if grid.bits < 8:
        codes = graph.node("Clip", [codes, "", graph.constant(f"{step.name}.largest", levels, np.uint8)], f"{step.name}.codes")
    zero_point, scale = grid.zero_point - quant_range(grid.bits)[0], float(grid.scale)
    return Value(codes=codes, grid=grid, bounds=(-zero_point * scale, (levels - zero_point) * scale))


# What moves numbers and works on codes as on floats


def _move(graph: OnnxGraph, step: Operation, inputs: list[Value], op: str, extra: list[str], **attributes: Any) -> Value:
    """A node that only moves numbers, on the codes of its inputs where all lie on one grid."""
    first = inputs[0]
    if first.grid is not None and all(v.grid is not None and _same(v.grid, first.grid) for v in inputs):
        codes = graph.node(op, [v.codes for v in inputs] + extra, step.name, **attributes)
        return Value(codes=codes, grid=first.grid, bounds=first.bounds)
    floats = graph.node(op, [graph.floats(v) for v in inputs] + extra, step.name, **attributes)
    bounds = [v.bounds for v in inputs]
    known = [b for b in bounds if b is not None]
    widest = (min(b[0] for b in known), max(b[1] for b in known)) if len(known) == len(bounds) else None
    return Value(floats, bounds=widest)


def _same(a: Grid, b: Grid) -> bool:
    return (a.bits, float(a.scale), a.zero_point) == (b.bits, float(b.scale), b.zero_point)


def _max_pool(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _move(graph, step, inputs, "MaxPool", [], dilations=step.options["dilation"], **_window(step))


def _window(step: Operation) -> dict[str, Any]:
    o = step.options
    return {"kernel_shape": o["kernel"], "strides": o["stride"], "pads": [*o["padding"]] * 2, "ceil_mode": int(o["ceil"])}


def _reshape(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _move(graph, step, inputs, "Reshape", [graph.integers(f"{step.name}.shape", -1, *step.shape)])


def _transpose(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _move(graph, step, inputs, "Transpose", [], perm=list(step.options["order"]))


def _concat(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _move(graph, step, inputs, "Concat", [], axis=1)


def _slice(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    axes, starts, ends, strides = (list(column) for column in zip(*step.options["cuts"], strict=True))
    named = {"starts": starts, "ends": ends, "axes": axes, "steps": strides}
    return _move(graph, step, inputs, "Slice", [graph.integers(f"{step.name}.{k}", *v) for k, v in named.items()])


_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _pad_by(graph, step.name, inputs[0], list(step.options["amounts"]), "constant")


def _pad_by(graph: OnnxGraph, name: str, value: Value, amounts: list[int], mode: str) -> Value:
    """Pads by torch's (left, right, top, bottom, ...), last dimension first; zeros are the grid's zero point."""
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    pairs = [(0, 0)] * (4 - len(pairs)) + pairs[::-1]
    pads = graph.integers(f"{name}.pads", *(a for a, _ in pairs), *(b for _, b in pairs))
    if value.grid is not None:
        _, zero = graph.grid(f"{name}.of", value.grid)
        codes = graph.node("Pad", [value.codes, pads, zero if mode == "constant" else ""], name, mode=mode)
        return Value(codes=codes, grid=value.grid, bounds=value.bounds)
    bounds = None if value.bounds is None else (min(value.bounds[0], 0.0), max(value.bounds[1], 0.0))
    return Value(graph.node("Pad", [graph.floats(value), pads], name, mode=mode), bounds=bounds)


# What computes on floats


def _average_pool(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    mean = [graph.floats(inputs[0])]
    name = f"{step.name}.mean" if len(step.shape) == 1 else step.name
    graph.node("AveragePool", mean, name, count_include_pad=int(step.options["include_pad"]), **_window(step))
    if len(step.shape) == 1:
        graph.node("Reshape", [name, graph.integers(f"{step.name}.shape", -1, *step.shape)], step.name)
    return Value(step.name, bounds=inputs[0].bounds)


def _arithmetic(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    tensors = iter(inputs)
    operands, bounds = [], []
    for i, number in enumerate(step.options["operands"]):
        value = next(tensors) if number is None else None
        operands.append(graph.floats(value) if value else graph.constant(f"{step.name}.{i}", number))
        bounds.append(value.bounds if value else (number, number))
    function, (a, b) = step.options["function"], bounds
    floats = graph.node({"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div"}[function], operands, step.name)
    if a is None or b is None or function == "truediv":
        return Value(floats)
    corners = [getattr(operator, function)(p, q) for p in a for q in b]
    return Value(floats, bounds=(min(corners), max(corners)))


def _batch_norm(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    norm = graph.student.graph.get_submodule(step.target)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_var is not None
    parts = {"scale": norm.weight, "shift": norm.bias, "mean": norm.running_mean, "variance": norm.running_var}
    named = [graph.constant(f"{step.target}.{k}", v.detach()) for k, v in parts.items() if v is not None]
    return Value(graph.node("BatchNormalization", [graph.floats(inputs[0]), *named], step.name, epsilon=norm.eps))


def _elementwise(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    function, x = step.options["function"], graph.floats(inputs[0])
    if function == "silu":
        return Value(graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{step.name}.sigmoid")], step.name))
    if function == "clamp":
        limits = enumerate(step.options["limits"])
        return Value(
            graph.node("Clip", [x, *("" if v is None else graph.constant(f"{step.name}.{i}", v) for i, v in limits)], step.name)
        )
    if function == "hardsigmoid":
        return Value(graph.node("HardSigmoid", [x], step.name, alpha=1 / 6, beta=0.5), bounds=(0.0, 1.0))
    op, bounds = _FUNCTIONS[function]
    return Value(graph.node(op, [x], step.name), bounds=bounds)


_FUNCTIONS: dict[str, tuple[str, Bounds]] = {
    "neg": ("Neg", None),
    "sigmoid": ("Sigmoid", (0.0, 1.0)),
    "tanh": ("Tanh", (-1.0, 1.0)),
    "hardswish": ("HardSwish", None),
}
_WRITERS: dict[str, Callable[[OnnxGraph, Operation, list[Value]], Value]] = {
    "activation": _activation,
    "arithmetic": _arithmetic,
    "concat": _concat,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "batch_norm": _batch_norm,
    "elementwise": _elementwise,
}
