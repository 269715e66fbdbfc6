"""The game in the plane: players on two inputs, so small that everything they do can be drawn.

A point (x_1, x_2) is an "image" of two channels and one pixel, and the game is the library's own `Game`, without a change. P is
trained in a second on three spiral arms; Q is P with 2-bit weights and 5-bit activations; G maps z and y to points of the
square [-2.2, 2.2]^2. `field` evaluates P, Q and H' on a grid of the square: the colours, contours and borders of the picture.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.equations import disagreement_entropy, normalized_entropy
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.game.dials import FREE, Dials
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo

SIDE = 2.2
"""Half the side of the square that G's points lie in."""

CLASSES = ("arm 1", "arm 2", "arm 3")


def spiral(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` points of three spiral arms, as images `(N, 2, 1, 1)`, and their classes `(N,)`."""
    labels = torch.arange(count) % len(CLASSES)
    t = torch.rand(count, generator=random)
    angle, radius = 2 * math.pi * labels / len(CLASSES) + 2.2 * t, 0.3 + 1.5 * t
    points = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
    points = points + 0.12 * torch.randn(count, 2, generator=random)
    return points[:, :, None, None], labels


class PlaneNetwork(nn.Module):
    """Two hidden layers with batch norm on points `(N, 2, 1, 1)`: logits `(N, 3)`."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(2, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.linear = nn.Linear(width, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.hidden(x).flatten(1))
        return logits


def _initialise(module: nn.Module, random: torch.Generator) -> None:
    """Uniform weights of variance 1 / (3 inputs), torch's default, drawn from `random` alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            limit = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -limit, limit, generator=random)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -limit, limit, generator=random)


def plane_teacher(*, steps: int = 200, seed: int = 0) -> Teacher:
    """P, trained on the spiral for `steps` steps of Adam; label smoothing keeps its logits small enough to compare."""
    random = torch.Generator().manual_seed(seed)
    network = PlaneNetwork()
    _initialise(network, random)
    optimizer = torch.optim.Adam(network.parameters(), 3e-2)
    for _ in range(steps):
        points, labels = spiral(256, random)
        loss = F.cross_entropy(network(points), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    info = TeacherInfo("plane", "PlaneNetwork", "spiral", CLASSES, (2, 1, 1), (0.0, 0.0), (1.0, 1.0), seed=seed)
    return Teacher(network, info)


class PlaneGenerator(Generator):
    """G: z `(N, 8)` times an embedding of y, two hidden layers, and a point of the square `(N, 2, 1, 1)`."""

    latent = 8

    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        self.label = nn.Embedding(len(CLASSES), self.latent)
        nn.init.normal_(self.label.weight, generator=random)
        first, last = nn.Linear(self.latent, 32), nn.Linear(32, 2)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), last)
        _initialise(self.layers, random)
        with torch.no_grad():  # G's first samples are spread over the square
            first.weight.mul_(4)
            last.weight.mul_(2)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        points: Tensor = SIDE * torch.tanh(self.layers(z * self.label(y)))
        return points[:, :, None, None]


def plane_game(
    dials: Dials = FREE, *, teacher: Teacher | None = None, method: Method | None = None, bits: str = "2w5a", seed: int = 0
) -> Game:
    """An AdaDFQ game in the plane, set to `dials`; Q's ranges are observed on 2,560 points of the spiral.

    teacher: `plane_teacher()` if not given, which trains for about a second
    method:  `adadfq()` with other weights of L_ds and L_as, if any
    """
    teacher = teacher or plane_teacher()
    student = quantize(teacher, bits)
    random = torch.Generator().manual_seed(seed)
    student.observing = True
    with torch.no_grad():
        for _ in range(10):
            student(spiral(256, random)[0])
    student.observing = False

    def build(teacher: Teacher, fidelity: Fidelity) -> Generator:
        return PlaneGenerator(torch.Generator().manual_seed(seed))

    method = method or adadfq()
    rates = dataclasses.replace(method.rates, generator_lr=3e-3, student_lr=3e-3)
    method = dataclasses.replace(method, build_generator=build, rates=rates)
    game = Game(teacher, student, method, seed=seed, schedule=Schedule(batch=128, warmup=0, observe=1))
    dials.turn(game)
    return game


@dataclass(frozen=True)
class Field:
    """P, Q and their disagreement on a grid of the square; rows go up with x_2.

    h_prime:         H / log C, `(S, S)`: H' with the floor at zero, which does not depend on a batch
    teacher, student: logits of P and Q, `(S, S, 3)`
    """

    h_prime: Tensor
    teacher: Tensor
    student: Tensor

    @property
    def agreement(self) -> float:
        """The part of the square on which P and Q see the same class."""
        return float((self.teacher.argmax(-1) == self.student.argmax(-1)).double().mean())


@torch.no_grad()
def field(game: Game, size: int = 61) -> Field:
    """`game`'s players on `size` x `size` points of the square; looking changes nothing."""
    along = torch.linspace(-SIDE, SIDE, size)
    x2, x1 = torch.meshgrid(along, along, indexing="ij")
    points = torch.stack((x1, x2), dim=-1).reshape(-1, 2)[:, :, None, None]
    with game.student.frozen():
        z_p, z_q = game.teacher(points), game.student(points)
    h = normalized_entropy(disagreement_entropy(z_p, z_q), len(CLASSES), floor="zero")
    return Field(h.view(size, size), z_p.view(size, size, -1), z_q.view(size, size, -1))
