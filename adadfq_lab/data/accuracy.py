"""Top-1 accuracy with an interval: how good a network is on images that no decision was made on."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.machine.devices import to_device


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent with its 95 % Wilson interval, over `images` images."""

    top1: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.top1:.2f} % [{self.low:.2f}, {self.high:.2f}]"


def wilson(correct: int, images: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of a proportion, in percent; `z` is the normal quantile (95 % by default).

    Unlike the textbook p +- z sqrt(p(1-p)/n) it stays within [0, 100] and is not of width 0 at either end.
    """
    p, n = correct / images, images
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageSet, normalize: Callable[[Tensor], Tensor], batch: int = 0) -> Accuracy:
    """Top-1 of `network` in eval mode on `data`; `normalize` turns uint8 images into its input. Restores the mode.

    batch: images at a time; 0 for 100 small ones, or fewer large ones (20 of ImageNet's): a CPU needs little memory, and a GPU
           takes ten times as many

    A student's activation ranges stay as they are, since measuring must not calibrate. Raises UserError for images without
    labels, and for a student whose ranges have not been observed.
    """
    if not data.labelled:
        raise UserError(f"accuracy needs labels, and {data.name} has none; sort the images into one folder a class")
    hits = [
        predicted == to_device(labels, predicted.device) for predicted, labels in _predictions(network, data, normalize, batch)
    ]
    return share(hits)


@torch.no_grad()
def agreement(
    network: nn.Module, teacher: nn.Module, data: ImageSet, normalize: Callable[[Tensor], Tensor], batch: int = 0
) -> Accuracy:
    """Percent of the images for which `network` predicts the class that `teacher` predicts; labels are not used."""
    both = (_predictions(one, data, normalize, batch) for one in (network, teacher))
    return share([own == theirs for (own, _), (theirs, _) in zip(*both, strict=True)])


def share(hits: list[Tensor]) -> Accuracy:
    """The percentage of True in `hits`, and its interval."""
    total = sum(map(len, hits))
    correct = int(sum(hit.sum().item() for hit in hits))  # the host waits for the device once, at the end
    low, high = wilson(correct, total)
    return Accuracy(100 * correct / total, low, high, total)


def _predictions(
    network: nn.Module, data: ImageSet, normalize: Callable[[Tensor], Tensor], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(predicted classes, labels), a batch at a time, in eval mode."""
    if line := getattr(network, "unobserved", ""):  # only a student has it
        raise UserError(line)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = math.prod(data.images.shape[2:])
    most = 10 if device.type == "cuda" else 1
    was_training = network.training
    network.eval()
    with getattr(network, "frozen", nullcontext)():  # only a student has it
        for images, labels in data.batches(batch or most * max(1, min(100, 2**20 // pixels))):
            yield network(normalize(to_device(images, device))).argmax(1), labels
    network.train(was_training)
