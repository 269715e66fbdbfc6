"""Eq. (18): floats to integers of a few bits and back, with the gradient passed straight through.

    q = clamp(round(x / scale) + zero_point, quant_min, quant_max)        the integer code
    x_hat = (q - zero_point) * scale                                       what the network computes with

with quant_min = -2^(n-1), quant_max = 2^(n-1) - 1. `scale` and `zero_point` come from a range [low, high]: the minimum and
maximum of a weight's output channel, or what a `Range` has seen of an activation. Rounding is half to even. The paper calls
this "symmetric linear"; it is affine (asymmetric) min-max.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adadfq_lab.errors import UserError
from adadfq_lab.machine.distributed import extremes
from adadfq_lab.student.learned_scales import LearnedGrid

Ste = Literal["identity", "clipped"]
ZeroPoint = Literal["rounded", "real"]
RangeRule = Literal["ema", "ema_gdfq", "minmax"]


@dataclass(frozen=True)
class BitWidths:
    """Bits of weights and activations; `BitWidths.parse("3w3a")`."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> "BitWidths":
        """Reads `3w3a`; raises UserError for anything but 2 to 8 bits each."""
        match = re.fullmatch(r"([2-8])w([2-8])a", text)
        if match is None:
            shown = text if text == text.strip() != "" else repr(text)
            raise UserError(f"{shown} is not a bit width; write weights and activations as in 3w3a, 2 to 8 bits each")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.weights}w{self.activations}a"


def quant_range(bits: int) -> tuple[int, int]:
    """(quant_min, quant_max) of signed `bits`-bit codes: -4, 3 for three bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def qparams(low: Tensor, high: Tensor, bits: int, *, zero_point: ZeroPoint = "rounded") -> tuple[Tensor, Tensor]:
    """scale and zero_point of the grid of `bits` bits over [low, high], elementwise.

        scale = (high - low) / (2^bits - 1),    zero_point = quant_min - low / scale

    zero_point: "rounded" to an integer, so that 0 lies on the grid where low <= 0 <= high, or "real", Eq. (18) to the letter,
    so that low and high do. A range of no width gets a scale of 1e-8 / (2^bits - 1).
    """
    scale = (high - low).clamp(min=1e-8) / (2**bits - 1)
    offset = low / scale
    return scale, quant_range(bits)[0] - (offset.round() if zero_point == "rounded" else offset)


def codes(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The integer codes of `x`, int32, in [-2^(bits-1), 2^(bits-1) - 1]; Eq. (18)."""
    quant_min, quant_max = quant_range(bits)
    return (x / scale + zero_point).round().clamp(quant_min, quant_max).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(q - zero_point) * scale: the real number that code `q` stands for."""
    return (q - zero_point) * scale


def quantize_linear(theta: Tensor, bits: int) -> Tensor:
    """Eq. (18) to the letter on a whole tensor: round((2^n - 1)(theta - min)/(max - min) - 2^(n-1)), int32.

    Computed in float64, however narrow or wide the range. A constant tensor, for which the equation is 0/0, gets the lowest
    code, an empty one no codes. Raises ValueError if an entry is infinite or NaN.
    """
    wide = theta.detach().to(torch.float32 if theta.device.type == "mps" else torch.float64)
    if not wide.isfinite().all():
        raise ValueError("theta has infinite or NaN entries, so its range has no grid")
    if not wide.numel():
        return wide.to(torch.int32)
    low, high = wide.aminmax()
    width = torch.where(high == low, 1, high - low)
    out: Tensor = ((2**bits - 1) * (wide - low) / width - 2 ** (bits - 1)).round().to(torch.int32)
    return out


class _FakeQuantize(torch.autograd.Function):
    """(clamp(round(x/scale + zero_point)) - zero_point) * scale; the gradient of x passes whole, or only inside the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, ste: Ste) -> Tensor:
        quant_min, quant_max = quant_range(bits)
        q = (x / scale).add_(zero_point)
        if ste == "clipped":
            ctx.save_for_backward((q >= quant_min - 0.5) & (q <= quant_max + 0.5))
        return q.round_().clamp_(quant_min, quant_max).sub_(zero_point).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad * ctx.saved_tensors[0] if ctx.saved_tensors else grad), None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, ste: Ste = "identity") -> Tensor:
    """`x` rounded to the grid of `bits` bits, as floats; `scale` and `zero_point` broadcast against `x`.

    ste: the straight-through gradient with respect to x: "identity" is 1 everywhere (as this line of work does), "clipped" is 0
    where x lies beyond the grid. scale and zero_point get no gradient.
    """
    out: Tensor = _FakeQuantize.apply(x, scale, zero_point, bits, ste)
    return out


def weight_qparams(weight: Tensor, bits: int, *, zero_point: ZeroPoint = "rounded") -> tuple[Tensor, Tensor]:
    """scale and zero_point of a weight `(out, ...)`, one per output channel, shaped `(out, 1, ...)`.

    The range is the channel's minimum and maximum, widened where necessary to contain 0: then zero_point is itself a code,
    which integer arithmetic needs. (Trained channels straddle 0 anyway.)
    """
    flat = weight.detach().permute(0, 2, 3, 1) if weight.dim() == 4 else weight.detach()  # channels last: then no copy
    low, high = flat.flatten(1).aminmax(dim=1)
    scale, zero = qparams(low.clamp(max=0), high.clamp(min=0), bits, zero_point=zero_point)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return scale.view(shape), zero.view(shape)


