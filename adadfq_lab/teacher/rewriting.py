"""A traced network in one spelling: nothing in place, nothing that does nothing, layers and batch norms as modules.

`F.conv2d` and `F.linear` on a stored weight become `nn.Conv2d` and `nn.Linear`, `F.batch_norm` on stored statistics becomes a
batch norm; a weight computed from stored tensors alone (weight standardization) becomes what it is in eval mode. Each keeps
the name of the module that holds the weight where it can. What the graph computes stays the same: `tracing` compares.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError
from adadfq_lab.teacher.checking import Execution, place
from adadfq_lab.teacher.plain import NORMS

IN_PLACE = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")}
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)


def rewrite(found: Execution) -> fx.GraphModule:
    """The graph of `found` in one spelling. Raises UserError for a write into memory that another value reads later."""
    module, graph = found.module, found.module.graph
    _without_writes(found)
    modules = dict(module.named_modules(remove_duplicate=False))
    stored = _stored(graph)
    made: dict[Any, str] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":
            layer = modules[str(node.target)]
            if isinstance(layer, _NOTHING):
                _replace(node, node.all_input_nodes[0])
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                _exact_norm(module, node, layer, found)
        elif node.op == "call_function":
            if node.target in _DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth":
                _replace(node, node.all_input_nodes[0])  # in eval mode: the reference was found to draw nothing
            elif node.target is torch._assert:
                graph.erase_node(node)
            else:
                _as_module(found, node, stored, made)
        elif node.op == "call_method" and node.target == "view" and not any(isinstance(a, torch.dtype) for a in node.args):
            node.target = "reshape"  # the same where view works; activations here are laid out channels last
    graph.eliminate_dead_code()
    _drop_unread(module)
    graph.lint()
    module.recompile()
    return module


def _drop_unread(module: fx.GraphModule) -> None:
    """Removes modules and tensors that no node uses, as in a container whose batch norm is now a module inside it."""
    module.delete_all_unused_submodules()
    called, read = set[int](), set[tuple[int, str]]()
    for node in module.graph.nodes:
        if node.op == "call_module":
            called.update(map(id, module.get_submodule(str(node.target)).modules()))
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            read.add((id(module.get_submodule(owner)), name))
    for part in module.modules():
        for tensors in (part._parameters, part._buffers) if id(part) not in called else ():
            for name in [name for name in tensors if (id(part), name) not in read]:
                del tensors[name]


def _replace(node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _stored(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that no image changes: parameters, buffers, and what is made of such alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op.startswith("call") and node.all_input_nodes and found.issuperset(node.all_input_nodes)
        ):
            found.add(node)
    return found


# Writes in place


def _without_writes(found: Execution) -> None:
    """Rewrites in-place forms so that later uses of the overwritten tensor see the new value, as they did when run."""
    modules = dict(found.module.named_modules(remove_duplicate=False))
    order = {node: i for i, node in enumerate(found.module.graph.nodes)}
    for node in list(found.module.graph.nodes):
        if node not in found.overwritten:
            continue
        result = found.live[node]
        for source in found.overwritten[node]:
            _redirect(found, node, result, source, order)
        _out_of_place(node, modules)


def _redirect(found: Execution, node: fx.Node, result: Any, source: fx.Node, order: dict[fx.Node, int]) -> None:
    """Every value that lies in the memory of `source` and is used after `node` overwrote it is the result of `node`."""
    given = _leaves(found.live[source])
    touched = {t.untyped_storage()._cdata for t in given}
    written = [t for t in _leaves(result) if t.untyped_storage()._cdata in touched] or given
    for other, value in found.live.items():
        later = [u for u in other.users if order[u] > order[node]] if order[other] < order[node] else []
        for tensor in _leaves(value) if later else ():
            if not any(_overlap(tensor, t) for t in written):
                continue
            whole = isinstance(result, Tensor) and isinstance(value, Tensor) and _same_memory(result, value)
            if whole:
                for user in later:
                    user.replace_input_with(other, node)
            elif _reads_memory(other, later):
                raise UserError(
                    f"{place(node, found.module)} overwrites memory that {place(other, found.module)} shares and "
                    f"{place(later[0], found.module)} reads afterwards; write it out of place (inplace=False) or copy first"
                )
            break


def _reads_memory(other: fx.Node, later: list[fx.Node]) -> bool:
    """Whether any of the uses looks at values; sizes do not change."""
    sizes = ("size", "dim", "numel")
    return any(not (u.op == "call_method" and u.target in sizes) and u.target is not getattr for u in later)


def _leaves(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, Tensor)]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and (a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset())
        and a.dtype == b.dtype
    )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have an element of memory in common."""
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    if a.device.type == "meta" or a.dtype != b.dtype:
        return True
    mark = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    mark.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(mark.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _out_of_place(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    if node.op == "call_module":
        if hasattr(modules[str(node.target)], "inplace"):
            modules[str(node.target)].inplace = False  # type: ignore[assignment]
        return
    if node.kwargs.get("inplace"):
        node.kwargs = node.kwargs | {"inplace": False}
    if node.op == "call_function":
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
            return
        if True in node.args[1:] and node.target in (F.relu, F.relu6):
            node.args = tuple(False if a is True else a for a in node.args)
        name = getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            node.target = getattr(torch, name[:-1], getattr(F, name[:-1], node.target))
    elif str(node.target).endswith("_") and callable(getattr(Tensor, str(node.target)[:-1], None)):
        node.target = str(node.target)[:-1]


# Layers and batch norms written as functions

_LAYERS: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    torch.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((operator.matmul, torch.matmul), ("input", "other")),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}


def _as_module(found: Execution, node: fx.Node, stored: set[fx.Node], made: dict[Any, str]) -> None:
    """Turns a call of `_LAYERS` on stored tensors into a call of the module that it is."""
    names = _LAYERS.get(node.target)
    if names is None:
        return
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    x = given.pop("input", None)
    tensors = {name: value for name, value in given.items() if isinstance(value, fx.Node)}
    if not isinstance(x, fx.Node) or x in stored or not tensors or not stored.issuperset(tensors.values()):
        return
    values = {name: found.values[value] for name, value in tensors.items()}
    if not all(isinstance(value, Tensor) for value in values.values()):
        return
    options = {name: value for name, value in given.items() if name not in tensors}
    layer = _BUILDERS.get(node.target, _linear)(found.values[x].dim(), values, options)
    if layer is None:
        return
    if "other" in tensors:  # x @ w is a linear layer whose weight is w transposed
        tensors, values = {}, {}
    for name, source in tensors.items():
        held: Tensor = getattr(layer, name)
        if source.op == "get_attr":  # the very parameter, so that what else reads it reads the trained one
            owner, _, attribute = str(source.target).rpartition(".")
            held = getattr(found.module.get_submodule(owner), attribute)
        if name.startswith("running"):
            held = held.detach()
        elif not isinstance(held, nn.Parameter):
            held = nn.Parameter(held.detach().clone())
        setattr(layer, name, held)
    key = (
        node.target,
        node.name if not tensors else "",
        *((n, s.target if s.op == "get_attr" else s.name) for n, s in tensors.items()),
        repr(options),
    )
    if key not in made:
        made[key] = _name(found.module, node, tensors)
        found.module.add_submodule(made[key], layer.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", made[key], (x,), {}


def _conv(dims: int, tensors: dict[str, Tensor], options: dict[str, Any]) -> nn.Module | None:
    weight, groups = tensors["weight"], options.get("groups", 1)
    if dims != 4 or weight.dim() != 4:
        return None
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        options.get("stride", 1),
        options.get("padding", 0),
        options.get("dilation", 1),
        groups,
        "bias" in tensors,
        device="meta",
    )
    return _filled(layer, tensors)


def _linear(dims: int, tensors: dict[str, Tensor], options: dict[str, Any]) -> nn.Module | None:
    weight = tensors["other"].T if "other" in tensors else tensors["weight"]
    if weight.dim() != 2:
        return None
    tensors = tensors | {"weight": weight.contiguous()}
    tensors.pop("other", None)
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], "bias" in tensors, device="meta"), tensors)


