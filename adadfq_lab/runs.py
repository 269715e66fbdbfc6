"""One run, from a configuration to a folder: what `adadfq demo`, `adadfq train` and every table are made of.

`run(config, folder)` is a plain function of its arguments. The folder it fills:

    config.json           the resolved configuration; the same one starts the same run again
    records.jsonl         one line a round: loss terms, H and H' of each sample, agreement, gains, measured accuracies
    round_000800.ckpt     checkpoints, the last two
    student.safetensors   Q after the last round
    result.json           the table
    report.html           the figures, in one file without a network
"""

import dataclasses
import fcntl
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tqdm import tqdm
from tyro.conf import Fixed, SuppressFixed

from adadfq_lab.data.accuracy import Accuracy, accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import fidelity
from adadfq_lab.game.compiling import Compile
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.devices import Precision, pick_device
from adadfq_lab.machine.distributed import hand_out, receive
from adadfq_lab.machine.fields import build, check_whole
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.interrupts import interrupts_wait
from adadfq_lab.machine.memory import out_of_memory
from adadfq_lab.methods.registry import make_method
from adadfq_lab.records import RecordLog
from adadfq_lab.run_folders import checkpoints, full_disk, resumed, save_checkpoint
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import BitWidths
from adadfq_lab.student.student import Student
from adadfq_lab.student.student_files import save_student
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher


@dataclass(frozen=True)
class RunConfig:
    """What to run.

    Attributes:
        teacher: fashion_mnist_resnet20 or cifar10_resnet20, which are shipped; a file that train-teacher wrote; or a published
            network such as torchvision:resnet18 or pytorchcv:resnet20_cifar10.
        data: Images to measure on: fashion_mnist, cifar10, cifar100, imagenet, a folder of images, or NAME for NAME_test.npz in
            the folder ADADFQ_DATA; what the teacher was trained on if empty.
        stub: Measure on the shipped images only (the first 2,000 Fashion-MNIST test images).
        method: One of the eight of Table 2, or another; `adadfq methods` lists them all.
        bits: Of weights and activations, 2 to 8 each.
        rounds: Rounds in all, the warm-up included.
        lower: The lower bound of H', lambda_l; the method's own if not given.
        upper: The upper bound of H', lambda_u; the method's own if not given.
        seed: Of the generator's first weights and of every draw.
        schedule: When what happens, and how fast.
        settings: Of the method, where they differ from its own, by name; `--set alpha_ds=0.3` on the command line.
        fidelity: Which truth to follow where paper, released code and good sense differ.
        every_input: Also quantise layer inputs that no ReLU precedes.
        precision: float32, tf32 (CUDA) or bf16 (autocast).
        compile: off; default has torch.compile make kernels for the networks, which takes minutes at the start and does not
            pay on a CPU; graphs records CUDA graphs of them too, on a GPU only.
        device: auto takes a GPU where there is one.
        evaluate_every: Rounds between measurements of the student's accuracy; 0 measures only where the table needs it.
        save_every: Rounds between checkpoints; 0 saves only the last.
        gains_every: Rounds between measurements of the players' gains; 0 for never.
    """

    teacher: str = "fashion_mnist_resnet20"
    data: str = ""
    stub: bool = False
    method: str = "adadfq"
    bits: str = "3w3a"
    rounds: int = 2000
    lower: float | None = None
    upper: float | None = None
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    settings: Annotated[dict[str, Any], Fixed, SuppressFixed] = field(default_factory=dict)
    fidelity: Literal["corrected", "paper", "released"] = "corrected"
    every_input: bool = False
    precision: Precision = "float32"
    compile: Compile = "off"
    device: str = "auto"
    evaluate_every: int = 200
    save_every: int = 200
    gains_every: int = 25

    def __post_init__(self) -> None:
        BitWidths.parse(self.bits)
        if self.rounds < 1:
            raise UserError(f"rounds must be at least 1, not {self.rounds}")
        check_whole(self, seed=0)
        for name in ("evaluate_every", "save_every", "gains_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, as {getattr(self, name)} is; 0 is for never")

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "RunConfig":
        """The configuration that `as_json` gave; raises UserError for anything else."""
        if not {"teacher", "schedule"} <= plain.keys():
            raise UserError("no teacher or no schedule in it")
        return build(cls, plain)


