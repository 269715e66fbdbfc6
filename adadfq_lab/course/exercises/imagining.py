"""The graded exercises of notebook 03: the statistics that P remembers, the generator's label, GDFQ's loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab import equations
from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.equations import BatchStatistics

# Hidden cases, from a seed


def _activations(g: torch.Generator) -> list[Case]:
    """Around 1; around 0 and not square; after a ReLU; a channel that is constant; one sample of one row."""
    u = 2 * torch.randn(4, 3, 5, 5, generator=g) + 1
    dead = u.clone()
    dead[:, 1] = 0.5
    return [(u,), (torch.randn(2, 6, 2, 3, generator=g),), (u.relu(),), (dead,), (torch.randn(1, 3, 1, 4, generator=g),)]


def _statistics(g: torch.Generator) -> list[Case]:
    """Layers of different widths; and one in which nothing is missed."""

    def layer(c: int) -> BatchStatistics:
        return BatchStatistics(*(torch.rand(c, generator=g) for _ in range(4)))

    met = layer(4)
    met = BatchStatistics(met.mean, met.var, met.mean, met.var)
    return [([layer(3), layer(8)],), ([layer(5)],), ([met, layer(2)],)]


def _latents(g: torch.Generator) -> list[Case]:
    def one(n: int, classes: int, latent: int) -> Case:
        y = torch.randint(classes, (n,), generator=g)
        return torch.randn(n, latent, generator=g), y, torch.randn(classes, latent, generator=g)

    return [one(4, 6, 8), one(5, 5, 5), one(9, 3, 2)]


def _teacher_views(g: torch.Generator) -> list[Case]:
    def one(n: int, classes: int, bns: float) -> Case:
        y = torch.randint(classes, (n,), generator=g)
        return 2 * torch.randn(n, classes, generator=g), y, bns * (0.1 + torch.rand((), generator=g))

    return [one(6, 5, 1), one(4, 10, 30), one(1, 3, 1)]


# References that the library has under another name, or inside a larger function


def channel_statistics(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of u (N, C, H, W), both (C,)."""
    return u.mean(dim=(0, 2, 3)), u.var(dim=(0, 2, 3), unbiased=False)


def conditioned(z: Tensor, y: Tensor, table: Tensor) -> Tensor:
    """z times the row of `table` that belongs to y, (N, latent)."""
    return z * F.embedding(y, table)


def gdfq_loss(z_p: Tensor, y: Tensor, bns: Tensor) -> Tensor:
    """CE(z_p, y) + 0.1 L_BNS, 0-dim."""
    return F.cross_entropy(z_p, y) + 0.1 * bns


IMAGINING = (
    Exercise(
        "channel_statistics",
        "03",
        channel_statistics,
        _activations,
        HINTS["channel_statistics"],
        (
            Mistake(
                lambda u: (u.mean((0, 2, 3)), u.var((0, 2, 3))),
                "This variance divides by n - 1; a batch norm normalises by the biased one, dividing by n.",
            ),
            Mistake(
                lambda u: (u.mean((0, 2, 3)), u.std((0, 2, 3), unbiased=False)),
                "This is the standard deviation; what the paper calls sigma in Eq. (11) is the variance.",
            ),
            Mistake(
                lambda u: (u.mean((2, 3)), u.var((2, 3), unbiased=False)),
                "The samples were not averaged over: batch statistics have one number a channel.",
            ),
            Mistake(
                lambda u: (u.mean((0, 2, 3)), u.var((2, 3), unbiased=False).mean(0)),
                "A mean of the samples' variances leaves out how far the samples' means lie apart: take all dims at once.",
            ),
        ),
    ),
    Exercise(
        "loss_bns",
        "03",
        lambda statistics: equations.loss_bns(statistics, reduction="mean"),
        _statistics,
        HINTS["loss_bns"],
        (
            Mistake(
                lambda s: equations.loss_bns(s, reduction="sum"),
                "This is the sum over channels and layers, as Eq. (11) prints it; asked for are the means.",
            ),
            Mistake(
                lambda s: torch.stack([(m.mean - m.running_mean).square().mean() for m in s]).mean(),
                "The variances are missing.",
            ),
            Mistake(
                lambda s: len(s) * equations.loss_bns(s, reduction="mean"),
                "This adds up the layers; asked for is their mean.",
            ),
            Mistake(
                lambda s: equations.loss_bns(s, reduction="sum") / len(s),
                "Channels are summed here; asked for is their mean within each layer.",
            ),
            Mistake(
                lambda s: torch.cat([(m.mean - m.running_mean) ** 2 + (m.var - m.running_var) ** 2 for m in s]).mean(),
                "All channels count alike here, so wide layers count more: average within each layer first, then over layers.",
            ),
        ),
        learns="required",
    ),
    Exercise(
        "conditioned",
        "03",
        conditioned,
        _latents,
        HINTS["conditioned"],
        (
            Mistake(lambda z, y, t: z + t[y], "The label is added; this generator multiplies."),
            Mistake(lambda z, y, t: z * t[y[0]], "Every sample gets the row of the first label."),
            Mistake(lambda z, y, t: z * t[: len(z)], "The rows are taken in order; row y[i] belongs to sample i."),
        ),
    ),
    Exercise(
        "gdfq_loss",
        "03",
        gdfq_loss,
        _teacher_views,
        HINTS["gdfq_loss"],
        (
            Mistake(lambda z, y, b: F.cross_entropy(z, y) + b, "The weight 0.1 of L_BNS is missing."),
            Mistake(lambda z, y, b: 0.1 * F.cross_entropy(z, y) + b, "The weight 0.1 belongs to L_BNS, not to the label term."),
            Mistake(
                lambda z, y, b: F.cross_entropy(z.softmax(-1), y) + 0.1 * b,
                "cross_entropy takes logits and does the softmax itself.",
            ),
            Mistake(lambda z, y, b: 0.1 * b - F.cross_entropy(z, y), "The sign is turned: G is to make P recognise class y."),
        ),
        learns="required",
    ),
)
"""The graded exercises of notebook 03."""
