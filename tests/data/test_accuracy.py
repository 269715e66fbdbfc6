"""Accuracy and its interval, against hand-worked proportions and the equation that defines the interval."""

import math

import pytest
import torch
from helpers.networks import NoNorm, randomize
from torch import Tensor, nn

from adadfq_lab.data.accuracy import Accuracy, accuracy, wilson
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.student.quantize import quantize

Z = 1.959963984540054


def images_of(labels: list[int], shape: tuple[int, int, int] = (1, 2, 2)) -> ImageSet:
    """Images whose every pixel is 10 times their position."""
    pixels = torch.arange(len(labels), dtype=torch.uint8).mul(10).view(-1, 1, 1, 1).expand(-1, *shape)
    return ImageSet("made", "test", pixels.contiguous(), torch.tensor(labels), tuple("abcde"), "made up")


class Nearest(nn.Module):
    """Says class 1 for pixels of 30 or more, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) >= 30
        return torch.stack((~bright, bright), 1).float()


@pytest.mark.parametrize(
    ("correct", "images", "expected"),
    [
        (5, 10, (23.66, 76.34)),
        (0, 10, (0.0, 100 * Z**2 / (10 + Z**2))),
        (10, 10, (100 * 10 / (10 + Z**2), 100.0)),
        (9397, 10_000, (93.49, 94.42)),
    ],
)
def test_wilson_interval_by_hand(correct, images, expected):
    """5 of 10: [23.66, 76.34] %; none of 10 ends at z^2/(10 + z^2) = 27.75 %; all of 10 begins at 72.25 %."""
    assert wilson(correct, images) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("images", [1, 7, 2000])
def test_wilson_ends_are_z_deviations_away(images):
    """Each end pi satisfies |p - pi| = z sqrt(pi (1 - pi) / n), except an end at 0 or 100 %."""
    for correct in {0, 1, images // 3, images - 1, images}:
        for end in wilson(correct, images):
            pi = end / 100
            if 1e-12 < pi < 1 - 1e-12:
                assert abs(correct / images - pi) == pytest.approx(Z * math.sqrt(pi * (1 - pi) / images), rel=1e-9)
        low, high = wilson(correct, images)
        assert 0 <= low <= 100 * correct / images + 1e-12
        assert 100 * correct / images - 1e-12 <= high <= 100
        assert high > low


def test_wilson_widens_with_z():
    """z = 0 has no width; z = 1 (68 %) is inside z = 1.96 (95 %)."""
    assert wilson(3, 10, 0.0) == pytest.approx((30, 30))
    narrow, wide = wilson(3, 10, 1.0), wilson(3, 10)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_accuracy_counts_the_correct(batch):
    """Pixels 0 to 60 are called 0001111; the labels 0011110 make it 5 of 7 right, in batches of any size."""
    found = accuracy(Nearest(), images_of([0, 0, 1, 1, 1, 1, 0]), lambda x: x.float(), batch)
    assert found == Accuracy(500 / 7, *wilson(5, 7), 7)
    assert str(found) == "71.43 % [35.89, 91.78]"


def test_accuracy_normalises_its_images():
    """What the network sees went through `normalize`: tenfold darker images are all called 0."""
    assert accuracy(Nearest(), images_of([0] * 7), lambda x: x.float() / 10).top1 == 100


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_is_measured_in_eval_mode_and_gives_the_mode_back(training):
    """The network is in eval mode while it is measured, and afterwards as it was; no graph is recorded."""
    seen = []

    class Notes(Nearest):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    network = Notes().train(training)
    accuracy(network, images_of([0, 1]), lambda x: x.float())
    assert seen == [(False, False)]
    assert network.training is training


def test_measuring_a_student_does_not_calibrate_it(generator):
    """A student that still observes keeps its activation ranges: test images decide nothing. It observes again afterwards."""
    student = quantize(randomize(NoNorm(), generator), "3w3a")
    student(torch.randn(2, 4, 8, 8, generator=generator))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    accuracy(student, images_of([0, 1, 2], (4, 8, 8)), lambda x: x.float())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.observing
