"""Functions of one tensor as ONNX nodes, by their ATen names."""

from collections.abc import Callable
from typing import Any

from adadfq_lab.integers.onnx_file.graph import Bounds, OnnxGraph

Options = dict[str, Any]


def write_function(graph: OnnxGraph, name: str, x: str, options: Options) -> Bounds:
    """Writes `options["function"]` of the tensor `x` as the tensor `name`; returns the bounds of its values, if it has any."""
    function = options["function"]
    if function in _PLAIN:
        op, bounds = _PLAIN[function]
        graph.node(op, [x], name)
        return bounds
    return _WRITTEN[function](graph, name, x, options)


# Functions that are one node without attributes, and their bounds.
_PLAIN: dict[str, tuple[str, Bounds]] = {
    "relu": ("Relu", None),
    "neg": ("Neg", None),
    "abs": ("Abs", None),
    "exp": ("Exp", None),
    "log": ("Log", None),
    "sqrt": ("Sqrt", None),
    "reciprocal": ("Reciprocal", None),
    "erf": ("Erf", (-1.0, 1.0)),
    "sigmoid": ("Sigmoid", (0.0, 1.0)),
    "tanh": ("Tanh", (-1.0, 1.0)),
    "hardswish": ("HardSwish", None),
    "mish": ("Mish", None),
}


def _rsqrt(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    graph.node("Reciprocal", [graph.node("Sqrt", [x], f"{name}.sqrt")], name)
    return None


def _hardsigmoid(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    graph.node("HardSigmoid", [x], name, alpha=1 / 6, beta=0.5)
    return 0.0, 1.0


def _silu(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)
    return None


def _gelu(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    graph.node("Gelu", [x], name, approximate=o["approximate"])
    return None


def _elu(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    """scale * (x where positive, else alpha (exp(input_scale x) - 1)); ELU, SELU and their like."""
    ratio = o["scale"] / o["input_scale"]  # of the positive part to what Elu gives of input_scale * x
    scaled = x if o["input_scale"] == 1 else graph.node("Mul", [x, _number(graph, o["input_scale"])], f"{name}.in")
    elu = graph.node("Elu", [scaled], f"{name}.elu", alpha=float(o["alpha"] * o["input_scale"]))
    graph.node("Mul", [elu, _number(graph, ratio)], name)
    return None


def _celu(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    graph.node("Celu", [x], name, alpha=float(o["alpha"]))
    return None


def _softplus(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    """log(1 + exp(beta x)) / beta. Where torch passes x on, beyond `threshold`, the two are equal in float32."""
    if o["beta"] == 1:
        graph.node("Softplus", [x], name)
    else:
        soft = graph.node("Softplus", [graph.node("Mul", [x, _number(graph, o["beta"])], f"{name}.in")], f"{name}.soft")
        graph.node("Div", [soft, _number(graph, o["beta"])], name)
    return None


def _clamp(low: str, high: str) -> Callable[[OnnxGraph, str, str, Options], Bounds]:
    """A clamp whose limits are the options `low` and `high`, numbers or stored tensors."""

    def write(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
        limits = [o.get(low), o.get(high)]
        if all(limit is None or isinstance(limit, int | float) for limit in limits):
            named = ["" if v is None else graph.constant(f"{name}.{i}", v) for i, v in enumerate(limits)]
            graph.node("Clip", [x, *named], name)
            low_limit, high_limit = limits
            return None if low_limit is None or high_limit is None else (float(low_limit), float(high_limit))
        for op, value in (("Max", limits[0]), ("Min", limits[1])):
            if value is not None:
                x = graph.node(op, [x, graph.constant(f"{name}.{op}", value)], f"{name}.to.{op}")
        graph.node("Identity", [x], name)
        return None

    return write


def _leaky_relu(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    slope = o["negative_slope"] if "negative_slope" in o else o["weight"][0]
    graph.node("PRelu", [x, graph.constant(f"{name}.slope", slope)], name)
    return None


def _softmax(graph: OnnxGraph, name: str, x: str, o: Options) -> Bounds:
    log = "log" in o["function"]
    graph.node("LogSoftmax" if log else "Softmax", [x], name, axis=o["dim"])
    return None if log else (0.0, 1.0)


def _number(graph: OnnxGraph, value: float) -> str:
    return graph.constant(f"number.{float(value)!r}", value)


_WRITTEN: dict[str, Callable[[OnnxGraph, str, str, Options], Bounds]] = {
    "rsqrt": _rsqrt,
    "hardsigmoid": _hardsigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "celu": _celu,
    "softplus": _softplus,
    "hardtanh": _clamp("min_val", "max_val"),
    "clamp": _clamp("min", "max"),
    "clamp_min": _clamp("min", ""),
    "clamp_max": _clamp("", "max"),
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _leaky_relu,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
}
FUNCTIONS = (*_PLAIN, *_WRITTEN)
"""The ATen names of the functions that can be written."""
