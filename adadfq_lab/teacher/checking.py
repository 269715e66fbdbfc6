"""The untouched network beside its trace on one random batch: either they agree, or the first place that differs has a name.

A trace may lose what its network does: a hook, a write into memory that two names share, a random draw. Nobody would see it
in the student, which differs from its teacher anyway. So it is compared before anything is quantised.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.teacher.plain import copied

TOLERANCE = 1e-3
"""Largest difference, as a part of the largest value, that rounding may explain."""
SIDES = tuple(dict.fromkeys((32, 28, 64, 224, *range(4, 65), 96, 112, 128, 160, 192, 240, 256, 299, 331, 384)))
"""Of square images, in the order in which they are tried if nothing else is known."""
BATCH = 2


class Reference:
    """A copy of the network, hooks and all, the batch it was run on, its logits, and what every module gave, call by call.

    x: None if the shape of the images was not given and the network takes none of the usual ones; `problem` says why
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...] | None) -> None:
        self.name = type(network).__name__
        self.network = copied(network)
        self.outputs: dict[str, list[Any]] = {}
        self.x: Tensor | None = None
        self.problem = ""
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in self.network.state_dict().values()):
            self.network.float()
        like = next((t for t in self.network.state_dict().values() if t.is_floating_point()), torch.zeros(()))
        for candidate in [shape] if shape is not None else _shapes(self.network):
            x = torch.randn(BATCH, *candidate, generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(like.device)
            try:
                self.logits = self._run(x)
            except Exception as error:  # whatever foreign code raises
                self.problem = self.problem or first_line(error)
                if shape is not None and not isinstance(error, NotImplementedError):
                    raise UserError(f"{self.name} does not take images of shape {shape}: {self.problem}") from error
                continue
            self.x = x
            break
        if self.x is not None and not _same(self._run(self.x, note=True), self.logits):
            raise UserError(
                f"{self.name} gives other logits for the same images in eval mode; "
                "a dropout by F.dropout must get training=self.training"
            )

    @torch.no_grad()
    def _run(self, x: Tensor, *, note: bool = False) -> Any:
        def hook(name: str) -> Any:
            return lambda module, inputs, output: self.outputs.setdefault(name, []).append(_kept(output))

        handles = [m.register_forward_hook(hook(n)) for n, m in self.network.named_modules() if n and note]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(note))  # another draw in each run, if there is any
            try:
                return _kept(self.network(x.clone()))
            except RuntimeError:
                if note or all(weight.is_contiguous() for weight in self.network.parameters()):
                    raise
                self.network.to(memory_format=torch.contiguous_format)  # x.view may not be able to read channels last
                return _kept(self.network(x.clone()))
            finally:
                for handle in handles:
                    handle.remove()


def _kept(value: Any) -> Any:
    return pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of images that the network may take, the likely ones first."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first = layers[0] if layers else None
    if isinstance(first, nn.Linear):
        for channels in (1, 3):
            side = math.isqrt(first.in_features // channels)
            if channels * side * side == first.in_features:
                yield (channels, side, side)
        yield (first.in_features,)
    wide = [m.in_channels for m in layers if isinstance(m, nn.Conv2d)]
    wide = wide[:1] or [m.num_features for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][:1]
    for channels in dict.fromkeys([*wide, 3, 1]):
        yield from ((channels, side, side) for side in SIDES)


@dataclass
class Execution:
    """A graph that was run on a batch: what each node gave, and which nodes' tensors each node overwrote."""

    module: fx.GraphModule
    values: dict[fx.Node, Any] = field(default_factory=dict)  # as they were when computed
    live: dict[fx.Node, Any] = field(default_factory=dict)  # the tensors themselves, as they are at the end
    overwritten: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    logits: Any = None


class _Executor(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found = Execution(module)

    def run_node(self, n: fx.Node) -> Any:
        given = [(a, t, t._version) for a in n.all_input_nodes for t in _tensors(self.env[a])]
        try:
            value = super().run_node(n)
        except Exception as error:
            raise UserError(f"{place(n, self.found.module)} cannot be run on its own: {first_line(error)}") from error
        self.found.values[n], self.found.live[n] = _kept(value), value
        if changed := [a for a, t, version in given if t._version != version]:
            self.found.overwritten[n] = changed
        return value


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(value) if isinstance(v, Tensor)]


@torch.no_grad()
def execute(module: fx.GraphModule, x: Tensor) -> Execution:
    """`module` run on a copy of `x`, node by node."""
    executor = _Executor(module)
    with torch.random.fork_rng(devices=[]):
        executor.found.logits = _kept(executor.run(x.clone(), enable_io_processing=False))
    return executor.found


def compare(reference: Reference, found: Execution, calls: list[tuple[str, fx.Node]], earlier: Execution | None = None) -> None:
    """Raises UserError if the logits differ, with the name of the first module of `calls` or node that does."""
    if _same(found.logits, reference.logits):
        return
    culprit = reference.name
    counts: dict[str, int] = {}
    for path, node in calls:
        i = counts[path] = counts.get(path, -1) + 1
        given = reference.outputs.get(path, [])
        if i < len(given) and not _same(found.values.get(node), given[i]):
            culprit = f"module {path!r} ({type(reference.network.get_submodule(path)).__name__}) of {reference.name}"
            break
    if earlier is not None:
        before = {node.name: value for node, value in earlier.values.items()}
        for node, value in found.values.items():
            if node.name in before and not _same(value, before[node.name]):
                culprit = f"{place(node, found.module)} of {reference.name}"
                break
    raise UserError(
        f"the trace of {reference.name} computes something else than the network: {culprit} differs first, by a hook, by "
        "memory that it shares or by something outside of its forward's operations; write that as operations of the forward"
    )


def place(node: fx.Node, module: fx.GraphModule) -> str:
    """What a node is, for a message: the function or method, and the module in whose forward it stands."""
    name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if node.op == "call_module":
        kind = dict(module.named_modules(remove_duplicate=False)).get(str(node.target))
        return f"module {node.target!r} ({type(kind).__name__})"
    inside = str(stack[-1][0]) if stack else ""
    return f"{name} ({node.name})" + (f" in module {inside!r}" if inside else "")


def _same(a: Any, b: Any) -> bool:
    one, other = _tensors(a), _tensors(b)
    return len(one) == len(other) and all(map(close, one, other))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by rounding at most; on the meta device, whether they have one shape."""
    if a.shape != b.shape:
        return False
    if a.device.type == "meta" or not a.numel():
        return True
    a, b = a.detach().double().nan_to_num(), b.detach().double().nan_to_num()
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())