@dataclass(frozen=True)
class Result:
    """What became of a run; accuracies are top-1 on the same images, in percent.

    plain:      Q with ranges observed on standard-normal images, nothing trained
    calibrated: Q with ranges observed on the warm generator's images, untrained; None if the run ended in the warm-up
    student:    Q after the last round
    best:       the highest accuracy measured along the way: chosen on these images, so not a result
    """

    teacher: Accuracy
    plain: Accuracy
    calibrated: Accuracy | None
    student: Accuracy
    best: Accuracy
    rounds: int
    seconds: float
    seed: int
    source: str
    run: str

    def as_json(self) -> dict[str, Any]:
        """The keys `adadfq demo --json` prints: top-1 in percent, and the intervals beside them."""
        rows = {k: getattr(self, k) for k in ("teacher", "plain", "calibrated", "student", "best")}
        plain: dict[str, Any] = {name: row.top1 if row else None for name, row in rows.items()}
        plain["intervals"] = {name: [row.low, row.high] for name, row in rows.items() if row}
        plain |= {"images": self.student.images, "rounds": self.rounds, "seconds": round(self.seconds, 1), "seed": self.seed}
        return plain | {"run": self.run, "source": self.source}

    def table(self) -> str:
        """The result as a few lines of text."""
        lost = self.teacher.top1 - self.plain.top1
        back = self.student.top1 - self.plain.top1
        rows = [("teacher P", self.teacher), ("plainly quantised", self.plain)]
        rows += [("calibrated on G's images", self.calibrated)] if self.calibrated else []
        rows += [("student Q, last round", self.student)]
        lines = [f"{'':26}{'top-1':>8}   95 % interval"]
        lines += [f"{name:26}{row.top1:6.2f} %   [{row.low:.2f}, {row.high:.2f}]" for name, row in rows]
        share = f"{100 * back / lost:.0f} % of the {lost:.1f} points lost were won back" if lost > 0 else "nothing was lost"
        return "\n".join([*lines, f"{share}, in {self.rounds:,} rounds and {self.seconds:.0f} s; measured on {self.source}"])


def observe_noise(student: Student, shape: tuple[int, int, int], *, batches: int = 20, batch: int = 16, seed: int = 0) -> None:
    """Lets Q see standard-normal images, so that it has activation ranges: quantization without data, plainly."""
    generator = torch.Generator().manual_seed(seed)
    device = next(student.parameters()).device
    student.observing = True
    with torch.no_grad():
        for _ in range(batches):
            student(torch.randn(batch, *shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last))
    student.observing = False


def build_student(teacher: Teacher, config: RunConfig) -> Student:
    """Q before the first round, as `config` asks."""
    f = fidelity(config.fidelity)
    return quantize(teacher, config.bits, ste=f.ste, rule=f.observer, zero_point=f.zero_point, every_input=config.every_input)


