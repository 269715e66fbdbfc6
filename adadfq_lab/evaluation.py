"""How good a network is on images that no decision was made on: top-1 with an interval; and a game's Q, on G's images too."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.data import ImageSet
from adadfq_lab.devices import to_device
from adadfq_lab.game import Game
from adadfq_lab.student import Student


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

    batch: images at a time; 0 for 100 small ones, or fewer large ones (20 of ImageNet's): a CPU's kernel stays small, and a GPU
           takes ten times as many

    A student's activation ranges stay as they are: what is measured must not calibrate.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = math.prod(data.images.shape[2:])
    most = 10 if device.type == "cuda" else 1
    was_training = network.training
    network.eval()
    hits = []  # counted on the device: the host waits for it once, at the end
    with network.frozen() if isinstance(network, Student) else nullcontext():
        for images, labels in data.batches(batch or most * max(1, min(100, 2**20 // pixels))):
            predicted = network(normalize(to_device(images, device))).argmax(1)
            hits.append((predicted == to_device(labels, predicted.device)).sum())
    correct = sum(hit.item() for hit in hits)
    network.train(was_training)
    low, high = wilson(int(correct), len(data))
    return Accuracy(100 * int(correct) / len(data), low, high, len(data))


@torch.no_grad()
def probe(game: Game, data: ImageSet, *, generated: int = 64) -> dict[str, float]:
    """How good Q is now, changing nothing: on `data` and on generated images it has not been trained on.

    test.accuracy: top-1 on `data`, percent; test.loss: its cross-entropy there, nats; test.agreement: share of `data` on
    which Q says what P says; train.loss: its cross-entropy with the classes asked of G, on `generated` images of G, nats
    """
    with game.student.frozen():
        logits, teacher_logits = [], []
        for images, _ in data.batches(100):
            x = game.teacher.normalize(images)
            logits.append(game.student(x))
            teacher_logits.append(game.teacher(x))
        z_q, z_p = torch.cat(logits), torch.cat(teacher_logits)
        labels = data.labels.to(z_q.device)
        y = (torch.arange(generated) % game.classes).to(game.device)
        batches = y.split(game.schedule.batch)
        made = torch.cat([game.student(game.generate(one, seed=i)) for i, one in enumerate(batches)])
    predicted = z_q.argmax(1)
    return {
        "test.accuracy": 100 * float((predicted == labels).float().mean()),
        "test.loss": float(F.cross_entropy(z_q, labels)),
        "test.agreement": float((predicted == z_p.argmax(1)).float().mean()),
        "train.loss": float(F.cross_entropy(made, y)),
    }
