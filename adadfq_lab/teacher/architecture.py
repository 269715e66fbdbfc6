"""A network's architecture as data: a teacher file rebuilds a user's network without the user's code, and executes none.

    text = describe(network)            # JSON: the modules, the tensors and the calls of its traced graph
    network = build_described(text)     # the same network without its weights; load_state_dict follows

What `quantize` can quantise has been traced, and what has been traced is a list of calls of torch.nn modules, of torch's
functions and of tensors' methods. A description names these and their arguments. `build_described` accepts no other name: no
module outside torch.nn, no function that torch does not list as one on tensors, no attribute but a tensor's shape and type. So
a teacher file from a stranger can compute something useless, but it cannot open a file or run a command.
"""

import functools
import inspect
import json
import keyword
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.teacher.tracing import traced

FORMAT = 1
_OPERATORS = """
    add sub mul truediv floordiv mod pow neg pos abs matmul getitem eq ne lt le gt ge and_ or_ xor invert not_
    iadd isub imul itruediv ifloordiv ipow imatmul
"""
_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT")
_MAKERS = ("zeros", "ones", "full", "arange", "eye", "relu_")
_LEFT_OUT = (  # methods of tensors that do more than compute
    "apply_",
    "map_",
    "map2_",
    "backward",
    "numpy",
    "set_",
    "data_ptr",
    "const_data_ptr",
    "share_memory_",
)
_UNHOOKED = ("hardswish", "hardsigmoid", "relu_", "leaky_relu_", "elu_")  # of torch.nn.functional, and not in torch's list
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_FORMATS = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.memory_format)}
_MODULES = {
    name: kind
    for name, kind in vars(nn).items()
    if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind is not nn.Module
}


def describe(network: nn.Module, shape: tuple[int, ...] | None = None) -> tuple[str, dict[str, Tensor]]:
    """`network` as JSON, and its tensors by name.

    shape: (C, H, W) of its images; None to try the usual ones

    Raises UserError if it cannot be traced, or if it calls something that a description cannot name: which one.
    """
    module = traced(network, shape)
    _drop_what_eval_skips(module.graph)
    nodes = [_node_as_json(node) for node in module.graph.nodes]
    called = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    modules = {path: _module_as_json(path, module.get_submodule(path)) for path in called}
    loose = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    tensors = dict(module.state_dict())
    for path in loose:
        value = operator.attrgetter(path)(module)
        if not isinstance(value, Tensor):
            raise UserError(f"the network reads {path}, which is not a tensor but a {type(value).__name__}")
        tensors[path] = value.detach()
    owned = tuple(f"{path}." for path in modules)
    learned = dict(module.named_parameters())
    held = {path: [list(t.shape), _dtype(t), path in learned] for path, t in tensors.items() if not path.startswith(owned)}
    return json.dumps({"format": FORMAT, "modules": modules, "tensors": held, "nodes": nodes}), tensors


def _drop_what_eval_skips(graph: fx.Graph) -> None:
    """Removes assertions, and torchvision's stochastic depth, which returns its input outside of training."""
    for node in reversed(graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name == "stochastic_depth":
            node.replace_all_uses_with(node.args[0])
        if name in ("stochastic_depth", "_assert"):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def build_described(text: str) -> nn.Module:
    """The network that `describe` wrote down as `text`, with untrained weights. Raises UserError for anything else."""
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise UserError(f"its network is described in format {plain['format']!r:.20}, not {FORMAT}")
        root = nn.Module()
        for path, (kind, arguments) in plain["modules"].items():
            _put(root, path, _module_from_json(kind, arguments))
        for path, (shape, dtype, learned) in plain["tensors"].items():
            tensor = torch.zeros(shape, dtype=_DTYPES[dtype])
            _put(root, path, nn.Parameter(tensor) if learned else tensor)
        return fx.GraphModule(root, _graph_from_json(plain["nodes"]), "Network")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError, IndexError) as error:
        raise UserError(f"the description of its network is damaged ({type(error).__name__}: {first_line(error)})") from None


# Modules


def _module_as_json(path: str, module: nn.Module) -> list[Any]:
    kind = type(module).__name__
    if _MODULES.get(kind) is not type(module):
        raise UserError(f"module {path!r} ({kind}) is not one of torch.nn's, so a teacher file cannot describe it")
    arguments = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, parameter.default)
        if name == "bias" and not isinstance(value, bool):
            value = value is not None
        if value is not parameter.default and value is not inspect.Parameter.empty:
            arguments[name] = _as_json(value, f"module {path!r} ({kind})")
    return [kind, arguments]


def _module_from_json(kind: str, arguments: dict[str, Any]) -> nn.Module:
    if kind not in _MODULES:
        raise UserError(f"its network names a module {kind!r:.60}, which torch.nn does not have")
    module: nn.Module = _MODULES[kind](**{name: _from_json(value, {}) for name, value in arguments.items()})
    return module