def build_game(config: RunConfig, teacher: Teacher) -> Game:
    """The game of a run before its first round."""
    method = make_method(config.method, **config.settings)
    if config.lower is not None or config.upper is not None:
        bounds = Bounds(
            method.bounds.lower if config.lower is None else config.lower,
            method.bounds.upper if config.upper is None else config.upper,
        )
        method = dataclasses.replace(method, bounds=bounds)
    return Game(
        teacher,
        build_student(teacher, config),
        method,
        seed=config.seed,
        schedule=config.schedule,
        fidelity=config.fidelity,
        gains_every=config.gains_every,
        precision=config.precision,
        compile=config.compile,
        device=pick_device(config.device),
    )


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    from_round: int | None = None,
    on_record: Callable[[Record], None] | None = None,
    quiet: bool = False,
    report: bool = True,
) -> Result:
    """Plays a whole run in `folder` and returns its result; `resume` continues from the folder's last checkpoint.

    report: also write report.html
    from_round: continue from the checkpoint of that round instead; what was played after it is played again

    Progress goes to standard error. Raises UserError where the folder cannot be written, is full, is in use, or holds another
    run. On a KeyboardInterrupt the game is saved before the exception goes on.
    """
    teacher = load_teacher(config.teacher)
    data = fitting_data(teacher, load_data(config.data or teacher.info.data, "test", stub=config.stub))
    game = build_game(config, teacher)  # before the folder is touched: a wrong option leaves nothing behind
    resume = resume or from_round is not None
    with _claimed(folder, config, resume):
        if resume and (checkpoints(folder) or (folder / "records.jsonl").exists()):
            game = resumed(folder, game, from_round)
        else:
            save_checkpoint(game, folder)
        if game.last_checkpoint:
            hand_out(game.last_checkpoint)
        try:
            result = _play(config, folder, game, data, on_record, quiet)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(offer(config)) from error
        if report:
            from adadfq_lab.report import write_report  # plotly is slow to import and only needed here

            write_report(folder, game, teacher, data)
        return result


def follow(config: RunConfig) -> None:
    """What every process but the first does in a run on several: plays the same rounds, and writes and measures nothing.

    The game is the first process's, handed out by it, at whatever round it starts or continues.
    """
    teacher = load_teacher(config.teacher)
    with tempfile.TemporaryDirectory() as folder:
        path = receive(Path(folder) / "game.ckpt")
        game = Game.resume(path, teacher=teacher, device=str(pick_device(config.device)))
    game.last_checkpoint = None  # a message must not name a file that is gone
    with interrupts_wait() as interrupt:
        for _ in game.play(config.rounds - game.index):
            interrupt()


def fitting_data(teacher: Teacher, data: ImageSet) -> ImageSet:
    """`data` in the shape that the teacher takes; raises UserError where it has another, or not as many classes."""
    data = data.of_shape(teacher.info.input_shape)
    if len(data.classes) != len(teacher.info.classes) or tuple(data.images.shape[1:]) != teacher.info.input_shape:
        raise UserError(
            f"teacher {teacher.info.name} takes {teacher.info.input_shape} images of {len(teacher.info.classes)} classes; "
            f"{data.name} has {tuple(data.images.shape[1:])} of {len(data.classes)}"
        )
    return data


