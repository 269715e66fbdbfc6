"""The graded exercises of notebooks 00 to 03: disagreement, the quantizer, imagined data."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab import equations
from adadfq_lab.course.grading import Case, Exercise, Function, Mistake
from adadfq_lab.equations import BatchStatistics, Bounds
from adadfq_lab.student import quantizer

# Hidden cases, from a seed


def _logit_pairs(g: torch.Generator) -> list[Case]:
    return [(3 * torch.randn(n, c, generator=g), 3 * torch.randn(n, c, generator=g)) for n, c in ((5, 10), (3, 4))]


def _probabilities(g: torch.Generator) -> list[Case]:
    p = torch.softmax(2 * torch.randn(6, 5, generator=g), dim=-1)
    certain = F.one_hot(torch.randint(5, (3,), generator=g), 5).float()
    return [(p,), (certain,)]


def _entropies(g: torch.Generator) -> list[Case]:
    return [(math.log(c) * torch.rand(n, generator=g), c) for n, c in ((8, 10), (4, 3))]


def _h_primes(g: torch.Generator) -> list[Case]:
    low = 0.4 * float(torch.rand((), generator=g))
    return [
        (torch.rand(20, generator=g), Bounds(low, low + 0.4)),
        (torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), Bounds(0.25, 0.75)),
    ]


def _ranges(g: torch.Generator) -> list[Case]:
    low, high = -torch.rand(4, generator=g) - 0.1, torch.rand(4, generator=g) + 0.1
    return [(low, high, bits) for bits in (2, 3, 8)]


def _codings(g: torch.Generator) -> list[Case]:
    x = 2 * torch.randn(40, generator=g)
    return [(x, *quantizer.qparams(torch.tensor(-1.0), torch.tensor(2.0), bits), bits) for bits in (2, 4)]


def _floats(g: torch.Generator) -> list[Case]:
    return [(3 * torch.randn(12, generator=g),)]


def _weights(g: torch.Generator) -> list[Case]:
    return [(torch.randn(4, 3, 3, 3, generator=g),), (torch.randn(5, 7, generator=g),)]


def _activations(g: torch.Generator) -> list[Case]:
    return [(2 * torch.randn(4, 3, 5, 5, generator=g) + 1,), (torch.randn(2, 6, 2, 3, generator=g),)]


def _statistics(g: torch.Generator) -> list[Case]:
    def layer(c: int) -> BatchStatistics:
        return BatchStatistics(*(torch.rand(c, generator=g) for _ in range(4)))

    return [([layer(3), layer(8)],), ([layer(5)],)]


def _latents(g: torch.Generator) -> list[Case]:
    y = torch.randint(6, (4,), generator=g)
    return [(torch.randn(4, 8, generator=g), y, torch.randn(6, 8, generator=g))]


def _teacher_views(g: torch.Generator) -> list[Case]:
    return [(2 * torch.randn(6, 5, generator=g), torch.randint(5, (6,), generator=g), torch.rand((), generator=g))]


# References that the library has under another name, or inside a larger function


def agreement(z_p: Tensor, z_q: Tensor) -> Tensor:
    """Share of the samples that P and Q give the same class, 0-dim."""
    return (z_p.argmax(dim=-1) == z_q.argmax(dim=-1)).float().mean()


def fitting_risk(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """-1 where a sample invites underfitting (H' <= lambda_l), +1 where overfitting (H' >= lambda_u), 0 within; int64, (N,)."""
    return (h_prime >= bounds.upper).long() - (h_prime <= bounds.lower).long()


def round_ste(x: Tensor) -> Tensor:
    """round(x) whose gradient is 1: the library's fake-quantisation on the grid of all integers."""
    return quantizer.fake_quantize(x, torch.ones(()), torch.zeros(()), 24)


def channel_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each output channel, both (out,)."""
    low, high = weight.flatten(1).aminmax(dim=1)
    return low, high


def channel_statistics(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of u (N, C, H, W), both (C,)."""
    return u.mean(dim=(0, 2, 3)), u.var(dim=(0, 2, 3), unbiased=False)


def conditioned(z: Tensor, y: Tensor, table: Tensor) -> Tensor:
    """z times the row of `table` that belongs to y, (N, latent)."""
    return z * F.embedding(y, table)


def gdfq_loss(z_p: Tensor, y: Tensor, bns: Tensor) -> Tensor:
    """CE(z_p, y) + 0.1 L_BNS, 0-dim."""
    return F.cross_entropy(z_p, y) + 0.1 * bns


