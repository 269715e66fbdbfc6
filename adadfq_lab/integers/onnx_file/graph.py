"""An ONNX graph under construction: its tensors, nodes and initialisers.

A tensor comes in two forms: *codes*, uint8 on the grid of an activation, and *floats*. Q's signed codes are stored with
quant_min taken off, which makes the zero point of a ReLU's grid 0. An activation is

    QuantizeLinear   q_y = round(y / scale_y) + zero_point_y               uint8; the ReLU is its clamp at 0
    Clip             q_y = min(q_y, 2^n - 1)                               on integers

The layers are in `layers`, all other operations in `operations`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adadfq_lab.integers.layers import Grid, Integers
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.quantizer import quant_range
from adadfq_lab.student.student import Student

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Bounds = tuple[float, float] | None
FLOAT, UINT8, INT32 = 1, 2, 6  # ONNX's numbers for types
MIDDLE = 128  # the uint8 that stands for 0 if numbers have both signs
LARGEST_PAIR = 2**15 - 1  # see `saturates`


@dataclass(frozen=True)
class Mixed:
    """Several grids that one tensor of codes lies on, as after a concatenation.

    places: which grid each number of an image lies on, `(1, ...)`
    """

    grids: tuple[Grid, ...]
    places: Tensor

    def zero(self) -> int | None:
        """The byte that stands for 0, if it is the same on all grids."""
        zeros = {byte_of(grid, grid.zero_point) for grid in self.grids}
        return zeros.pop() if len(zeros) == 1 else None

    def spread(self, numbers: list[float]) -> Tensor:
        """A number for each grid, given to each place, in as few dimensions as tell the places apart."""
        places = self.places
        for d in range(1, places.dim()):
            if bool((places == places.narrow(d, 0, 1)).all()):
                places = places.narrow(d, 0, 1)
        return torch.tensor(numbers)[places]


@dataclass(frozen=True)
class Value:
    """A tensor of the file: the names of its forms, "" for one it does not have.

    grid:   of the codes
    mixed:  their grids, if they lie on several
    bounds: of its numbers; None if they depend on the data
    """

    floats: str = ""
    codes: str = ""
    grid: Grid | None = None
    mixed: Mixed | None = None
    bounds: Bounds = None


@dataclass
class OnnxGraph:
    """Nodes and initialisers so far.

    input_bits: of the integers that stand for a layer's float input
    left:       the layers that have one
    """

    student: Student
    table: Integers
    input_bits: int
    nodes: list["onnx.NodeProto"] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

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
        from onnx import helper  # of the extra `export`

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
        if name not in self.made and value.mixed is not None:
            zeros, scales = zip(*((byte_of(g, g.zero_point), float(g.scale)) for g in value.mixed.grids), strict=True)
            real = self.node("Cast", [value.codes], f"{name}.real", to=FLOAT)
            centred = self.node(
                "Sub", [real, self.constant(f"{name}.zero", value.mixed.spread(list(zeros)))], f"{name}.centred"
            )
            self.node("Mul", [centred, self.constant(f"{name}.scale", value.mixed.spread(list(scales)))], name)
        elif name not in self.made:
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


PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad_by(graph: OnnxGraph, name: str, value: Value, amounts: list[int], mode: str, *, lowest: bool = False) -> Value:
    """Pads by torch's (left, right, top, bottom, ...), last dimension first; zeros are the grid's zero point.

    lowest: pads by less than any number instead, for a max pool to overlook
    """
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    pairs = [(0, 0)] * (4 - len(pairs)) + pairs[::-1]
    pads = graph.integers(f"{name}.pads", *(a for a, _ in pairs), *(b for _, b in pairs))
    if value.grid is not None:
        zero = graph.byte(0 if lowest else byte_of(value.grid, value.grid.zero_point)) if mode == "constant" else ""
        codes = graph.node("Pad", [value.codes, pads, zero], name, mode=mode)
        return Value(codes=codes, grid=value.grid, bounds=value.bounds)
    bounds = None if value.bounds is None else (min(value.bounds[0], 0.0), max(value.bounds[1], 0.0))
    by = [graph.constant("lowest", -np.inf)] if lowest else []
    return Value(
        graph.node("Pad", [graph.floats(value), pads, *by], name, mode=mode), bounds=value.bounds if lowest else bounds
    )


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
