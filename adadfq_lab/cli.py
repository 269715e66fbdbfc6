"""`adadfq`: the command line.

Figures go to standard output, progress to standard error. `--json` prints one JSON object as the last line. A user's mistake
ends in one line and exit status 2, Ctrl-C in 130 after the run was saved.
"""

import dataclasses
import functools
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from adadfq_lab.distributed import launched
from adadfq_lab.engines import EngineName, Resources, make_engine
from adadfq_lab.errors import UserError
from adadfq_lab.runs import RunConfig
from adadfq_lab.student import Student
from adadfq_lab.teachers import Teacher, load_teacher
from adadfq_lab.training_teachers import TeacherConfig

Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object as the last line.")]
Changes = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="Change an option, or a setting of the method such as alpha_ds=0.3."),
]
RUNS = Path("runs")


def _say(result: dict[str, Any] | list[dict[str, Any]], text: str, as_json: bool) -> None:
    print(text)
    if as_json:
        print(json.dumps(result))


def demo(seed: int = 0, rounds: int = 1200, bits: str = "3w3a", name: str = "", json: Json = False) -> None:
    """Watch AdaDFQ win back what 3-bit quantization loses: real images, no GPU, no network, a few minutes.

    Plays AdaDFQ on the shipped Fashion-MNIST teacher and measures on the shipped 2,000 test images.

    Args:
        seed: Of the generator's first weights and of every draw.
        rounds: Rounds in all; the first 200 train the generator only.
        bits: Of weights and activations, 2 to 8 each.
        name: Folder under runs/; made from the date if empty.
    """
    train(
        config=RunConfig(seed=seed, rounds=rounds, bits=bits, stub=True),
        name=name or time.strftime("demo-%Y%m%d-%H%M%S"),
        json=json,
    )


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

    Args:
        action: What to do.
        name: The recipe to show; a run folder or a config.json too.
        method: List this method's recipes only.
        device: Where to estimate; the recipe's own if empty.
        probe: Seconds of real rounds that the estimate of the time is made from; 0 for no estimate.
    """
    from adadfq_lab import recipes as known

    if action == "list":
        rows = list(known.recipes(method.lower()))
        if not rows:
            raise UserError(f"there is no recipe of a method {method!r}")
        shown = [r for r in rows if method or r.method == "adadfq"]
        lines = [f"{'recipe':32}{'rounds':>8}{'images':>12}{'Q updates':>11}  teacher"]
        lines += [
            f"{r.name:32}{r.plan.epoch * r.plan.epochs:8,}{r.images:12,}{r.student_updates:11,}  {r.teacher}" for r in shown
        ]
        others = ", ".join(dict.fromkeys(r.method for r in rows if r not in shown))
        lines += [f"and the same cells as {others}: --method lists them"] if others else []
        _say({r.name: {"images": r.images, "student_updates": r.student_updates, **r.config().as_json()} for r in rows},
             "\n".join(lines), json)  # fmt: skip
        return
    if not name:
        raise UserError(f"which recipe? as in: adadfq recipes show {next(known.recipes()).name}")
    config = known.override(known.resolve(name), *changes, *([f"device={device}"] if device else []))
    shown_as, text = known.summary(name, config)
    if probe > 0:
        from adadfq_lab.estimates import estimate

        found = estimate(config, seconds=probe)
        shown_as, text = shown_as | {"estimate": found.as_json()}, f"{text}\n\n{found.table()}"
    _say(shown_as, text, json)


def train(
    recipe: tyro.conf.Positional[str] = "",
    config: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    changes: Changes = (),
    name: str = "",
    resume: bool = False,
    from_round: Annotated[int | None, tyro.conf.arg(name="from")] = None,
    json: Json = False,
) -> None:
    """Play a whole run: a published recipe, or any shipped or trained teacher, any method, any bit width.

    Options that are given change the recipe. On several GPUs or machines: torchrun --nproc-per-node 2 -m adadfq_lab train ...;
    see docs/many_machines.md.

    Args:
        recipe: A recipe (`adadfq recipes` lists them), a run folder, or a config.json; the defaults below if empty.
        name: Folder under runs/, or a path; made from the configuration if empty.
        resume: Continue a run that was interrupted, from its last checkpoint; a run folder suffices to name it.
        from_round: Continue from the checkpoint of that round.
    """
    from adadfq_lab.distributed import joined, restarted
    from adadfq_lab.recipes import override
    from adadfq_lab.runs import follow, run

    config = override(config, *changes)
    resume = resume or from_round is not None
    if not name and resume and Path(recipe).is_dir():
        folder = Path(recipe)
    else:
        stem = f"{Path(config.teacher).stem}-{config.method}-{config.bits}" if not recipe or "/" in recipe else recipe
        name = name or f"{stem}-seed{config.seed}"
        folder = Path(name) if "/" in name else RUNS / name
    with joined(config.device) as rank:
        if rank:
            follow(config)
            return
        resume = resume or (restarted() and any(folder.glob("round_*.ckpt")))
        result = run(config, folder, resume=resume, from_round=from_round)
    _say(result.as_json(), f"{result.table()}\nreport: {folder / 'report.html'}", json)


def watch(
    run: tyro.conf.Positional[Path],
    once: bool = False,
    every: float = 2.0,
    html: Path | None = None,
    tensorboard: Path | None = None,
    json: Json = False,
) -> None:
    """Watch a run from outside, from its log alone: progress, pace, time left, H', agreement, accuracy.

    Args:
        run: The run's folder; it may lie on a disk that is shared with the machine that plays.
        once: Look once; so does --json.
        every: Seconds between two looks.
        html: Also write a web page that loads itself again.
        tensorboard: Instead, copy the log to this folder of TensorBoard's as it grows.
    """
    from adadfq_lab import watch as views

    if tensorboard:
        views.to_tensorboard(run, tensorboard)
    elif once or json:
        watched = views.Watch(run)
        status = watched.look()
        if html:
            views.write_page(html, status.frame(watched.title), every)
        _say(status.as_json(), status.frame(watched.title), json)
    else:
        try:
            views.watch(run, every=every, page=html)
        except KeyboardInterrupt:  # ends the watching, not the run
            sys.exit(130)


def evaluate(run_or_teacher: tyro.conf.Positional[str], data: str = "", stub: bool = False, json: Json = False) -> None:
    """Measure the top-1 accuracy of a run's student, or of a teacher, with its 95 % interval.

    Args:
        run_or_teacher: A run folder, its student.safetensors, a shipped teacher's name, or a teacher file.
        data: fashion_mnist, cifar10 or cifar100; what the teacher was trained on if empty.
        stub: Use the shipped images only.
    """
    from adadfq_lab.data import load_data
    from adadfq_lab.evaluation import accuracy
    from adadfq_lab.runs import check_fits
    from adadfq_lab.student_files import load_student

    path = Path(run_or_teacher)
    network: Student | Teacher
    if path.is_dir() or path.name.endswith("student.safetensors"):
        teacher, network = load_student(path / "student.safetensors" if path.is_dir() else path)
    else:
        network = teacher = load_teacher(run_or_teacher)
    images = load_data(data or teacher.info.data, "test", stub=stub)
    check_fits(teacher, images)
    found = accuracy(network, images, teacher.normalize)
    _say(dataclasses.asdict(found), f"{found} on {images.source}", json)


def train_teacher(config: TeacherConfig, output: Path, json: Json = False) -> None:
    """Train a teacher on real training images; run it again to continue one that was interrupted.

    Args:
        output: Where to write it, ending in .safetensors.
    """
    from adadfq_lab.training_teachers import train_teacher as train_it

    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise UserError(f"{output} must end in .safetensors and lie in a folder that exists")
    info = train_it(config, output).info
    _say(dataclasses.asdict(info), f"{info.name}: {info.top1} % on {info.evaluated_on}", json)


def export(
    run: tyro.conf.Positional[str],
    output: Path,
    form: Literal["exact", "qcdq"] = "exact",
    input_bits: Literal[8, 16, 24] = 24,
    json: Json = False,
) -> None:
    """Write a run's student as an ONNX file that computes on integers, and its weights packed at n bits each beside it.

    Args:
        run: A run folder, or its student.safetensors.
        output: Where to write it, ending in .onnx.
        form: exact has sums in int32; qcdq rounds each convolution's output to 8 bits: faster, and at few bits less faithful.
        input_bits: Integers that stand for what the student leaves float at a layer's input.
    """
    from adadfq_lab.export import export_onnx
    from adadfq_lab.student_files import load_student

    path = Path(run)
    teacher, student = load_student(path / "student.safetensors" if path.is_dir() else path)
    done = export_onnx(student, output, teacher, form=form, input_bits=input_bits)
    _say(done.as_json(), str(done), json)


def verify(
    file: tyro.conf.Positional[Path],
    data: str = "",
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    json: Json = False,
) -> None:
    """Run an exported file and see: is it integer, does it score what the student scores, how large and how fast is it?

    Exit status 1 if a convolution is not computed on integers.

    Args:
        file: What `adadfq export` wrote.
        data: fashion_mnist, cifar10, cifar100, or a folder of images; if empty, the shipped images of the teacher's data
            set, or those in the folder that ADADFQ_DATA names.
        runtime: What runs the file.
    """
    from adadfq_lab.data import load_data
    from adadfq_lab.verification import verify as run_it

    found = run_it(file, load_data(data, "test") if data else None, runtime=runtime)
    _say(found.as_json(), found.table(), json)
    if not found.ok:
        sys.exit(1)


def table(
    play: bool = False,
    methods: tuple[str, ...] = (),
    bits: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    dataset: str = "",
    budget: Literal["", "short", "long"] = "",
    fidelity: Literal["", "corrected", "paper", "released"] = "",
    teacher: str = "",
    workers: int = 1,
    engine: EngineName = "local",
    resources: Resources = Resources(),  # noqa: B008 (frozen)
    folder: Path = RUNS / "table",
    results: Path | None = None,
    csv: bool = False,
    figure: Path | None = None,
    json: Json = False,
) -> None:
    """Methods x bit widths x seeds under one protocol: show the results that come with the package, or play your own.

    Without --play the options choose among the results. With it they say what to play; a run that was played before, in the
    same folder with the same options, is not played again.

    Args:
        play: Play what is asked for and missing, a process a run; then show it.
        methods: Which; `adadfq methods` lists them. All of them if not given.
        bits: Bit widths such as 3w3a 4w4a; 3w3a if not given.
        seeds: 0 if not given.
        dataset: Images to measure on: fashion_mnist, cifar10, cifar100 or a folder; cifar10 if not given.
        budget: short is 1,500 student updates, long is 5,000; short if not given.
        fidelity: Whose losses and ranges; corrected if not given. `adadfq fidelity` says what it changes.
        teacher: A shipped teacher's name or a teacher file; the one shipped for the data set if not given.
        workers: Runs at a time.
        engine: Where to play: in processes of this machine, in this process, by submitit on this machine, or on Slurm.
        resources: What each run gets on Slurm.
        folder: Where the runs are.
        results: A results file; what was played is added to it, or what it holds is shown.
        csv: Print every run as a line of CSV in place of the table.
        figure: Also write the table as a plotly figure, in one HTML file.
    """
    from adadfq_lab import tables
    from adadfq_lab.grids import play_grid
    from adadfq_lab.methods import METHODS

    if play:
        player = make_engine(engine, workers, folder, resources)
        width, which = budget or "short", methods or tuple(METHODS)
        configs = tables.configurations(
            which,
            bits or ("3w3a",),
            seeds or (0,),
            dataset=dataset or "cifar10",
            budget=width,
            teacher=teacher,
            fidelity=fidelity or "corrected",
        )
        rows = [tables.row(run, width) for run in play_grid(configs, folder, engine=player)]
        if results:
            tables.write_rows(results, rows)
    else:
        if results and not results.exists():
            raise UserError(f"there is no results file {results}; make it with --play --results {results}")
        rows = tables.read_rows(results or tables.shipped_results())
        asked = {"method": methods, "bits": bits, "seed": seeds, "dataset": (dataset,) if dataset else ()}
        asked |= {"budget": (budget,) if budget else (), "fidelity": (fidelity,) if fidelity else ()}
        asked |= {"teacher_name": (Path(teacher).stem,) if teacher else ()}
        rows = [row for row in rows if all(not wanted or getattr(row, name) in wanted for name, wanted in asked.items())]
        if not rows:
            raise UserError("no result fits these options; play it with --play, or ask for less")
    if figure:
        from adadfq_lab.figures_tables import write_table_figure

        write_table_figure(rows, figure)
    _say([dataclasses.asdict(row) for row in rows], tables.as_csv(rows) if csv else tables.markdown(rows), json)


def grid(
    action: tyro.conf.Positional[Literal["play", "status"]],
    folder: tyro.conf.Positional[Path],
    config: RunConfig,
    vary: tuple[str, ...] = (),
    workers: int = 1,
    engine: EngineName = "local",
    resources: Resources = Resources(),  # noqa: B008 (frozen)
    json: Json = False,
) -> None:
    """Play every combination of some options, here or on a cluster, or see how far such a grid is.

    adadfq grid play runs/bands --vary lower=0,0.1,0.2 upper=0.6,0.8 seed=0,1 --rounds 1000 --workers 2. Asked for again, with
    the same or more values, it plays only what is missing; status may be asked at any time, from any machine that sees FOLDER.

    Args:
        action: play what is missing, then show the results; or show the status: done, running, failed, stopped, waiting.
        folder: Where the runs are.
        vary: NAME=VALUE,VALUE,... for any option of a run (method, bits, lower, upper, seed, batch, ...).
        workers: Runs at a time.
        engine: Where to play: in processes of this machine, in this process, by submitit on this machine, or on Slurm.
        resources: What each run gets on Slurm.
    """
    from adadfq_lab.grids import play_grid
    from adadfq_lab.sweeps import as_json, combinations, status, status_text

    if action == "play":
        play_grid(combinations(config, vary), folder, engine=make_engine(engine, workers, folder, resources))
    rows = status(folder)
    _say(as_json(rows), status_text(rows), json)
    if action == "status" and any(row.state == "failed" for row in rows):
        sys.exit(1)


def evidence(
    names: tyro.conf.Positional[tuple[str, ...]] = (), figure: Path | None = None, play: bool = False, json: Json = False
) -> None:
    """The paper's other figures in small: what each claims, what was measured here, and whether it supports the claim.

    Args:
        names: fig1, fig3, fig4, fig5a, fig5c, fig6 and table3; all of them if none is named.
        figure: Also write the figures, in one HTML file.
        play: Record the games again first: about half an hour on two cores, in a checkout.
    """
    from adadfq_lab.evidence import EVIDENCE, evidence_page
    from adadfq_lab.evidence import evidence as measure
    from adadfq_lab.files import write_atomically

    if unknown := [name for name in names if name not in EVIDENCE]:
        raise UserError(f"no evidence is called {unknown[0]!r}; choose from {', '.join(EVIDENCE)}")
    if play:
        from adadfq_lab.recordings import main as record

        record(())
    found = [measure(name) for name in names or EVIDENCE]
    if figure:
        write_atomically(figure, evidence_page(found).encode())
    _say([one.as_json() for one in found], "\n\n".join(map(str, found)), json)


def methods(json: Json = False) -> None:
    """List the methods and the idea of each; last, what goes beyond the paper and what methods are measured against."""
    from adadfq_lab.methods import every_method

    rows = {name: (sys.modules[make.__module__].__doc__ or "").split("\n")[0] for name, make in every_method().items()}
    _say(rows, "\n".join(f"{name:10} {idea.split(': ', 1)[-1]}" for name, idea in rows.items()), json)


def fidelity(json: Json = False) -> None:
    """Show every place where paper, released code and good sense differ, and what each choice means."""
    from adadfq_lab.fidelity import CHOICES, fidelity_table

    _say({choice.name: dataclasses.asdict(choice) for choice in CHOICES}, fidelity_table(), json)


def bench(teacher: str = "cifar10_resnet20", batch: int = 16, bits: str = "3w3a", rounds: int = 20, json: Json = False) -> None:
    """Time a round against a textbook round and against the convolutions alone, in one process, interleaved.

    Args:
        teacher: A shipped teacher's name or a teacher file.
        batch: Images a round.
        bits: Of weights and activations.
        rounds: Measurements of each kind.
    """
    from adadfq_lab.bench import bench as time_it

    b = time_it(load_teacher(teacher), batch=batch, bits=bits, rounds=rounds)
    rows = [
        ("round", f"{b.round_ms:8.1f} ms   {1e3 / b.round_ms:.1f} rounds/s"),
        ("textbook round", f"{b.textbook_ms:8.1f} ms   {b.textbook_ratio:.2f} x the round"),
        ("its convolutions alone", f"{b.floor_ms:8.1f} ms   the round is {b.floor_ratio:.2f} x this floor"),
        ("round in bf16", f"{b.bf16_ms:8.1f} ms"),
        ("peak memory", f"{b.peak_mb:8.0f} MB"),
        ("largest difference", f"{b.max_relative_difference:8.1e}   relative, fast against textbook round, in float64"),
    ]
    text = f"{teacher}, {bits}, batch {batch}, {b.threads} threads, medians of {rounds}\n"
    _say(dataclasses.asdict(b), text + "\n".join(f"{name:24}{figure}" for name, figure in rows), json)


def course(action: tyro.conf.Positional[Literal["build", "check", "badges"]], target: tyro.conf.Positional[str] = "") -> None:
    """Make the notebooks from their masters, check them, or point their Colab badges at a fork.

    Args:
        action: What to do.
        target: For badges: OWNER/REPO@TAG.
    """
    from adadfq_lab.course import badges_command, build_command, check_command

    if action == "badges":
        badges_command(target)
    else:
        {"build": build_command, "check": check_command}[action]()


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(train),
    "recipes": recipes,
    "watch": watch,
    "evaluate": evaluate,
    "train-teacher": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(train_teacher),
    "export": export,
    "verify": verify,
    "table": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(table),
    "grid": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(grid),
    "evidence": evidence,
    "methods": methods,
    "fidelity": fidelity,
    "bench": bench,
    "course": course,
}


def _parse(commands: dict[str, Callable[..., Any]], arguments: list[str]) -> Any:
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="adadfq",
        description="Adaptive data-free quantization: a teacher, a generator, a student, and the game they play.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _train(call: Callable[..., Any], config: RunConfig) -> Callable[..., Any]:
    """`call` with the arguments of `train`, where what is not given on the command line is as in `config`."""
    started = functools.wraps(train)(lambda *args, **named: call(*args, **named))
    signature = inspect.signature(train)
    parameters = [p.replace(default=config) if p.name == "config" else p for p in signature.parameters.values()]
    started.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(started)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `adadfq`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if launched() and arguments[:1] not in ([], ["train"], ["demo"], ["--help"], ["-h"]):
            raise UserError("only train and demo play on several processes; start the others without torchrun")
        commands = COMMANDS
        if arguments[:1] == ["train"]:  # read twice: the recipe's values are the defaults of everything else
            recipe = _parse(COMMANDS | {"train": _train(lambda recipe, **_: recipe, RunConfig())}, arguments)
            if recipe:
                from adadfq_lab.recipes import resolve

                commands = COMMANDS | {"train": _train(train, resolve(recipe))}
        _parse(commands, arguments)
    except UserError as error:
        print(f"adadfq: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("adadfq: interrupted; a run was saved and continues with --resume", file=sys.stderr)
        sys.exit(130)