class _ReluQuantize(torch.autograd.Function):
    """min(relu(x), upper) and the grid over [0, high] in one function: the clamp at code 0 is the ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: int, upper: float | None, ste: Ste) -> Tensor:
        ctx.save_for_backward(x)
        ctx.upper, ctx.levels, ctx.scale = upper, levels, scale if ste == "clipped" else None
        q = (x / scale).round_().clamp_(0, levels)
        if upper is not None:  # matters only where the grid reaches beyond: observed ranges end at upper, "ema_gdfq" does not
            q.clamp_(max=(upper / scale).round_())
        return q.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, x, 0)
        if ctx.upper is not None:
            grad = grad * (x < ctx.upper)
        if ctx.scale is not None:
            grad = grad * (x <= (ctx.levels + 0.5) * ctx.scale)
        return grad, None, None, None, None


class Range(nn.Module):
    """The range [low, high] of an activation tensor, observed over batches.

    rule: "ema" is u <- 0.9 u + 0.1 m with the bias of its start divided out on reading; "ema_gdfq" divides the *state* at every
    step, as the released code of this family does, and so blows up some 3,900-fold before it settles after 150 batches;
    "minmax" is the smallest and largest value ever seen.
    """

    low: Tensor
    high: Tensor
    state: Tensor
    batches: Tensor

    def __init__(self, rule: RangeRule = "ema", momentum: float = 0.9) -> None:
        super().__init__()
        self.rule, self.momentum = rule, momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("state", torch.zeros(2))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, low: Tensor, high: Tensor) -> None:
        """Updates the range with the minimum and maximum of one more batch (0-dim tensors)."""
        seen = torch.stack((low, high)).to(self.state.dtype)
        self.batches += 1
        if self.rule == "minmax":
            first = self.batches == 1
            self.state[0] = torch.where(first, seen[0], torch.minimum(self.state[0], seen[0]))
            self.state[1] = torch.where(first, seen[1], torch.maximum(self.state[1], seen[1]))
            reading = self.state
        else:
            correction = 1 - self.momentum**self.batches
            self.state.mul_(self.momentum).add_(seen, alpha=1 - self.momentum)
            reading = self.state / correction
            if self.rule == "ema_gdfq":
                self.state.copy_(reading)
        self.low.copy_(reading[0])
        self.high.copy_(reading[1])

    def reset(self) -> None:
        """Forgets everything seen."""
        for buffer in self.buffers():
            buffer.zero_()


class QuantActivation(nn.Module):
    """Fake-quantises an activation tensor on one grid, static after observation; with `relu` it is the ReLU (or ReLU6) as well.

    While `observing` the range is updated from each batch before it is used, without a host synchronisation. After
    `learn_range` the grid starts from the range when observation ends: from then on its scale is a parameter.
    relu: "none", "relu" or "relu6". After a ReLU the grid starts at 0.
    """

    def __init__(self, bits: int, relu: str = "relu", *, rule: RangeRule = "ema", ste: Ste = "identity") -> None:
        super().__init__()
        self.bits, self.relu, self.ste = bits, relu, ste
        self.range = Range(rule)
        self.observing = True
        self.grid: LearnedGrid | None = None

    @property
    def levels(self) -> int:
        return int(2**self.bits - 1)

    def learn_range(self) -> None:
        """From now on the scale is a parameter; does nothing if it is already."""
        if self.grid is None:
            self.grid = LearnedGrid(*self.observed_qparams(), *quant_range(self.bits))

    def follow_range(self) -> None:
        """Sets a learned grid to the current range."""
        if self.grid is not None:
            self.grid.place(*self.observed_qparams())

    def qparams(self) -> tuple[Tensor, Tensor]:
        """scale and zero_point, 0-dim; the zero point of a ReLU's grid is quant_min."""
        return self.observed_qparams() if self.grid is None else self.grid.qparams()

    def observed_qparams(self) -> tuple[Tensor, Tensor]:
        """scale and zero_point of the grid over the observed range."""
        if self.relu != "none":
            scale = self.range.high.clamp(min=1e-8) / self.levels
            return scale, torch.full_like(scale, quant_range(self.bits)[0])
        return qparams(self.range.low.clamp(max=0), self.range.high.clamp(min=0), self.bits)

    def forward(self, x: Tensor) -> Tensor:
        upper = 6.0 if self.relu == "relu6" else None
        if self.observing and x.numel():  # an empty batch has no range
            low, high = x.detach().aminmax()
            if self.relu != "none":
                low, high = low.clamp(0, upper), high.clamp(0, upper)
            self.range.update(*extremes(low, high))
            self.follow_range()
        elif self.grid is not None:
            learned: Tensor = self.grid(x if upper is None else x.clamp(max=upper), from_zero=self.relu != "none")
            return learned
        scale, zero_point = self.qparams()
        if self.relu == "none":
            return fake_quantize(x, scale, zero_point, self.bits, ste=self.ste)
        out: Tensor = _ReluQuantize.apply(x, scale, self.levels, upper, self.ste)
        return out

    def extra_repr(self) -> str:
        return f"{self.bits} bits, {self.relu}, {self.ste} gradient"
