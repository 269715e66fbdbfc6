"""`quantize`: a copy of P whose weights and activations are on grids of n bits. Section 3.1; the grids are Eq. (18).

Every convolution and linear layer is replaced by its quantized form, every ReLU by one that quantizes its output, and an input
that no ReLU has put on a grid gets a quantizer of its own."""

from typing import Any

import torch
from torch import fx, nn

from adadfq_lab.errors import UserError
from adadfq_lab.machine.torch_state import usual_torch
from adadfq_lab.student.layers import quantized_layer
from adadfq_lab.student.quantizer import BitWidths, QuantActivation, RangeRule, Ste, ZeroPoint
from adadfq_lab.student.student import Quantization, Student, _float_inputs
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.tracing import relu_kind, traced


@usual_torch()
def quantize(
    network: nn.Module,
    bits: str | BitWidths,
    *,
    ste: Ste = "identity",
    rule: RangeRule = "ema",
    zero_point: ZeroPoint = "rounded",
    every_input: bool = False,
    learned: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Student:
    """A fake-quantised copy of `network` (a Teacher or any traceable module); the network itself is not touched.

    bits:        such as "3w3a", 2 to 8 bits each
    ste:         straight-through gradient, "identity" or "clipped"
    rule:        how activation ranges are observed, see `Range`
    zero_point:  "rounded" (integers run) or "real" (Eq. 18 to the letter)
    every_input: also quantise the inputs of layers that no ReLU precedes: the image, the pooled vector, MobileNetV2's linear
                 bottlenecks and residual sums. Off by default, as in the paper's line of work.
    learned:     the scales of weights and activations are parameters, see `Student.learn_ranges`
    input_shape: (C, H, W) of the images that a bare network takes; None to try the usual ones. A Teacher knows its own.

    Before anything is quantised, the trace is compared with the untouched network on a random batch (see `tracing`).

    Raises UserError if it is not a network, is a student already, cannot be traced (which module, and why), is not what its
    trace computes (which module differs first), or has nothing to quantise.
    """
    widths = BitWidths.parse(bits) if isinstance(bits, str) else bits
    inner = network.network if isinstance(network, Teacher) else network
    if not isinstance(inner, nn.Module):
        raise UserError(f"quantize takes a network, a torch.nn.Module, not {inner!r}")
    if isinstance(inner, Student):
        raise UserError(f"this is a student already, quantised to {inner.bits}; quantize takes the network it was made from")
    shape = network.info.input_shape if isinstance(network, Teacher) else input_shape
    module = traced(inner, shape).requires_grad_(True)
    _replace_relus(module, widths.activations, rule, ste)
    count = _replace_layers(module, widths, ste, zero_point)
    if not count:
        raise UserError(f"{type(inner).__name__} has no Conv2d or Linear layer to quantise")
    if every_input:
        _quantize_inputs(module, widths.activations, rule, ste)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    student = Student(module, Quantization(widths, ste, rule, zero_point, every_input))
    if learned:
        student.learn_ranges()
    return student.to(memory_format=torch.channels_last).eval()


def _replace_relus(module: fx.GraphModule, bits: int, rule: RangeRule, ste: Ste) -> None:
    """Each ReLU *site* gets a quantiser of its own, also where one ReLU module serves several."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if kind := relu_kind(node, modules):
            _insert(
                module,
                node,
                QuantActivation(bits, kind, rule=rule, ste=ste),
                node.args[0] if node.args else node.kwargs["input"],
            )


def _insert(module: fx.GraphModule, node: fx.Node, quantizer: QuantActivation, source: Any) -> None:
    """Puts `quantizer` on `source` right after `node`, and in `node`'s place for all its users."""
    name = f"activations.{node.name}"
    module.add_submodule(name, quantizer)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (source,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if source is not node:
        module.graph.erase_node(node)


def _replace_layers(module: fx.GraphModule, bits: BitWidths, ste: Ste, zero_point: ZeroPoint) -> int:
    """Replaces convolutions, with the batch norm that alone uses them, and linear layers; returns how many."""
    modules = dict(module.named_modules())
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    count = 0
    for target, nodes in calls.items():
        layer = modules[target]
        if not isinstance(layer, nn.Conv2d | nn.Linear):  # or a subclass with its forward: see `tracing`
            continue
        bn: nn.BatchNorm2d | None = None
        users = list(nodes[0].users)
        if len(nodes) == 1 and len(users) == 1 and users[0].op == "call_module":
            follower = modules.get(str(users[0].target))
            if isinstance(follower, nn.BatchNorm2d) and isinstance(layer, nn.Conv2d) and len(calls[str(users[0].target)]) == 1:
                bn = follower
                users[0].replace_all_uses_with(nodes[0])
                module.graph.erase_node(users[0])
                module.delete_submodule(str(users[0].target))
                for node in module.graph.nodes:  # a forward may read the weight of its batch norm as well
                    if node.op == "get_attr" and str(node.target).startswith(f"{users[0].target}."):
                        node.target = f"{target}.bn.{str(node.target).rpartition('.')[2]}"
        for node in nodes:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
        module.add_submodule(target, quantized_layer(layer, bn, bits, ste, zero_point))
        count += 1
    return count


def _quantize_inputs(module: fx.GraphModule, bits: int, rule: RangeRule, ste: Ste) -> None:
    names = {source for _, source in _float_inputs(module)}
    for node in list(module.graph.nodes):
        if node.name in names:
            _insert(module, node, QuantActivation(bits, "none", rule=rule, ste=ste), node)