def _put(root: nn.Module, path: str, what: nn.Module | Tensor) -> None:
    """Places a module or a tensor at the dotted `path` under `root`, making the modules on the way."""
    if not _PATH.fullmatch(path):
        raise UserError(f"its network has a part called {path!r:.60}")
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(what, nn.Module):
        root.add_module(name, what)
    elif isinstance(what, nn.Parameter):
        root.register_parameter(name, what)
    else:
        root.register_buffer(name, what)


# Calls


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Every function that a description may name: torch's functions on tensors, as torch lists them, and operators."""
    found: dict[str, Callable[..., Any]] = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()}
    found |= {f"torch.{name}": getattr(torch, name) for name in _MAKERS}
    found |= {f"torch.nn.functional.{name}": getattr(F, name) for name in _UNHOOKED}
    known = torch.overrides.get_overridable_functions()
    for space in (torch.nn.functional, torch, torch.linalg, torch.fft, torch.special):
        listed = {id(function) for function in known.get(space, ())}
        found |= {f"{space.__name__}.{name}": f for name, f in vars(space).items() if id(f) in listed and _plain(name)}
    return found | {"getattr": getattr}


@functools.cache
def _names() -> dict[int, str]:
    return {id(function): name for name, function in _functions().items()}


@functools.cache
def _methods() -> frozenset[str]:
    listed = torch.overrides.get_overridable_functions()[Tensor]
    names = {getattr(function, "__name__", "_") for function in listed} | {"size", "view", "reshape", "type_as", "to"}
    return frozenset(name for name in names if _plain(name) and name not in _LEFT_OUT and not name.startswith("register"))


def _plain(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)


def _node_as_json(node: fx.Node) -> list[Any]:
    what = f"{node.name} ({getattr(node.target, '__name__', node.target)})"
    target: Any = str(node.target)
    if node.op == "call_function":
        target = _names().get(id(node.target))
        if target is None:
            raise UserError(f"the network calls {what}, which is not a function of torch, so a teacher file cannot describe it")
        if target == "getattr" and (len(node.args) != 2 or node.args[1] not in _ATTRIBUTES):
            raise UserError(f"the network reads {node.args[1:]} of a tensor, which a teacher file cannot describe")
    elif node.op == "call_method" and target not in _methods():
        raise UserError(f"the network calls the method {what}, which a teacher file cannot describe")
    elif node.op == "placeholder" and node.args:
        return [node.op, node.name, target, [], {}]
    named = {key: _as_json(value, what) for key, value in node.kwargs.items()}
    return [node.op, node.name, target, [_as_json(value, what) for value in node.args], named]


def _graph_from_json(nodes: list[list[Any]]) -> fx.Graph:
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for op, name, target, args, kwargs in nodes:
        given = tuple(_from_json(a, made) for a in args)
        named = {key: _from_json(value, made) for key, value in kwargs.items()}
        if (
            not all(map(_plain, named))
            or not isinstance(name, str)
            or not (name.isidentifier() and not keyword.iskeyword(name))
        ):
            raise UserError(f"its network has a call named {name!r:.60}")
        if op == "call_function":
            if target not in _functions() or (target == "getattr" and given[1] not in _ATTRIBUTES):
                raise UserError(f"its network calls {target!r:.60}, which no teacher file may call")
            if target == "getattr" and not isinstance(given[0], fx.Node):
                raise UserError("its network reads an attribute of something that is not a tensor")
            target = _functions()[target]
        elif op == "call_method":
            if target not in _methods():
                raise UserError(f"its network calls the method {target!r:.60}, which no teacher file may call")
        elif op in ("call_module", "get_attr"):
            if not _PATH.fullmatch(target):
                raise UserError(f"its network has a part called {target!r:.60}")
        elif (op, target) not in (("placeholder", "x"), ("output", "output")):
            raise UserError(f"its network has a step {op!r:.60} {target!r:.60}")
        made[name] = graph.create_node(op, target, given, named, name=name)
    graph.lint()
    return graph


# Arguments


def _as_json(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, dict):
        return {"dict": {str(k): _as_json(v, where) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_as_json(v, where) for v in value]}
    if isinstance(value, slice):
        return {"slice": [_as_json(v, where) for v in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": 0}
    for kind, key, table in ((torch.dtype, "dtype", _DTYPES), (torch.memory_format, "memory_format", _FORMATS)):
        if isinstance(value, kind) and (name := str(value).removeprefix("torch.")) in table:
            return {key: name}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise UserError(f"{where} has an argument of type {type(value).__name__}, which a teacher file cannot describe")


def _from_json(value: Any, made: dict[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise UserError("the description of its network is damaged (a bare list)")
        return value
    ((key, inner),) = value.items()
    match key:
        case "node":
            return made[inner]
        case "float":
            return float(inner)
        case "dict":
            return {k: _from_json(v, made) for k, v in inner.items()}
        case "list":
            return [_from_json(v, made) for v in inner]
        case "tuple":
            return tuple(_from_json(v, made) for v in inner)
        case "slice":
            return slice(*(_from_json(v, made) for v in inner))
        case "ellipsis":
            return Ellipsis
        case "dtype":
            return _DTYPES[inner]
        case "memory_format":
            return _FORMATS[inner]
        case "device":
            return torch.device("cpu")
    raise UserError(f"its network has an argument of the kind {key!r:.60}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
