"""The graded exercises of notebook 10: a batch norm folded, a convolution in integers, its sums rounded, its weights packed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.integers import packing
from adadfq_lab.student.quantizer import quant_range

EPS = 1e-5  # what nn.BatchNorm2d adds to a variance

# Hidden cases, from a seed


def _batch_norms(g: torch.Generator) -> list[Case]:
    """Ordinary variances; and, as in trained networks, channels that never vary."""

    def one(var: Tensor) -> Case:
        scale, gamma, beta, mean = (torch.randn(len(var), generator=g) for _ in range(4))
        return scale.abs(), gamma, beta, mean, var

    tiny = torch.tensor([5e-14, 0.0, 1e-6, 1e-5, 0.4])
    return [one(0.2 + torch.rand(8, generator=g)), one(0.2 + torch.rand(3, generator=g)), one(tiny)]


def _convolutions(g: torch.Generator) -> list[Case]:
    cases = []
    for bits, channels, out in ((3, 4, 5), (8, 2, 3)):
        low, high = quant_range(bits)
        q_x = torch.randint(low, high + 1, (2, channels, 5, 6), generator=g, dtype=torch.int32)
        q_w = torch.randint(low, high + 1, (out, channels, 3, 3), generator=g, dtype=torch.int32)
        cases.append((q_x, low, q_w, torch.randint(low + 1, high, (out,), generator=g, dtype=torch.int32)))
    return cases


def _sums(g: torch.Generator) -> list[Case]:
    cases = []
    for bits, out in ((3, 4), (5, 3)):
        acc = torch.randint(-200, 200, (2, out, 4, 4), generator=g, dtype=torch.int32)
        scale, bias = 0.01 + 0.02 * torch.rand(out, generator=g), torch.randn(out, generator=g)
        cases.append((acc, scale, bias, 3.0 / (2**bits - 1), bits))
        cases.append((acc, scale * torch.tensor([-1.0, 1.0, -1.0, 1.0])[:out], bias, 3.0 / (2**bits - 1), bits))
    return cases


def _codes(g: torch.Generator) -> list[Case]:
    """Some do not fill their last byte; the last has two dimensions."""

    def draw(bits: int, count: int) -> Case:
        low, high = quant_range(bits)
        return torch.randint(low, high + 1, (count,), generator=g, dtype=torch.int8), bits

    grid, bits = draw(2, 15)
    return [draw(3, 16), draw(3, 5), draw(5, 11), draw(8, 3), draw(7, 1), (grid.view(3, 5), bits)]


# References that the library has inside larger functions


def fold(scale: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, bias) of a convolution with the batch norm after it folded in, all (out,)."""
    a = gamma / (var + EPS).sqrt()
    return scale * a, beta - mean * a


def integer_conv(q_x: Tensor, zero_x: int, q_w: Tensor, zero_w: Tensor) -> Tensor:
    """sum (q_x - zero_x)(q_w - zero_w) over a 3x3 window, padding 1, int32."""
    return F.conv2d(q_x - zero_x, q_w - zero_w.view(-1, 1, 1, 1), padding=1)


def requantize(acc: Tensor, scale: Tensor, bias: Tensor, step: float, bits: int) -> Tensor:
    """The codes 0 .. 2^bits - 1 of relu(acc * scale + bias) on a grid of width `step`, int32."""
    y = acc * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return (y / step).round().clamp(0, 2**bits - 1).to(torch.int32)


def _conv(q_x: Tensor, q_w: Tensor) -> Tensor:
    return F.conv2d(q_x, q_w, padding=1)


def _padded_with_codes(q_x: Tensor, zero_x: int, q_w: Tensor, zero_w: Tensor) -> Tensor:
    w = q_w - zero_w.view(-1, 1, 1, 1)
    return _conv(q_x, w) - zero_x * w.sum((1, 2, 3)).view(-1, 1, 1)


def _stream(codes: Tensor, bits: int, *, offset: bool = True, reverse: bool = False) -> Tensor:
    """As `pack_bits`, but with codes as two's complement, or their lowest bit first."""
    digits = codes.flatten().to(torch.int32) + (2 ** (bits - 1) if offset else 0)
    places = torch.arange(bits) if reverse else torch.arange(bits - 1, -1, -1)
    ones = (digits[:, None] >> places & 1).flatten()
    ones = F.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
    return (ones << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)


