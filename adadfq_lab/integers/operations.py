"""A student as a list of operations: one spelling for each thing a traced network may write in five ways.

`nn.MaxPool2d`, `F.max_pool2d` and `torch.max_pool2d` are one `max_pool`; `x.view(x.size(0), -1)`, `torch.flatten(x, 1)` and
`nn.Flatten()` are one `reshape`. What runs a student on integers and what writes it to a file both read this list, so neither
knows torch.fx. Shapes are those of one image: the batch is left out.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.student.layers import QuantConv2d, QuantLinear
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.student import Student


@dataclass(frozen=True)
class Operation:
    """One step from tensors to a tensor.

    kind:    input, conv, linear, activation, arithmetic, concat, max_pool, average_pool, adaptive_pool (averages over windows
             of several sizes), reshape, transpose, slice, pad, batch_norm, or elementwise (a function of one tensor)
    name:    of the value it makes
    target:  of its module in the student, where it has one; the layer's name
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

    What changes nothing in eval mode is left out. Raises UserError for an operation without an integer form (naming it), and
    where the student does not take images of this shape.
    """
    values = _record(student, next(student.parameters()).new_zeros(_BATCH, *shape))
    modules = dict(student.graph.named_modules())
    found: list[Operation] = []
    names: dict[fx.Node, str] = {}
    stored: set[fx.Node] = set()
    for node in student.graph.graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node) or not found or node.args[0] not in names:
                raise UserError("the network does not return one tensor made of its images; it must return its logits alone")
            if names[node.args[0]] != found[-1].name:
                raise UserError(f"{found[-1].name} runs after the logits are made; take it out of the network")
            continue
        value = values[node]
        if node.op != "placeholder" and stored.issuperset(node.all_input_nodes):  # a parameter, a buffer, or made of such alone
            stored.add(node)
            continue
        if not isinstance(value, Tensor):  # a size, or a tuple of tensors whose items follow
            continue
        call = _Call(node, modules.get(str(node.target)) if node.op == "call_module" else None, values, stored)
        kind, inputs, options = _form(call)
        if stored.intersection(inputs):
            raise call.refuse(" of a stored tensor")
        if not kind:
            names[node] = names[inputs[0]]
            continue
        if value.shape[0] != _BATCH:
            raise UserError(f"{call} changes the batch dimension, which has no integer form here")
        target = str(node.target) if node.op == "call_module" else ""
        found.append(Operation(kind, node.name, target, tuple(names[i] for i in inputs), tuple(value.shape[1:]), options))
        names[node] = node.name
    return found


def users_of(found: list[Operation]) -> dict[str, list[Operation]]:
    """For each value the operations that take it, in order."""
    users: dict[str, list[Operation]] = {operation.name: [] for operation in found}
    for operation in found:
        for name in operation.inputs:
            users[name].append(operation)
    return users


_BATCH = 2


class _Recorder(fx.Interpreter):
    """Runs the graph and notes what each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, Tensor) else value  # the next node may overwrite it
        return value


@torch.no_grad()
def _record(student: Student, x: Tensor) -> dict[fx.Node, Any]:
    recorder = _Recorder(student.graph)
    try:
        with student.frozen():
            recorder.run(x)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the student does not take images of shape {tuple(x.shape[1:])}: {first_line(error)}") from None
    return recorder.values


