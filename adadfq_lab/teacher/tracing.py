"""A network as a torch.fx graph, and what the package asks of one: its ReLUs, and no operation that overwrites its input.

Tracing replaces `nn.Module.__call__` for the whole process while it lasts; other threads' modules are let through."""

import operator
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError, first_line

RELU_FUNCTIONS = {F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6"}
RELU_METHODS = {"relu": "relu", "relu_": "relu"}
IN_PLACE = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")}


_TRACING = threading.RLock()
"""Held while torch.fx traces: it replaces `nn.Module.__call__`, and puts back what it found."""


def traced(network: nn.Module) -> fx.GraphModule:
    """`network` as a graph over its own submodules, in which no node's value changes after it was computed.

    Raises UserError where it cannot be traced: which module, and why.
    """
    module = fx.GraphModule(network, _trace(network))
    _out_of_place(module)
    return module


def relu_sites(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that are a ReLU or ReLU6, in the order of their execution: where `quantize` puts its quantisers."""
    modules = dict(module.named_modules())
    return [node for node in module.graph.nodes if _relu_kind(node, modules)]


class _Tracer(fx.Tracer):
    """Traces `forward(x)`; remembers which module it was in, so that a failure can name it.

    While it traces, the modules that other threads call come by here too, as those of a live run: they are let through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.where, self.thread = "", threading.get_ident()

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):  # type: ignore[no-untyped-def]
        # Only the images are a variable; every other argument has its default, as it will when the student is called.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def getattr(self, attr, attr_val, parameter_proxy_cache):  # type: ignore[no-untyped-def]
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward, args, kwargs):  # type: ignore[no-untyped-def]
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        outer, self.where = self.where, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.where = outer
        return result


def _trace(root: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        with _TRACING:
            return tracer.trace(root)
    except Exception as error:  # whatever foreign code raises while it is traced
        place = type(root).__name__
        if tracer.where:
            place = f"module {tracer.where!r} ({type(root.get_submodule(tracer.where)).__name__}) of {place}"
        rule = "its forward must not depend on the values of its input, nor count its pixels in Python"
        raise UserError(f"cannot trace {place}: {first_line(error)}; {rule}") from error


def _out_of_place(module: fx.GraphModule) -> None:
    """Rewrites in-place forms so that later uses of the overwritten tensor see the new value, as they did when run."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(modules.get(str(node.target)), nn.Identity):
            node.replace_all_uses_with(node.args[0])  # the same tensor under another name
            module.graph.erase_node(node)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        inplace = node.kwargs.get("inplace", False) or (node.target in (F.relu, F.relu6) and True in node.args[1:])
        if node.op == "call_function" and node.target in IN_PLACE:
            node.target, inplace = IN_PLACE[node.target], True
        elif node.op == "call_function":
            inplace = inplace or _overwrites(getattr(node.target, "__name__", ""))
        elif node.op == "call_method" and _overwrites(node.target):
            inplace = True
            if callable(getattr(Tensor, node.target[:-1], None)):
                node.target = node.target[:-1]
        elif node.op == "call_module":
            inplace = getattr(modules.get(node.target), "inplace", False)
        if inplace and node.args and isinstance(node.args[0], fx.Node):
            overwritten = node.args[0]
            for user in list(overwritten.users):
                if order[user] > order[node]:
                    user.replace_input_with(overwritten, node)


def _overwrites(name: str) -> bool:
    """Whether `name` follows torch's convention for in-place operations: `relu_`, `add_`."""
    return name.endswith("_") and not name.endswith("__")


def _relu_kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op == "call_function":
        if node.target in RELU_FUNCTIONS:
            return RELU_FUNCTIONS[node.target]
        if node.target is F.hardtanh and (node.kwargs.get("min_val"), node.kwargs.get("max_val")) == (0.0, 6.0):
            return "relu6"
    if node.op == "call_method":
        return RELU_METHODS.get(str(node.target))
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.ReLU6) or (isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)):
        return "relu6"
    return "relu" if isinstance(module, nn.ReLU) else None
