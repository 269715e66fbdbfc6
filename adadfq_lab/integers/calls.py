"""A call of the traced student with its inputs and output, as the readers in `aten` see it."""

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from adadfq_lab.errors import UserError


def name_of(node: fx.Node) -> str:
    """The name of the ATen function that a node calls, without its overload."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema else str(node.target)


@dataclass(frozen=True)
class Call:
    """A call with its inputs and output; `label` names it in a message, `stored` are the nodes that no image changes.

    module: the quantised layer or activation, if the call is one
    """

    node: fx.Node
    label: str
    values: dict[fx.Node, Any]
    stored: set[fx.Node]
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        return name_of(self.node)

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """The arguments by name, some of them nodes, with the schema's defaults."""
        arguments = self.node.target._schema.arguments  # type: ignore[union-attr]
        named = {a.name: a.default_value for a in arguments}
        return named | dict(zip(named, self.node.args, strict=False)) | dict(self.node.kwargs)

    def get(self, name: str) -> Any:
        """The value of an argument."""
        given = self.given.get(name)
        return self.values[given] if isinstance(given, fx.Node) else given

    @property
    def out(self) -> Tensor:
        value: Tensor = self.values[self.node]
        return value

    @property
    def source(self) -> fx.Node:
        """The first argument."""
        node: fx.Node = self.node.args[0]  # type: ignore[assignment]
        return node

    @property
    def before(self) -> Tensor:
        """The value of the first argument."""
        value: Tensor = self.values[self.source]
        return value

    def dims(self, name: str = "dim") -> list[int]:
        """The dimensions an argument names, counted from 0, in order; all if it names none."""
        given, rank = self.get(name), self.before.dim()
        numbers = [given] if isinstance(given, int) else given if given is not None and len(given) else range(rank)
        return sorted(int(d) % rank for d in numbers)

    def same_for_all(self, operand: Any) -> bool:
        """Whether it is a number, or a tensor that is the same for every image of a batch."""
        if isinstance(operand, Tensor):
            return operand.dim() < self.out.dim() or bool((operand == operand[:1]).all())
        return isinstance(operand, int | float)

    def constant(self, operand: Any) -> Any:
        """A stored operand for one image."""
        if isinstance(operand, Tensor):
            return operand.detach()[:1] if operand.dim() == self.out.dim() else operand.detach()
        return operand

    def refuse(self, why: str = "") -> UserError:
        return UserError(f"{self.label} has no integer form here{why}; replace it in the network before quantizing")
