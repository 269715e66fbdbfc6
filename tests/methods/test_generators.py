"""Generators: their size, the doubling convolution against its definition, and the images' moments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adadfq_lab.methods.generators import (
    ClassNormGenerator,
    ConditionalBatchNorm2d,
    Generator,
    LabelGenerator,
    UpsampleConv2d,
    conditional_generator,
    cropped,
)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("classes", "shape", "kind", "count"),
    [
        (10, (3, 32, 32), LabelGenerator, 1_052_139),
        (100, (3, 32, 32), LabelGenerator, 1_061_139),
        (1000, (3, 224, 224), ClassNormGenerator, 41_405_315),
    ],
)
def test_parameter_counts_of_the_papers_generators(classes, shape, kind, count):
    """CIFAR-10: 1,052,139; CIFAR-100: 1,061,139; ImageNet: 41,405,315, of which 40.5 million are one linear layer's."""
    with torch.device("meta"):
        generator = conditional_generator(classes, shape)
    assert type(generator) is kind
    assert parameters(generator) == count


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (5, 3), (8, 8)])
def test_doubling_convolution_is_upsampling_then_convolution(height, width, kernel, generator):
    """UpsampleConv2d(x) = conv2d(nearest_x2(x)) in float64: values, and gradients of x, weight and bias."""
    layer = UpsampleConv2d(3, 5, kernel).double()
    x = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=kernel // 2)
    actual = layer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(actual, (x, layer.weight, layer.bias), upstream)
    theirs = torch.autograd.grad(expected, (x, layer.weight, layer.bias), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_doubling_convolution_stores_the_kernel_it_stands_for():
    """Its state dict is that of the 3x3 convolution, so that weights from elsewhere fit."""
    assert set(UpsampleConv2d(3, 5).state_dict()) == {"weight", "bias"}
    assert UpsampleConv2d(3, 5).weight.shape == (5, 3, 3, 3)


@pytest.mark.parametrize("kind", [LabelGenerator, ClassNormGenerator])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 8, 20), (3, 30, 33), (1, 5, 7)])
def test_a_batch_of_images_has_zero_mean_and_unit_variance(kind, shape, generator):
    """Images are (N, C, H, W) for any C and any sides; each channel of a batch has mean 0 and variance 1."""
    torch.manual_seed(0)
    images = kind(7, shape)(torch.randn(16, 100, generator=generator), torch.arange(16) % 7)
    assert images.shape == (16, *shape)
    var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(shape[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, torch.ones(shape[0]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", [LabelGenerator, ClassNormGenerator])
def test_every_parameter_has_a_gradient(kind, generator):
    """No part of a generator is left out of the image: a random functional of it reaches every parameter."""
    torch.manual_seed(0)
    made = kind(4, (3, 8, 8))
    images = made(torch.randn(8, made.latent, generator=generator), torch.arange(8) % 4)
    (images * torch.randn(images.shape, generator=generator)).sum().backward()
    # a constant added before a batch norm changes nothing but by rounding: those biases are exempt
    exempt = {"up1.bias", "up2.bias", "linear.bias"}
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert name in exempt or float(parameter.grad.abs().max()) > 1e-6, name


def test_the_label_multiplies_the_latent(generator):
    """In LabelGenerator the first map is linear(embedding(y) * z): doubling a class's embedding doubles its latents."""
    torch.manual_seed(0)
    made = LabelGenerator(3, (1, 8, 8)).eval()
    z, y = torch.randn(6, 100, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    doubled = z.clone()
    doubled[y == 1] *= 2
    expected = made(doubled, y)
    with torch.no_grad():
        made.label.weight[1] *= 2
    torch.testing.assert_close(made(z, y), expected, rtol=1e-5, atol=1e-5)


def test_conditional_batch_norm_by_hand():
    """1, 3, 5, 7 have mean 4 and variance 5: -3, -1, 1, 3 over sqrt 5, times the class's scale plus its shift."""
    norm = ConditionalBatchNorm2d(1, 2, eps=1e-8)
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)
    normal = torch.tensor([[-3.0, -1.0], [1.0, 3.0]]).view(2, 1, 1, 2) / 5**0.5
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(norm(x, labels), normal)
    with torch.no_grad():
        norm.scale.weight.copy_(torch.tensor([[2.0], [3.0]]))
        norm.shift.weight.copy_(torch.tensor([[10.0], [20.0]]))
    expected = torch.stack((2 * normal[0] + 10, 3 * normal[1] + 20))
    torch.testing.assert_close(norm(x, labels), expected)


@pytest.mark.parametrize("kind", [LabelGenerator, ClassNormGenerator])
def test_eps_is_that_of_the_two_inner_batch_norms(kind):
    """The released code's 0.8 goes to the two batch norms between the convolutions, and to no other."""
    made = kind(3, (1, 8, 8), eps=0.8)
    found = {name: module.eps for name, module in made.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name for name, eps in found.items() if eps == 0.8} == {n for n in found if n.startswith(("norm1", "norm2"))}
    assert set(found.values()) == {0.8, 1e-5}


def test_sides_that_four_does_not_divide_are_the_middle_of_larger_ones(generator):
    """30 x 33 images are cut from 32 x 36 maps: one row above and below, one column left and two right."""
    x = torch.randn(2, 3, 32, 36, generator=generator)
    assert torch.equal(cropped(x, (3, 30, 33)), x[:, :, 1:31, 1:34])
    assert cropped(x, (3, 32, 36)) is x
    assert conditional_generator(10, (1, 225, 299)).base == (57, 75)


def test_label_generator_up_to_64_pixels():
    """Images of up to 64 pixels a side get the label generator, larger ones the class-norm generator."""
    with torch.device("meta"):
        assert isinstance(conditional_generator(10, (3, 64, 64)), LabelGenerator)
        assert isinstance(conditional_generator(10, (3, 64, 68)), ClassNormGenerator)


def test_a_generator_without_forward_says_so():
    """The class that names the interface draws nothing itself."""
    with pytest.raises(TypeError, match="Generator defines no forward"):
        Generator()(torch.zeros(1, 1), torch.zeros(1))
