"""A network as a torch.fx graph that computes exactly what the network computes, or one line that says where it does not.

The graph is of a plain copy of the network (see `plain`), in the one spelling that the rest of the package reads (see
`rewriting`), and is compared with the untouched network on a random batch before it is handed out (see `checking`).

Tracing replaces `nn.Module.__call__` for the whole process while it lasts; other threads' modules are let through.
"""

import operator
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.teacher.checking import Reference, compare, execute
from adadfq_lab.teacher.plain import hooked, plain
from adadfq_lab.teacher.rewriting import rewrite

RELU_FUNCTIONS = {F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6"}
RELU_METHODS = {"relu": "relu", "relu_": "relu"}

_TRACING = threading.RLock()
"""Held while torch.fx traces: it replaces `nn.Module.__call__`, and puts back what it found."""

# A subclass that leaves the forward of one of these alone is one of these.
_BASES = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def traced(network: nn.Module, shape: tuple[int, ...] | None = None) -> fx.GraphModule:
    """`network` in eval mode as a graph over copies of its submodules, in which no value changes after it was computed.

    shape: (C, H, W) of its images; None to try the usual ones

    Raises UserError if it cannot be traced, or if the trace and the network differ on a random batch: which module, and why.
    """
    reference = Reference(network, shape)
    first = None
    for keep_hooks in (False, True) if hooked(plain(reference.network, keep_hooks=True)) else (False,):
        for sized in (False, True) if reference.x is not None else (False,):
            try:
                return _graph(reference, keep_hooks=keep_hooks, sized=sized)
            except UserError as error:
                first = error if first is None or (sized and not keep_hooks) else first
    assert first is not None
    raise first


def _graph(reference: Reference, *, keep_hooks: bool, sized: bool) -> fx.GraphModule:
    """One way to trace it: without or with what its hooks do, with sizes that Python may not or may count with."""
    root, x = plain(reference.network, keep_hooks=keep_hooks), reference.x
    tracer = _Tracer(x if sized else None)
    graph = _trace(tracer, root)
    if x is None:
        raise UserError(
            f"{reference.name} takes none of the usual image sizes ({reference.problem}); say which with input_shape=(C, H, W)"
        )
    raw = execute(fx.GraphModule(_renamed(root, graph), graph), x)
    compare(reference, raw, tracer.calls)
    module = rewrite(raw)
    compare(reference, execute(module, x), [], earlier=raw)
    return module


def _renamed(root: nn.Module, graph: fx.Graph) -> nn.Module:
    """`root` with new names for submodules and parameters that are called as something of a GraphModule: `code`, `graph`."""
    taken = {name for name in dir(fx.GraphModule) if not hasattr(nn.Module, name)} | {"meta"}
    for name in [*root._modules, *root._parameters, *root._buffers]:
        module = root._modules.get(name)
        if name in taken or (name == "activations" and not isinstance(module, nn.Module)):
            new = f"{name}_"
            while hasattr(root, new):
                new += "_"
            for kind in (root._modules, root._parameters, root._buffers):
                if name in kind:
                    kind[new] = kind.pop(name)  # type: ignore[assignment]
            for node in graph.nodes:
                head, _, tail = str(node.target).partition(".")
                if node.op in ("call_module", "get_attr") and head == name:
                    node.target = f"{new}.{tail}" if tail else new
    return root


def relu_sites(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that are a ReLU or ReLU6, in the order of their execution: where `quantize` puts its quantisers."""
    modules = dict(module.named_modules())
    return [node for node in module.graph.nodes if relu_kind(node, modules)]


class _Sized(fx.Proxy):
    """A value while it is traced whose sizes are known, except that of the batch: for networks that count in Python."""

    @property
    def shape(self) -> Any:
        return self._sizes() or fx.proxy.Attribute(self, "shape")

    @property
    def ndim(self) -> Any:
        value = self.node.meta.get("value")
        return value.dim() if isinstance(value, Tensor) else fx.proxy.Attribute(self, "ndim")

    def dim(self) -> Any:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        sizes = self._sizes()
        if sizes is None:
            return self.tracer.create_proxy("call_method", "size", (self,) if dim is None else (self, dim), {})
        return sizes if dim is None else sizes[dim]

    def __len__(self) -> int:
        value = self.node.meta.get("value")
        if not isinstance(value, tuple | list):
            raise TypeError("the batch size must not be counted in Python")
        return len(value)

    def __iter__(self) -> Any:
        value = self.node.meta.get("value")
        return (
            iter([operator.getitem(self, i) for i in range(len(value))])
            if isinstance(value, tuple | list)
            else super().__iter__()
        )

    def _sizes(self) -> tuple[Any, ...] | None:
        value = self.node.meta.get("value")
        if not isinstance(value, Tensor) or not value.dim():
            return None
        batch = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        first = batch if value.shape[0] == self.tracer.images.shape[0] else value.shape[0]  # type: ignore[attr-defined]
        return (first, *value.shape[1:])


class _Tracer(fx.Tracer):
    """Traces `forward(x)`; remembers which module it was in, so that a failure can name it, and what each module gave.

    images: None for an ordinary trace; else a batch that is run along, so that Python may count pixels and channels

    While it traces, the modules that other threads call come by here too, as those of a live run: they are let through.
    """

    def __init__(self, images: Tensor | None = None) -> None:
        super().__init__()
        self.where, self.thread, self.images, self.busy = "", threading.get_ident(), images, False
        self.calls: list[tuple[str, fx.Node]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False  # what these do must be in the graph
        for base in _BASES:
            if isinstance(m, base) and type(m).forward is base.forward:
                return getattr(type(m), "_conv_forward", None) is getattr(base, "_conv_forward", None)
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):  # type: ignore[no-untyped-def]
        # Only the images are a variable; every other argument has its default, as it will when the student is called.
        # Through _call_impl, which runs the root's own hooks and a forward that was set on the instance.
        return lambda root, x: root._call_impl(x), [self.root, self.create_proxy("placeholder", "x", (), {})]

    def getattr(self, attr, attr_val, parameter_proxy_cache):  # type: ignore[no-untyped-def]
        if self.busy or self.images is not None or threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward, args, kwargs):  # type: ignore[no-untyped-def]
        if self.busy or threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        outer, self.where = self.where, self.path_of_module(m)
        path = self.where
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.calls.append((path, result.node))
        self.where = outer
        return result

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if self.images is None:
            return super().proxy(node)
        self.busy = True
        try:
            with torch.no_grad():
                node.meta["value"] = self._value(node)
        finally:
            self.busy = False
        return _Sized(node, self)

    def _known(self, node: fx.Node) -> Any:
        return node.meta["value"] if "value" in node.meta else self._value(node)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.images
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._known)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))._call_impl(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


@torch.no_grad()
def _trace(tracer: _Tracer, root: nn.Module) -> fx.Graph:
    try:
        with _TRACING:
            graph = tracer.trace(root)
    except Exception as error:  # whatever foreign code raises while it is traced
        place = type(root).__name__
        if tracer.where:
            place = f"module {tracer.where!r} ({type(root.get_submodule(tracer.where)).__name__}) of {place}"
        rule = "its forward must not depend on the values of its input"
        raise UserError(f"cannot trace {place}: {first_line(error)}; {rule}") from error
    for node in graph.nodes:
        node.meta.pop("value", None)
    return graph


def relu_kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """ "relu" or "relu6" if `node` is one, under any of their names; else None."""
    if node.op == "call_function":
        if node.target in RELU_FUNCTIONS:
            return RELU_FUNCTIONS[node.target]
        if node.target is F.hardtanh:
            return _between(node, ("min_val", "max_val"), (-1.0, 1.0))
        if node.target in (torch.clamp, torch.clip):
            return _between(node, ("min", "max"), (None, None))
        if node.target is torch.clamp_min:
            return _between(node, ("min", ""), (None, None))
    if node.op == "call_method":
        if node.target in ("clamp", "clip"):
            return _between(node, ("min", "max"), (None, None))
        if node.target == "clamp_min":
            return _between(node, ("min", ""), (None, None))
        return RELU_METHODS.get(str(node.target))
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.ReLU6) or (isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)):
        return "relu6"
    return "relu" if isinstance(module, nn.ReLU) else None


def _between(node: fx.Node, names: tuple[str, str], defaults: tuple[Any, Any]) -> str | None:
    """Which ReLU a clamp with these two bounds is."""
    low, high = (
        node.args[i] if i < len(node.args) else node.kwargs.get(name, default)
        for i, (name, default) in enumerate(zip(names, defaults, strict=True), 1)
    )
    if low != 0 or not (high is None or high == 6):
        return None
    return "relu" if high is None else "relu6"