def _play(
    config: RunConfig, folder: Path, game: Game, data: ImageSet, on_record: Callable[[Record], None] | None, quiet: bool
) -> Result:
    teacher = game.teacher
    log = RecordLog(folder / "records.jsonl", game.index, every=game.check_every)
    plain = build_student(teacher, config).to(game.device)
    observe_noise(plain, teacher.info.input_shape, seed=config.seed)
    measured: dict[str, Accuracy] = {
        "teacher": accuracy(teacher, data, teacher.normalize),
        "plain": accuracy(plain, data, teacher.normalize),
    }
    calibrated, best = log.measured("calibrated"), log.best()
    del plain
    started, before = time.perf_counter(), log.seconds
    progress = tqdm(
        total=config.rounds, initial=game.index, unit="round", file=sys.stderr, disable=quiet, mininterval=0.5, smoothing=0.05
    )
    latest = log.measured("accuracy") or calibrated
    student: Accuracy | None = None
    try:
        with progress, interrupts_wait() as interrupt:
            for record in game.play(config.rounds - game.index):
                done = record.index + 1
                extra: dict[str, Any] = {"seconds": round(before + time.perf_counter() - started, 2)}
                if done == config.schedule.warmup:
                    calibrated = latest = extra["calibrated"] = accuracy(game.student, data, teacher.normalize)
                due = config.evaluate_every and done % config.evaluate_every == 0
                if done == config.rounds or (due and done > config.schedule.warmup):
                    latest = extra["accuracy"] = accuracy(game.student, data, teacher.normalize)
                    best = max(best or latest, latest, key=lambda a: a.top1)
                    student = latest if done == config.rounds else None
                log.write(record, extra)
                if config.save_every and done % config.save_every == 0 and done < config.rounds:
                    log.sync()
                    save_checkpoint(game, folder)
                if on_record:
                    on_record(record)
                progress.update()
                if done % (10 * game.check_every) == 0 or done == config.rounds:
                    progress.set_postfix_str(_live(record, latest), refresh=False)
                interrupt()
            log.sync()
            save_checkpoint(game, folder)
    except KeyboardInterrupt:
        log.sync()
        save_checkpoint(game, folder)
        raise
    finally:
        log.close()
    student = student or accuracy(game.student, data, teacher.normalize)
    seconds = before + time.perf_counter() - started
    result = Result(
        measured["teacher"],
        measured["plain"],
        calibrated,
        student,
        best or student,
        game.index,
        seconds,
        config.seed,
        data.source,
        str(folder),
    )
    save_student(game.student, teacher, folder / "student.safetensors")
    write_atomically(folder / "result.json", json.dumps(result.as_json(), indent=1).encode())
    return result


def _live(record: Record, latest: Accuracy | None) -> str:
    text = f"H' {float(record.h_prime.mean()):.2f}, agreement {100 * float(record.agreement):.0f} %"
    return text + (f", accuracy {latest.top1:.1f} %" if latest else "")


@contextmanager
def _claimed(folder: Path, config: RunConfig, resume: bool) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; refuses one that holds another configuration."""
    path = folder / "config.json"
    if resume and not path.exists():
        raise UserError(f"{folder} holds no run to resume")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"cannot write to the run folder {folder}: {error.strerror}; choose another with --name") from None
    with lock, full_disk(folder):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is using {folder}; choose another --name, or wait for it") from None
        if path.exists() and not resume:
            raise UserError(f"{folder} already holds a run; continue it with --resume, or choose another --name")
        if resume and dataclasses.replace(read_config(path), compile=config.compile) != config:
            raise UserError(f"{folder} holds a run of another configuration; give the options in {path}")
        for left in folder.iterdir():  # by a process that was killed while it wrote
            if _TEMPORARY.fullmatch(left.name):
                left.unlink()
        write_atomically(path, json.dumps(config.as_json(), indent=1).encode())
        yield


_TEMPORARY = re.compile(
    r"\.(round_\d+\.ckpt|config\.json|records\.jsonl|student\.safetensors|result\.json|report\.html)\.\w{8}"
)


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's config.json; raises UserError where it is none."""
    try:
        return RunConfig.from_json(json.loads(path.read_bytes()))
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or of another version of adadfq; choose another --name") from None


LEAST_BATCH = 4  # images a round below which batch statistics, and so L_BNS and H', say little


def smaller(config: "RunConfig") -> "RunConfig | None":
    """The next smaller setting: on a GPU bf16, then half the images a round, down to 4; None where there is none."""
    if config.device.startswith(("cuda", "auto")) and torch.cuda.is_available() and config.precision != "bf16":
        return dataclasses.replace(config, precision="bf16")
    batch = config.schedule.batch // 2
    if batch < LEAST_BATCH:
        return None
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, batch=batch))


def offer(config: "RunConfig") -> str:
    """What to try where memory did not suffice for `config`, in a sentence."""
    said = f"there is too little memory for {config.schedule.batch} images a round in {config.precision}"
    less = smaller(config)
    if less is None:
        return f"{said}; this takes a machine with more"
    return f"{said}; start again with --set batch={less.schedule.batch} --set precision={less.precision}"
