"""The graded exercises of notebook 08: a distillation by hand, two means compared, both players of a ninth method."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab.course.comparing import dense
from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.equations import BatchStatistics, Bounds, Terms, loss_bns
from adadfq_lab.fidelity import fidelity
from adadfq_lab.methods.method import Round

TAU = 1.0
"""The disagreement, in logits squared, that the ninth method's generator asks of every image."""

# Hidden cases, from a seed


def _logit_pairs(g: torch.Generator) -> list[Case]:
    return [(3 * torch.randn(n, c, generator=g), 3 * torch.randn(n, c, generator=g) + 1) for n, c in ((8, 10), (3, 4))]


def _two_methods(g: torch.Generator) -> list[Case]:
    """Accuracies by seed; numbers of seeds differ in the second case."""

    def seeds(n: int, mean: float, deviation: float) -> list[float]:
        return [mean + deviation * float(x) for x in torch.randn(n, generator=g)]

    return [(seeds(3, 85.0, 0.5), seeds(3, 84.0, 1.5), 2.776), (seeds(5, 70.0, 2.0), seeds(3, 72.0, 0.5), 2.447)]


def _rounds(g: torch.Generator) -> list[Case]:
    """What a round is made of: labels, logits of P and Q, one layer's statistics, and how L_BNS is averaged.

    Some samples disagree more than TAU and some less; the mean of both lies on either side.
    """
    cases: list[Case] = []
    for n, classes, gap, reduction in ((8, 10, 1.4, "sum"), (6, 5, 1.1, "mean")):
        z_p = 2 * torch.randn(n, classes, generator=g)
        z_q = z_p + gap * torch.linspace(0.2, 2, n)[:, None] * torch.randn(n, classes, generator=g)
        labels = torch.randint(classes, (n,), generator=g)
        moments = [1 + torch.rand(4, generator=g) for _ in range(4)]
        cases.append((labels, z_p, z_q, *moments, reduction))
    return cases


# References


def centred_mse(z_p: Tensor, z_q: Tensor) -> Tensor:
    """Half the variance over classes of z_p - z_q, for each sample, (N,), in logits squared."""
    return 0.5 * (z_p - z_q).var(dim=1, correction=0)


def difference_of_means(a: list[float], b: list[float], t: float) -> tuple[float, float]:
    """(mean of a - mean of b, half the width of its interval) for independent seeds, t being Student's quantile."""
    return _mean(a) - _mean(b), t * math.sqrt(_variance(a) / len(a) + _variance(b) / len(b))


def generator_loss(r: Round) -> Terms:
    """CE(z_p, y) + 0.1 L_BNS + E[max(TAU - v, 0)], v half the variance over classes of z_p - z_q."""
    v = centred_mse(r.teacher_logits, r.student_logits)
    return {
        "label": F.cross_entropy(r.teacher_logits, r.labels),
        "bns": 0.1 * loss_bns(r.statistics, reduction=r.fidelity.bns_reduction),
        "apart": torch.relu(TAU - v).mean(),
    }


