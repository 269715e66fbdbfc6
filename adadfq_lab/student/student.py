"""The student Q: the quantizer of Eq. (18), the layers it is made of, and a network turned into them."""

import copy
import dataclasses
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adadfq_lab.machine.locks import Turns
from adadfq_lab.student.grids import grid_source
from adadfq_lab.student.layers import QuantConv2d, QuantLayer
from adadfq_lab.student.quantizer import BitWidths, QuantActivation, RangeRule, Ste, ZeroPoint

# Products of two tensors that the images change, or of weights that no layer holds: named in the report, left in float.
PRODUCTS = {
    F.conv1d: "F.conv1d",
    F.conv2d: "F.conv2d",
    F.conv3d: "F.conv3d",
    F.conv_transpose2d: "F.conv_transpose2d",
    F.linear: "F.linear",
    F.bilinear: "F.bilinear",
    F.scaled_dot_product_attention: "F.scaled_dot_product_attention",
    torch.matmul: "matmul",
    operator.matmul: "matmul",
    torch.bmm: "bmm",
    torch.baddbmm: "baddbmm",
    torch.einsum: "einsum",
}


@dataclass(frozen=True)
class Quantization:
    """How a student was quantised: the arguments of `quantize`."""

    bits: BitWidths
    ste: Ste = "identity"
    rule: RangeRule = "ema"
    zero_point: ZeroPoint = "rounded"
    every_input: bool = False
    learned: bool = False


