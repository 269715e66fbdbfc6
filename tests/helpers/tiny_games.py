"""A teacher that takes 8x8 images, games with it of a few milliseconds a round, and how to compare two games bit for bit."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adadfq_lab.equations import Terms
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Method, Round
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.networks import resnet8
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.teacher_files import load_teacher, save_teacher

CLASSES, SHAPE, BATCH = 5, (2, 8, 8), 4
WARMUP, OBSERVE = 2, 4

# Rates at which both players move visibly in a round or two.
SCHEDULE = Schedule(batch=BATCH, warmup=WARMUP, observe=OBSERVE, student_lr=1e-2)


def tiny_teacher(
    classes: int = CLASSES, shape: tuple[int, int, int] = SHAPE, *, seed: int = 0, data: str = "cifar10"
) -> Teacher:
    """A ResNet-8 that never learned anything, but has seen noise and is sure of itself."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = resnet8(classes, shape[0]).train()
        with torch.no_grad():
            network.linear.weight.mul_(8)
            for _ in range(20):
                network(torch.randn(16, *shape))
    names = tuple(f"class {i}" for i in range(classes))
    moments = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    return Teacher(network, TeacherInfo("tiny", "resnet8", data, names, shape, **moments))


def saved_teacher(path: Path, **options: Any) -> Teacher:
    """`tiny_teacher` written to `path` and read again."""
    save_teacher(tiny_teacher(**options), path)
    return load_teacher(str(path))


def tiny_game(method: Method | None = None, *, teacher: Teacher | None = None, bits: str = "3w3a", **options: Any) -> Game:
    """A game before its first round; its schedule's fields may stand among the options."""
    fields = {field.name for field in dataclasses.fields(Schedule)}
    schedule = dataclasses.replace(SCHEDULE, **{name: options.pop(name) for name in fields & options.keys()})
    teacher = teacher or tiny_teacher()
    return Game(teacher, quantize(teacher, bits), method or adadfq(), **({"schedule": schedule} | options))


def double(game: Game) -> Game:
    """The same game in float64; the teacher's batch norms are folded anew, so that they are of float64 accuracy too."""
    for module in (game.teacher, game.student, game.generator):
        module.double()
    game.observed_teacher = WithStatistics(game.teacher, game.observed_teacher.stages)
    return game


def spy(method: Method, seen: list[Round]) -> Method:
    """`method`, which also notes each round as its generator's loss sees it."""

    def generator_loss(r: Round) -> Terms:
        seen.append(r)
        return method.generator_loss(r)

    return dataclasses.replace(method, generator_loss=generator_loss)


def with_term(method: Method, player: str, term: Callable[[Round], Tensor]) -> Method:
    """`method`, in which `player` ("generator" or "student") also minimises a term called "extra"."""
    loss = getattr(method, f"{player}_loss")
    return dataclasses.replace(method, **{f"{player}_loss": lambda r: loss(r) | {"extra": term(r)}})


def play(game: Game, rounds: int) -> Game:
    """`game` after so many more rounds."""
    for _ in game.play(rounds):
        pass
    return game


def state(game: Game) -> dict[str, Tensor]:
    """Every number the next round depends on, copied."""
    tensors = {"index": torch.tensor(game.index), "random": game.random.get_state()}
    for name in ("teacher", "observed_teacher", "student", "generator"):
        module = getattr(game, name)
        tensors |= {f"{name}.{k}": v for k, v in [*module.named_parameters(), *module.named_buffers()]}
    for name in ("generator_optimizer", "student_optimizer"):
        slots = getattr(game, name).state_dict()["state"]
        tensors |= {f"{name}.{i}.{k}": torch.as_tensor(v) for i, s in slots.items() for k, v in s.items() if v is not None}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names under which two states differ by a bit or more."""
    return {name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))}


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def twin(game: Game) -> Game:
    """A copy of `game` that shares nothing with it."""
    return copy.deepcopy(game)


def images_for(folder: Path, name: str, *, count: int = 30, shape: tuple[int, int, int] = SHAPE, classes: int = 10) -> None:
    """Writes `count` random test images under the name of a real data set; with ADADFQ_DATA set to `folder` they are found."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (count, *shape), dtype=np.uint8), random.integers(0, classes, count)
    np.savez(folder / f"{name}_test.npz", x=x, y=y)


def tiny_run(folder: Path, monkeypatch: pytest.MonkeyPatch, *, count: int = 30, **options: Any) -> RunConfig:
    """A run on a tiny teacher of ten classes, measured on images that every process finds while the environment is patched."""
    monkeypatch.setenv("ADADFQ_DATA", str(folder))
    saved_teacher(folder / "teacher.safetensors", classes=10, data="cifar10")
    images_for(folder, "cifar10", count=count)
    return RunConfig(str(folder / "teacher.safetensors"), device="cpu", **options)
