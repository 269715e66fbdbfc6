"""What a method is: data. A name, a generator, two functions from a round to named loss terms, and a few switches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from adadfq_lab.equations import BatchStatistics, Bounds, disagreement_entropy, normalized_entropy
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.generators import Generator, conditional_generator

Terms = dict[str, Tensor]
"""Loss terms by name, 0-dim and already weighted; a player minimises their sum."""


@dataclass
class Round:
    """One batch on its way through the game: what both players' losses are computed from.

    Gradients of the generator's loss are taken to `images` only and those of the student's loss to Q's parameters only, so
    nothing needs detaching here: the same logits serve both.
    """

    index: int
    images: Tensor  # (N, C, H, W), normalised, made by G
    labels: Tensor  # (N,), what G was asked for
    teacher_logits: Tensor  # (N, classes)
    student_logits: Tensor  # (N, classes); without gradient to the images where the method does not ask for it
    statistics: list[BatchStatistics]
    bounds: Bounds
    fidelity: Fidelity

    @cached_property
    def entropy(self) -> Tensor:
        """H_info of each sample, `(N,)`, nats. Eq. (2)."""
        return disagreement_entropy(self.teacher_logits, self.student_logits)

    @cached_property
    def h_prime(self) -> Tensor:
        """H' of each sample, `(N,)`. Eq. (3)."""
        return normalized_entropy(self.entropy, self.teacher_logits.shape[1], floor=self.fidelity.entropy_floor)


def default_generator(classes: int, shape: tuple[int, int, int], fidelity: Fidelity) -> Generator:
    """The conditional generator of GDFQ, AdaSG and AdaDFQ."""
    return conditional_generator(classes, shape, eps=fidelity.generator_bn_eps)


@dataclass(frozen=True)
class Method:
    """A data-free quantization method.

    name:            as in the paper's Table 2
    settings:        the arguments it was made with, to make it again from a checkpoint
    generator_loss:  what G minimises in a round
    student_loss:    what Q minimises in a round
    uses_student:    whether G's loss looks at Q; if not, Q's forward needs no gradient to the images
    bounds:          the band [lambda_l, lambda_u] the game starts with; only methods with a hinge heed it
    build_generator: from the number of classes, the image shape and the fidelity
    """

    name: str
    generator_loss: Callable[[Round], Terms]
    student_loss: Callable[[Round], Terms]
    uses_student: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    settings: dict[str, Any] = field(default_factory=dict)
    build_generator: Callable[[int, tuple[int, int, int], Fidelity], Generator] = default_generator
