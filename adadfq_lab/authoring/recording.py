"""Records the games, populations and grids in data_stubs/ that the notebooks replay."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.data.locations import stub_path
from adadfq_lab.equations import Bounds
from adadfq_lab.fidelity import fidelity
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Column, Recorder
from adadfq_lab.game.probing import probe
from adadfq_lab.game.recordings import Images, Recording, _write, save_recording
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.registry import make_method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher_files import load_teacher

TEACHER = "fashion_mnist_resnet20"
SCHEDULE = Schedule(batch=16, warmup=60, observe=100, student_lr=1e-3)
"""Of every recording. Short: G moves alone for 60 rounds, ranges are observed for 100; Q's rate is ten times the paper's."""


@dataclass(frozen=True)
class RecordingPlan:
    """What a recorded run plays.

    student_lr: GDFQ's loss is steeper, and at AdaDFQ's rate here its Q dies within 30 rounds
    gallery:    keep the images of all snapshots, not of the last one only
    averaged:   L_BNS averaged, as released, not summed as in Eq. (11)
    """

    method: str
    bits: str
    settings: dict[str, float] = field(default_factory=dict)
    student_lr: float = 1e-3
    rounds: int = 300
    gallery: bool = True
    averaged: bool = False


RUNS: dict[str, RecordingPlan] = {
    "adadfq_3w3a": RecordingPlan("adadfq", "3w3a"),
    "adadfq_averaged": RecordingPlan("adadfq", "3w3a", gallery=False, averaged=True),
    "adadfq_4w4a": RecordingPlan("adadfq", "4w4a", rounds=150, gallery=False),
    "adadfq_5w5a": RecordingPlan("adadfq", "5w5a", rounds=150),
    "gdfq_3w3a": RecordingPlan("gdfq", "3w3a", student_lr=1e-4),
    "gdfq_5w5a": RecordingPlan("gdfq", "5w5a", student_lr=1e-4, rounds=150),
    "adasg_3w3a": RecordingPlan("adasg", "3w3a", rounds=150, gallery=False),
    "no_as_3w3a": RecordingPlan("adadfq", "3w3a", {"alpha_as": 0.0}, rounds=150),
    "no_ds_3w3a": RecordingPlan("adadfq", "3w3a", {"alpha_ds": 0.0}, rounds=150),
    "no_bal_3w3a": RecordingPlan("adadfq", "3w3a", {"beta": 0.0}, rounds=150, gallery=False),
    "no_band_3w3a": RecordingPlan("adadfq", "3w3a", {"lower": 0.0, "upper": 1.0}, rounds=150, gallery=False),
    "no_bns_3w3a": RecordingPlan("adadfq", "3w3a", {"gamma": 0.0}, rounds=150, gallery=False),
}
"""What is recorded. "no_..." are the rows of Table 3; two of them are the cases A and B of Fig. 5."""
GRID_LOWER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
GRID_UPPER = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POPULATION_BITS = (2, 3, 4, 5, 6, 8)
IMAGES_AT = (0, 20, 60, 120, 200, 300)


# Recording


def sample_images(game: Game, *, seed: int = 0) -> Images:
    """One generated image of each class, uint8, (classes, H, W) or (classes, H, W, 3), from a batch of four of each."""
    labels = torch.arange(game.classes).repeat(4)
    images = game.teacher.denormalize(game.generate(labels, seed=seed))[: game.classes]
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1)
    return np.ascontiguousarray(pixels.cpu().numpy())


def play_and_record(game: Game, rounds: int, data: ImageSet, *, evaluate_every: int = 30) -> Recording:
    """Plays `rounds` rounds of `game`, measuring on `data` now and then."""
    recorder = Recorder(game.classes)
    images, at = [sample_images(game)], [0]
    for record in game.play(rounds):
        played = record.index + 1
        recorder.add(record, probe(game, data) if played % evaluate_every == 0 or played == 1 else None)
        if played in IMAGES_AT:
            images.append(sample_images(game))
            at.append(played)
    return Recording("", recorder.history(), np.stack(images), tuple(at))


def new_game(plan: RecordingPlan, *, gains_every: int = 2) -> Game:
    """The game of a plan, on the shipped Fashion-MNIST teacher, seed 0."""
    teacher, schedule = load_teacher(TEACHER), replace(SCHEDULE, student_lr=plan.student_lr)
    made = make_method(plan.method, **plan.settings)
    how = replace(fidelity("corrected"), bns_reduction="mean" if plan.averaged else "sum")
    return Game(teacher, quantize(teacher, plan.bits), made, schedule=schedule, gains_every=gains_every, fidelity=how)


def record_run(name: str, folder: Path, data: ImageSet) -> Game:
    """Plays the run `name` of RUNS and writes run_<name>.npz into `folder`; returns the game as it ended."""
    plan, start = RUNS[name], time.time()
    game = new_game(plan)
    made = play_and_record(game, plan.rounds, data.take(500))
    meta: dict[str, Any] = {"teacher": TEACHER, "method": game.method.name, "settings": plan.settings, "bits": plan.bits}
    meta |= {"seed": 0, "rounds": plan.rounds, "student_lr": plan.student_lr, "bns": game.fidelity.bns_reduction}
    meta |= {"lower": game.bounds.lower, "upper": game.bounds.upper}
    meta |= {"probe": data.take(500).source, "final": probe(game, data), "final_on": data.source}
    meta |= {"seconds": round(time.time() - start), "command": "python -m adadfq_lab.game.recordings"}
    kept = slice(None) if plan.gallery else slice(-1, None)
    recording = Recording(name, made.history, made.images[kept], made.image_rounds[kept], meta)
    save_recording(recording, folder / f"run_{name}.npz")
    return game


@torch.no_grad()
def record_population(game: Game, folder: Path, *, batches: int = 30) -> None:
    """Writes population.npz: images of `game`'s generator as P and freshly quantised students of 2 to 8 bits see them."""
    random, n = torch.Generator().manual_seed(1), game.schedule.batch
    labels = [torch.randint(game.classes, (n,), generator=random) for _ in range(batches)]
    images = [game.generate(y, seed=i) for i, y in enumerate(labels)]
    arrays = {"labels": torch.cat(labels).numpy().astype(np.int8), "teacher": _half([game.teacher(x) for x in images])}
    for bits in POPULATION_BITS:
        student = quantize(game.teacher, f"{bits}w{bits}a")
        _observe(student, images)
        arrays[f"student.{bits}"] = _half([student(x) for x in images])
    meta = {
        "batch": n,
        "teacher": TEACHER,
        "method": game.method.name,
        "rounds": game.index,
        "students": "untrained",
        "bns": game.fidelity.bns_reduction,
    }
    _write(folder / "population.npz", arrays, meta | {"command": "python -m adadfq_lab.game.recordings"})


