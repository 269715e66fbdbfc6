"""Quantised layers: a convolution (with the batch norm that follows it) and a linear layer whose weights live on a grid.

The float weight is the parameter; every forward rounds it to `bits` bits per output channel (gradient straight through). A
batch norm in eval mode is an affine map per output channel, so it is multiplied into the rounded weight and the bias: one
convolution, no second pass over the activations, and gradients to the weight, gamma and beta all the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.student.learned_scales import LearnedGrid
from adadfq_lab.student.quantizer import BitWidths, Ste, ZeroPoint, codes, fake_quantize, quant_range, weight_qparams


class QuantLayer(nn.Module):
    """What both layers share: the rounded weight and the integers behind it."""

    weight: Tensor

    def __init__(self, bits: int, ste: Ste, zero_point: ZeroPoint) -> None:
        super().__init__()
        self.bits, self.ste, self.zero_point_rule = bits, ste, zero_point
        self.grid: LearnedGrid | None = None

    def learn_range(self) -> None:
        """From now on the scales are a parameter, one per output channel; does nothing if they are already."""
        if self.grid is None:
            self.grid = LearnedGrid(*self.qparams(), *quant_range(self.bits))

    def qparams(self) -> tuple[Tensor, Tensor]:
        """scale and zero_point of the weight, `(out, 1, ...)`: of its minimum and maximum as they are now, or learned."""
        if self.grid is not None:
            return self.grid.qparams()
        return weight_qparams(self.weight, self.bits, zero_point=self.zero_point_rule)

    def integer_weight(self) -> Tensor:
        """The codes of the weight, int32, in the weight's shape."""
        return codes(self.weight.detach(), *self.qparams(), self.bits)

    def quantized_weight(self) -> Tensor:
        """The weight rounded to its grid, as floats."""
        if self.grid is not None:
            learned: Tensor = self.grid(self.weight)
            return learned
        return fake_quantize(self.weight, *self.qparams(), self.bits, ste=self.ste)


class QuantConv2d(QuantLayer):
    """conv2d with a weight of `bits` bits, then the batch norm `bn`, if there is one."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, bits: int, ste: Ste, zero_point: ZeroPoint) -> None:
        super().__init__(bits, ste, zero_point)
        self.weight, self.bias, self.bn = conv.weight, conv.bias, bn
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding, self.padding_mode, self.kernel_size = conv.padding, conv.padding_mode, conv.kernel_size
        self._pad = conv._reversed_padding_repeated_twice

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(a, b), each `(out,)`, of the batch norm in eval mode: bn(u) = a u + b; None if there is none to fold."""
        bn = self.bn
        if bn is None or bn.training or bn.running_mean is None or bn.running_var is None:
            return None
        a = torch.rsqrt(bn.running_var + bn.eps)
        if bn.weight is not None:
            a = a * bn.weight
        b = -bn.running_mean * a
        return a, b if bn.bias is None else b + bn.bias

    @property
    def _skips_pixels(self) -> bool:
        """Whether it is a 1x1 convolution that skips pixels and has fewer than 16 input channels, as a shortcut may.

        oneDNN writes past its memory in the gradient of its weight (github.com/uxlfoundation/oneDNN/issues/6035): a crash, or a
        wrong gradient. Without those pixels the stride is 1, and it does not.
        """
        one = self.weight.shape[2:] == (1, 1) and self.weight.shape[1] < 16 and self.padding_mode == "zeros"
        return one and not any(self._pad) and max(self.stride) > 1

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone, with the padding this layer has."""
        if self.padding_mode != "zeros":
            x = F.pad(x, self._pad, mode=self.padding_mode)
            return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        if self._skips_pixels:
            return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], weight, bias, groups=self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        weight, affine = self.quantized_weight(), self.affine()
        bias: Tensor | None = self.bias
        if affine is None:
            out = self.convolve(x, weight, bias)
            return out if self.bn is None else self.bn(out)
        a, b = affine
        return self.convolve(x, weight * a.view(-1, 1, 1, 1), b if bias is None else torch.addcmul(b, bias, a))

    def extra_repr(self) -> str:
        out, per_group = self.weight.shape[:2]
        return f"{per_group * self.groups}, {out}, {tuple(self.kernel_size)}, stride={self.stride}, {self.bits} bits"


class QuantLinear(QuantLayer):
    """linear with a weight of `bits` bits; the bias stays float."""

    def __init__(self, linear: nn.Linear, bits: int, ste: Ste, zero_point: ZeroPoint) -> None:
        super().__init__(bits, ste, zero_point)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {self.bits} bits"


def quantized_layer(
    module: nn.Conv2d | nn.Linear, bn: nn.BatchNorm2d | None, bits: BitWidths, ste: Ste, zero_point: ZeroPoint
) -> QuantLayer:
    """The quantised counterpart of a convolution (and the batch norm after it) or a linear layer."""
    if isinstance(module, nn.Conv2d):
        return QuantConv2d(module, bn, bits.weights, ste, zero_point)
    return QuantLinear(module, bits.weights, ste, zero_point)
