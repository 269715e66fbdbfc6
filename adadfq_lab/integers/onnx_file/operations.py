"""Every operation of a student that is not a layer, as ONNX nodes.

What only moves numbers (pools of maxima, reshapes, concatenations) moves codes; what computes with them (residual adds, pools
of means) computes in float32 on DequantizeLinear of them, as Q does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adadfq_lab.integers.inference import ARITHMETIC, MOVES, moved_places
from adadfq_lab.integers.layers import Grid
from adadfq_lab.integers.onnx_file.functions import write_function
from adadfq_lab.integers.onnx_file.graph import Bounds, Mixed, OnnxGraph, Value, byte_of, pad_by
from adadfq_lab.integers.operations import Operation


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
    return _move_to(graph, step.name, inputs, op, extra, **attributes)


def _move_to(graph: OnnxGraph, name: str, inputs: list[Value], op: str, extra: list[str], **attributes: Any) -> Value:
    """A node `name` that only moves numbers, on the codes of its inputs if all lie on one grid."""
    first = inputs[0]
    if _on_one_grid(inputs):
        codes = graph.node(op, [v.codes for v in inputs] + extra, name, **attributes)
        return Value(codes=codes, grid=first.grid, bounds=first.bounds)
    floats = graph.node(op, [graph.floats(v) for v in inputs] + extra, name, **attributes)
    return Value(floats, bounds=_widest(inputs))


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
    return _move(graph, step, inputs, "Concat", [], axis=step.options["axis"])


def _stack(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    """A concatenation along a new dimension."""
    axis = graph.integers(f"{step.name}.axis", step.options["axis"])
    wide = [_move_to(graph, f"{step.name}.{i}", [v], "Unsqueeze", [axis]) for i, v in enumerate(inputs)]
    return _concat(graph, step, wide)


def _expand(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    return _move(graph, step, inputs, "Expand", [graph.integers(f"{step.name}.shape", 1, *step.shape)])


def _gather(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    index = graph.integers(f"{step.name}.index", *step.options["index"])
    return _move(graph, step, inputs, "Gather", [index], axis=step.options["axis"])


def _largest(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    op = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}[step.kind]
    dims = graph.integers(f"{step.name}.dims", *step.options["dims"])
    return _shaped(graph, step, _move_to(graph, f"{step.name}.{op}", inputs, op, [dims], keepdims=1))


def _slice(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    axes, starts, ends, strides = (list(column) for column in zip(*step.options["cuts"], strict=True))
    named = {"starts": starts, "ends": ends, "axes": axes, "steps": strides}
    cut = [graph.integers(f"{step.name}.{k}", *v) for k, v in named.items()]
    return _shaped(graph, step, _move_to(graph, f"{step.name}.part", inputs, "Slice", cut))


def _shaped(graph: OnnxGraph, step: Operation, value: Value) -> Value:
    """`value` in the shape of the result of `step`, if operations that keep dimensions made it."""
    return _move(graph, step, [value], "Reshape", [graph.integers(f"{step.name}.shape", -1, *step.shape)])


def _pad(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    mode = {"replicate": "edge"}.get(step.options["mode"], step.options["mode"])
    return pad_by(graph, step.name, inputs[0], list(step.options["amounts"]), mode, lowest=step.options["lowest"])


# What computes on floats


def _average_pool(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    name, x = f"{step.name}.mean", graph.floats(inputs[0])
    graph.node("AveragePool", [x], name, count_include_pad=int(step.options["include_pad"]), **_window(step))
    return _shaped(graph, step, Value(name, bounds=inputs[0].bounds))


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


def _mean(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    op = {"reduce_mean": "ReduceMean", "reduce_sum": "ReduceSum"}[step.kind]
    dims = graph.integers(f"{step.name}.dims", *step.options["dims"])
    name = graph.node(op, [graph.floats(inputs[0]), dims], f"{step.name}.{op}", keepdims=1)
    return _shaped(graph, step, Value(name, bounds=inputs[0].bounds if op == "ReduceMean" else None))


def _arithmetic(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    tensors = iter(inputs)
    operands, bounds = [], []
    for i, number in enumerate(step.options["operands"]):
        value = next(tensors) if number is None else None
        operands.append(graph.floats(value) if value else graph.constant(f"{step.name}.{i}", number))
        bounds.append(value.bounds if value else (float(np.asarray(number).min()), float(np.asarray(number).max())))
    function, op = ARITHMETIC[step.options["function"]]
    floats, (a, b) = graph.node(op, operands, step.name), bounds
    if a is None or b is None or op == "Pow" or (op == "Div" and b[0] <= 0 <= b[1]):
        return Value(floats)
    corners = [float(function(torch.tensor(p), torch.tensor(q))) for p in a for q in b]
    return Value(floats, bounds=(min(corners), max(corners)))


def _batch_norm(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    """a x + b per channel: two nodes, for a runtime may make a BatchNormalization a convolution on floats."""
    o = step.options
    a = torch.rsqrt(o["variance"] + o["eps"]) * (1.0 if o["weight"] is None else o["weight"])
    b = (0.0 if o["bias"] is None else o["bias"]) - o["mean"] * a
    column = (-1, *(1 for _ in step.shape[1:]))
    scaled = graph.node(
        "Mul", [graph.floats(inputs[0]), graph.constant(f"{step.name}.a", a.view(column))], f"{step.name}.scaled"
    )
    return Value(graph.node("Add", [scaled, graph.constant(f"{step.name}.b", b.view(column))], step.name))


def _layer_norm(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    o, over = step.options, step.shape[-step.options["over"] :]
    scale = graph.constant(f"{step.name}.gamma", np.ones(over) if o["weight"] is None else o["weight"])
    shift = graph.constant(f"{step.name}.beta", np.zeros(over) if o["bias"] is None else o["bias"])
    x = [graph.floats(inputs[0]), scale, shift]
    return Value(graph.node("LayerNormalization", x, step.name, axis=-o["over"], epsilon=o["eps"]))


def _elementwise(graph: OnnxGraph, step: Operation, inputs: list[Value]) -> Value:
    bounds = write_function(graph, step.name, graph.floats(inputs[0]), step.options)
    return Value(step.name, bounds=bounds)


def write_operation(graph: OnnxGraph, step: Operation, inputs: list[Value], shapes: list[tuple[int, ...]]) -> Value:
    """Writes an operation; a move of codes that lie on several grids moves them together, and keeps account of where they are.

    shapes: of the inputs, for one image
    """
    if step.kind not in MOVES or not all(v.codes for v in inputs) or _on_one_grid(inputs):
        return WRITERS[step.kind](graph, step, inputs)
    grids: list[Grid] = []
    maps = []
    for value, shape in zip(inputs, shapes, strict=True):
        own = (value.grid,) if value.mixed is None else value.mixed.grids
        places = torch.zeros(1, *shape, dtype=torch.long) if value.mixed is None else value.mixed.places
        numbers = []
        for grid in own:
            assert grid is not None
            numbers.append(next((i for i, known in enumerate(grids) if _same(known, grid)), len(grids)))
            grids += [grid] if numbers[-1] == len(grids) else []
        maps.append(torch.tensor(numbers)[places])
    moved = moved_places(step, maps)
    mixed = Mixed(tuple(grids), torch.zeros(0) if moved is None else moved)
    if moved is None or (step.kind == "pad" and mixed.zero() is None):
        return WRITERS[step.kind](graph, step, [Value(graph.floats(v), bounds=v.bounds) for v in inputs])
    together = [Value(codes=v.codes, grid=grids[0], bounds=v.bounds) for v in inputs]
    return Value(codes=WRITERS[step.kind](graph, step, together).codes, mixed=mixed, bounds=_widest(inputs))


def _on_one_grid(inputs: list[Value]) -> bool:
    first = inputs[0].grid
    return first is not None and all(v.grid is not None and _same(v.grid, first) for v in inputs)


def _widest(inputs: list[Value]) -> Bounds:
    """Between which floats the numbers of all `inputs` lie."""
    known = [v.bounds for v in inputs if v.bounds is not None]
    return (min(b[0] for b in known), max(b[1] for b in known)) if len(known) == len(inputs) else None


WRITERS: dict[str, Callable[[OnnxGraph, Operation, list[Value]], Value]] = {
    "activation": _activation,
    "max_pool": _max_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "gather": _gather,
    "concat": _concat,
    "stack": _stack,
    "expand": _expand,
    "pad": _pad,
    "reduce_max": _largest,
    "reduce_min": _largest,
    "average_pool": _average_pool,
    "adaptive_pool": _adaptive_pool,
    "reduce_mean": _mean,
    "reduce_sum": _mean,
    "arithmetic": _arithmetic,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "elementwise": _elementwise,
}
