"""The graded exercises of notebooks 04 to 07: the game, two kinds of sample, the band, the bound."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab import equations, theory
from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.equations import Bounds

# Hidden cases, from a seed


def _h_primes(g: torch.Generator) -> list[Case]:
    return [(torch.rand(n, generator=g),) for n in (16, 5)]


def _three_entropies(g: torch.Generator) -> list[Case]:
    return [tuple(math.log(10) * torch.rand(n, generator=g) for _ in range(3)) for n in (16, 4)]


def _values(g: torch.Generator) -> list[Case]:
    """At rest, with a tie, and not; lists may be empty."""
    value = float(torch.rand((), generator=g))
    worse_g, worse_q = (value - torch.rand(3, generator=g)).tolist(), (value + torch.rand(3, generator=g)).tolist()
    better_g, better_q = [*worse_g, value + 0.1], [*worse_q, value - 0.1]
    return [
        (value, worse_g, worse_q),
        (value, worse_g, better_q),
        (value, better_g[::-1], worse_q),
        (value, [*worse_g, value], worse_q),
        (value, worse_g, [value, *worse_q]),
        (value, [], worse_q),
        (value, worse_g, []),
        (value, [], better_q),
        (value, better_g, []),
        (value, [], []),
        (value, [value + 0.001], worse_q),
    ]


def _logits(g: torch.Generator) -> list[Case]:
    return [
        (3 * torch.randn(n, c, generator=g), 3 * torch.randn(n, c, generator=g), _labels(n, c, g)) for n, c in ((8, 10), (3, 4))
    ]


def _labels(n: int, c: int, g: torch.Generator) -> Tensor:
    return torch.randint(c, (n,), generator=g)


def _banded(g: torch.Generator) -> list[Case]:
    """All around the band; a few; on the bounds; all below, within, above."""
    low = 0.1 + 0.3 * float(torch.rand((), generator=g))
    h, band = torch.rand(20, generator=g), Bounds(0.25, 0.75)
    on = torch.tensor([0.25, 0.1, 0.75, 0.9, 0.5, 0.25])
    around: list[Case] = [(h, Bounds(low, low + 0.4)), (torch.tensor([0.0, 0.5, 1.0]), Bounds(0.1, 0.8)), (on, band)]
    from_zero: Case = (torch.tensor([0.0, 0.3, 1.0, 0.6]), Bounds(0.0, 0.5))
    return [*around, from_zero, (0.2 * h, band), (0.3 + 0.4 * h, band), (0.8 + 0.2 * h, band)]


def _objectives(g: torch.Generator) -> list[Case]:
    return [(h, *(2 * torch.rand(2, generator=g) - 0.5), bounds) for h, bounds in _banded(g)]


def _rates(g: torch.Generator) -> list[Case]:
    capacity = float(1 + 20 * torch.rand((), generator=g))
    return [(capacity, n, rate) for n, rate in ((100, 0.5), (4000, 0.75), (4000, 1.0), (1, 0.6))]


def _targets(g: torch.Generator) -> list[Case]:
    capacity = float(1 + 20 * torch.rand((), generator=g))
    return [(capacity, rate, 0.05) for rate in (0.5, 0.8, 1.0)]


def _bounds_of_error(g: torch.Generator) -> list[Case]:
    a, b, c, d = (0.1 + torch.rand(4, generator=g)).tolist()
    return [(1000, 10 * a, 0.5, c, 10 * b, 1.0, d), (50, 10 * b, 0.7, d, 10 * a, 0.9, c)]


# References that the library has under another name, or inside a larger function


def gains(before: Tensor, after_g: Tensor, after_q: Tensor) -> tuple[Tensor, Tensor]:
    """(Delta_G, Delta_Q): what G's step, then Q's, did to the mean disagreement log C - H, from H_info (N,), nats."""
    return before.mean() - after_g.mean(), after_g.mean() - after_q.mean()


def hinge_slope(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """Gradient of the mean hinge with respect to each H', (N,): -1/N below the band, 0 within, +1/N above."""
    return ((h_prime > bounds.upper).float() - (h_prime < bounds.lower).float()) / len(h_prime)


def samples_needed(capacity: float, rate: float, target: float) -> float:
    """n at which capacity / n^rate is `target`."""
    return float((capacity / target) ** (1 / rate))


def error_bound(n: float, c_q: float, rate_q: float, eps_q: float, c_p: float, rate_p: float, eps_p: float) -> float:
    """The right-hand side of Eq. (17) with both constants 1."""
    return float(
        theory.bound_total(
            n, capacity_q=c_q, rate_qp=rate_q, epsilon_qp=eps_q, capacity_p=c_p, rate_pr=rate_p, epsilon_pr=eps_p
        )
    )


