"""Estimates what a run will take, from a few seconds of its own rounds on this machine.

    found = estimate(config)            # plays about ten seconds, in a game of its own
    print(found.table())                # hours, memory, disk

Both phases are timed, since only G learns in the warm-up. So are measuring student and teacher on some images, saving a
checkpoint and the players' gains. No time depends on the values of the weights, so a teacher that is not downloaded yet is
replaced by an untrained network with its layers, and missing images by noise.
"""

import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_folders import decode
from adadfq_lab.data.image_sets import CLASSES, ImageSet, imagenet_classes
from adadfq_lab.data.loading import load_data
from adadfq_lab.data.locations import cache_folder
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.machine.memory import forget_peak, out_of_memory, peak, release_freed_memory
from adadfq_lab.machine.timing import duration, finish, timed
from adadfq_lab.machine.torch_state import drawing_from
from adadfq_lab.runs.agreement import BATCH, count_of, on_generated
from adadfq_lab.runs.config import RunConfig, smaller
from adadfq_lab.runs.log import RecordLog
from adadfq_lab.runs.players import build_game, build_student, fitting_data, observe_noise
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.teacher.zoo import SHAPES, ZOO

OFFICIAL = {"imagenet": 50_000}  # test images; else 10,000


NOISE = "noise"


@dataclass(frozen=True)
class Estimate:
    """Seconds, and megabytes of 2^20 bytes.

    warmup_round, play_round: one round with its line in the log
    setup, agreement, evaluation, checkpoint, report: of one each; `agreement` on generated images, `evaluation` on the run's
    peak_mb: of memory; on a GPU, of the GPU's
    disk_mb: size of the run's folder at the end
    """

    device: str
    rounds: int
    warmup_rounds: int
    warmup_round: float
    play_round: float
    setup: float
    agreement: float
    evaluation: float
    evaluations: int
    checkpoint: float
    checkpoints: int
    report: float
    peak_mb: float
    disk_mb: float
    stand_in: bool

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        rounds = self.warmup_rounds * self.warmup_round + (self.rounds - self.warmup_rounds) * self.play_round
        measurements = self.agreement + self.evaluations * self.evaluation
        return self.setup + rounds + measurements + self.checkpoints * self.checkpoint + self.report

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"seconds": self.seconds}

    def table(self) -> str:
        """The estimate as a few lines of text."""
        lines = [
            f"on {self.device}, from a few seconds of each:",
            f"warm-up          {1 / self.warmup_round:8.2f} rounds/s   {duration(self.warmup_rounds * self.warmup_round)}",
            f"play             {1 / self.play_round:8.2f} rounds/s   "
            f"{duration((self.rounds - self.warmup_rounds) * self.play_round)}",
            f"measurements     {self.evaluations:8,} of {self.evaluation:.2f} s   "
            f"{duration(self.evaluations * self.evaluation)}",
            f"agreement               1 of {self.agreement:.2f} s   {duration(self.agreement)}",
            f"checkpoints      {self.checkpoints:8,} of {self.checkpoint:.2f} s   "
            f"{duration(self.checkpoints * self.checkpoint)}",
            f"in all           {duration(self.seconds)}",
            f"memory           {self.peak_mb:,.0f} MB at most, disk {self.disk_mb:,.0f} MB",
        ]
        lines += (
            ["timed on an untrained network of the teacher's layers, which is not on this machine"] if self.stand_in else []
        )
        return "\n".join(lines)


