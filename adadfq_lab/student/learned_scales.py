"""Learned Step Size Quantization (LSQ): the scale of a grid is a parameter, with a straight-through gradient of its own.

An observed range is one guess for all time. Here the student's loss moves the scale: values that the grid clips pull it up, the
rounding of those inside pulls it either way. The grid stays what it was, of n bits, uniform and static; only its scale is found
in another way, so everything that reads a scale and a zero point goes on as before.

Esser et al., Learned Step Size Quantization, ICLR 2020; there grids are symmetric, here they have a zero point, which stays.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST = 1e-8
"""Lower limit of a learned scale; a negative scale would mirror the grid."""


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """sum a * b, in the shape of `like`: over everything if it is 0-dim, else over all but the first dimension."""
    product = a * b
    return product.flatten(1).sum(1).view_as(like) if like.dim() else product.sum(dtype=like.dtype)


class _LearnedQuantize(torch.autograd.Function):
    """Fake quantization with the gradients of `learned_quantize`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, lowest: int, highest: int) -> Tensor:
        scale = scale.clamp(min=SMALLEST)
        v = x / scale
        if zero_point is not None:
            v.add_(zero_point)
        q = v.round().clamp_(lowest, highest)
        if zero_point is not None:
            q.sub_(zero_point)
        out = q.mul_(scale)
        ctx.save_for_backward(v, out, scale, zero_point)
        ctx.lowest, ctx.highest, ctx.share = lowest, highest, (v[0].numel() * highest) ** -0.5
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, out, scale, zero_point = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, v, ctx.lowest, ctx.highest)  # grad where lowest < v < highest, else 0
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # x_hat/scale is round(v) - zero_point, or the end that clips; where v is inside, x/scale = v - zero_point goes off.
            straight = _sum_of_products(inside, v if zero_point is None else v - zero_point, scale)
            grad_scale = (_sum_of_products(grad, out, scale) / scale - straight) * ctx.share
        return inside, grad_scale, None, None, None


def learned_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, lowest: int, highest: int) -> Tensor:
    """`x` rounded to the grid of the codes lowest .. highest, as floats, with gradients to `x` and to `scale`.

        v = x / scale + zero_point,   x_hat = (clamp(round(v), lowest, highest) - zero_point) * scale

                                d x_hat / d scale       d x_hat / d x
        v <= lowest             lowest - zero_point     0
        lowest < v < highest    round(v) - v            1
        v >= highest            highest - zero_point    0

    The gradient of the scale is multiplied by 1/sqrt(M * highest), M the number of values in one sample or output channel,
    `x[0].numel()`, so that a step changes it by about the share by which it changes weights.

    x:          `(N, ...)`
    scale:      0-dim, or one per x[i]: `(N, 1, ...)`; at least 1e-8 is used
    zero_point: integers of the shape of `scale`, constant; None for 0: with lowest = 0, the clamp is then a ReLU

    LSQ, Eqs. (1) to (3) and section 2.2.
    """
    out: Tensor = _LearnedQuantize.apply(x, scale, zero_point, lowest, highest)
    return out


class LearnedGrid(nn.Module):
    """A grid of the codes lowest .. highest whose scale is a parameter and whose zero point stays what it was placed with."""

    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest
        self.scale = nn.Parameter(scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    @torch.no_grad()
    def place(self, scale: Tensor, zero_point: Tensor) -> None:
        """Sets the grid from which learning starts."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """scale and zero_point as they are now, without gradient."""
        return self.scale.detach().clamp(min=SMALLEST), self.zero_point

    def forward(self, x: Tensor, *, from_zero: bool = False) -> Tensor:
        """`x` on this grid; `from_zero` if it starts at 0 (zero_point = lowest) and so clips as a ReLU does."""
        if from_zero:
            return learned_quantize(x, self.scale, None, 0, self.highest - self.lowest)
        return learned_quantize(x, self.scale, self.zero_point, self.lowest, self.highest)