def _norm(dims: int, tensors: dict[str, Tensor], options: dict[str, Any]) -> nn.Module | None:
    if options.get("training", False) or not {"running_mean", "running_var"} <= tensors.keys() or dims not in NORMS:
        return None
    mean = tensors["running_mean"]
    affine = "weight" in tensors or "bias" in tensors
    layer = NORMS[dims](len(mean), options.get("eps", 1e-5), affine=affine, device=mean.device, dtype=mean.dtype)
    for name, value in tensors.items():
        if name.startswith("running"):
            layer.register_buffer(name, value.clone())
    return _filled(layer, {n: v for n, v in tensors.items() if not n.startswith("running")})


_BUILDERS: dict[Any, Any] = {F.conv2d: _conv, torch.conv2d: _conv, F.batch_norm: _norm}


def _filled(layer: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    for name, value in tensors.items():
        layer.register_parameter(name, nn.Parameter(value.detach().clone()))
    return layer


def _name(module: fx.GraphModule, node: fx.Node, tensors: dict[str, fx.Node]) -> str:
    """The name of the module that holds the tensors, if it is free for a layer; else one below it, or one of its own."""
    owners = {str(source.target).rpartition(".")[0] for source in tensors.values() if source.op == "get_attr"}
    owner = owners.pop() if len(owners) == 1 else ""
    if owner:
        attributes = {f"{owner}.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
        inside = [n for n in node.graph.nodes if n.op in ("call_module", "get_attr") and f"{n.target}.".startswith(f"{owner}.")]
        if all(n.target in attributes and set(n.users) <= {node} for n in inside):
            return owner
    base = f"{owner}.norm" if owner and node.target is F.batch_norm else f"{owner}.layer" if owner else node.name
    name, i = base, 1
    while _exists(module, name):
        i += 1
        name = f"{base}{i}"
    return name


def _exists(module: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    try:
        return hasattr(module.get_submodule(owner), attribute)
    except AttributeError:
        return False


def _exact_norm(module: fx.GraphModule, node: fx.Node, norm: nn.modules.batchnorm._BatchNorm, found: Execution) -> None:
    """A subclass with its base's forward as its base."""
    value = found.values[node]
    if type(norm) in NORMS.values() or not isinstance(value, Tensor) or value.dim() not in NORMS:
        return
    made = NORMS[value.dim()](norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made._parameters, made._buffers = norm._parameters, norm._buffers
    module.set_submodule(str(node.target), made.eval())