def forward_values(student: Student, x: Tensor) -> dict[str, Tensor]:
    """Every tensor that the student's fake-quantised forward of `x` makes, by the name of its operation; moves no range."""
    return {node.name: value for node, value in _record(student, x).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Call:
    """A node of the graph, with what it was given and gave, and the nodes that no image changes."""

    node: fx.Node
    module: nn.Module | None
    values: dict[fx.Node, Any]
    stored: set[fx.Node]

    @property
    def key(self) -> Any:
        """What tells calls of one kind from others: the module's type, the function, or the method's name."""
        return type(self.module) if self.module is not None else self.node.target

    def __str__(self) -> str:
        return f"{self.node.name} ({getattr(self.key, '__name__', self.key)})"

    def get(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of the call, or the attribute of the module that stands for it."""
        if self.module is not None:
            return getattr(self.module, name, default)
        given = self.node.kwargs.get(name, self.node.args[position] if position < len(self.node.args) else default)
        return self.values[given] if isinstance(given, fx.Node) else given

    @property
    def out(self) -> Tensor:
        value: Tensor = self.values[self.node]
        return value

    @property
    def source(self) -> fx.Node:
        return self.node.all_input_nodes[0]

    @property
    def before(self) -> Any:
        """The value of the first input."""
        return self.values[self.source]

    def same_for_all(self, operand: Any) -> bool:
        """Whether it is a number, or a tensor that gives every image of a batch the same."""
        if isinstance(operand, Tensor):
            return operand.dim() < self.out.dim() or operand.shape[0] == 1
        return isinstance(operand, int | float)

    def refuse(self, why: str = "") -> UserError:
        return UserError(f"{self} has no integer form here{why}; replace it in the network before quantizing")


_Form = tuple[str, list[fx.Node], dict[str, Any]]


def _form(call: _Call) -> _Form:
    """(kind, inputs, options) of a call; kind "" for what passes its input on."""
    if call.node.op == "placeholder":
        return "input", [], {}
    read = _FORMS.get(call.key)
    if getattr(call.key, "__name__", "") == "stochastic_depth":  # torchvision's, which passes everything on in eval mode
        read = _one("")
    if read is None:
        raise call.refuse()
    return read(call)


def _one(kind: str, **options: Any) -> Callable[[_Call], _Form]:
    return lambda call: (kind, [call.source], options)


def _arithmetic(function: str) -> Callable[[_Call], _Form]:
    """a + b and its like, of two tensors, or of one and a number or stored tensor: `operands` has that, None for a tensor."""

    def read(call: _Call) -> _Form:
        given = [call.node.args[0], *([call.get("other", 1)] if "other" in call.node.kwargs else call.node.args[1:2])]
        nodes = [a for a in given if isinstance(a, fx.Node)]
        tensors = [a for a in nodes if isinstance(call.values[a], Tensor) and a not in call.stored]
        operands = [None if a in tensors else call.values[a] if isinstance(a, fx.Node) else a for a in given]
        numbers = [a for a in operands if a is not None]
        if len(given) != 2 or not all(map(call.same_for_all, numbers)) or call.get("alpha", 2, 1) != 1:
            raise call.refuse(" with these operands")
        operands = [a.detach() if isinstance(a, Tensor) else a for a in operands]
        if call.get("rounding_mode", 2):
            raise call.refuse(" with rounding")
        return "arithmetic", tensors, {"function": function, "operands": tuple(operands)}

    return read


def _clamp(call: _Call) -> _Form:
    limits = call.get("min", 1), call.get("max", 2)
    if not all(limit is None or isinstance(limit, int | float) for limit in limits):
        raise call.refuse(" by a tensor")
    return "elementwise", [call.source], {"function": "clamp", "limits": limits}


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _window(call: _Call) -> dict[str, Any]:
    kernel = _pair(call.get("kernel_size", 1))
    return {"kernel": kernel, "stride": _pair(call.get("stride", 2) or kernel), "padding": _pair(call.get("padding", 3, 0))}


def _max_pool(call: _Call) -> _Form:
    options = {"dilation": _pair(call.get("dilation", 4, 1)), "ceil": bool(call.get("ceil_mode", 5, False))}
    return "max_pool", [call.source], _window(call) | options


def _average_pool(call: _Call) -> _Form:
    if call.get("divisor_override", 6):
        raise call.refuse(" with divisor_override")
    options = {"ceil": bool(call.get("ceil_mode", 4, False)), "include_pad": bool(call.get("count_include_pad", 5, True))}
    return "average_pool", [call.source], _window(call) | options


def _mean_of_windows(call: _Call) -> _Form:
    """Adaptive pools and means over all pixels."""
    before, after = call.before.shape[2:], call.out.shape[2:]
    if call.key in ("mean", torch.mean):
        dims = call.get("dim", 1)
        if call.before.dim() != 4 or sorted(d % 4 for d in (dims if isinstance(dims, tuple | list) else [dims or 0])) != [2, 3]:
            raise call.refuse(" over these dimensions")
        after = torch.Size((1, 1))
    if any(b % a for b, a in zip(before, after, strict=True)):
        return "adaptive_pool", [call.source], {"size": tuple(before)}
    options = _tiles(before, after) | {"include_pad": True}
    return ("average_pool" if math.prod(options["kernel"]) > 1 else ""), [call.source], options


def _tiles(before: torch.Size, after: torch.Size) -> dict[str, Any]:
    """The window of a pool whose windows tile its input."""
    kernel = tuple(b // a for b, a in zip(before, after, strict=True))
    return {"kernel": kernel, "stride": kernel, "padding": (0, 0), "ceil": False}


def _adaptive_max_pool(call: _Call) -> _Form:
    before, after = call.before.shape[2:], call.out.shape[2:]
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise call.refuse(f" from {tuple(before)} to {tuple(after)}, which takes windows of several sizes")
    return "max_pool", [call.source], _tiles(before, after) | {"dilation": (1, 1)}


def _reshape(call: _Call) -> _Form:
    return ("" if call.out.shape == call.before.shape else "reshape"), [call.source], {}


def _concat(call: _Call) -> _Form:
    if call.get("dim", 1, 0) % call.out.dim() != 1:
        raise call.refuse(" along another dimension than the channels")
    return "concat", list(call.node.args[0]), {}  # type: ignore[arg-type]


def _item(call: _Call) -> _Form:
    """x[:, :, ::2, ::2], or one part of a chunk or split over the channels."""
    if isinstance(call.before, tuple):
        part, whole = int(str(call.node.args[1])), call.source.all_input_nodes[0]
        if any(p.shape[2:] != call.values[whole].shape[2:] for p in call.before):
            raise call.refuse(" along another dimension than the channels")
        start = sum(p.shape[1] for p in call.before[:part])
        return "slice", [whole], {"cuts": ((1, start, start + call.out.shape[1], 1),)}
    index = call.node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(p, slice) for p in parts) or parts[0] != slice(None):
        raise call.refuse(" by anything but slices of channels and pixels")
    cuts = tuple((d, *p.indices(call.before.shape[d])) for d, p in enumerate(parts) if p != slice(None))
    return "slice", [call.source], {"cuts": cuts}


def _pad(call: _Call) -> _Form:
    mode = call.get("mode", 2, "constant")
    if call.module is not None:
        amounts = call.get("padding", 1)
        mode = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}.get(type(call.module), "constant")
    else:
        amounts = call.get("pad", 1)
    if mode not in ("constant", "reflect", "replicate") or (mode == "constant" and call.get("value", 3)):
        raise call.refuse(" with anything but zeros or the pixels next to it")
    return "pad", [call.source], {"amounts": tuple(int(a) for a in amounts), "mode": mode}


def _leaky_relu(call: _Call) -> _Form:
    """x where positive, else a slope times x: one slope, or (PReLU) one a channel."""
    slope = call.get("negative_slope", 1, 0.01)
    if call.key in (nn.PReLU, F.prelu, torch.prelu):
        weight = call.get("weight", 1)
        slope = weight.detach().view(-1, *(1 for _ in call.out.shape[2:]))
    return "elementwise", [call.source], {"function": "leaky_relu", "slope": slope}


def _gelu(call: _Call) -> _Form:
    return "elementwise", [call.source], {"function": "gelu", "approximate": call.get("approximate", 1, "none")}


def _softmax(function: str) -> Callable[[_Call], _Form]:
    def read(call: _Call) -> _Form:
        if call.get("dim", 1) not in (1, 1 - call.out.dim()):
            raise call.refuse(" along another dimension than the channels")
        return "elementwise", [call.source], {"function": function}

    return read


def _transpose(call: _Call) -> _Form:
    order = list(range(call.before.dim()))
    if call.key in (torch.permute, "permute"):
        given = call.node.args[1] if isinstance(call.node.args[1], tuple | list) else call.node.args[1:]
        order = [int(d) % len(order) for d in given]  # type: ignore[arg-type]
    else:
        a, b = (int(call.get(name, i)) for name, i in (("dim0", 1), ("dim1", 2)))
        order[a], order[b] = order[b], order[a]
    return "transpose", [call.source], {"order": tuple(order)}


_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    F.dropout,
    F.dropout2d,
    torch.dropout,
    "contiguous",
    "detach",
    "clone",
    "float",
)
_RESHAPES = (
    nn.Flatten,
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    "unsqueeze",
    "flatten",
    "view",
    "reshape",
    "squeeze",
)
_FORMS: dict[Any, Callable[[_Call], _Form]] = {
    QuantConv2d: _one("conv"),
    QuantLinear: _one("linear"),
    QuantActivation: _one("activation"),
    nn.BatchNorm2d: _one("batch_norm"),
    nn.BatchNorm1d: _one("batch_norm"),
    operator.getitem: _item,
    **dict.fromkeys(_NOTHING, _one("")),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys((operator.add, torch.add, "add", "add_"), _arithmetic("add")),
    **dict.fromkeys((operator.sub, torch.sub, "sub", "sub_"), _arithmetic("sub")),
    **dict.fromkeys((operator.mul, torch.mul, "mul", "mul_"), _arithmetic("mul")),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), _arithmetic("truediv")),
    **dict.fromkeys((operator.neg, torch.neg, torch.neg_, "neg", "neg_"), _one("elementwise", function="neg")),
    **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip"), _clamp),
    **dict.fromkeys((nn.MaxPool2d, F.max_pool2d, torch.max_pool2d), _max_pool),
    **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), _average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, "mean", torch.mean), _mean_of_windows),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concat),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d), _adaptive_max_pool),
    **dict.fromkeys((F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), _pad),
    **dict.fromkeys((nn.LeakyReLU, F.leaky_relu, nn.PReLU, F.prelu, torch.prelu), _leaky_relu),
    **dict.fromkeys((nn.GELU, F.gelu), _gelu),
    **dict.fromkeys((nn.Softmax, F.softmax, torch.softmax, "softmax"), _softmax("softmax")),
    **dict.fromkeys((nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"), _softmax("log_softmax")),
    **dict.fromkeys((torch.transpose, torch.permute, "transpose", "permute"), _transpose),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, nn.Sigmoid, "sigmoid"), _one("elementwise", function="sigmoid")),
    **dict.fromkeys((torch.tanh, F.tanh, nn.Tanh, "tanh"), _one("elementwise", function="tanh")),
    **dict.fromkeys((F.hardsigmoid, nn.Hardsigmoid), _one("elementwise", function="hardsigmoid")),
    **dict.fromkeys((F.hardswish, nn.Hardswish), _one("elementwise", function="hardswish")),
    **dict.fromkeys((F.silu, nn.SiLU), _one("elementwise", function="silu")),
}
