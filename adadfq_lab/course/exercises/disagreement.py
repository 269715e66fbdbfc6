"""The graded exercises of notebooks 00 and 01: agreement, p_ds, its entropy, H', and which end of it is which."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab import equations
from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.equations import Bounds

# Hidden cases, from a seed


def _logit_pairs(g: torch.Generator) -> list[Case]:
    return [(3 * torch.randn(n, c, generator=g), 3 * torch.randn(n, c, generator=g)) for n, c in ((5, 10), (3, 4))]


def _similar_logits(g: torch.Generator) -> list[Case]:
    """Q follows P on about half of the samples; in the last case all logits are negative."""
    cases: list[Case] = []
    for n, c, shift in ((9, 10, 0.0), (7, 4, -20.0)):
        z_p = 3 * torch.randn(n, c, generator=g) + shift
        cases.append((z_p, z_p + 2 * torch.randn(n, c, generator=g)))
    return cases


def _probabilities(g: torch.Generator) -> list[Case]:
    """All positive; certain; and with some zeros among others."""
    p = torch.softmax(2 * torch.randn(6, 5, generator=g), dim=-1)
    certain = F.one_hot(torch.randint(5, (3,), generator=g), 5).float()
    some = torch.rand(4, 7, generator=g) * (torch.arange(7) < torch.randint(2, 7, (4, 1), generator=g))
    return [(p,), (certain,), (some / some.sum(1, keepdim=True),)]


def _entropies(g: torch.Generator) -> list[Case]:
    """The smallest entropy is 0 in one case, and log C is reached in another."""
    cases = [(math.log(c) * torch.rand(n, generator=g), c) for n, c in ((8, 10), (4, 3))]
    agreed = torch.cat([cases[0][0], torch.tensor([math.log(10)])])
    return [*cases, (agreed, 10), (torch.cat([cases[1][0], torch.zeros(1)]), 3)]


def _h_primes(g: torch.Generator) -> list[Case]:
    """Between bounds, on them, and all on one side of them."""
    low = 0.4 * float(torch.rand((), generator=g))
    h = torch.rand(20, generator=g)
    return [
        (h, Bounds(low, low + 0.4)),
        (torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), Bounds(0.25, 0.75)),
        (0.2 * h, Bounds(0.25, 0.75)),
        (0.8 + 0.2 * h, Bounds(0.25, 0.75)),
        (0.4 + 0.1 * h, Bounds(0.25, 0.75)),
    ]


# References that the library has under another name, or inside a larger function


def agreement(z_p: Tensor, z_q: Tensor) -> Tensor:
    """Share of the samples that P and Q give the same class, 0-dim."""
    return (z_p.argmax(dim=-1) == z_q.argmax(dim=-1)).float().mean()


def fitting_risk(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """-1 where a sample invites underfitting (H' <= lambda_l), +1 where overfitting (H' >= lambda_u), 0 within; int64, (N,)."""
    return (h_prime >= bounds.upper).long() - (h_prime <= bounds.lower).long()


def _no_floor(entropy: Tensor, num_classes: int) -> Tensor:
    return entropy / math.log(num_classes)


def _own_maximum(entropy: Tensor, num_classes: int) -> Tensor:
    return (entropy - entropy.min()) / (entropy.max() - entropy.min())


DISAGREEMENT = (
    Exercise(
        "agreement",
        "00",
        agreement,
        _similar_logits,
        HINTS["agreement"],
        (
            Mistake(
                lambda p, q: (p.argmax(0) == q.argmax(0)).float().mean(), "argmax runs over samples here; classes are dim=-1."
            ),
            Mistake(lambda p, q: (p == q).float().mean(), "Equal logits are not the question: equal classes are."),
            Mistake(lambda p, q: (p.argmax(-1) == q.argmax(-1)).sum(), "This is how many agree, not which share."),
            Mistake(
                lambda p, q: (p.argmax() == q.argmax()).float(),
                "argmax without dim looks at the whole batch as one list; each sample has a class of its own: dim=-1.",
            ),
            Mistake(lambda p, q: (p[0].argmax() == q[0].argmax()).float(), "Only the first sample was looked at."),
            Mistake(lambda p, q: 100 * agreement(p, q), "These are percent; asked for is a share from 0 to 1."),
        ),
    ),
    Exercise(
        "p_ds",
        "01",
        equations.p_ds,
        _logit_pairs,
        HINTS["p_ds"],
        (
            Mistake(lambda p, q: torch.softmax(q - p, -1), "This is softmax(z_q - z_p): Eq. (1) subtracts the student."),
            Mistake(lambda p, q: torch.softmax(p - q, 0), "The softmax runs over samples here (dim=0); classes are dim=-1."),
            Mistake(
                lambda p, q: p.softmax(-1) - q.softmax(-1), "This subtracts probabilities; Eq. (1) subtracts logits first."
            ),
            Mistake(lambda p, q: torch.softmax(p + q, -1), "This is p_as of Eq. (7), where P and Q agree."),
            Mistake(
                lambda p, q: (p - q).exp() / (p - q).exp().sum(),
                "The sum runs over the whole batch here; every row is a vector of its own and sums to 1.",
            ),
        ),
        learns="noted",
        plot=True,
    ),
    Exercise(
        "entropy",
        "01",
        equations.entropy,
        _probabilities,
        HINTS["entropy"],
        (
            Mistake(lambda p: -(p * p.log()).sum(-1), "0 log 0 is 0, but the computer says 0 * (-inf) = NaN: mind p = 0."),
            Mistake(lambda p: (p * torch.where(p == 0, 1, p).log()).sum(-1), "The sign is turned: entropy is never negative."),
            Mistake(lambda p: -(p * torch.where(p == 0, 1, p).log()).mean(-1), "This is the mean over classes; Eq. (2) sums."),
            Mistake(
                lambda p: -(p * torch.where(p == 0, 1, p).log2()).sum(-1), "These are bits; Eq. (2) has the natural logarithm."
            ),
            Mistake(
                lambda p: -(p * torch.where(p == 0, 1, p).log()).sum(), "This is one number for all; one for each sample, (N,)."
            ),
        ),
        learns="noted",
        plot=True,
    ),
    Exercise(
        "normalized_entropy",
        "01",
        equations.normalized_entropy,
        _entropies,
        HINTS["normalized_entropy"],
        (
            Mistake(_no_floor, "This divides by log C only; Eq. (3) subtracts the batch's minimum above and below."),
            Mistake(
                lambda h, c: (h - h.min()) / math.log(c),
                "The minimum is subtracted above only; below, too, it is log C - H_min, or H' never reaches 1.",
            ),
            Mistake(lambda h, c: (h - h[0]) / (math.log(c) - h[0]), "The minimum is that of the batch, not its first entropy."),
            Mistake(_own_maximum, "The maximum is the constant log C, not the largest entropy of the batch."),
            Mistake(
                lambda h, c: (h - h.min()) / (math.log2(c) - h.min()), "This log C is in bits; H is in nats, so it is math.log."
            ),
            Mistake(
                lambda h, c: 1 - equations.normalized_entropy(h, c),
                "This is the adaptability H_nor = 1 - H'; what is asked for is H'.",
            ),
        ),
        learns="noted",
        plot=True,
    ),
    Exercise(
        "fitting_risk",
        "01",
        fitting_risk,
        _h_primes,
        HINTS["fitting_risk"],
        (
            Mistake(
                lambda h, b: -fitting_risk(h, b), "The ends are swapped: H' near 0 is *dis*agreement, the underfitting side."
            ),
            Mistake(lambda h, b: (h <= b.lower).long() + (h >= b.upper).long(), "Both ends get the same number."),
            Mistake(
                lambda h, b: (h > b.upper).long() - (h < b.lower).long(),
                "Right but for samples that lie on a bound: Eq. (10) wants H' strictly within, so they are outside.",
            ),
            Mistake(
                lambda h, b: (h >= b.upper).long() - (h < b.lower).long(),
                "Right but for samples that lie on lambda_l: they are outside the band.",
            ),
            Mistake(
                lambda h, b: (h > b.upper).long() - (h <= b.lower).long(),
                "Right but for samples that lie on lambda_u: they are outside the band.",
            ),
            Mistake(
                lambda h, b: fitting_risk(1 - h, b), "This is right for H_nor = 1 - H'; what is given, and bounded, is H'."
            ),
            Mistake(
                lambda h, b: b.contains(h).long(), "This says which samples lie within; asked is on which side the others are."
            ),
        ),
    ),
)
"""The graded exercises of notebooks 00 and 01."""
