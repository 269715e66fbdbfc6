"""What a method is: data. A name, a generator, two functions from a round to named loss terms, and a few switches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.equations import BatchStatistics, Bounds, Terms, disagreement_entropy, normalized_entropy
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.machine.optimizers import SGD
from adadfq_lab.methods.generators import Generator, conditional_generator
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher


@dataclass
class Round:
    """One batch on its way through the game: what both players' losses are computed from.

    Gradients of the generator's loss are taken to `images` only and those of the student's loss to Q's parameters only, so
    nothing needs detaching here: the same logits serve both.
    """

    index: int
    images: Tensor  # (N, C, H, W), normalised, made by G
    labels: Tensor  # (N,), what G was asked for; (N, classes), probabilities, where the method mixes classes
    teacher_logits: Tensor  # (N, classes)
    student_logits: Tensor  # (N, classes); without gradient to the images where the method does not ask for it
    statistics: list[BatchStatistics]
    bounds: Bounds
    fidelity: Fidelity
    teacher_features: tuple[Tensor, ...] = ()  # (N, C_l, H_l, W_l) after each stage; only for methods that ask for features
    student_features: tuple[Tensor, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)  # what G knows about each image besides, see `Generator.notes`

    @cached_property
    def entropy(self) -> Tensor:
        """H_info of each sample, `(N,)`, nats. Eq. (2)."""
        return disagreement_entropy(self.teacher_logits, self.student_logits)

    @cached_property
    def h_prime(self) -> Tensor:
        """H' of each sample, `(N,)`. Eq. (3)."""
        return normalized_entropy(self.entropy, self.teacher_logits.shape[1], floor=self.fidelity.entropy_floor)


def default_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
    """The conditional generator of GDFQ, AdaSG and AdaDFQ."""
    return conditional_generator(len(teacher.info.classes), teacher.info.input_shape, eps=fidelity.generator_bn_eps)


def noise_and_label(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
    """z `(n, latent)` from N(0, 1) and y `(n,)`, each class as likely as any other."""
    return torch.randn(n, latent, generator=random), torch.randint(classes, (n,), generator=random)


@dataclass(frozen=True)
class Rates:
    """The learning rates and weight decay a method asks for where the schedule names none.

    adam_beta1: the momentum of G's Adam; as the fidelity has it for the paper's own method if not given
    scale_lr:   of learned scales, which have no weight decay
    """

    generator_lr: float = 1e-3
    student_lr: float = 1e-4
    weight_decay: float = 1e-4
    adam_beta1: float | None = None
    scale_lr: float = 1e-3


def nesterov(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9 over every trainable parameter of Q; the game sets the learning rate in every round."""
    return _sgd(student, weight_decay, nesterov=True)


def plain_momentum(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 over every trainable parameter of Q; the game sets the learning rate in every round."""
    return _sgd(student, weight_decay, nesterov=False)


def _sgd(student: Student, weight_decay: float, *, nesterov: bool) -> torch.optim.Optimizer:
    scales = student.learned_scales()
    learned = {id(scale) for scale in scales}
    parameters = [p for p in student.parameters() if p.requires_grad and id(p) not in learned]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if scales:  # not fused: that step wants a gradient for all or for none, and a range that is being observed has none
        groups.append({"params": scales, "scales": True, "weight_decay": 0.0, "fused": False})
    fused = {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}
    return SGD(groups, 1.0, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov, **fused)


@dataclass(frozen=True)
class Method:
    """A data-free quantization method.

    name:               as in the paper's Table 2
    settings:           the arguments it was made with, to make it again from a checkpoint
    generator_loss:     what G minimises in a round
    student_loss:       what Q minimises in a round
    uses_student:       whether G's loss looks at Q; if not, Q's forward needs no gradient to the images
    bounds:             the band [lambda_l, lambda_u] the game starts with; only methods with a hinge heed it
    build_generator:    from the teacher and the fidelity
    sample:             from the random generator, N, the latent width and the number of classes to (z, y)
    rates:              its learning rates and weight decay
    student_optimizer:  from Q, the weight decay and the fidelity to the optimizer of Q's trainable parameters, learning rate 1
    student_batch_norm: "eval" keeps P's running statistics in Q, "train" lets Q's batch norms see and follow the batch
    features:           whether the losses look at what P and Q compute after each stage
    generator_every:    G steps in every so many rounds, in the warm-up in all
    generator_stops:    G stops learning when the warm-up ends: the student trains on what there is then
    ranges:             "observed": Q's ranges are those of the first batches; "fitted": when the warm-up ends, each is cut
                        to where rounding costs least on G's images, and stays, and what it clips passes no gradient; "learned":
                        from the fitted ones on, the scales of activations and weights are parameters of Q; without a warm-up
                        nothing is fitted
    warmup:             the rounds of warm-up that serve it on small images; advice, since the schedule decides
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
