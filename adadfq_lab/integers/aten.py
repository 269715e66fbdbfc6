"""Translates each ATen call of a student into a kind of operation with options. `operations` lists the kinds.

ATen is the layer of PyTorch below its functions, methods and modules. `FORMS` has a reader for each call that has an integer
form, `PARTS` for those that return several tensors. A function of one tensor needs its name in `ELEMENTWISE`, and a writer in
`onnx_file.functions`.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions

from adadfq_lab.integers.calls import Call, name_of
from adadfq_lab.student.layers import QuantConv2d, QuantLayer

Form = tuple[str, list[fx.Node], dict[str, Any]]


def form(call: Call) -> Form:
    """(kind, inputs, options) of a call; kind "" if it passes its input on. Raises UserError if it has no integer form."""
    if call.node.op == "placeholder":
        return "input", [], {}
    if call.module is not None:
        layer = "conv" if isinstance(call.module, QuantConv2d) else "linear"
        return (layer if isinstance(call.module, QuantLayer) else "activation"), [call.source], {}
    if call.node.target is operator.getitem:
        return _part(call)
    read = FORMS.get(call.name)
    if read is None:
        raise call.refuse()
    return read(call)


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's own decompositions into simpler calls, for calls without a reader here."""
    known = FORMS.keys() | PARTS.keys()
    return {op: rule for op, rule in core_aten_decompositions().items() if op._schema.name.split("::")[1] not in known}


def reads_only_the_shape(node: fx.Node) -> bool:
    """Whether what a call gives depends on the shape of its input, not on its numbers, as in zeros_like."""
    return name_of(node).startswith(("zeros_", "ones_", "full_", "empty_", "new_"))


def _one(kind: str) -> Callable[[Call], Form]:
    return lambda call: (kind, [call.source], {})


# Arithmetic


def _arithmetic(function: str, first: str = "self", second: str = "other") -> Callable[[Call], Form]:
    """a + b and similar: two tensors, or one and a number or stored tensor, which `operands` holds (None for a tensor)."""

    def read(call: Call) -> Form:
        given = [call.given[first], call.given[second]]
        tensors = [a for a in given if isinstance(a, fx.Node) and a not in call.stored]
        operands = [None if a in tensors else call.values[a] if isinstance(a, fx.Node) else a for a in given]
        if not all(call.same_for_all(a) for a in operands if a is not None):
            raise call.refuse(" with these operands")
        if call.given.get("alpha", 1) != 1 or call.given.get("rounding_mode"):
            raise call.refuse(" with a factor or a rounding")
        if any(call.values[a].dim() != call.out.dim() for a in tensors):  # (C,) with (N, C, H, W): not the same channel
            raise call.refuse(" of tensors whose dimensions differ in number")
        return "arithmetic", tensors, {"function": function, "operands": tuple(map(call.constant, operands))}

    return read


