"""Quantised layers against integer arithmetic, and the folded batch norm against batch norm."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import randomize
from torch import Tensor, nn

from adadfq_lab.student.layers import QuantConv2d, QuantLinear, quantized_layer
from adadfq_lab.student.quantizer import BitWidths, QuantActivation, codes, dequantize, quant_range

SHAPES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"groups": 4},
    {"groups": 2, "dilation": 2, "padding": (2, 1)},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": "same"},
]


def pair(generator: torch.Generator, bits: int = 3, norm: dict[str, Any] | None = None, **options: Any) -> tuple[Any, ...]:
    """conv, bn (None for norm=None), the quantised layer made of both, and an input; all float64."""
    conv = nn.Conv2d(4, 8, 3, **options)
    bn = None if norm is None else nn.BatchNorm2d(8, **norm)
    both = randomize(nn.ModuleList([m for m in (conv, bn) if m is not None]), generator).double()
    layer = QuantConv2d(*(both[0], bn), bits, "identity", "rounded")
    return conv, bn, layer, torch.randn(3, 4, 7, 6, generator=generator, dtype=torch.float64, requires_grad=True)


def rounded(weight: Tensor, layer: QuantConv2d | QuantLinear) -> Tensor:
    """The weight on its grid by torch's operator; its gradient goes straight through."""
    scale, zero_point = (q.flatten() for q in layer.qparams())
    grid = torch.fake_quantize_per_channel_affine(
        weight.detach(), scale.float(), zero_point.float(), 0, *quant_range(layer.bits)
    )
    return weight + (grid - weight).detach()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_folded_convolution_is_batch_norm_of_the_convolution(options, affine, generator):
    """conv(x, a W_q) + b equals bn(conv(x, W_q)) in eval mode, and so do the gradients of x, W, bias, gamma and beta."""
    conv, bn, layer, x = pair(generator, norm={"affine": affine}, **options)
    parameters = [x, *conv.parameters(), *bn.parameters()]
    expected = bn(conv._conv_forward(x, rounded(conv.weight, layer), conv.bias))
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    theirs = torch.autograd.grad(expected, parameters, upstream)
    actual = layer(x)
    ours = torch.autograd.grad(actual, parameters, upstream)
    # scale passes through float32 in torch's operator, hence not 1e-12
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_folding_is_exact(options, generator):
    """With the very same rounded weight, folded and unfolded agree to 1e-12 in float64, values and gradients."""
    conv, bn, layer, x = pair(generator, norm={}, **options)
    weight = layer.quantized_weight()
    parameters = [x, *conv.parameters(), *bn.parameters()]
    expected = bn(conv._conv_forward(x, weight, conv.bias))
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    theirs = torch.autograd.grad(expected, parameters, upstream)
    actual = layer(x)
    ours = torch.autograd.grad(actual, parameters, upstream)
    for one, other in zip((actual, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_batch_norm_in_training_mode_is_not_folded(generator):
    """While its batch norm trains, the layer normalises by the batch and updates the running statistics, once."""
    conv, bn, layer, x = pair(generator, norm={})
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    bn.train()
    u = conv._conv_forward(x, layer.quantized_weight(), conv.bias)
    expected = F.batch_norm(u, mean, var, bn.weight, bn.bias, training=True, momentum=0.1, eps=bn.eps)
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(bn.running_mean, mean)
    torch.testing.assert_close(bn.running_var, var)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "bias": False}, {"groups": 4, "padding": "same"}], ids=str)
