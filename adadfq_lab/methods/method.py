"""A method is data: a name, a generator, two functions from a round to named loss terms, and a few switches."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.equations import BatchStatistics, Bounds, Terms, disagreement_entropy, normalized_entropy
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.machine.distributed import gather, parts
from adadfq_lab.machine.optimizers import SGD
from adadfq_lab.methods.generators import Generator, conditional_generator
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher


@dataclass
class Round:
    """One batch of the game, from which both players' losses are computed.

    The generator's loss is differentiated with respect to `images` only, the student's with respect to Q's parameters only.
    Both can therefore use the same logits, and nothing has to be detached.
    """

    index: int
    images: Tensor  # (N, C, H, W), normalised, made by G
    labels: Tensor  # (N,), the class asked of G; (N, classes), probabilities, if the method mixes classes
    teacher_logits: Tensor  # (N, classes)
    student_logits: Tensor  # (N, classes); has a gradient to the images only if the method uses it
    statistics: list[BatchStatistics]
    bounds: Bounds
    fidelity: Fidelity
    teacher_features: tuple[Tensor, ...] = ()  # (N, C_l, H_l, W_l) after each stage, for methods with `features`
    student_features: tuple[Tensor, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)  # more about each image, see `Generator.notes`

    @cached_property
    def entropy(self) -> Tensor:
        """H_info of each sample, `(N,)`, nats. Eq. (2)."""
        return disagreement_entropy(self.teacher_logits, self.student_logits)

    @cached_property
    def h_prime(self) -> Tensor:
        """H' of each sample, `(N,)`. Eq. (3)."""
        return normalized_entropy(self.entropy, self.teacher_logits.shape[1], floor=self.fidelity.entropy_floor)

    def whole(self) -> "Round":
        """The round of the whole batch, if it is spread over processes; the rest is of the whole already."""
        if parts() == 1:
            return self
        return replace(
            self,
            images=gather(self.images),
            teacher_logits=gather(self.teacher_logits),
            student_logits=gather(self.student_logits),
            teacher_features=tuple(map(gather, self.teacher_features)),
            student_features=tuple(map(gather, self.student_features)),
        )


LOUD, LOUD_ROUND = 100.0, 20
"""L_BNS over all other terms of G's loss together, above which `drowned` speaks, and the round (from 1) that it looks at.

With the shipped teachers, AdaDFQ has 12 and 8 there.
"""


class DrownedWarning(UserWarning):
    """One term of G's loss is so large that the others do not count."""


def drowned(index: int, terms: Terms, fidelity: Fidelity) -> str:
    """One line if in round LOUD_ROUND the plain sum of L_BNS is LOUD times what the other terms of G are together; else "".

    index, terms: of a record: rounds are counted from 0, and the names of G's terms begin with "generator."
    """
    if index + 1 != LOUD_ROUND or fidelity.bns_reduction != "sum" or "generator.bns" not in terms:
        return ""
    of_generator = {name: float(term.abs()) for name, term in terms.items() if name.startswith("generator.")}
    bns, rest = of_generator["generator.bns"], sum(term for name, term in of_generator.items() if name != "generator.bns")
    if len(of_generator) == 1 or bns <= LOUD * rest:
        return ""
    return (
        f"L_BNS is {bns:,.0f} in round {LOUD_ROUND}, the other terms of G's loss are {rest:.2g} together and cannot be "
        'followed; start again with the fidelity switch bns_reduction="normalized" (--bns-reduction normalized)'
    )


def default_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
    """The conditional generator of GDFQ, AdaSG and AdaDFQ."""
    return conditional_generator(len(teacher.info.classes), teacher.info.input_shape, eps=fidelity.generator_bn_eps)


def noise_and_label(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
    """Returns z `(n, latent)` from N(0, 1) and y `(n,)`, uniform over the classes."""
    return torch.randn(n, latent, generator=random), torch.randint(classes, (n,), generator=random)


@dataclass(frozen=True)
class Rates:
    """A method's learning rates and weight decay; `Schedule` can override them.

    adam_beta1: beta_1 of G's Adam; None takes the value of `fidelity`
    scale_lr:   learning rate of learned scales, which have no weight decay
    """

    generator_lr: float = 1e-3
    student_lr: float = 1e-4
    weight_decay: float = 1e-4
    adam_beta1: float | None = None
    scale_lr: float = 1e-3


def nesterov(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9 over Q's trainable parameters; the game sets the learning rate in each round."""
    return _sgd(student, weight_decay, nesterov=True)


def plain_momentum(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 over Q's trainable parameters; the game sets the learning rate in each round."""
    return _sgd(student, weight_decay, nesterov=False)


def _sgd(student: Student, weight_decay: float, *, nesterov: bool) -> torch.optim.Optimizer:
    scales = student.learned_scales()
    learned = {id(scale) for scale in scales}
    parameters = [p for p in student.parameters() if p.requires_grad and id(p) not in learned]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if scales:  # not fused: a fused step needs a gradient for every parameter, and a scale still being observed has none
        groups.append({"params": scales, "scales": True, "weight_decay": 0.0, "fused": False})
    fused = {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}
    return SGD(groups, 1.0, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov, **fused)


@dataclass(frozen=True)
class Method:
    """A data-free quantization method.

    name:               as in the paper's Table 2
    settings:           the arguments it was made with; a checkpoint stores them
    generator_loss:     the terms that G minimises in a round
    student_loss:       the terms that Q minimises in a round
    uses_student:       whether G's loss depends on Q; if not, no gradient is taken from Q to the images
    bounds:             the band [lambda_l, lambda_u] at the start; only methods with a hinge use it
    build_generator:    (teacher, fidelity) -> G
    sample:             (random generator, N, width of z, number of classes) -> (z, y)
    rates:              its learning rates and weight decay
    student_optimizer:  (Q, weight decay, fidelity) -> optimizer of Q's trainable parameters with learning rate 1
    student_batch_norm: "eval" keeps P's running statistics in Q; "train" normalises by the batch and updates them
    features:           whether the losses use the feature maps of P and Q after each stage
    generator_every:    after the warm-up, G takes a step in every n-th round only
    generator_stops:    whether G stops learning when the warm-up ends
    ranges:             how Q's activation ranges are set. "observed": from the first batches. "fitted": when the warm-up ends,
                        each range is cut to the one with the least squared rounding error on G's images and then fixed;
                        clipped values pass no gradient. "learned": starting from the fitted ranges, the scales of activations
                        and weights are trained. Without a warm-up nothing is fitted.
    warmup:             recommended warm-up on small images; `Schedule.warmup` overrides it
    """

    name: str
    generator_loss: Callable[[Round], Terms]
    student_loss: Callable[[Round], Terms]
    uses_student: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    settings: dict[str, Any] = field(default_factory=dict)
    build_generator: Callable[[Teacher, Fidelity], Generator] = default_generator
    sample: Callable[[torch.Generator, int, int, int], tuple[Tensor, Tensor]] = noise_and_label
    rates: Rates = field(default_factory=Rates)
    student_optimizer: Callable[[Student, float, Fidelity], torch.optim.Optimizer] = nesterov
    student_batch_norm: Literal["eval", "train"] = "eval"
    features: bool = False
    generator_every: int = 1
    generator_stops: bool = False
    ranges: Literal["observed", "fitted", "learned"] = "observed"
    warmup: int = 200

    def steps_generator(self, index: int, warmup: int) -> bool:
        """Whether G learns in round `index`."""
        return index < warmup or (not self.generator_stops and index % self.generator_every == 0)
