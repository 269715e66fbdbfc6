"""Commands about runs and teachers: play, look at, measure."""

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from adadfq_lab.cli.output import RUNS, Changes, Json, say
from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.teacher.training import TeacherConfig


def demo(
    seed: int = 0,
    rounds: int = 420,
    bits: str = "2w2a",
    methods: tuple[str, ...] = ("adadfq", "adadfq+"),
    name: str = "",
    interactive: bool = False,
    json: Json = False,
) -> None:
    """Watch data-free quantization win back what 2 bits lose: real images, no GPU, no network, a few minutes.

    Plays AdaDFQ, then AdaDFQ+ (activation ranges that clip), on the shipped Fashion-MNIST teacher and 2,000 of its
    test images. In the table, calibration alone and what Q learned after it stand apart.

    Args:
        seed: Of the generator's first weights and of every draw.
        rounds: Rounds in all of each game; the first 20 train the generator only.
        bits: Of weights and activations, 2 to 8 each.
        methods: Which to play, one after the other; `adadfq methods` lists them. With --json the first one's result stands at
            the top, the others under their names.
        name: Folder under runs/; made from the date if empty.
        interactive: Write reports to hover over, of 5 MB, in place of some tens of kB.
    """
    from adadfq_lab.methods.registry import make_method
    from adadfq_lab.runs.run import run, side_by_side

    folder = RUNS / (name or time.strftime("demo-%Y%m%d-%H%M%S"))
    schedule = Schedule(warmup=20, student_lr=3e-4)
    configs = [RunConfig(method=one, seed=seed, rounds=rounds, bits=bits, schedule=schedule, stub=True) for one in methods]
    titles = [make_method(one).name for one in methods]
    found = {}
    for config in configs:
        path = folder if len(methods) == 1 else folder / config.method
        found[config.method] = run(config, path, interactive=interactive)
    lines = [side_by_side(titles, list(found.values()))]
    lines += [f"report: {Path(one.run) / 'report.html'}" for one in found.values() if (Path(one.run) / "report.html").exists()]
    first, *others = (one.as_json() for one in found.values())
    say(first | dict(zip(methods[1:], others, strict=True)), "\n".join(lines), json)


def recipes(
    action: tyro.conf.Positional[Literal["list", "show"]] = "list",
    name: tyro.conf.Positional[str] = "",
    changes: Changes = (),
    method: str = "",
    device: str = "",
    probe: float = 10.0,
    json: Json = False,
) -> None:
    """List the published recipes, or show one: what it resolves to, and what it would take on this machine.

    For example: adadfq recipes show cifar10-resnet20-3w3a --probe 5

    Args:
        action: What to do.
        name: The recipe to show; a run folder or a config.json too.
        method: List this method's recipes only.
        device: Where to estimate; the recipe's own if empty.
        probe: Seconds of real rounds behind the estimate of the time, three of each phase at least; 0 for no estimate.
    """
    from adadfq_lab.runs import recipes as known

    if action == "list":
        rows = list(known.recipes(method.lower()))
        if not rows:
            names = ", ".join(dict.fromkeys(r.method for r in known.recipes()))
            raise UserError(f"there is no recipe of a method {method!r}; there are of {names}")
        shown = [r for r in rows if method or r.method == "adadfq"]
        lines = [f"{'recipe':32}{'rounds':>8}{'images':>12}{'Q updates':>11}  teacher"]
        lines += [
            f"{r.name:32}{r.plan.epoch * r.plan.epochs:8,}{r.images:12,}{r.student_updates:11,}  {r.teacher}" for r in shown
        ]
        others = ", ".join(dict.fromkeys(r.method for r in rows if r not in shown))
        lines += [f"and the same cells as {others}: --method lists them"] if others else []
        say({r.name: {"images": r.images, "student_updates": r.student_updates, **r.config().as_json()} for r in rows},
             "\n".join(lines), json)  # fmt: skip
        return
    if not name:
        raise UserError(f"which recipe? as in: adadfq recipes show {next(known.recipes()).name}")
    config = known.override(known.resolve(name), *changes, *([f"device={device}"] if device else []))
    shown_as, text = known.summary(name, config)
    if probe > 0:
        from adadfq_lab.runs.estimates import estimate

        found = estimate(config, seconds=probe)
        shown_as, text = shown_as | {"estimate": found.as_json()}, f"{text}\n\n{found.table()}"
    say(shown_as, text, json)


def train(
    recipe: tyro.conf.Positional[str] = "",
    config: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    changes: Changes = (),
    name: str = "",
    resume: bool = False,
    from_round: Annotated[int | None, tyro.conf.arg(name="from")] = None,
    interactive: bool = False,
    json: Json = False,
) -> None:
    """Play a whole run: a published recipe, or any shipped or trained teacher, any method, any bit width.

    Options that are given change the recipe. On several GPUs or machines: torchrun --nproc-per-node 2 -m adadfq_lab train ...;
    see docs/many_machines.md. For example: adadfq train --method gdfq --bits 4w4a --seed 1 --name mine

    Args:
        recipe: A recipe (`adadfq recipes` lists them), a run folder, or a config.json; the defaults below if empty.
        name: Folder under runs/, or a path; made from the configuration if empty.
        resume: Continue a run that was interrupted, from its last checkpoint; a run folder suffices to name it.
        from_round: Continue from the checkpoint of that round.
        interactive: Write a report to hover over, of 5 MB, in place of one of some tens of kB.
    """
    from adadfq_lab.machine.distributed import joined, restarted
    from adadfq_lab.runs.folder import checkpoints
    from adadfq_lab.runs.recipes import override
    from adadfq_lab.runs.run import play_along, run

    config = override(config, *changes)
    resume = resume or from_round is not None
    if not name and resume and recipe and Path(recipe).is_dir():
        folder = Path(recipe)
    else:
        stem = f"{Path(config.teacher).stem}-{config.method}-{config.bits}" if not recipe or "/" in recipe else recipe
        name = name or f"{stem}-seed{config.seed}"
        folder = Path(name) if "/" in name else RUNS / name
    with joined(config.device) as rank:
        if rank:
            play_along(config)
            return
        resume = resume or (restarted() and bool(checkpoints(folder)))
        try:
            result = run(config, folder, resume=resume, from_round=from_round, interactive=interactive)
        except KeyboardInterrupt:
            if not checkpoints(folder):
                raise
            raise KeyboardInterrupt(f"the run is saved; continue it with: adadfq train --resume {folder}") from None
    text, warmup = result.table(), config.schedule.warmup
    if result.rounds <= warmup:
        text += f"\nQ took no step, as all rounds were warm-up: play more than {warmup}, or set --warmup"
    if (folder / "report.html").exists():
        text += f"\nreport: {folder / 'report.html'}"
    say(result.as_json(), text, json)


