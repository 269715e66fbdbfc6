"""A student as a list of operations: each PyTorch spelling of the same operation becomes one kind.

The student's forward is run once under `make_fx`, which records what PyTorch computes below all its spellings: `x.chunk(2, 1)`,
`torch.split(x, 4, dim=1)` and `x.tensor_split(2, 1)` are one call there; keyword forms, methods and modules are all the same;
in-place operations are functions, aliases included. The quantised layers and activations stay whole. `aten` reads the calls;
what runs a student on integers and what writes it to a file both read the list, and know neither torch.fx nor ATen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.integers.aten import decompositions, form, reads_only_the_shape
from adadfq_lab.integers.calls import Call
from adadfq_lab.student.layers import QuantLayer
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.student import Student


@dataclass(frozen=True)
class Operation:
    """One step from tensors to a tensor. Shapes and positions are those of one image, dimensions are counted with the batch.

    kind:    one of
             input, conv, linear, activation;
             moves, which give the same result on codes as on real numbers: max_pool, reshape, transpose, slice, gather,
             concat, stack, expand, pad, reduce_max, reduce_min;
             means and sums: average_pool, adaptive_pool (windows of several sizes), reduce_mean, reduce_sum;
             arithmetic (of two), elementwise (of one), batch_norm, layer_norm
    name:    of the value it makes
    target:  of its module in the student, if it is a layer or an activation
    inputs:  names of the values it takes
    shape:   of its result for one image
    options: what else defines it, such as kernel, stride and padding of a pool
    """

    kind: str
    name: str
    target: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def operations(student: Student, shape: tuple[int, ...]) -> list[Operation]:
    """The operations of `student` on images of `shape` (C, H, W), in the order of their execution; the last makes the logits.

    What changes nothing in eval mode is left out. Raises UserError for an operation without an integer form, naming the module
    it is in, and if the student does not take images of this shape.
    """
    graph, values = _record(student, next(student.parameters()).new_zeros(_BATCH, *shape))
    labels, names = _labels(student, graph), _names(graph)
    made: dict[fx.Node, str] = {}
    stored: set[fx.Node] = set()
    found: list[Operation] = []
    for node in graph.nodes:
        if node.op == "output":
            break
        value = values[node]
        if node.op != "placeholder" and (stored.issuperset(node.all_input_nodes) or reads_only_the_shape(node)):
            stored.add(node)
            continue
        if not isinstance(value, Tensor):  # a tuple of tensors whose items follow
            continue
        call = Call(node, labels.get(node, node.name), values, stored, _leaf(student, node))
        kind, inputs, options = form(call)
        if stored.intersection(inputs):
            raise call.refuse(" of a stored tensor")
        if not kind:
            made[node] = made[inputs[0]]
            continue
        if value.dim() == 0 or value.shape[0] != _BATCH:
            raise call.refuse(": it changes the batch dimension")
        target = str(node.args[1]) if call.module is not None else ""
        found.append(Operation(kind, names[node], target, tuple(made[i] for i in inputs), tuple(value.shape[1:]), options))
        made[node] = names[node]
    if not found or found[-1].kind == "input" or node.args[0] not in made:
        raise UserError("the logits are not made of the images; the network must return its logits alone")
    return found


def users_of(found: list[Operation]) -> dict[str, list[Operation]]:
    """For each value the operations that take it, in order."""
    users: dict[str, list[Operation]] = {operation.name: [] for operation in found}
    for operation in found:
        for name in operation.inputs:
            users[name].append(operation)
    return users


def forward_values(student: Student, x: Tensor) -> dict[str, Tensor]:
    """Every tensor that the student's fake-quantised forward of `x` makes, by the name of its operation; moves no range."""
    graph, values = _record(student, x)
    names = _names(graph)
    return {name: values[node] for node, name in names.items() if isinstance(values[node], Tensor)}


_BATCH = 2
_LEAVES: ContextVar[nn.Module] = ContextVar("leaves")
"""The network whose quantised layers `_whole` calls by name."""


@torch.library.custom_op("adadfq_lab::whole", mutates_args=())
def _whole(x: Tensor, name: str) -> Tensor:
    """A quantised layer or activation as one call, which tracing does not look into."""
    out: Tensor = _LEAVES.get().get_submodule(name)(x)
    return out


class _Leaves(fx.Interpreter):
    """Runs a student's graph with each quantised layer and activation as one call."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), QuantLayer | QuantActivation):
            return _whole(args[0], target)
        return super().call_module(target, args, kwargs)


class _Recorder(fx.Interpreter):
    """Runs the graph and notes what each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
def _record(student: Student, x: Tensor) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """What PyTorch computes in a forward of `x`, as a graph of ATen calls, and the value of each of its nodes."""
    for node in student.graph.graph.nodes:
        node.meta.setdefault("nn_module_stack", {})  # else torch.fx does not note which node a call came from

    def run(images: Tensor) -> Tensor:
        out = _Leaves(student.graph).run(images)
        if not isinstance(out, Tensor):
            raise UserError(f"the network returns a {type(out).__name__}, not one tensor; it must return its logits alone")
        return out

    try:
        with student.frozen(), _leaves(student.graph), torch.fx.traceback.preserve_node_meta():
            functional = torch.func.functionalize(run, remove="mutations")
            module = make_fx(functional, decomposition_table=decompositions())(x)
            module.graph.eliminate_dead_code()
            recorder = _Recorder(module)
            recorder.run(x)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"the student does not take images of shape {tuple(x.shape[1:])}: {first_line(error)}") from None
    return module.graph, recorder.values


@contextmanager
def _leaves(network: nn.Module) -> Iterator[None]:
    token = _LEAVES.set(network)
    try:
        yield
    finally:
        _LEAVES.reset(token)


def _leaf(student: Student, node: fx.Node) -> nn.Module | None:
    is_leaf = node.op == "call_function" and node.target is torch.ops.adadfq_lab.whole.default
    return student.graph.get_submodule(str(node.args[1])) if is_leaf else None


def _origin(node: fx.Node) -> str:
    """The name of the node of the student's graph that `node` was computed for."""
    sources = node.meta.get("from_node")
    return str(sources[-1].name) if sources else node.name


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A name for each value: its node's in the student's graph; if that made several values, all but the last add their own."""
    origins = {node: _origin(node) for node in graph.nodes if node.op != "get_attr"}
    last = {origin: node for node, origin in origins.items()}
    return {node: origin if last[origin] is node else f"{origin}.{node.name}" for node, origin in origins.items()}


def _labels(student: Student, graph: fx.Graph) -> dict[fx.Node, str]:
    """What a message calls each node: its module, or its function and the module that calls it."""
    own = {node.name: node for node in student.graph.graph.nodes}
    labels = {}
    for node in graph.nodes:
        source = own.get(_origin(node))
        if source is not None and source.op == "call_module":
            labels[node] = f"{source.target} ({type(student.graph.get_submodule(str(source.target))).__name__})"
            continue
        target = node.target if source is None else source.target
        labels[node] = f"{_origin(node)} ({getattr(target, '__name__', target)})"
        inside = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if entry[0]]
        if inside:
            path, kind = inside[-1]
            labels[node] += f" in module {path} ({getattr(kind, '__name__', kind)})"
    return labels