class Student(nn.Module):
    """Q of the paper: normalised images `(N, C, H, W)` to logits `(N, classes)`, computed on n-bit weights and activations.

    turns: the lock that it shares with the game it plays in. Calling, measuring, copying or saving a student waits for the end
           of the round that another thread plays with it.
    """

    def __init__(self, graph: fx.GraphModule, quantization: Quantization) -> None:
        super().__init__()
        self.graph, self.quantization = graph, quantization
        self.turns = Turns()

    @property
    def bits(self) -> BitWidths:
        return self.quantization.bits

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler does not trace locks
            compiled: Tensor = self.graph(x)
            return compiled
        with self.turns.look():
            out: Tensor = self.graph(x)
        return out

    def train(self, mode: bool = True) -> "Student":
        """Training or eval mode, as for any module."""
        with self.turns.look():
            return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Student":
        with self.turns.look():
            copied = memo[id(self)] = type(self).__new__(type(self))
            copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def layers(self) -> dict[str, QuantLayer]:
        """The quantised convolutions and linear layers by name, in the order of their execution."""
        calls = (node.target for node in self.graph.graph.nodes if node.op == "call_module")
        found = {str(t): self.graph.get_submodule(str(t)) for t in calls}
        return {name: module for name, module in found.items() if isinstance(module, QuantLayer)}

    def activations(self) -> dict[str, QuantActivation]:
        """The activation quantisers by name, in the order of their execution."""
        calls = (str(node.target) for node in self.graph.graph.nodes if node.op == "call_module")
        found = {name: self.graph.get_submodule(name) for name in calls}
        return {n.removeprefix("activations."): m for n, m in found.items() if isinstance(m, QuantActivation)}

    @property
    def observing(self) -> bool:
        """Whether activation ranges are being updated by each forward."""
        return any(module.observing for module in self.activations().values())

    @observing.setter
    def observing(self, value: bool) -> None:
        with self.turns.look():
            for module in self.activations().values():
                module.observing = value

    def learn_ranges(self) -> None:
        """From now on every scale, of weights and of activations, is a parameter: see `lsq.learned_quantize`."""
        for module in self._quantizers():
            module.learn_range()
        self.quantization = dataclasses.replace(self.quantization, learned=True)

    def learned_scales(self) -> list[nn.Parameter]:
        """The learned scales; none if ranges are observed."""
        return [module.grid.scale for module in self._quantizers() if module.grid is not None]

    def _quantizers(self) -> list[QuantLayer | QuantActivation]:
        return [*self.layers().values(), *self.activations().values()]

    def stop_clipped_gradients(self) -> None:
        """From now on no gradient passes a clipped activation, whatever `ste` the student was made with."""
        for module in self.activations().values():
            module.ste = "clipped"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it no forward moves an activation range, and no round begins: for evaluation and probes."""
        with self.turns.look():
            before = [module for module in self.activations().values() if module.observing]
            try:
                for module in before:
                    module.observing = False
                yield
            finally:
                for module in before:
                    module.observing = True

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Within it each forward moves the activation ranges."""
        try:
            self.observing = True
            yield
        finally:
            self.observing = False

    @contextmanager
    def batch_statistics(self, *, follow: bool) -> Iterator[None]:
        """Within it Q's batch norms normalise by the batch; with `follow` their running statistics are updated."""
        with self.turns.look():
            before = [(m, m.training, m.track_running_stats) for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
            try:
                for norm, _, tracks in before:
                    norm.training, norm.track_running_stats = True, tracks and follow
                yield
            finally:
                for norm, training, tracks in before:
                    norm.training, norm.track_running_stats = training, tracks

    @property
    def unobserved(self) -> str:
        """One line if activation ranges have seen no images, so that Q computes nothing of use yet; "" otherwise."""
        seen = [
            bool(module.range.batches) for module in self.activations().values() if module.range.batches.device.type != "meta"
        ]
        if all(seen):
            return ""
        return (
            f"{seen.count(False)} of {len(seen)} activation ranges of this student have seen no images, so its logits mean "
            "nothing yet: play a game, or call it on images first"
        )

    @property
    def mostly_float(self) -> str:
        """One line if most weights are not quantised; "" otherwise."""
        weights, left = sum(layer.weight.numel() for layer in self.layers().values()), self._float_weights()
        if (remain := sum(left.values())) <= weights:
            return ""
        largest = max(left, key=left.__getitem__)
        share = 100 * weights / (weights + remain)
        return (
            f"MOST WEIGHTS STAY FLOAT: {share:.0f} % are quantised, {weights:,} of {weights + remain:,}; "
            f"the largest that stays is {largest}"
        )

    def left_float(self) -> list[str]:
        """What still computes on unquantised floats, one phrase each: layers, weights, products, layer inputs."""
        return [*self._float_weights(), *(f"input of {name} ({source})" for name, source in _float_inputs(self.graph))]

    def _float_weights(self) -> dict[str, int]:
        """What computes with float weights, or multiplies tensors in float: a phrase each, and how many weights it has."""
        modules = dict(self.graph.named_modules())
        left: dict[str, int] = {}
        for node in self.graph.graph.nodes:
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if module is not None and not isinstance(module, QuantLayer | QuantActivation | nn.BatchNorm2d | nn.BatchNorm1d):
                if count := sum(p.numel() for p in module.parameters()):
                    left[f"{node.target} ({type(module).__name__})"] = count
            elif node.op == "get_attr" and (count := _matrix(self.graph, str(node.target))):
                users = {getattr(user.target, "__name__", str(user.target)) for user in node.users}
                left[f"{node.target} (weights of {', '.join(sorted(users))})"] = count
            elif node.op == "call_function" and node.target in PRODUCTS:
                left[f"{node.name} ({PRODUCTS[node.target]} outside a layer)"] = 0
            elif node.op == "call_method" and node.target in ("matmul", "bmm"):
                left[f"{node.name} (Tensor.{node.target})"] = 0
        return left

    def report(self) -> str:
        """What was quantised, to how many bits, and what was not; a few lines of text. What limits it most comes first."""
        layers, activations = self.layers(), self.activations()
        learned = ", scales learned" if self.quantization.learned else ""
        weights = sum(layer.weight.numel() for layer in layers.values())
        convs = sum(isinstance(layer, QuantConv2d) for layer in layers.values())
        inputs = _float_inputs(self.graph)
        first = [self.mostly_float] if self.mostly_float else []
        if 2 * len(inputs) > len(layers) > 4:
            first.append(
                f"MOST INPUTS STAY FLOAT: those of {len(inputs)} of {len(layers)} layers, which no ReLU precedes; "
                "every_input=True quantises them"
            )
        if self.unobserved:
            first.append("ACTIVATION RANGES HAVE SEEN NO IMAGES YET: play a game, or call the student on images")
        return "\n".join(
            [
                *first,
                f"{self.bits}: {len(layers)} layers ({convs} convolutions, {len(layers) - convs} linear), "
                f"{weights:,} weights of {self.bits.weights} bits per output channel{learned}",
                f"{len(activations)} activation quantisers of {self.bits.activations} bits per tensor, after each ReLU or ReLU6"
                + (" and on every other layer input" if any(a.relu == "none" for a in activations.values()) else "")
                + learned,
                "left in float: biases, batch norm" + "".join(f", {item}" for item in self.left_float()),
            ]
        )


def _matrix(graph: fx.GraphModule, target: str) -> int:
    """How many weights the parameter `target` has; 0 for a buffer, and for one number a channel, such as a scale."""
    owner, _, name = target.rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    wide = isinstance(value, nn.Parameter) and sum(size > 1 for size in value.shape) > 1
    return value.numel() if wide else 0


def _float_inputs(module: fx.GraphModule) -> list[tuple[str, str]]:
    """(layer, source node) for every quantised layer whose input lies on no grid, or on several."""
    modules = dict(module.named_modules())
    found = []
    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], QuantLayer):
            source = grid_source(node.args[0], modules)
            if source.op != "call_module" or not isinstance(modules[str(source.target)], QuantActivation):
                found.append((str(node.target), source.name))
    return found
