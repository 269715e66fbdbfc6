"""Agreement of Q with P, which can be measured without labels, and even without images.

Held-out generated images are new draws of the trained G, from noise that no round has drawn. Agreement on them ranks students
of one teacher. It is not accuracy: G was trained to find images on which P and Q disagree, so it is lower, and by how much
depends on the game. On unlabelled photographs of the kind that P was trained on, agreement is close to the accuracy that Q
keeps of P's.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.data.accuracy import Accuracy, agreement, share
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.machine.reading import read_json
from adadfq_lab.runs.log import number
from adadfq_lab.student.student import Student

CAUTION = "it ranks students of one teacher and is not accuracy, which takes labelled images"
BATCH, OBSERVED = 64, 5
"""Images that G makes at a time, which it normalises together; and how many such batches ranges are observed on."""
_NEW = 2**40  # added to a run's seed: noise that no round of it has drawn


@dataclass(frozen=True)
class Agreement:
    """Percent of the images of `source` for which a student predicts the class that P predicts, with 95 % intervals.

    plain:      Q with ranges observed on standard-normal images, nothing trained
    calibrated: Q with ranges observed on generated images, nothing trained; None if that was not measured
    student:    Q after the last round
    """

    plain: Accuracy
    calibrated: Accuracy | None
    student: Accuracy
    source: str

    def as_json(self) -> dict[str, Any]:
        rows = {name: getattr(self, name) for name in ("plain", "calibrated", "student")}
        plain: dict[str, Any] = {name: row.top1 if row else None for name, row in rows.items()}
        plain["intervals"] = {name: [row.low, row.high] for name, row in rows.items() if row}
        return plain | {"images": self.student.images, "source": self.source}


def on_images(game: Game, plain: Student, data: ImageSet) -> Agreement:
    """Agreement with P on real images; labels are not used."""
    teacher = game.teacher
    found = [agreement(one, teacher, data, teacher.normalize) for one in (plain, game.student)]
    return Agreement(found[0], None, found[1], data.source)


def measured(folder: Path) -> dict[str, Any] | None:
    """Agreement on generated images as the result of the run in `folder` has it; None if it has none."""
    path = folder / "result.json"
    result = read_json(path) if path.is_file() else {}
    found = result.get("agreement", {}).get("generated") if isinstance(result, dict) else None
    if found and number(found.get("student")) is None:
        raise UserError(f"{path} is damaged: its agreement is not a number")
    return found


def count_of(game: Game) -> int:
    """On how many generated images agreement is measured: 1,024 small ones, fewer large ones."""
    return max(128, min(1024, 2**24 // math.prod(game.teacher.info.input_shape[1:])))


@torch.no_grad()
def on_generated(game: Game, plain: Student, *, observed: int = OBSERVED, count: int = 0) -> Agreement:
    """Agreement with P on `count` held-out images of G as it is now, by default on `count_of` many.

    plain: the untrained student; its copy `calibrated` observes its ranges anew, on other new images of G

    The game is not changed.
    """
    count = count or count_of(game)
    calibrated = copy.deepcopy(plain)
    for activation in calibrated.activations().values():
        activation.range.reset()
    with calibrated.observed():
        for i in range(-observed, 0):
            calibrated(held_out(game, i))
    hits: list[list[Tensor]] = [[], [], []]
    with game.student.frozen(), plain.frozen(), calibrated.frozen():
        for i in range(count // BATCH):
            x = held_out(game, i)
            truth = game.teacher(x).argmax(1)
            for found, student in zip(hits, (plain, calibrated, game.student), strict=True):
                found.append(student(x).argmax(1) == truth)
    first, second, third = map(share, hits)
    kept = " (of the images that Q was trained on)" if game.method.generator_stops else ""
    return Agreement(first, second, third, f"{third.images:,} held-out generated images{kept}")


def held_out(game: Game, number: int) -> Tensor:
    """The held-out batch of that number, of classes drawn at random; ranges are observed on those below 0."""
    seed = (game.seed + _NEW + ((OBSERVED + number) << 20)) % 2**63
    labels = torch.randint(game.classes, (BATCH,), generator=torch.Generator().manual_seed(seed))
    return game.generate(labels, seed=seed).contiguous(memory_format=torch.channels_last)


def chance(teacher: Accuracy, classes: int) -> str:
    """A warning if the teacher is no better than chance on the images; nothing otherwise."""
    if teacher.low > 100 / classes:
        return ""
    return (
        f"P is at chance on these images ({teacher}, chance is {100 / classes:.1f} %): "
        "check --mean and --std, the order of the classes, and whether channels are RGB"
    )


def table(rows: list[tuple[str, Accuracy | None]], head: str) -> list[str]:
    """Lines of a table: names, percent, 95 % intervals; rows of None are left out."""
    lines = [f"{'':26}{head:>8}   95 % interval"]
    return lines + [f"{name:26}{row.top1:6.2f} %   [{row.low:.2f}, {row.high:.2f}]" for name, row in rows if row]


def rows(found: Agreement) -> list[tuple[str, Accuracy | None]]:
    """The rows of `found` by their names in a table."""
    names = {"plain": "plainly quantised", "calibrated": "calibrated on G's images", "student": "student Q, last round"}
    return [(name, getattr(found, key)) for key, name in names.items()]