# What is compared where it is not the value alone


def _value_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = function(x)
    if not isinstance(out, Tensor) or not out.requires_grad:
        return out, torch.zeros_like(x)
    (gradient,) = torch.autograd.grad((out * torch.arange(1.0, x.numel() + 1)).sum(), x)
    return out.detach(), gradient


def _no_floor(entropy: Tensor, num_classes: int) -> Tensor:
    return entropy / math.log(num_classes)


def _own_maximum(entropy: Tensor, num_classes: int) -> Tensor:
    return (entropy - entropy.min()) / (entropy.max() - entropy.min())


FOUNDATIONS = (
    Exercise(
        "agreement",
        "00",
        agreement,
        _logit_pairs,
        "z.argmax(dim=-1) is the class a network says; compare two of them, then .float().mean().",
        (
            Mistake(
                lambda p, q: (p.argmax(0) == q.argmax(0)).float().mean(), "argmax runs over samples here; classes are dim=-1."
            ),
            Mistake(lambda p, q: (p == q).float().mean(), "Equal logits are not the question: equal classes are."),
            Mistake(lambda p, q: (p.argmax(-1) == q.argmax(-1)).sum(), "This is how many agree, not which share."),
        ),
    ),
    Exercise(
        "p_ds",
        "01",
        equations.p_ds,
        _logit_pairs,
        "Subtract the logits, z_p - z_q, and take the softmax over classes: dim=-1.",
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
        plot=True,
    ),
    Exercise(
        "entropy",
        "01",
        equations.entropy,
        _probabilities,
        "Sum p log p over dim=-1 and turn the sign; where p is 0 take log of 1 instead: torch.where(p == 0, 1, p).log().",
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
        plot=True,
    ),
    Exercise(
        "normalized_entropy",
        "01",
        equations.normalized_entropy,
        _entropies,
        "low = H.min(), high = math.log(C); return (H - low) / (high - low).",
        (
            Mistake(_no_floor, "This divides by log C only; Eq. (3) subtracts the batch's minimum above and below."),
            Mistake(
                lambda h, c: (h - h.min()) / math.log(c),
                "The minimum is subtracted above only; below, too, it is log C - H_min, or H' never reaches 1.",
            ),
            Mistake(_own_maximum, "The maximum is the constant log C, not the largest entropy of the batch."),
            Mistake(
                lambda h, c: (h - h.min()) / (math.log2(c) - h.min()), "This log C is in bits; H is in nats, so it is math.log."
            ),
            Mistake(
                lambda h, c: 1 - equations.normalized_entropy(h, c),
                "This is the adaptability H_nor = 1 - H'; what is asked for is H'.",
            ),
        ),
        plot=True,
    ),
    Exercise(
        "fitting_risk",
        "01",
        fitting_risk,
        _h_primes,
        "Small H' is large disagreement: too hard, underfitting, -1. Large H' is agreement: nothing to learn, overfitting, +1.",
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
                lambda h, b: fitting_risk(1 - h, b), "This is right for H_nor = 1 - H'; what is given, and bounded, is H'."
            ),
            Mistake(
                lambda h, b: b.contains(h).long(), "This says which samples lie within; asked is on which side the others are."
            ),
        ),
    ),
    Exercise(
        "channel_range",
        "02",
        channel_range,
        _weights,
        "weight.flatten(1) has one row an output channel; take the minimum and maximum over dim=1: amin and amax.",
        (
            Mistake(lambda w: (w.min(), w.max()), "This is one range for the whole tensor; each output channel has its own."),
            Mistake(lambda w: (w.flatten(1).amin(0), w.flatten(1).amax(0)), "The minimum runs over channels; keep dim 0."),
            Mistake(
                lambda w: (-w.flatten(1).abs().amax(1), w.flatten(1).abs().amax(1)), "This range is symmetric; Eq. (18) is not."
            ),
        ),
    ),
    Exercise(
        "qparams",
        "02",
        quantizer.qparams,
        _ranges,
        "scale = (high - low) / (2**bits - 1); zero_point = quant_min - round(low / scale) with quant_min = -2**(bits - 1).",
        (
            Mistake(
                lambda low, high, b: ((high - low) / 2**b, -(2 ** (b - 1)) - (low / ((high - low) / 2**b)).round()),
                "2^n levels have 2^n - 1 steps between them.",
            ),
            Mistake(
                lambda low, high, b: ((high - low) / (2**b - 1), -(2 ** (b - 1)) + (low / ((high - low) / (2**b - 1))).round()),
                "The code of 0 lies *above* quant_min by -low / scale steps: low / scale is subtracted.",
            ),
            Mistake(
                lambda low, high, b: (
                    (high - low) / (2 ^ b - 1),
                    -(2 ^ (b - 1)) - (low / ((high - low) / (2 ^ b - 1))).round(),
                ),
                "In Python ^ is no power but XOR: write 2**bits.",
            ),
            Mistake(
                lambda low, high, b: quantizer.qparams(low, high, b, zero_point="real"),
                "The zero point is not rounded; then no code stands for 0 exactly.",
            ),
            Mistake(
                lambda low, high, b: (quantizer.qparams(low, high, b)[0], quantizer.qparams(low, high, b)[1] + 2 ** (b - 1)),
                "These codes begin at 0; signed codes begin at -2^(n-1).",
            ),
        ),
    ),
    Exercise(
        "codes",
        "02",
        quantizer.codes,
        _codings,
        "Divide by scale, add zero_point, round, clamp to -2**(bits-1) ... 2**(bits-1)-1, and make it .to(torch.int32).",
        (
            Mistake(
                lambda x, s, z, b: (x / s + z).round().to(torch.int32),
                "Codes beyond the grid are not clamped, and do not fit into the bits.",
            ),
            Mistake(
                lambda x, s, z, b: quantizer.codes(x, s, -z, b),
                "The zero point is subtracted; the code of 0 is zero_point, so it is added.",
            ),
            Mistake(
                lambda x, s, z, b: (x / s + z).round().clamp(0, 2**b - 1).to(torch.int32),
                "These codes begin at 0; signed codes begin at -2^(n-1).",
            ),
            Mistake(
                lambda x, s, z, b: (x / s + z).floor().clamp(*quantizer.quant_range(b)).to(torch.int32),
                "This rounds down; asked for is the nearest code.",
            ),
            Mistake(
                lambda x, s, z, b: (x / s + z).clamp(*quantizer.quant_range(b)).to(torch.int32),
                "Converting to int32 cuts the fraction off; round first.",
            ),
            Mistake(
                lambda x, s, z, b: (x / s + z).round().clamp(-(2 ** (b - 1)), 2 ** (b - 1)).to(torch.int32),
                "The largest code is 2^(n-1) - 1: with 2^(n-1) there would be 2^n + 1 codes.",
            ),
        ),
        plot=True,
    ),
    Exercise(
        "round_ste",
        "02",
        round_ste,
        _floats,
        "x + (x.round() - x).detach() has the value of round(x), and only its first x has a gradient.",
        (
            Mistake(
                lambda x: x.round(), "Result 1, the value, is right; result 2, the gradient, is zero: Q would never learn."
            ),
            Mistake(lambda x: 1.0 * x, "The gradient is right, but nothing was rounded."),
        ),
        observe=_value_and_gradient,
    ),
    Exercise(
        "channel_statistics",
        "03",
        channel_statistics,
        _activations,
        "Average over dim=(0, 2, 3); for the variance u.var(dim=(0, 2, 3), unbiased=False).",
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
        lambda s: equations.loss_bns(s, reduction="mean"),
        _statistics,
        "A layer: (mean - running_mean).square().mean() + (var - running_var).square().mean(). Then the mean over layers.",
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
    ),
    Exercise(
        "conditioned",
        "03",
        conditioned,
        _latents,
        "table[y] picks a row for each sample, shape (N, latent), like z. Multiply.",
        (
            Mistake(lambda z, y, t: z + t[y], "The label is added; this generator multiplies."),
            Mistake(lambda z, y, t: z * t[: len(z)], "The rows are taken in order; row y[i] belongs to sample i."),
        ),
    ),
    Exercise(
        "gdfq_loss",
        "03",
        gdfq_loss,
        _teacher_views,
        "F.cross_entropy(z_p, y) + 0.1 * bns.",
        (
            Mistake(lambda z, y, b: F.cross_entropy(z, y) + b, "The weight 0.1 of L_BNS is missing."),
            Mistake(lambda z, y, b: 0.1 * F.cross_entropy(z, y) + b, "The weight 0.1 belongs to L_BNS, not to the label term."),
            Mistake(
                lambda z, y, b: F.cross_entropy(z.softmax(-1), y) + 0.1 * b,
                "cross_entropy takes logits and does the softmax itself.",
            ),
            Mistake(lambda z, y, b: 0.1 * b - F.cross_entropy(z, y), "The sign is turned: G is to make P recognise class y."),
        ),
    ),
)
