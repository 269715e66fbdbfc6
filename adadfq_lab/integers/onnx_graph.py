"""An ONNX graph under construction, and every operation of a student in it that is no layer.

A tensor comes in two forms: *codes*, uint8 on the grid of an activation, and *floats*. Q's signed codes are stored with
quant_min taken off, which makes the zero point of a ReLU's grid 0. An activation is

    QuantizeLinear   q_y = round(y / scale_y) + zero_point_y               uint8; the ReLU is its clamp at 0
    Clip             q_y = min(q_y, 2^n - 1)                               on integers

What only moves numbers (pools of maxima, reshapes, concatenations) moves codes; what computes with them (residual adds, pools
of means) computes in float32 on DequantizeLinear of them, as Q does. The layers are in `adadfq_lab.integers.onnx_layers`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from adadfq_lab.integers.layers import Grid, Integers
from adadfq_lab.integers.operations import Operation
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.quantizer import quant_range
from adadfq_lab.student.student import Student

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Bounds = tuple[float, float] | None
UINT8, INT32 = 2, 6  # ONNX's numbers for types
MIDDLE = 128  # the uint8 that stands for 0 where numbers have both signs
LARGEST_PAIR = 2**15 - 1  # see `saturates`


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


@dataclass
class OnnxGraph:
    """Nodes and initialisers so far; `input_bits` of the integers that stand for a layer's float input."""

    student: Student
    table: Integers
    input_bits: int
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

    def byte(self, number: int) -> str:
        """A uint8 number, as zero points are; one initialiser for all who use it."""
        return self.constant(f"uint8.{number}", number, np.uint8)

    def node(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """A node; returns the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, list(outputs), **attributes))
        self.made.update(outputs)
        return outputs[0]

    def grid(self, name: str, grid: Grid) -> tuple[str, str]:
        """Names of the scale and the zero point, uint8, of an activation's grid."""
        return self.constant(f"{name}.scale", float(grid.scale)), self.byte(byte_of(grid, grid.zero_point))

    def uint8(self, name: str, weight: str, codes: Array, centre: Any = -MIDDLE) -> str:
        """The uint8 tensor `name`: the int8 initialiser `weight`, which holds `codes`, less `centre` (broadcast, at most -1).

        Its three nodes have constant inputs: a runtime computes them once, on loading.
        """
        if name not in self.made:
            wide = self.node("Cast", [self.constant(weight, codes, np.int8)], f"{name}.wide", to=INT32)
            moved = self.node("Sub", [wide, self.constant(f"{name}.centre", centre, np.int32)], f"{name}.moved")
            self.node("Cast", [moved], name, to=UINT8)
        return name

    def floats(self, value: Value) -> str:
        """The name of the float form of `value`, dequantised on first use."""
        if value.floats:
            return value.floats
        name = f"{value.codes}.float"
        if name not in self.made:
            assert value.grid is not None
            self.node("DequantizeLinear", [value.codes, *self.grid(name, value.grid)], name)
        return name


def saturates(codes: Array, levels: int = 255) -> bool:
    """Whether two products of int8 `codes` with bytes up to `levels` may leave 16 bits.

    In 16 bits a processor without a dot product of bytes adds uint8 times int8, and saturates. It multiplies uint8 by uint8 in
    another way, so that such weights must be uint8 for their sums to be exact.
    """
    return 2 * levels * int(np.abs(codes.astype(np.int32)).max()) > LARGEST_PAIR


def byte_of(grid: Grid, code: int) -> int:
    """The uint8 that a file stores for Q's signed code."""
    return code - quant_range(grid.bits)[0]


def _activation(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    grid = graph.table.activations[step.target.removeprefix("activations.")]
    zero_point, largest = byte_of(grid, grid.zero_point), byte_of(grid, grid.largest)
    codes = graph.node("QuantizeLinear", [graph.floats(inputs[0]), *graph.grid(step.name, grid)], f"{step.name}.codes")
    if largest < 255:
        codes = graph.node("Clip", [codes, "", graph.byte(largest)], f"{step.name}.clipped")
    scale = float(grid.scale)
    return Value(codes=codes, grid=grid, bounds=(-zero_point * scale, (largest - zero_point) * scale))


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


PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    mode = {"replicate": "edge"}.get(step.options["mode"], step.options["mode"])
    return pad_by(graph, step.name, inputs[0], list(step.options["amounts"]), mode)


def pad_by(graph: OnnxGraph, name: str, value: Value, amounts: list[int], mode: str) -> Value:
    """Pads by torch's (left, right, top, bottom, ...), last dimension first; zeros are the grid's zero point."""
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    pairs = [(0, 0)] * (4 - len(pairs)) + pairs[::-1]
    pads = graph.integers(f"{name}.pads", *(a for a, _ in pairs), *(b for _, b in pairs))
    if value.grid is not None:
        zero = graph.byte(byte_of(value.grid, value.grid.zero_point)) if mode == "constant" else ""
        codes = graph.node("Pad", [value.codes, pads, zero], name, mode=mode)
        return Value(codes=codes, grid=value.grid, bounds=value.bounds)
    bounds = None if value.bounds is None else (min(value.bounds[0], 0.0), max(value.bounds[1], 0.0))
    return Value(graph.node("Pad", [graph.floats(value), pads], name, mode=mode), bounds=bounds)


def padded(graph: OnnxGraph, name: str, value: Value, module: QuantConv2d) -> tuple[Value, dict[str, Any]]:
    """The input of a convolution, and the attributes of its node; padding by other values than zero is a node of its own."""
    left, right, top, bottom = module._pad
    if module.padding_mode != "zeros":
        value = pad_by(graph, f"{name}.padded", value, list(module._pad), PAD_MODES[module.padding_mode])
        left = right = top = bottom = 0
    return value, {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
        "pads": [top, left, bottom, right],
    }


# What computes on floats


def _average_pool(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    mean = [graph.floats(inputs[0])]
    name = f"{step.name}.mean" if len(step.shape) == 1 else step.name
    graph.node("AveragePool", mean, name, count_include_pad=int(step.options["include_pad"]), **_window(step))
    if len(step.shape) == 1:
        graph.node("Reshape", [name, graph.integers(f"{step.name}.shape", -1, *step.shape)], step.name)
    return Value(step.name, bounds=inputs[0].bounds)


def _adaptive_pool(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    """Means over windows of several sizes: row i of n takes those of the m from floor(i m/n) up to ceil((i+1) m/n)."""
    x = graph.floats(inputs[0])
    for axis, m, n in zip((2, 3), step.options["size"], step.shape[1:], strict=True):
        parts = []
        for i in range(n):
            start, stop, name = i * m // n, -(-(i + 1) * m // n), f"{step.name}.{axis}.{i}"
            cut = [graph.integers(f"{name}.{k}", v) for k, v in (("start", start), ("stop", stop), ("axis", axis))]
            parts.append(graph.node("ReduceMean", [graph.node("Slice", [x, *cut], f"{name}.part"), cut[2]], name))
        x = graph.node("Concat", parts, f"{step.name}.{axis}" if axis == 2 else step.name, axis=axis)
    return Value(x, bounds=inputs[0].bounds)


def _arithmetic(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    tensors = iter(inputs)
    operands, bounds = [], []
    for i, number in enumerate(step.options["operands"]):
        value = next(tensors) if number is None else None
        operands.append(graph.floats(value) if value else graph.constant(f"{step.name}.{i}", number))
        bounds.append(value.bounds if value else (float(np.asarray(number).min()), float(np.asarray(number).max())))
    function, (a, b) = step.options["function"], bounds
    floats = graph.node({"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div"}[function], operands, step.name)
    if a is None or b is None or (function == "truediv" and b[0] <= 0 <= b[1]):
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
    if function == "leaky_relu":
        return Value(graph.node("PRelu", [x, graph.constant(f"{step.name}.slope", step.options["slope"])], step.name))
    if function == "gelu":
        return Value(graph.node("Gelu", [x], step.name, approximate=step.options["approximate"]))
    if function in ("softmax", "log_softmax"):
        bounds = (0.0, 1.0) if function == "softmax" else None
        return Value(
            graph.node({"softmax": "Softmax", "log_softmax": "LogSoftmax"}[function], [x], step.name, axis=1), bounds=bounds
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
WRITERS: dict[str, Callable[[OnnxGraph, Operation, list[Value]], Value]] = {
    "activation": _activation,
    "arithmetic": _arithmetic,
    "concat": _concat,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "adaptive_pool": _adaptive_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "batch_norm": _batch_norm,
    "elementwise": _elementwise,
}
