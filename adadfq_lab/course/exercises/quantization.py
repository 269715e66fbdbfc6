"""The graded exercises of notebook 02: ranges, the quantizer of Eq. (18), and a gradient for rounding."""

import torch
from torch import Tensor

from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Function, Mistake
from adadfq_lab.student import quantizer

# Hidden cases, from a seed


def _ranges(g: torch.Generator) -> list[Case]:
    """Ranges around 0, then ranges on one side of it: there the zero point lies beyond the codes."""
    low, high = -torch.rand(4, generator=g) - 0.1, torch.rand(4, generator=g) + 0.1
    above = 0.3 + torch.rand(4, generator=g)
    below = -0.3 - torch.rand(4, generator=g)
    around: list[Case] = [(low, high, bits) for bits in (2, 3, 8)]
    return [*around, (above, above + high, 4), (below + low, below, 4)]


def _codings(g: torch.Generator) -> list[Case]:
    x = 2 * torch.randn(40, generator=g)
    around = [(x, *quantizer.qparams(torch.tensor(-1.0), torch.tensor(2.0), bits), bits) for bits in (2, 4)]
    beside = [(x, *quantizer.qparams(torch.tensor(0.5), torch.tensor(2.0), 3), 3)]
    return [*around, *beside, (x.abs() + 3, *around[1][1:]), (-x.abs() - 3, *around[1][1:])]


def _floats(g: torch.Generator) -> list[Case]:
    x = 3 * torch.randn(12, generator=g)
    return [(x,), (x.abs().view(3, 4),), (-40 * x.abs(),)]


def _weights(g: torch.Generator) -> list[Case]:
    """Around 0; all positive; all negative; one channel constant."""
    w = torch.randn(4, 3, 3, 3, generator=g)
    linear = torch.randn(5, 7, generator=g)
    constant = torch.cat([linear, torch.full((1, 7), 0.7)])
    return [(w,), (linear,), (w.abs() + 0.2,), (-linear.abs() - 0.2,), (constant,)]


# References that the library has under another name, or inside a larger function


def round_ste(x: Tensor) -> Tensor:
    """round(x) whose gradient is 1: the library's fake-quantisation on the grid of all integers."""
    return quantizer.fake_quantize(x, torch.ones(()), torch.zeros(()), 24)


def channel_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each output channel, both (out,)."""
    low, high = weight.flatten(1).aminmax(dim=1)
    return low, high


# What is compared where it is not the value alone


def _value_and_gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """round(x), and the gradient that passes: 1 everywhere if it passes whole."""
    x = x.clone().requires_grad_()
    out = function(x)
    if not isinstance(out, Tensor) or not out.requires_grad or out.shape != x.shape:
        return out, torch.zeros_like(x)
    weights = torch.linspace(0.5, 1.5, x.numel()).view(x.shape)  # a gradient that mixes entries shows
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    return out.detach(), gradient / weights


QUANTIZATION = (
    Exercise(
        "channel_range",
        "02",
        channel_range,
        _weights,
        HINTS["channel_range"],
        (
            Mistake(lambda w: (w.min(), w.max()), "This is one range for the whole tensor; each output channel has its own."),
            Mistake(lambda w: (w.flatten(1).amin(0), w.flatten(1).amax(0)), "The minimum runs over channels; keep dim 0."),
            Mistake(
                lambda w: (-w.flatten(1).abs().amax(1), w.flatten(1).abs().amax(1)), "This range is symmetric; Eq. (18) is not."
            ),
            Mistake(
                lambda w: (channel_range(w)[0].clamp(max=0), channel_range(w)[1].clamp(min=0)),
                "This range is stretched to contain 0; Eq. (18) takes minimum and maximum as they are.",
            ),
        ),
    ),
    Exercise(
        "qparams",
        "02",
        quantizer.qparams,
        _ranges,
        HINTS["qparams"],
        (
            Mistake(
                lambda low, high, b: ((high - low) / 2**b, -(2 ** (b - 1)) - (low / ((high - low) / 2**b)).round()),
                "2^n levels have 2^n - 1 steps between them.",
            ),
            Mistake(
                lambda low, high, b: quantizer.qparams(low.clamp(max=0), high.clamp(min=0), b),
                "This range is stretched to contain 0; it may lie on one side of it, and the zero point beyond the codes.",
            ),
            Mistake(
                lambda low, high, b: quantizer.qparams(-low.abs(), high, b),
                "This takes |low| for -low, which is right for a negative low only.",
            ),
            Mistake(
                lambda low, high, b: (
                    quantizer.qparams(low, high, b)[0],
                    quantizer.qparams(low, high, b)[1].clamp(*quantizer.quant_range(b)),
                ),
                "Codes are clamped, the zero point is not: for a range on one side of 0 it lies beyond the codes.",
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
        HINTS["codes"],
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
        HINTS["round_ste"],
        (
            Mistake(
                lambda x: x.round(), "Result 1, the value, is right; result 2, the gradient, is zero: Q would never learn."
            ),
            Mistake(lambda x: 1.0 * x, "The gradient is right, but nothing was rounded."),
        ),
        observe=_value_and_gradient,
    ),
)
"""The graded exercises of notebook 02."""