def report(run: tyro.conf.Positional[Path], interactive: bool = False, json: Json = False) -> None:
    """Write the report of a finished run again: adadfq report runs/mine --interactive

    Args:
        run: The run's folder.
        interactive: With figures to hover over; the file then has 5 MB in place of some tens of kB.
    """
    from adadfq_lab.runs.report import report as write_it

    path = write_it(run, interactive=interactive)
    say({"report": str(path)}, f"report: {path}", json)


def watch(
    run: tyro.conf.Positional[Path],
    once: bool = False,
    every: float = 2.0,
    html: Path | None = None,
    tensorboard: Path | None = None,
    json: Json = False,
) -> None:
    """Watch a run from outside, from its log alone: progress, pace, time left, H', agreement, accuracy: adadfq watch runs/mine

    Args:
        run: The run's folder; it may lie on a disk that is shared with the machine that plays.
        once: Look once; so does --json.
        every: Seconds between two looks.
        html: Also write a web page that loads itself again.
        tensorboard: Instead, copy the log to this folder of TensorBoard's as it grows.
    """
    from adadfq_lab.runs import watch as views

    if not 0 < every < math.inf:
        raise UserError(f"every must be a positive number of seconds, not {every}")
    if tensorboard:
        views.to_tensorboard(run, tensorboard)
    elif once or json:
        watched = views.Watch(run)
        status = watched.look()
        if html:
            views.write_page(html, status.frame(watched.title), every)
        say(status.as_json(), status.frame(watched.title), json)
    else:
        try:
            views.watch(run, every=every, copy=html)
        except KeyboardInterrupt:  # ends the watching, not the run
            sys.exit(130)


def evaluate(run_or_teacher: tyro.conf.Positional[str], data: str = "", stub: bool = False, json: Json = False) -> None:
    """Measure the top-1 accuracy of a run's student, or of a teacher, with its 95 % interval: adadfq evaluate runs/mine

    On images without labels: for how many the student predicts the class that its teacher predicts. Without any images: the
    same on the generated images that the run ended with.

    Args:
        run_or_teacher: A run folder, its student.safetensors, a shipped teacher's name, or a teacher file.
        data: A data set as for `adadfq train`, NAME for NAME_test.npz in ADADFQ_DATA included; the teacher's own if empty.
        stub: Use the shipped images only.
    """
    from adadfq_lab.data.accuracy import accuracy, agreement
    from adadfq_lab.data.loading import load_data
    from adadfq_lab.runs.agreement import CAUTION, chance, measured
    from adadfq_lab.runs.players import fitting_data
    from adadfq_lab.student.student_files import load_student

    path = Path(run_or_teacher)
    network: Student | Teacher
    if path.is_dir() or path.name.endswith("student.safetensors"):
        teacher, network = load_student(path / "student.safetensors" if path.is_dir() else path)
    else:
        network = teacher = load_teacher(run_or_teacher)
    if not (data or teacher.info.data):
        if path.is_dir() and (known := measured(path)):
            text = f"the class that P predicts for {known['student']:.2f} % of {known['source']}: {CAUTION} (--data)"
            say({"agreement": known}, text, json)
            return
        raise UserError(f"teacher {teacher.info.name} does not know its images; name some with --data")
    images = fitting_data(teacher, load_data(data or teacher.info.data, "test", stub=stub))
    if images.labelled:
        found = accuracy(network, images, teacher.normalize)
        warning = chance(found, len(images.classes)) if network is teacher else ""
        text = f"{found} on {images.source}" + f"\n{warning}" * bool(warning)
        say(dataclasses.asdict(found), text, json)
    elif network is teacher:
        raise UserError(f"{images.source} have no labels, so a teacher's accuracy cannot be measured; a run's agreement can")
    else:
        found = agreement(network, teacher, images, teacher.normalize)
        say({"agreement": dataclasses.asdict(found)}, f"the class that P predicts for {found} of {images.source}", json)


def train_teacher(config: TeacherConfig, output: Path, json: Json = False) -> None:
    """Train a teacher on real training images; run it again to continue one that was interrupted.

    For example: adadfq train-teacher --data cifar10 --network resnet8 --epochs 5 --output my.safetensors

    Args:
        output: Where to write it, ending in .safetensors.
    """
    from adadfq_lab.teacher.training import train_teacher as train_it

    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise UserError(f"{output} must end in .safetensors and lie in a folder that exists")
    try:
        info = train_it(config, output).info
    except KeyboardInterrupt:
        if not output.with_suffix(".resume").exists():
            raise
        raise KeyboardInterrupt("the same command continues after the last whole epoch") from None
    say(info.as_json(), f"{info.name}: {info.top1} % on {info.evaluated_on}", json)