def _half(logits: list[Tensor]) -> NDArray[np.float16]:
    return torch.cat(logits).numpy().astype(np.float16)


def _observe(student: Student, images: list[Tensor]) -> None:
    student.observing = True
    for x in images:
        student(x)
    student.observing = False


@torch.no_grad()
def differences(game: Game, *, per_class: int = 10) -> Column:
    """p_ds `(classes * per_class, C)` of samples G makes now, ordered by class; they are made in batches of all classes."""
    y = torch.arange(game.classes)
    images = [game.generate(y.repeat_interleave(2), seed=i) for i in range(per_class // 2)]
    with game.student.frozen():
        gaps = torch.cat([game.teacher(x) - game.student(x) for x in images])
    order = y.repeat_interleave(2).repeat(per_class // 2).argsort(stable=True)
    return np.asarray(gaps.softmax(1)[order].cpu().numpy(), np.float32)


def record_similarity(folder: Path, games: Mapping[str, Game] = MappingProxyType({})) -> None:
    """Writes similarity.npz: AdaDFQ's and GDFQ's samples as `games` ended, or played again."""
    found = {}
    for name in ("adadfq_3w3a", "gdfq_3w3a"):
        game = games[name] if name in games else new_game(RUNS[name], gains_every=0)
        for _ in game.play(RUNS[name].rounds - game.index):
            pass
        found[game.method.name] = differences(game)
    meta = {"teacher": TEACHER, "bits": "3w3a", "rounds": RUNS["gdfq_3w3a"].rounds, "bns": "sum"}
    _write(folder / "similarity.npz", found, meta | {"command": "python -m adadfq_lab.game.recordings similarity"})


def record_grid(folder: Path, data: ImageSet, *, common: int = 100, rounds: int = 40, samples: int = 320) -> None:
    """Writes grid.npz: from one game after `common` rounds, `rounds` more under each pair of bounds, 3 bits, L_BNS averaged.

    Averaged, the band is 3 % of G's loss after so few rounds, summed less than 1 %: if bounds show, they show here.
    """
    shape = (len(GRID_LOWER), len(GRID_UPPER))
    names = ("accuracy", "test_loss", "agreement", "mean_h_prime", "inside", "mean_entropy")
    arrays: dict[str, Any] = {name: np.full(shape, np.nan, np.float32) for name in names}
    arrays["h_prime"] = np.full((*shape, samples), np.nan, np.float16)
    start = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "common.ckpt"
        game = new_game(RUNS["adadfq_averaged"], gains_every=0)
        for _ in game.play(common):
            pass
        game.save(saved)
        for i, lower in enumerate(GRID_LOWER):
            for j, upper in enumerate(GRID_UPPER):
                if lower >= upper:
                    continue
                game = Game.resume(saved)
                game.bounds = Bounds(lower, upper)
                _play_cell(game, rounds, data, arrays, (i, j), samples)
                print(f"grid {lower} {upper}: {arrays['accuracy'][i, j]:.1f} %", file=sys.stderr, flush=True)
    arrays |= {"lower": np.array(GRID_LOWER, np.float32), "upper": np.array(GRID_UPPER, np.float32)}
    meta: dict[str, Any] = {
        "teacher": TEACHER,
        "bits": "3w3a",
        "common": common,
        "rounds": rounds,
        "seed": 0,
        "bns": "mean",
        "measured_on": data.source,
    }
    meta |= {"seconds": round(time.time() - start), "command": "python -m adadfq_lab.game.recordings"}
    _write(folder / "grid.npz", arrays, meta)


def _play_cell(game: Game, rounds: int, data: ImageSet, arrays: dict[str, Any], at: tuple[int, int], samples: int) -> None:
    recorder = Recorder(game.classes)
    for record in game.play(rounds):
        recorder.add(record)
    h_prime = recorder.history().last_samples(samples)[-samples:]
    measured = probe(game, data)
    arrays["accuracy"][at], arrays["test_loss"][at] = measured["test.accuracy"], measured["test.loss"]
    arrays["agreement"][at] = measured["test.agreement"]
    arrays["h_prime"][at], arrays["mean_h_prime"][at] = h_prime, h_prime.mean()
    arrays["inside"][at] = ((h_prime > game.bounds.lower) & (h_prime < game.bounds.upper)).mean()
    arrays["mean_entropy"][at] = recorder.history()["entropy"][-samples // game.schedule.batch :].mean()


def main(wanted: Sequence[str]) -> None:
    """Records what is named (names of RUNS, "grid", "similarity"), or everything, into `data_stubs/`."""
    folder, data = stub_path(f"{TEACHER}.safetensors").parent, load_data("fashion_mnist").take(2000)
    games: dict[str, Game] = {}
    for name in wanted or [*RUNS, "grid", "similarity"]:
        if name == "grid":
            record_grid(folder, data.take(1000))
            continue
        if name == "similarity":
            record_similarity(folder, games)
            continue
        game = games[name] = record_run(name, folder, data)
        if name == "adadfq_3w3a":
            record_population(game, folder)
        print(f"{name}: {probe(game, data)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