def estimate(config: RunConfig, *, seconds: float = 10.0) -> Estimate:
    """The estimate of a run of `config`, from about `seconds` seconds of rounds, or from three rounds of each phase if slow.

    Raises UserError for a configuration that cannot be played, and torch.OutOfMemoryError if a GPU has too little memory.
    """
    release_freed_memory()
    forget_peak()
    began = time.perf_counter()
    teacher, stand_in = teacher_or_stand_in(config.teacher)
    data, total = _images(config, teacher)
    game = build_game(config, teacher)
    schedule = config.schedule
    first = min(schedule.warmup, config.rounds)
    with tempfile.TemporaryDirectory() as folder:
        log = RecordLog(Path(folder) / "records.jsonl", 0, every=game.check_every)
        # Optimizers allocate memory at their first step, so both phases are visited before either is timed.
        probe = _Probe(game, log)
        probe.phase(warmup=1, observe=2)
        probe.rounds(2)
        built = time.perf_counter() - began
        probe.phase(warmup=2**40 if first else 0, observe=1)
        warm = probe.mean(seconds / 2 if first else 0)
        probe.phase(warmup=0, observe=1)
        play = probe.mean(seconds / 2 if first < config.rounds else 0)
        gain = probe.gain() if config.gains_every else 0.0
        size = (Path(folder) / "records.jsonl").stat().st_size / max(1, game.index)
        log.close()
        plain = build_student(teacher, config).to(game.device)
        setup = timed(lambda: observe_noise(plain, teacher.info.input_shape, seed=config.seed))
        for network in (teacher, game.student):  # the first look at images of a size is slow
            accuracy(network, data.take(4), teacher.normalize)
        opening = _decoding() if data.source == NOISE and teacher.info.data == "imagenet" else 0.0
        looks = [
            opening + timed(partial(accuracy, network, data, teacher.normalize)) / len(data)
            for network in (game.student, teacher)
        ]
        evaluation, of_teacher = (look * total for look in looks)
        path = Path(folder) / "game.ckpt"
        saving = timed(lambda: game.save(path))
        one = timed(lambda: on_generated(game, plain, observed=1, count=BATCH))
        agreement = one * (count_of(game) // BATCH)  # observing takes about half of a batch, so this is a little too much
        disk = 2 * path.stat().st_size + size * config.rounds + 0.1 * 2**20  # the last: report.html
    evaluations = 1 + int(first < config.rounds and first > 0) if config.rounds else 0
    every = config.evaluate_every
    evaluations += sum(1 for done in range(every, config.rounds, every) if done > first) if every else 0
    checkpoints = 2 + ((config.rounds - 1) // config.save_every if config.save_every else 0)
    share = gain / config.gains_every if config.gains_every else 0.0
    return Estimate(
        device=str(game.device),
        rounds=config.rounds,
        warmup_rounds=first,
        warmup_round=(warm or play) + share,
        play_round=(play or warm) + share,
        setup=built + setup + of_teacher + evaluation,
        agreement=agreement,
        evaluation=evaluation,
        evaluations=evaluations,
        checkpoint=saving,
        checkpoints=checkpoints,
        report=3.0 + 2e-4 * config.rounds,
        peak_mb=peak(game.device),
        disk_mb=disk / 2**20,
        stand_in=stand_in,
    )


class _Probe:
    """A game that is moved between the phases of its schedule, and timed."""

    def __init__(self, game: Game, log: RecordLog) -> None:
        self.game, self.log, self.usual = game, log, game.schedule
        self.every, game.gains_every = game.gains_every, 0

    def phase(self, *, warmup: int, observe: int) -> None:
        self.game.schedule = dataclasses.replace(self.usual, warmup=warmup, observe=observe)

    def rounds(self, count: int) -> float:
        """Seconds that `count` rounds take, logged and finished on their device."""

        def play() -> None:
            for record in self.game.play(count):
                self.log.write(record, {"seconds": 0.0})
            finish(self.game.device)

        return timed(play)

    def mean(self, seconds: float) -> float:
        """Seconds a round, over as many as fit in `seconds`, three at least; 0 for none."""
        if not seconds:
            return 0.0
        group, spent, count = self.game.method.generator_every, 0.0, 0  # rounds that are unlike each other
        self.rounds(group)
        while count < 3 or spent < seconds:
            spent += self.rounds(group)
            count += group
        return spent / count

    def gain(self) -> float:
        """What measuring the gains of one round adds to it, in seconds."""
        without = min(self.rounds(1) for _ in range(3))
        self.game.gains_every = 1
        found = min(self.rounds(1) for _ in range(3)) - without
        self.game.gains_every = self.every
        return max(0.0, found)


def teacher_or_stand_in(name: str) -> tuple[Teacher, bool]:
    """The teacher called `name`, or an untrained stand-in for one that is not downloaded yet; and whether it is untrained."""
    entry = ZOO.get(name)
    if entry is None or (cache_folder() / entry.file).exists():
        return load_teacher(name), False
    classes = imagenet_classes() if entry.data == "imagenet" else CLASSES[entry.data]
    with drawing_from(torch.Generator().manual_seed(0)):
        network = build_network(entry.network, len(classes))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():  # statistics that fit its weights, so that no loss overflows
            network.train()(torch.randn(8, *SHAPES[entry.data]))
    info = TeacherInfo(name, entry.network, entry.data, classes, SHAPES[entry.data], mean=(0.5,) * 3, std=(0.25,) * 3)
    return Teacher(network, info), True


def _images(config: RunConfig, teacher: Teacher) -> tuple[ImageSet, int]:
    """Some images of the teacher's shape to time a measurement on, and how many the run will measure on."""
    info, name = teacher.info, config.data or teacher.info.data
    few = max(20, min(400, 2**20 // (info.input_shape[1] * info.input_shape[2])))
    try:
        found = load_data(name, "test", stub=config.stub) if name not in ("", "none") else None
    except UserError:
        found = None
    if found is None:
        images = torch.randint(256, (few, *info.input_shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        total = OFFICIAL.get(name, 10_000) if name not in ("", "none") else 0
        return ImageSet(name, "test", images, torch.zeros(few, dtype=torch.long), info.classes, NOISE), total
    found = fitting_data(teacher, found)
    return dataclasses.replace(found.take(few), classes=info.classes), len(found)  # timed alike, with labels and without


def _decoding() -> float:
    """Seconds per image to read files of ImageNet's usual size, on all cores together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        noise = torch.randint(256, (47, 63, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        Image.fromarray(noise.numpy()).resize((500, 375)).save(path)
        decode(path)
        return timed(lambda: [decode(path) for _ in range(5)]) / 5 / (os.cpu_count() or 1)


def largest_that_fits(
    config: RunConfig, *, limit_mb: float | None = None, seconds: float = 2.0
) -> tuple[RunConfig, Estimate, tuple[str, ...]]:
    """`config`, or the next smaller setting that this machine's memory takes, its estimate, and what was tried before.

    limit_mb: treat more than this as too much, even if the machine has more

    Raises UserError if nothing fits.
    """
    tried: tuple[str, ...] = ()
    while True:
        what, too_much = f"{config.schedule.batch} images a round in {config.precision}", "out of memory"
        try:
            found = estimate(config, seconds=seconds)
            if limit_mb is None or found.peak_mb <= limit_mb:
                return config, found, tried
            too_much = f"{found.peak_mb:,.0f} MB"
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Outside the except: its traceback would keep the tensors that were too many.
        tried += (f"{what}: {too_much}",)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if (less := smaller(config)) is None:
            raise UserError(f"not even the smallest setting fits ({'; '.join(tried)}); this takes a machine with more memory")
        config = less