def student_loss(r: Round) -> Terms:
    """E[v]: centred regression of P's logits."""
    return {"match": centred_mse(r.teacher_logits, r.student_logits).mean()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(values: list[float], lost: int = 1) -> float:
    return sum((value - _mean(values)) ** 2 for value in values) / (len(values) - lost)


def _interval(a: list[float], b: list[float], half: float) -> tuple[float, float]:
    return _mean(a) - _mean(b), half


def _in_a_round(function: Callable[[Round], Terms], *parts: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the terms that `function` returns in a round made of `parts`, and its gradients to P's and to Q's logits.

    The name of a term is the learner's own. Raises TypeError and ValueError for what no game could minimise.
    """
    labels, z_p, z_q, mean, var, running_mean, running_var, reduction = parts
    z_p, z_q = z_p.clone().requires_grad_(), z_q.clone().requires_grad_()
    statistics = [BatchStatistics(mean, var, running_mean, running_var)]
    images = torch.zeros(len(labels), 1, 4, 4)
    truth = replace(fidelity("corrected"), bns_reduction=reduction)
    terms = function(Round(0, images, labels, z_p, z_q, statistics, Bounds(), truth))
    if not isinstance(terms, dict) or not terms or not all(dense(term) and term.ndim == 0 for term in terms.values()):
        raise TypeError('return a dictionary of named 0-dim tensors, as in {"label": F.cross_entropy(...)}')
    total = torch.stack([term.to(z_p.dtype) for term in terms.values()]).sum()
    if not total.requires_grad:
        raise ValueError("no gradient reaches any logits: nothing may be detached or turned into a float")
    gradients = torch.autograd.grad(total, (z_p, z_q), allow_unused=True)
    at_p, at_q = (torch.zeros_like(z_p) if gradient is None else gradient for gradient in gradients)
    return total.detach(), at_p, at_q


def _for_the_student(function: Callable[[Round], Terms], *parts: Any) -> tuple[Tensor, Tensor]:
    """The same without the gradient to P's logits: only Q's weights learn, so P's logits may be detached."""
    total, _, at_q = _in_a_round(function, *parts)
    return total, at_q


def _with(**changed: Callable[[Round], Tensor]) -> Callable[[Round], Terms]:
    """`generator_loss` with some terms computed otherwise."""
    return lambda r: generator_loss(r) | {name: term(r) for name, term in changed.items()}


def _apart(r: Round) -> Tensor:
    return centred_mse(r.teacher_logits, r.student_logits)


METHODS_COMPARED = (
    Exercise(
        "centred_mse",
        "08",
        centred_mse,
        _logit_pairs,
        HINTS["centred_mse"],
        (
            Mistake(lambda p, q: 0.5 * (p - q).var(dim=1), "torch's var divides by C - 1; the formula has C: correction=0."),
            Mistake(lambda p, q: (p - q).var(dim=1, correction=0), "The half is missing."),
            Mistake(
                lambda p, q: 0.5 * (p - q).square().mean(dim=1),
                "Not centred: what all classes have in common is no difference to a softmax; take the mean over classes off.",
            ),
            Mistake(
                lambda p, q: centred_mse(p, q).mean(), "This is the mean over the batch; asked for is one number a sample."
            ),
            Mistake(
                lambda p, q: 0.5 * (p - q).var(dim=0, correction=0), "The variance runs over samples here; classes are dim=1."
            ),
        ),
        learns="noted",
    ),
    Exercise(
        "difference_of_means",
        "08",
        difference_of_means,
        _two_methods,
        HINTS["difference_of_means"],
        (
            Mistake(
                lambda a, b, t: _interval(a, b, t * math.sqrt(_variance(a) + _variance(b))),
                "This is the spread of one seed against one; a mean of n seeds has a variance n times smaller.",
            ),
            Mistake(
                lambda a, b, t: _interval(a, b, t * math.sqrt(_variance(a, 0) / len(a) + _variance(b, 0) / len(b))),
                "Divide the sum of squares by n - 1: the mean was taken from the same few numbers.",
            ),
            Mistake(lambda a, b, t: _interval(a, b, difference_of_means(a, b, 1.0)[1]), "Student's quantile t is missing."),
            Mistake(
                lambda a, b, t: _interval(a, b, 2 * difference_of_means(a, b, t)[1]),
                "This is the whole width of the interval; asked for is half of it.",
            ),
            Mistake(
                lambda a, b, t: _interval(a, b, t * (math.sqrt(_variance(a) / len(a)) + math.sqrt(_variance(b) / len(b)))),
                "Here two half-widths are added; it is variances that add, so the interval is narrower than that.",
            ),
            Mistake(
                lambda a, b, t: _interval(a, b, t * math.sqrt(abs(_variance(a) / len(a) - _variance(b) / len(b)))),
                "The means are subtracted, but their variances add: two noisy numbers are noisier than one.",
            ),
            Mistake(
                lambda a, b, t: (_mean(b) - _mean(a), difference_of_means(a, b, t)[1]), "The sign is turned: mean a - mean b."
            ),
        ),
    ),
    Exercise(
        "generator_loss",
        "08",
        generator_loss,
        _rounds,
        HINTS["generator_loss"],
        (
            Mistake(
                _with(apart=lambda r: torch.relu(TAU - _apart(r).mean())),
                "The hinge of the mean is not the mean of the hinge: one image far apart must not pay for the others.",
            ),
            Mistake(
                _with(apart=lambda r: torch.relu(_apart(r) - TAU).mean()),
                "The hinge is turned round: this makes P and Q agree, and G is to keep them apart.",
            ),
            Mistake(
                lambda r: {name: term for name, term in generator_loss(r).items() if name != "apart"},
                "The third term, E[max(1 - v, 0)], is missing: this G never looks at Q.",
            ),
            Mistake(lambda r: {name: term for name, term in generator_loss(r).items() if name != "bns"}, "L_BNS is missing."),
            Mistake(
                _with(apart=lambda r: (TAU - _apart(r)).mean()),
                "The hinge is missing: without max(., 0) G gains from any disagreement, however wild.",
            ),
            Mistake(
                _with(apart=lambda r: torch.relu(TAU - _apart(r).detach()).mean()),
                "The value is right, but the hinge has no gradient: v must not be detached.",
            ),
            Mistake(
                _with(label=lambda r: F.cross_entropy(r.student_logits, r.labels)),
                "The label term asks P, not Q, for the class: Q is what is to be taught.",
            ),
            Mistake(
                _with(bns=lambda r: loss_bns(r.statistics, reduction=r.fidelity.bns_reduction)),
                "L_BNS is to be weighted by 0.1.",
            ),
            Mistake(
                _with(bns=lambda r: 0.1 * loss_bns(r.statistics)),
                "Right where L_BNS is summed only: pass reduction=r.fidelity.bns_reduction, or the game's fidelity is ignored.",
            ),
        ),
        observe=_in_a_round,
    ),
    Exercise(
        "student_loss",
        "08",
        student_loss,
        _rounds,
        HINTS["student_loss"],
        (
            Mistake(
                lambda r: {"match": _apart(r).sum()}, "This is a sum over the batch; E[v] is a mean, or the step grows with N."
            ),
            Mistake(lambda r: {"match": 2 * _apart(r).mean()}, "The half of v is missing."),
            Mistake(
                lambda r: {"match": 0.5 * F.mse_loss(r.student_logits, r.teacher_logits)},
                "Not centred: v takes the mean over classes off first.",
            ),
            Mistake(
                lambda r: student_loss(r) | {"label": F.cross_entropy(r.student_logits, r.labels)},
                "The formula has no label term: Q is to do what P does, right or wrong.",
            ),
            Mistake(
                lambda r: {"match": -_apart(r).mean()}, "The sign is turned: Q minimises this, and is to come closer to P."
            ),
            Mistake(
                lambda r: {"match": torch.relu(_apart(r) - TAU).mean()},
                "The hinge is G's; Q follows P on every image, however close they are already.",
            ),
        ),
        observe=_for_the_student,
    ),
)
"""The graded exercises of notebook 08."""
