"""What a network computes on its way to the logits: the features after each stage, and how their channels relate.

A stage ends where the features change their size: its place is the last ReLU before that, and the last of all. P and Q are
traced alike, so a place has the same name in both: that of P's ReLU and of the quantiser that Q has there. The features come
out of the same forward as the logits, as further outputs of the graph; there is no hook that could be left behind.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, fx

from adadfq_lab.errors import UserError
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.tracing import relu_sites, traced

Maps = tuple[Tensor, ...]
"""Features after each stage, `(N, C_l, H_l, W_l)`."""


def stages(teacher: Teacher) -> tuple[str, ...]:
    """The places where the stages of `teacher` end, in the order of execution: three in ResNet-20, five in ResNet-18.

    Raises UserError for a network without a ReLU on feature maps.
    """
    graph = traced(teacher.network, teacher.info.input_shape)
    names = tuple(node.name for node in relu_sites(graph))
    like = next(teacher.parameters())
    with torch.no_grad():
        x = torch.zeros(1, *teacher.info.input_shape, device=like.device, dtype=like.dtype)
        _, outputs = with_features(graph, names)(x)
    sizes = [(name, out.shape[2:]) for name, out in zip(names, outputs, strict=True) if out.dim() == 4]
    if not sizes:
        raise UserError(f"{type(teacher.network).__name__} has no ReLU on feature maps, so there are no features to compare")
    ends = [name for (name, size), (_, after) in pairwise(sizes) if size != after]
    return (*ends, sizes[-1][0])


def with_features(module: fx.GraphModule, places: tuple[str, ...]) -> fx.GraphModule:
    """A graph over the same submodules, hence the same weights and ranges, that returns `(logits, features at places)`."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    logits = graph.graph_copy(module.graph, copied)
    found = {str(node.target if node.op == "call_module" else node.name): new for node, new in copied.items()}
    found |= {node.name: new for node, new in copied.items()}
    graph.output((logits, tuple(found.get(f"activations.{place}") or found[place] for place in places)))
    return fx.GraphModule(module, graph)


def pooled_features(teacher: Teacher) -> tuple[Callable[[Tensor], Tensor], int]:
    """From images to the mean over places of the last stage's features `(N, D)`, by which most networks classify; and D."""
    last = stages(teacher)[-1:]
    network = with_features(traced(teacher.network, teacher.info.input_shape), last)

    def features(x: Tensor) -> Tensor:
        maps: Tensor = network(x)[1][0]
        return maps.mean((2, 3))

    like = next(teacher.parameters())
    with torch.no_grad():
        width = features(torch.zeros(1, *teacher.info.input_shape, device=like.device, dtype=like.dtype)).shape[1]
    return features, width
