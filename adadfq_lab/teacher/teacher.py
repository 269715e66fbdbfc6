"""Teachers P: pre-trained, frozen, in eval mode, and aware of what they were trained on.

A teacher is its network plus the facts without which its logits mean nothing: classes, input shape, normalisation, measured
accuracy, and the sha256 of its weights.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import digest
from adadfq_lab.machine.torch_state import usual_torch


@dataclass(frozen=True)
class TeacherInfo:
    """What a teacher knows about itself.

    input_shape: (C, H, W) of the images it takes
    mean, std:   per channel, of pixel values scaled to [0, 1]
    top1:        percent of the test images of `evaluated_on` that it classifies correctly, None if never measured
    recipe:      how it was trained, in words that `adadfq train-teacher` would repeat
    graph:       the network's architecture, as `architecture.describe` writes it; empty if `network` is a name that
                 `build_network` knows
    """

    name: str
    network: str
    data: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top1: float | None = None
    evaluated_on: str = ""
    seed: int | None = None
    recipe: str = ""
    sha256: str = ""
    graph: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or min(self.input_shape) < 1:
            raise UserError(
                f"a teacher tells two classes or more apart, in images of a pixel or more, "
                f"not {len(self.classes)} in {self.input_shape}"
            )
        if len(self.input_shape) != 3 or {len(self.mean), len(self.std)} != {self.input_shape[0]} or min(self.std) <= 0:
            raise UserError(
                f"a teacher takes images of a shape (C, H, W), and has C means and C deviations above 0, "
                f"not {self.input_shape}, mean {self.mean} and std {self.std}"
            )

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON, as files have them; without `graph` if that is empty."""
        plain = dataclasses.asdict(self)
        if not self.graph:
            del plain["graph"]
        return plain


class Teacher(nn.Module):
    """P of the paper: maps normalised images `(N, C, H, W)` to logits `(N, classes)`; frozen and always in eval mode."""

    mean: Tensor
    std: Tensor

    @usual_torch()
    def __init__(self, network: nn.Module, info: TeacherInfo) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.info = info
        channels = info.input_shape[0]
        self.register_buffer("mean", torch.tensor(info.mean).view(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, channels, 1, 1), persistent=False)
        self.training = False

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher does not train: stays in eval mode whatever is asked."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images `(N, C, H, W)` to what the network takes: float, zero mean, unit deviation, channels last."""
        return normalize(images, self.mean, self.std)

    def denormalize(self, x: Tensor) -> Tensor:
        """Normalised images back to pixel values, clipped to [0, 1]."""
        return (x * self.std + self.mean).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images/255 - mean)/std for uint8 `images`, laid out channels last."""
    x = images.to(mean.device, non_blocking=True).float() / 255
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def wrap_teacher(
    network: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    classes: int | tuple[str, ...] = 10,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    name: str = "my network",
) -> Teacher:
    """A network of your own as a teacher: it is frozen and knows what the game asks of a teacher.

    input_shape: (C, H, W); classes: their number or their names
    mean, std:   per channel, of pixel values in [0, 1], as the network was trained with; 0 and 1 where it took them as they are
    """
    names = tuple(f"class {i}" for i in range(classes)) if isinstance(classes, int) else classes
    channels = input_shape[0]
    info = TeacherInfo(
        name,
        type(network).__name__,
        "",
        names,
        input_shape,
        mean or (0.0,) * channels,
        std or (1.0,) * channels,
        sha256=digest({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, name),
    )
    return Teacher(network, info)