ELEMENTWISE = (
    *("relu", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "erf", "hardsigmoid", "hardswish"),
    *("silu", "gelu", "elu", "celu", "mish", "softplus", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu"),
    *("_prelu_kernel", "_softmax", "_log_softmax"),
)
"""Functions of one tensor, computed on floats by the ATen call of that name."""


def _elementwise(call: Call) -> Form:
    """`options` are the name and every argument but the first."""
    options = {}
    for name in list(call.given)[1:]:
        value = call.get(name)
        if isinstance(call.given[name], fx.Node) and (call.given[name] not in call.stored or not call.same_for_all(value)):
            raise call.refuse(" by a tensor made of the images")
        options[name] = call.constant(value)
    if "softmax" in call.name and call.dims() == [0]:
        raise call.refuse(" over the batch")
    return "elementwise", [call.source], {"function": call.name} | options


def _cast(call: Call) -> Form:
    if call.out.dtype not in (torch.float32, torch.float64):
        raise call.refuse(f" to {call.out.dtype}")
    return "", [call.source], {}


# Pools, means, sums, largest values


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _window(call: Call) -> dict[str, Any]:
    kernel = _pair(call.get("kernel_size"))
    stride, padding = _pair(call.get("stride") or kernel), _pair(call.get("padding"))
    return {"kernel": kernel, "stride": stride, "padding": padding, "ceil": bool(call.get("ceil_mode"))}


def _max_pool(call: Call) -> Form:
    return "max_pool", [call.source], _window(call) | {"dilation": _pair(call.get("dilation"))}


def _average_pool(call: Call) -> Form:
    if call.get("divisor_override"):
        raise call.refuse(" with divisor_override")
    return "average_pool", [call.source], _window(call) | {"include_pad": bool(call.get("count_include_pad"))}


def _tiles(before: Iterable[int], after: Iterable[int]) -> dict[str, Any]:
    """The window of a pool whose windows tile its input."""
    kernel = tuple(b // a for b, a in zip(before, after, strict=True))
    return {"kernel": kernel, "stride": kernel, "padding": (0, 0), "ceil": False}


def _adaptive_pool(call: Call) -> Form:
    before, after = call.before.shape[2:], call.get("output_size")
    if any(b % a for b, a in zip(before, after, strict=True)):
        return "adaptive_pool", [call.source], {"size": tuple(before), "after": tuple(after)}
    tiles = _tiles(before, after)
    return ("average_pool" if math.prod(tiles["kernel"]) > 1 else ""), [call.source], tiles | {"include_pad": True}


def _adaptive_max_pool(call: Call) -> Form:
    before, after = call.before.shape[2:], call.get("output_size")
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise call.refuse(f" from {tuple(before)} to {tuple(after)}, which takes windows of several sizes")
    return "max_pool", [call.source], _tiles(before, after) | {"dilation": (1, 1)}


def _reduce(function: str) -> Callable[[Call], Form]:
    """A mean, sum, maximum or minimum over dimensions; means over all pixels are pools."""

    def read(call: Call) -> Form:
        dims, before = call.dims(), call.before
        if dims[0] == 0:
            raise call.refuse(" over the batch")
        if function in ("mean", "sum") and call.get("dtype") not in (None, before.dtype):
            raise call.refuse(f" as {call.get('dtype')}")
        if all(before.shape[d] == 1 for d in dims):
            return _reshape(call)
        if function == "mean" and before.dim() == 4 and dims == [2, 3]:
            return "average_pool", [call.source], _tiles(before.shape[2:], (1, 1)) | {"include_pad": True}
        return f"reduce_{function}", [call.source], {"dims": tuple(dims)}

    return read


# Moves


def _reshape(call: Call) -> Form:
    return ("" if call.out.shape == call.before.shape else "reshape"), [call.source], {}


def _same_strides(call: Call) -> Form:
    """What a pool of a channels-last tensor adds: the same numbers, with other strides for dimensions of one place."""
    before, out = call.before, call.out
    places = [d for d in range(out.dim()) if out.shape[d] > 1]
    if out.shape != before.shape or any(out.stride(d) != before.stride(d) for d in places):
        raise call.refuse()
    return "", [call.source], {}


def _expand(call: Call) -> Form:
    if call.out.shape == call.before.shape:
        return "", [call.source], {}
    if call.out.dim() != call.before.dim():
        raise call.refuse(" to more dimensions")
    return "expand", [call.source], {}


def _permute(call: Call) -> Form:
    rank = call.before.dim()
    order = list(range(rank))
    if call.name == "permute":
        order = [int(d) % rank for d in call.get("dims")]
    else:
        a, b = (0, 1) if call.name == "t" else (call.get("dim0") % rank, call.get("dim1") % rank)
        order[a], order[b] = order[b], order[a]
    if order[0] != 0:
        raise call.refuse(": it moves the batch dimension")
    return ("" if order == sorted(order) else "transpose"), [call.source], {"order": tuple(order)}


def _concat(call: Call) -> Form:
    axis = int(call.get("dim")) % call.out.dim()
    if axis == 0:
        raise call.refuse(" along the batch")
    return ("concat" if call.name == "cat" else "stack"), list(call.given["tensors"]), {"axis": axis}


def _cut(call: Call, source: fx.Node, axis: int, start: int, stop: int, stride: int = 1) -> Form:
    """Places start, start + stride, ... of a dimension; a tensor of fewer dimensions loses this one."""
    if axis == 0:
        if (start, stop, stride) == (0, len(call.values[source]), 1):
            return "", [source], {}
        raise call.refuse(" of the batch")
    return "slice", [source], {"cuts": ((axis, start, stop, stride),)}


def _slice(call: Call) -> Form:
    axis = int(call.get("dim")) % call.before.dim()
    places = slice(call.get("start"), call.get("end"), call.get("step")).indices(call.before.shape[axis])
    if places == (0, call.before.shape[axis], 1):
        return "", [call.source], {}
    return _cut(call, call.source, axis, *places)


def _select(call: Call) -> Form:
    axis = int(call.get("dim")) % call.before.dim()
    index = int(call.get("index")) % call.before.shape[axis]
    return _cut(call, call.source, axis, index, index + 1)


def _gather(call: Call, axis: int, index: Any) -> Form:
    if axis == 0 or not isinstance(index, Tensor) or index.dim() != 1 or index.dtype == torch.bool:
        raise call.refuse(" by anything but a list of places in one dimension")
    size = call.before.shape[axis]
    return "gather", [call.source], {"axis": axis, "index": tuple(int(i) % size for i in index)}


def _index(call: Call) -> Form:
    given = [(d, i) for d, i in enumerate(call.given["indices"]) if i is not None]
    if len(given) != 1 or given[0][1] not in call.stored:
        raise call.refuse(" by anything but a list of places in one dimension")
    return _gather(call, given[0][0], call.values[given[0][1]])


def _index_select(call: Call) -> Form:
    if call.given["index"] not in call.stored:
        raise call.refuse(" by a tensor made of the images")
    return _gather(call, int(call.get("dim")) % call.before.dim(), call.get("index"))


def _flip(call: Call) -> Form:
    dims = call.dims("dims")
    if len(dims) != 1:
        raise call.refuse(" of several dimensions at once")
    return _gather(call, dims[0], torch.arange(call.before.shape[dims[0]]).flip(0))


def _roll(call: Call) -> Form:
    dims = [int(d) % call.before.dim() for d in call.get("dims")]
    if len(dims) != 1:
        raise call.refuse(" of several dimensions at once")
    return _gather(call, dims[0], torch.arange(call.before.shape[dims[0]]).roll(call.get("shifts")[0]))


def _pad(call: Call) -> Form:
    """Padding by zeros or by edge pixels; by -inf if only the windows of a max pool see it."""
    mode = {"reflection_pad2d": "reflect", "replication_pad2d": "replicate"}.get(call.name, "constant")
    value = float(call.get("value") or 0.0) if mode == "constant" else 0.0
    pooled = all(name_of(user) in ("max_pool2d_with_indices", "max_pool2d") for user in call.node.users)
    if value != 0 and not (value == -math.inf and pooled):
        raise call.refuse(f" by {value}")
    amounts = tuple(int(a) for a in call.get("pad" if mode == "constant" else "padding"))
    if len(amounts) > 2 * (call.before.dim() - 1):
        raise call.refuse(" of the batch")
    return "pad", [call.source], {"amounts": amounts, "mode": mode, "lowest": value != 0}


def _shuffle(call: Call) -> Form:
    raise call.refuse()


# Normalisation


def _batch_norm(call: Call) -> Form:
    """The statistics and the affine map of `options` are those of the running statistics."""
    if call.given.get("training"):
        raise call.refuse(" on the batch's own statistics")
    names = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    if any(isinstance(call.given[n], fx.Node) and call.given[n] not in call.stored for n in names.values()):
        raise call.refuse(" by a tensor made of the images")
    parts = {key: call.get(name) for key, name in names.items()}
    options = {key: None if value is None else value.detach() for key, value in parts.items()}
    return "batch_norm", [call.source], options | {"eps": float(call.get("eps"))}


def _layer_norm(call: Call) -> Form:
    parts = {key: call.get(key) for key in ("weight", "bias")}
    options = {key: None if value is None else value.detach() for key, value in parts.items()}
    return "layer_norm", [call.source], options | {"over": len(call.get("normalized_shape")), "eps": float(call.get("eps"))}


# Calls that return several tensors


def _part(call: Call) -> Form:
    """One of the tensors that the first argument is a tuple of."""
    whole, index = call.source, int(str(call.node.args[1]))
    inner = Call(whole, call.label, call.values | {whole: call.out}, call.stored)
    if inner.name in ("split", "split_with_sizes", "unbind"):
        axis = int(inner.get("dim")) % inner.before.dim()
        sizes = [1 if inner.name == "unbind" else part.shape[axis] for part in call.values[whole]]
        return _cut(inner, inner.source, axis, sum(sizes[:index]), sum(sizes[: index + 1]))
    read = PARTS.get(inner.name)
    if read is None or index != 0:
        raise call.refuse("" if read is None else ": of several results only the first")
    return read(inner)


PARTS: dict[str, Callable[[Call], Form]] = {
    "max_pool2d_with_indices": _max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "max": _reduce("max"),
    "min": _reduce("min"),
    "native_layer_norm": _layer_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _shuffle),
}
FORMS: dict[str, Callable[[Call], Form]] = {
    **dict.fromkeys(("clone", "alias", "detach", "lift_fresh_copy", "lift_fresh", "contiguous"), _one("")),
    "_to_copy": _cast,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten"), _reshape),
    "expand": _expand,
    **dict.fromkeys(("as_strided", "as_strided_"), _same_strides),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("cat", "stack"), _concat),
    "slice": _slice,
    "select": _select,
    "index": _index,
    "index_select": _index_select,
    "flip": _flip,
    "roll": _roll,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "rsub": _arithmetic("sub", "other", "self"),
    "mul": _arithmetic("mul"),
    "div": _arithmetic("truediv"),
    "maximum": _arithmetic("maximum"),
    "minimum": _arithmetic("minimum"),
    "pow": _arithmetic("pow", "self", "exponent"),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "amax": _reduce("max"),
    "amin": _reduce("min"),
}