def test_fake_quantised_convolution_is_integer_arithmetic(options, bits, generator):
    """bn(conv) of a student = scale_x scale_w (sum of int32 (q_x - z_x)(q_w - z_w)) a + b, for 2 to 8 bits."""
    _, _, layer, x = pair(generator, bits, norm={}, **options)
    activation = QuantActivation(bits).double()
    y = activation(x)
    scale_x, zero_x = activation.qparams()
    q_x, q_w = codes(torch.relu(x.detach()), scale_x, zero_x, bits), layer.integer_weight()
    assert torch.equal(dequantize(q_x, scale_x, zero_x), y)
    scale_w, zero_w = layer.qparams()
    assert torch.equal(zero_w, zero_w.round())
    accumulators = layer.convolve(q_x - int(zero_x), q_w - zero_w.to(torch.int32), None)
    assert accumulators.dtype == torch.int32
    u = accumulators * (scale_x * scale_w.view(1, -1, 1, 1))
    if layer.bias is not None:
        u = u + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(y), layer.bn(u), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quantised_linear_layer_is_integer_arithmetic(bits, generator):
    """W_q x + bias = scale_x scale_w (int32 product) + bias; the bias itself stays float."""
    linear = randomize(nn.Linear(20, 6), generator).double()
    layer = QuantLinear(linear, bits, "identity", "rounded")
    activation = QuantActivation(bits).double()
    x = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    y = activation(x)
    scale_x, zero_x = activation.qparams()
    scale_w, zero_w = layer.qparams()
    q_x, q_w = codes(torch.relu(x), scale_x, zero_x, bits), layer.integer_weight()
    accumulators = (q_x - int(zero_x)) @ (q_w - zero_w.to(torch.int32)).T
    assert accumulators.dtype == torch.int32
    expected = accumulators * (scale_x * scale_w.view(1, -1)) + linear.bias
    torch.testing.assert_close(layer(y), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("zero_point", ["rounded", "real"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_each_output_channel_has_its_own_grid(bits, zero_point, generator):
    """At most 2^n values in a row of the weight; the codes stand for the rounded weight bit for bit, and span the n bits."""
    conv = randomize(nn.Conv2d(16, 5, 5), generator)
    layer = QuantConv2d(conv, None, bits, "identity", zero_point)
    weight, q = layer.quantized_weight(), layer.integer_weight()
    assert torch.equal(dequantize(q, *layer.qparams()), weight)
    low, high = quant_range(bits)
    for row, codes_of_row in zip(weight, q, strict=True):
        assert len(row.unique()) <= 2**bits
        assert (int(codes_of_row.min()), int(codes_of_row.max())) == (low, high)


def test_min_max_weights_are_never_clipped(generator):
    """A channel's range is its own minimum and maximum, so the identity and the clipped gradient are the same."""
    conv = randomize(nn.Conv2d(16, 32, 3), generator)
    x = torch.randn(2, 16, 5, 5, generator=generator)
    gradients = []
    for ste in ("identity", "clipped"):
        layer = QuantConv2d(conv, None, 3, ste, "rounded")
        gradients += torch.autograd.grad(layer(x).square().sum(), conv.weight)
    assert torch.equal(*gradients)


def test_rounding_follows_the_weight(generator):
    """The grid is taken from the current weight at every forward: twice the weight, twice the output."""
    conv, _, layer, x = pair(generator, bias=False)
    before = layer(x)
    with torch.no_grad():
        conv.weight.mul_(2)
    torch.testing.assert_close(layer(x), 2 * before, rtol=1e-12, atol=1e-12)


def test_the_right_layer_for_each_module():
    """quantized_layer makes QuantConv2d of a convolution and QuantLinear of a linear layer, with the bits of the weights."""
    bits = BitWidths(4, 3)
    layers = [quantized_layer(module, None, bits, "identity", "rounded") for module in (nn.Conv2d(2, 3, 1), nn.Linear(2, 3))]
    assert [type(layer) for layer in layers] == [QuantConv2d, QuantLinear]
    assert [layer.bits for layer in layers] == [4, 4]
    assert "2, 3" in str(layers[0]) and "4 bits" in str(layers[0])
    assert "2, 3" in str(layers[1]) and "4 bits" in str(layers[1])


@pytest.mark.parametrize("inside", [1, 3, 4, 12])
def test_a_narrow_shortcut_that_skips_pixels_has_the_gradient_of_its_definition(inside, generator):
    """A 1x1 convolution of stride 2 in float32, channels last: oneDNN's own gradient is wrong on AVX2, or crashes."""
    layer = QuantConv2d(nn.Conv2d(inside, 8, 1, stride=2), None, 8, "identity", "rounded")
    x = torch.randn(8, inside, 15, 14, generator=generator)
    out = layer(x.contiguous(memory_format=torch.channels_last))
    truth = torch.einsum("nchw,oc->nohw", x[:, :, ::2, ::2], layer.quantized_weight()[:, :, 0, 0]) + layer.bias.view(-1, 1, 1)
    assert torch.allclose(out, truth, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.square().sum(), layer.weight)
    expected = 2 * torch.einsum("nohw,nchw->oc", truth.detach(), x[:, :, ::2, ::2])
    assert torch.allclose(gradient[:, :, 0, 0], expected, rtol=1e-4, atol=1e-3)
