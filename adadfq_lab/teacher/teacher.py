"""Teachers P: pre-trained, frozen, in eval mode, and aware of what they were trained on.

A teacher is its network plus the facts without which its logits mean nothing: classes, input shape, normalisation, measured
accuracy, and the sha256 of its weights.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.files import digest
from adadfq_lab.machine.torch_state import usual_torch
from adadfq_lab.teacher.plain import plain


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
    """P of the paper: maps normalised images `(N, C, H, W)` to logits `(N, classes)`; frozen and always in eval mode.

    channels_last: how its tensors lie in memory; False for a network whose `x.view` can only read the other layout
    """

    mean: Tensor
    std: Tensor

    @usual_torch()
    def __init__(self, network: nn.Module, info: TeacherInfo, *, channels_last: bool = True) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels_last = channels_last
        self.network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
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
        logits: Tensor = self.network(x if self.channels_last else x.contiguous())
        return logits


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images/255 - mean)/std for uint8 `images`, laid out channels last."""
    x = images.to(mean.device, non_blocking=True).float() / 255
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


Moments = float | Sequence[float] | Tensor
"""A mean or deviation of pixel values: one for all channels, or one per channel."""


def wrap_teacher(
    network: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    classes: int | Sequence[str] = 10,
    mean: Moments | None = None,
    std: Moments | None = None,
    name: str = "my network",
) -> Teacher:
    """A teacher made of a copy of a network of your own: frozen, and aware of what the game asks of a teacher.

    The copy is a plain one in float32 (see `plain`): weights that a hook or parametrization computes become what they are in
    eval mode. Your network stays as it is.

    input_shape: (C, H, W); classes: their number or their names
    mean, std:   of pixel values in [0, 1], as the network was trained with, a number or one per channel; numbers above 1 are
                 taken to be on the scale 0 .. 255. Left out, they are 0 and 1: the network takes pixels in [0, 1] as they are.

    Raises UserError if these do not fit together, or the network does not map such images to logits (N, classes).
    """
    names = tuple(f"class {i}" for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    shape: tuple[int, int, int] = tuple(map(int, input_shape))  # type: ignore[assignment]  # checked by TeacherInfo
    moments = _moments(mean, std, shape[0])
    TeacherInfo(name, type(network).__name__, "", names, shape, *moments)  # says what does not fit before anything runs
    copy = plain(network).float()
    sha256 = digest({k: v.cpu().contiguous() for k, v in copy.state_dict().items()}, name)
    info = TeacherInfo(name, type(copy).__name__, "", names, shape, *moments, sha256=sha256)
    teacher, logits = _in_its_layout(copy, info)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"{info.network} gives {what} for 2 images, not one tensor of logits (N, C); wrap it in a module that returns these"
        )
    if len(names) != logits.shape[1]:
        raise UserError(f"{info.network} tells {logits.shape[1]} classes apart, not {len(names)}; give classes their number")
    return teacher


@torch.no_grad()
def _in_its_layout(network: nn.Module, info: TeacherInfo) -> tuple[Teacher, object]:
    """The teacher and what it gives for two images: channels last if its layers can read that, contiguous if not."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = torch.randn(2, *info.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        teacher = Teacher(network, info)
        return teacher, teacher(x)
    except Exception:  # whatever foreign code raises; if the layout is not the reason, the next lines raise it again
        teacher = Teacher(network, info, channels_last=False)
    try:
        return teacher, teacher(x)
    except Exception as error:
        raise UserError(f"{info.network} does not take images of shape {info.input_shape}: {first_line(error)}") from error


def _moments(mean: Moments | None, std: Moments | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, of pixel values in [0, 1], whatever they were given as."""
    m, s = (_numbers(name, value, default, channels) for name, value, default in (("mean", mean, 0.0), ("std", std, 1.0)))
    largest = max(*m, *s, 0.0)
    if largest <= 1:
        return m, s
    if largest > 255 or (max(s) > 1 and 0 < max(m) <= 1):
        raise UserError(f"mean {m} and std {s} are on no one scale; give both for pixel values in [0, 1], or both for 0 .. 255")
    return tuple(value / 255 for value in m), tuple(value / 255 for value in s)


def _numbers(name: str, value: Moments | None, default: float, channels: int) -> tuple[float, ...]:
    try:
        given = torch.as_tensor(default if value is None else value).double()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} must be a number, or one per channel, not {value!r}") from None
    return tuple(given.expand(channels).tolist() if given.dim() == 0 else given.flatten().tolist())
