"""A ResNet-20 that this project did not write or train, quantised like any other."""

import os
from pathlib import Path

import pytest
import torch
from helpers.networks import ThirdPartyResNet20, randomize

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import CIFAR10_CLASSES, ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.networks import resnet20
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo

FOLDER = Path(os.environ.get("ADADFQ_DATA", "nowhere"))
WEIGHTS = FOLDER / "third_party_resnet20_cifar10.pt"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="needs third_party_resnet20_cifar10.pt in the folder that ADADFQ_DATA names"
)
needs_images = pytest.mark.skipif(
    not (FOLDER / "cifar10_test.npz").exists(), reason="needs cifar10_test.npz in the folder that ADADFQ_DATA names"
)


def third_party() -> Teacher:
    network = ThirdPartyResNet20()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Teacher(network, TeacherInfo("third party", "resnet20", "cifar10", CIFAR10_CLASSES, (3, 32, 32), mean, std, 91.73))


def thousand() -> ImageSet:
    """Every ninth of the test images: 1,000 of all classes."""
    data = load_data("cifar10")
    return ImageSet(data.name, data.split, data.images[::9][:1000], data.labels[::9][:1000], data.classes, "1,000")


def test_its_shape_quantises_with_20_layers_and_19_activations(generator):
    """Functional ReLUs and shortcuts without parameters: 19 convolutions, each with its batch norm folded in, one linear layer,
    19 activation quantisers; only the image and the pooled vector stay float."""
    network = randomize(ThirdPartyResNet20(), generator)
    Q = quantize(network, "3w3a")
    layers = Q.layers()
    assert len(layers) == 20
    assert sum(isinstance(layer, QuantConv2d) and layer.bn is not None for layer in layers.values()) == 19
    assert len(Q.activations()) == 19
    assert Q.left_float() == ["input of conv1 (x)", "input of linear (avg_pool2d)"]
    assert quantize(network, "3w3a", every_input=True).left_float() == []
    x = torch.randn(2, 3, 32, 32, generator=generator)
    assert len(WithStatistics(network)(x)[1]) == 19
    with torch.no_grad():
        expected, actual = network(x), quantize(network, "8w8a")(x)
    assert float((actual - expected).norm() / expected.norm()) < 0.1


def test_its_shape_differs_from_the_papers_by_two_projections():
    """Without the two 1x1 projections and their batch norms it has 2,752 parameters fewer than the paper's 272,474."""
    with torch.device("meta"):
        ours, theirs = (sum(p.numel() for p in network.parameters()) for network in (resnet20(), ThirdPartyResNet20()))
    assert ours - theirs == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64) == 2752


@needs_weights
@needs_images
def test_float_accuracy_is_the_published_one():
    """The network written from its description scores 91.73 %: the interval on 1,000 of the 9,979 images contains it."""
    P = third_party()
    measured = accuracy(P, thousand(), P.normalize)
    assert measured.images == 1000
    assert measured.low <= 91.73 <= measured.high


@pytest.mark.slow
@needs_weights
@needs_images
def test_float_accuracy_on_all_images_is_the_published_one():
    """91.73 % of 9,979 images, to the second digit."""
    P = third_party()
    measured = accuracy(P, load_data("cifar10"), P.normalize)
    assert measured.images == 9979
    assert measured.top1 == pytest.approx(91.73, abs=0.025)


@needs_weights
@needs_images
def test_eight_bits_cost_little_and_three_bits_cost_much():
    """With ranges from 200 other images: 8w8a is within 2 points of float, 3w3a at least 10 below, on 400 images."""
    P, data = third_party(), load_data("cifar10")
    some = ImageSet(data.name, data.split, data.images[::24][:400], data.labels[::24][:400], data.classes, "400")
    found = {}
    for bits in ("8w8a", "3w3a"):
        Q = quantize(P, bits)
        with torch.no_grad():
            Q(P.normalize(data.images[1::49][:200]))
        found[bits] = accuracy(Q, some, P.normalize).top1
    found["float"] = accuracy(P, some, P.normalize).top1
    assert abs(found["8w8a"] - found["float"]) <= 2
    assert found["3w3a"] < found["float"] - 10