def estimation_error(capacity: float, n: float, rate: float) -> float:
    """capacity / n^rate."""
    return float(theory.estimation_error(capacity, n, rate))


GAME = (
    Exercise(
        "game_value",
        "04",
        equations.game_value,
        _h_primes,
        HINTS["game_value"],
        (
            Mistake(lambda h: h.mean(), "This is the mean of H', agreement; the value of the game is the mean of 1 - H'."),
            Mistake(lambda h: (1 - h).sum(), "This is a sum; E[...] is a mean, so that it does not grow with the batch."),
            Mistake(lambda h: 1 - h[0], "Only the first sample was looked at."),
            Mistake(lambda h: 1 - h.min(), "This looks at one sample only: in any batch it is 1."),
        ),
        learns="noted",
    ),
    Exercise(
        "gains",
        "04",
        gains,
        _three_entropies,
        HINTS["gains"],
        (
            Mistake(
                lambda a, b, c: (b.mean() - a.mean(), c.mean() - b.mean()),
                "These are gains of H, which is agreement; disagreement is log C - H, so both signs turn.",
            ),
            Mistake(
                lambda a, b, c: (a.mean() - b.mean(), a.mean() - c.mean()),
                "Delta_Q begins where G's step ended, not where the round began.",
            ),
            Mistake(
                lambda a, b, c: (a.mean() - b.mean(), c.mean() - b.mean()),
                "Delta_G is right. Delta_Q, too, is a change of disagreement: where Q does well it is negative.",
            ),
            Mistake(lambda a, b, c: (a.sum() - b.sum(), b.sum() - c.sum()), "These are sums over the batch; take means."),
        ),
    ),
    Exercise(
        "is_equilibrium",
        "04",
        theory.is_equilibrium,
        _values,
        HINTS["is_equilibrium"],
        (
            Mistake(
                lambda v, g, q: all(x >= v for x in g) and all(x <= v for x in q),
                "The players are swapped: in Eq. (5) G moves on the left and can only lose, Q on the right.",
            ),
            Mistake(
                lambda v, g, q: all(x < v for x in g) and all(x > v for x in q),
                "A move that changes nothing is allowed: Eq. (5) has <=, not <.",
            ),
            Mistake(
                lambda v, g, q: bool(g) and bool(q) and theory.is_equilibrium(v, g, q),
                "Without any other G, or any other Q, nothing can be better: an empty list is no objection.",
            ),
            Mistake(lambda v, g, q: all(x <= v for x in g), "Only G's moves were looked at; Q must not gain either."),
            Mistake(lambda v, g, q: all(x >= v for x in q), "Only Q's moves were looked at; G must not gain either."),
            Mistake(
                lambda v, g, q: any(x <= v for x in g) and any(x >= v for x in q),
                "Eq. (5) holds for *all* moves, not for some.",
            ),
        ),
    ),
    Exercise(
        "loss_ds",
        "05",
        equations.loss_ds,
        _logits,
        HINTS["loss_ds"],
        (
            Mistake(lambda p, q, y: F.cross_entropy(q - p, y), "The logits are turned round: P is to see y and Q to miss it."),
            Mistake(lambda p, q, y: F.cross_entropy(p + q, y), "This is L_as of Eq. (8); disagreement subtracts the logits."),
            Mistake(
                lambda p, q, y: F.cross_entropy(p - q, y, reduction="sum"), "This is a sum over the batch; E[...] is a mean."
            ),
            Mistake(
                lambda p, q, y: F.cross_entropy((p - q).softmax(-1), y),
                "F.cross_entropy applies the softmax itself; give it the logits z_p - z_q.",
            ),
            Mistake(
                lambda p, q, y: F.cross_entropy(p, y) - F.cross_entropy(q, y), "A difference of two losses is another loss."
            ),
        ),
        learns="required",
    ),
    Exercise(
        "loss_as",
        "05",
        equations.loss_as,
        _logits,
        HINTS["loss_as"],
        (
            Mistake(lambda p, q, y: F.cross_entropy(p - q, y), "This is L_ds of Eq. (6); agreement adds the logits."),
            Mistake(lambda p, q, y: F.cross_entropy((p + q) / 2, y), "Eq. (7) adds the logits, it does not average them."),
            Mistake(
                lambda p, q, y: F.cross_entropy(p, y) + F.cross_entropy(q, y),
                "Two losses, added, are not the loss of the sum: Eq. (8) is one cross-entropy of z_p + z_q.",
            ),
        ),
        learns="required",
    ),
    Exercise(
        "loss_balance",
        "05",
        equations.loss_balance,
        _logits,
        HINTS["loss_balance"],
        (
            Mistake(
                lambda p, q, y: 0.1 * equations.loss_ds(p, q, y) + 0.2 * equations.loss_as(p, q, y),
                "The weights are swapped: alpha_ds = 0.2, alpha_as = 0.1.",
            ),
            Mistake(
                lambda p, q, y: equations.loss_ds(p, q, y) + equations.loss_as(p, q, y), "The weights of Eq. (9) are missing."
            ),
        ),
        learns="required",
    ),
    Exercise(
        "hinge",
        "06",
        equations.hinge,
        _banded,
        HINTS["hinge"],
        (
            Mistake(
                lambda h, b: torch.relu(h - b.lower) + torch.relu(b.upper - h),
                "The differences are turned round: this is large within the band.",
            ),
            Mistake(lambda h, b: torch.relu(b.lower - h), "Only the lower bound was looked at."),
            Mistake(lambda h, b: torch.relu(h - b.upper), "Only the upper bound was looked at."),
            Mistake(lambda h, b: equations.hinge(h, b).mean(), "This is the mean; asked for is one number a sample, (N,)."),
        ),
        plot=True,
        learns="required",
    ),
    Exercise(
        "hinge_slope",
        "06",
        hinge_slope,
        _banded,
        HINTS["hinge_slope"],
        (
            Mistake(lambda h, b: -hinge_slope(h, b), "The sign is turned: below the band a larger H' makes the hinge smaller."),
            Mistake(
                lambda h, b: len(h) * hinge_slope(h, b), "This is the slope of the sum; of a mean over N it is 1/N of that."
            ),
            Mistake(
                lambda h, b: ((h >= b.upper).float() - (h <= b.lower).float()) / len(h),
                "Right but for samples that lie on a bound: there relu, and so the hinge, has slope 0.",
            ),
            Mistake(
                lambda h, b: equations.hinge(h, b), "This is the hinge itself; its slope is the same however far off H' is."
            ),
        ),
        plot=True,
    ),
    Exercise(
        "generator_objective",
        "06",
        equations.generator_objective,
        _objectives,
        HINTS["generator_objective"],
        (
            Mistake(
                lambda h, bal, bns, b: -(equations.hinge(h, b).mean() + bal + bns),
                "This is what Eq. (12) maximises; an optimiser minimises its negative.",
            ),
            Mistake(lambda h, bal, bns, b: equations.hinge(h, b).sum() + bal + bns, "The hinge is summed; E[...] is a mean."),
            Mistake(lambda h, bal, bns, b: equations.hinge(h, b).mean() + bal, "L_BNS is missing."),
            Mistake(
                lambda h, bal, bns, b: equations.hinge(h, b).mean() + bal + 0.1 * bns,
                "0.1 is GDFQ's weight of L_BNS; here gamma is 1.",
            ),
        ),
        learns="required",
    ),
    Exercise(
        "estimation_error",
        "07",
        estimation_error,
        _rates,
        HINTS["estimation_error"],
        (
            Mistake(lambda c, n, a: c / (n * a), "n is multiplied by the rate; it is an exponent."),
            Mistake(lambda c, n, a: c / n ** (1 / a), "The exponent is alpha, not 1/alpha."),
            Mistake(lambda c, n, a: (c / n) ** a, "Only n has the exponent, the capacity has not."),
        ),
    ),
    Exercise(
        "error_bound",
        "07",
        error_bound,
        _bounds_of_error,
        HINTS["error_bound"],
        (
            Mistake(
                lambda n, c, a, e, d, b, f: c / n**a + e, "This is Eq. (16), Q against P; P's own error of Eq. (15) is missing."
            ),
            Mistake(
                lambda n, c, a, e, d, b, f: c / n**a + d / n**b, "These are the estimation errors; both epsilon are missing."
            ),
            Mistake(lambda n, c, a, e, d, b, f: c / n**b + d / n**a + e + f, "The two rates are swapped."),
        ),
    ),
    Exercise(
        "samples_needed",
        "07",
        samples_needed,
        _targets,
        HINTS["samples_needed"],
        (
            Mistake(lambda c, a, t: (c / t) ** a, "n**rate = capacity / target, so the root is the power 1/rate."),
            Mistake(lambda c, a, t: c / t, "This is right for rate 1 only."),
            Mistake(
                lambda c, a, t: int((c / t) ** (1 / a)),
                "This is cut off, perhaps by int(); asked for is n as the formula gives it.",
            ),
            Mistake(
                lambda c, a, t: math.ceil((c / t) ** (1 / a)), "This is rounded up; asked for is n as the formula gives it."
            ),
        ),
    ),
)
"""The graded exercises of notebooks 04 to 07."""