INTEGERS = (
    Exercise(
        "fold",
        "10",
        fold,
        _batch_norms,
        HINTS["fold"],
        (
            Mistake(
                lambda s, g, b, m, v: (s * g / (v + EPS), b - m * g / (v + EPS)), "`var` is a variance; divide by its root."
            ),
            Mistake(
                lambda s, g, b, m, v: (s * g / v.sqrt(), b - m * g / v.sqrt()),
                "1e-5 is missing: some channels hardly vary, and their scale would come out thousands of times too large.",
            ),
            Mistake(
                lambda s, g, b, m, v: (s * g / (v.sqrt() + EPS), b - m * g / (v.sqrt() + EPS)),
                "1e-5 belongs under the root, to the variance; outside it, small variances give scales that are far too large.",
            ),
            Mistake(
                lambda s, g, b, m, v: (s * g / (v + EPS).sqrt(), b),
                "The running mean is missing: bn takes it off before gamma.",
            ),
            Mistake(lambda s, g, b, m, v: (s * g / (v + EPS).sqrt(), b - m), "The mean, too, is multiplied by a: b - a mean."),
            Mistake(
                lambda s, g, b, m, v: (s * g / (v + EPS).sqrt(), b - m * s * g / (v + EPS).sqrt()),
                "The mean is that of u, which has its scale already: it is multiplied by a only.",
            ),
            Mistake(
                lambda s, g, b, m, v: (s * g.abs() / (v + EPS).sqrt(), b - m * g / (v + EPS).sqrt()),
                "A negative gamma turns its channel round: the scale is negative there.",
            ),
        ),
    ),
    Exercise(
        "integer_conv",
        "10",
        integer_conv,
        _convolutions,
        HINTS["integer_conv"],
        (
            Mistake(
                lambda x, zx, w, zw: _conv(x, w - zw.view(-1, 1, 1, 1)), "zero_x is missing: the code zero_x stands for 0."
            ),
            Mistake(lambda x, zx, w, zw: _conv(x - zx, w), "zero_w is missing, one for each output channel."),
            Mistake(lambda x, zx, w, zw: _conv(x, w), "These are sums of codes; what is multiplied is code less zero point."),
            Mistake(
                _padded_with_codes,
                "Right inside, wrong along the border: padding adds the code 0, not the number 0. Subtract, then pad.",
            ),
            Mistake(
                lambda x, zx, w, zw: integer_conv(x, zx, w, zw).float(),
                "The sums are right and floats; an integer layer has none.",
            ),
        ),
    ),
    Exercise(
        "requantize",
        "10",
        requantize,
        _sums,
        HINTS["requantize"],
        (
            Mistake(
                lambda a, s, b, w, n: requantize(a, s, 0 * b, w, n), "The bias is missing, and with it the batch norm's shift."
            ),
            Mistake(
                lambda a, s, b, w, n: ((a * s.view(-1, 1, 1) + b.view(-1, 1, 1)) / w).clamp(0, 2**n - 1).to(torch.int32),
                "Turning floats into integers cuts the fraction off; round first.",
            ),
            Mistake(
                lambda a, s, b, w, n: (
                    ((a * s.view(-1, 1, 1) + b.view(-1, 1, 1)) / w).round().clamp(max=2**n - 1).to(torch.int32)
                ),
                "Negative codes are left: the ReLU is the clamp at 0.",
            ),
            Mistake(
                lambda a, s, b, w, n: ((a * s + b) / w).round().clamp(0, 2**n - 1).to(torch.int32),
                "Here scale and bias run along the width; .view(-1, 1, 1) puts them along the channels.",
            ),
            Mistake(
                lambda a, s, b, w, n: ((a * s.view(-1, 1, 1) + b.view(-1, 1, 1)) / w).round().clamp(min=0).to(torch.int32),
                "Codes above 2^bits - 1 do not fit into the bits: clamp at both ends.",
            ),
            Mistake(
                lambda a, s, b, w, n: requantize(a, s, b, w, n).clamp(max=2 ** (n - 1) - 1),
                "Codes here begin at 0, so the largest is 2^bits - 1, not 2^(bits-1) - 1.",
            ),
        ),
    ),
    Exercise(
        "pack_bits",
        "10",
        packing.pack_bits,
        _codes,
        HINTS["pack_bits"],
        (
            Mistake(lambda q, b: _stream(q, b, offset=False), "Take quant_min off first: the smallest code is all zeros."),
            Mistake(
                lambda q, b: _stream(q, b, reverse=True), "The bits of each code are turned round: the highest comes first."
            ),
            Mistake(lambda q, b: (q.to(torch.int32) + 2 ** (b - 1)).to(torch.uint8), "One code a byte: nothing is saved yet."),
        ),
    ),
)
