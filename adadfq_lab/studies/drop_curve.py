"""How many seconds does a method need to come within so many points of its teacher? `adadfq drop-curve` plays and measures it.

One game is played for each warm-up, learning rate and seed, and its student is measured on the way. The *drop* is the
teacher's top-1 minus the student's, in points. Choose on training images; confirm the choice once on test images.

Seconds count the rounds and not the measuring. They depend on the machine, so each is also given in *textbook rounds*: the time
of a round written straight from the paper, in the same process (see `bench`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.registry import make_method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher import Teacher


@dataclass(frozen=True)
class Setting:
    """What is compared: rounds of warm-up, and the student's learning rate (None: the method's own)."""

    warmup: int
    student_lr: float | None = None

    def __str__(self) -> str:
        return f"warm-up {self.warmup}, rate {'its own' if self.student_lr is None else format(self.student_lr, 'g')}"


@dataclass(frozen=True)
class Point:
    """A student on the way: `drop` in points after `updates` updates of Q, in `seconds` of rounds, the warm-up included."""

    setting: Setting
    seed: int
    updates: int
    drop: float
    seconds: float


def play(
    teacher: Teacher, data: ImageSet, setting: Setting, *, method: str, bits: str, seed: int, at: Sequence[int]
) -> Iterator[Point]:
    """Plays one game to the last of the updates `at` and measures its student on `data` after each of them."""
    if min(at, default=-1) < 0:
        raise UserError("updates must be some whole numbers from 0 on")
    started = time.perf_counter()
    schedule = Schedule(warmup=setting.warmup, student_lr=setting.student_lr)
    game = Game(teacher, quantize(teacher, bits), make_method(method), seed=seed, schedule=schedule)
    seconds = time.perf_counter() - started
    best = accuracy(teacher, data, teacher.normalize).top1
    for updates in sorted(set(at)):
        started = time.perf_counter()
        for _ in game.play(setting.warmup + updates - game.index):
            pass
        seconds += time.perf_counter() - started
        yield Point(setting, seed, updates, best - accuracy(game.student, data, teacher.normalize).top1, seconds)


@dataclass(frozen=True)
class Mean:
    """The points of one setting after as many updates, over the seeds; `drops` has one entry a seed."""

    setting: Setting
    updates: int
    drops: tuple[float, ...]
    seconds: float

    @property
    def drop(self) -> float:
        return mean(self.drops)


def means(points: Sequence[Point]) -> list[Mean]:
    """One `Mean` for each setting and number of updates, in the order in which they were played."""
    cells: dict[tuple[Setting, int], list[Point]] = {}
    for point in points:
        cells.setdefault((point.setting, point.updates), []).append(point)
    return [
        Mean(setting, updates, tuple(p.drop for p in cell), median(p.seconds for p in cell))
        for (setting, updates), cell in cells.items()
    ]


def quickest(found: Sequence[Mean], drop: float) -> Mean | None:
    """The mean that is within `drop` points after the fewest seconds; None if none is."""
    return min((one for one in found if one.drop <= drop), key=lambda one: one.seconds, default=None)


def table(found: Sequence[Mean], textbook: float, goals: Sequence[float]) -> str:
    """A line a mean, then the quickest setting for each of `goals`, in points; a textbook round takes `textbook` seconds."""
    lines = [f"{'setting':28}{'updates':>8}{'drop':>8}{'seconds':>9}{'textbook rounds':>17}   drop by seed"]
    lines += [
        f"{one.setting!s:28}{one.updates:8}{one.drop:8.2f}{one.seconds:9.1f}{one.seconds / textbook:17.0f}   "
        + " ".join(f"{drop:.2f}" for drop in one.drops)
        for one in found
    ]
    for goal in goals:
        one = quickest(found, goal)
        said = f"{one.seconds:.1f} s: {one.setting}, {one.updates} updates" if one else "not reached"
        lines.append(f"within {goal:g} points: {said}")
    return "\n".join(lines)
