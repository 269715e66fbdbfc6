"""Commands about many runs: tables, grids, the paper's other figures."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from adadfq_lab.cli.output import RUNS, Json, say
from adadfq_lab.errors import UserError
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.studies.engines import EngineName, Resources, make_engine
from adadfq_lab.teacher.teacher_files import load_teacher


def table(
    play: bool = False,
    methods: tuple[str, ...] = (),
    bits: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    dataset: str = "",
    budget: Literal["", "quick", "short", "long"] = "",
    fidelity: Literal["", "corrected", "paper", "released"] = "",
    teacher: str = "",
    workers: int = 1,
    engine: EngineName = "local",
    resources: Resources = Resources(),  # noqa: B008 (frozen)
    folder: Path = RUNS / "table",
    results: Path | None = None,
    runs: tuple[Path, ...] = (),
    csv: bool = False,
    figure: Path | None = None,
    json: Json = False,
) -> None:
    """Methods x bit widths x seeds under one protocol: show the results that come with the package, or play your own.

    Without --play the options choose among the results. With it they say what to play; a run that was played before, in the
    same folder with the same options, is not played again. For example: adadfq table --methods gdfq adadfq --bits 3w3a

    Args:
        play: Play what is asked for and not yet in --folder, a process a run; then show it.
        methods: Which; `adadfq methods` lists them. All of them if not given.
        bits: Bit widths such as 3w3a 4w4a; 3w3a if not given.
        seeds: 0 if not given.
        dataset: Images to measure on: fashion_mnist, cifar10, cifar100 or a folder; cifar10 if not given.
        budget: quick is 180 student updates at three times the usual rate, short is 1,500, long is 5,000; short if not given.
        fidelity: Whose losses and ranges; corrected if not given. `adadfq fidelity` says what it changes.
        teacher: A shipped teacher's name or a teacher file; the one shipped for the data set if not given.
        workers: Runs at a time.
        engine: Where to play: in processes of this machine, in this process, by submitit on this machine, or on Slurm.
        resources: What each run gets on Slurm.
        folder: Where the runs are.
        results: A results file; what was played is added to it, or what it holds is shown.
        runs: Folders of finished runs, of `train` or of a grid, to show in place of results, as in --runs runs/*
        csv: Print every run as a line of CSV in place of the table.
        figure: Also write the table as a plotly figure, in one HTML file.
    """
    from adadfq_lab.methods.registry import METHODS
    from adadfq_lab.studies import tables
    from adadfq_lab.studies.grid import play_grid

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
    elif runs:
        rows = tables.rows_of(runs)
    else:
        if results and not results.exists():
            raise UserError(f"there is no results file {results}; make it with --play --results {results}")
        rows = tables.read_rows(results or tables.shipped_results())
        asked = {"method": methods, "bits": bits, "seed": seeds, "dataset": (dataset,) if dataset else ()}
        asked |= {"budget": (budget,) if budget else (), "fidelity": (fidelity,) if fidelity else ()}
        asked |= {"teacher_name": (Path(teacher).stem,) if teacher else ()}
        for name, wanted in asked.items():
            if wanted and not (held := {str(getattr(row, name)) for row in rows}) & set(map(str, wanted)):
                what = f"{name.removesuffix('_name')} {' or '.join(map(str, wanted))}"
                raise UserError(f"no result has {what}, but there are {', '.join(sorted(held))}; or play it with --play")
        rows = [row for row in rows if all(not wanted or getattr(row, name) in wanted for name, wanted in asked.items())]
        if not rows:
            raise UserError("no result fits these options; play it with --play, or ask for less")
    if figure:
        from adadfq_lab.studies.tables import write_table_figure

        write_table_figure(rows, figure)
    say([dataclasses.asdict(row) for row in rows], tables.as_csv(rows) if csv else tables.markdown(rows), json)


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
        vary: NAME=VALUE,VALUE,... for any option of a run (method, bits, lower, seed, ...) or of its method (alpha_ds, ...).
            Combinations in which lower is not below upper are left out.
            Each of several methods has its own warm-up, if none is given, and as many rounds after it.
        workers: Runs at a time.
        engine: Where to play: in processes of this machine, in this process, by submitit on this machine, or on Slurm.
        resources: What each run gets on Slurm.
    """
    from adadfq_lab.studies.grid import play_grid
    from adadfq_lab.studies.sweeps import as_json, combinations, status, status_text

    if action == "play":
        play_grid(combinations(config, vary), folder, engine=make_engine(engine, workers, folder, resources))
    rows = status(folder)
    say(as_json(rows), status_text(rows), json)
    if action == "status" and any(row.state == "failed" for row in rows):
        sys.exit(1)


def evidence(
    names: tyro.conf.Positional[tuple[str, ...]] = (), figure: Path | None = None, play: bool = False, json: Json = False
) -> None:
    """The paper's other figures in small: what each claims, what was measured here, and whether it supports the claim.

    For example: adadfq evidence fig1 --figure fig1.html

    Args:
        names: fig1, fig3, fig4, fig5a, fig5c, fig6 and table3; all of them if none is named.
        figure: Also write the figures, in one HTML file.
        play: Record the games again first: about half an hour on two cores, in a checkout.
    """
    from adadfq_lab.machine.files import write_atomically
    from adadfq_lab.studies.paper_figures import EVIDENCE, evidence_page
    from adadfq_lab.studies.paper_figures import evidence as measure

    if unknown := [name for name in names if name not in EVIDENCE]:
        raise UserError(f"no evidence is called {unknown[0]!r}; choose from {', '.join(EVIDENCE)}")
    if play:
        from adadfq_lab.authoring.recording import main as record

        record(())
    found = [measure(name) for name in names or EVIDENCE]
    if figure:
        write_atomically(figure, evidence_page(found).encode())
    say([one.as_json() for one in found], "\n\n".join(map(str, found)), json)


def methods(json: Json = False) -> None:
    """List the methods and the idea of each; last, what goes beyond the paper and what methods are measured against."""
    from adadfq_lab.methods.registry import description, every_method

    rows = {name: description(make) for name, make in every_method().items()}
    width = max(map(len, rows))
    say(rows, "\n".join(f"{name:{width}} {idea.split(': ', 1)[-1]}" for name, idea in rows.items()), json)


def fidelity(json: Json = False) -> None:
    """Show every place where paper, released code and good sense differ, and what each choice means."""
    from adadfq_lab.fidelity import CHOICES

    say({choice.name: dataclasses.asdict(choice) for choice in CHOICES}, "\n\n".join(map(str, CHOICES)), json)


def bench(
    teacher: str = "cifar10_resnet20",
    batch: int = 16,
    bits: str = "3w3a",
    rounds: int = 20,
    logs: bool = False,
    json: Json = False,
) -> None:
    """Time a round against a textbook round, a careful one and the convolutions alone, in one process, interleaved.

    For example: adadfq bench --batch 4 --rounds 5

    Args:
        teacher: A shipped teacher's name or a teacher file.
        batch: Images a round.
        bits: Of weights and activations.
        rounds: Measurements of each kind.
        logs: Instead, measure what logs of 80,000 rounds cost: a look of watch, a resume, the report, a redraw; two minutes.
    """
    if logs:
        from adadfq_lab.studies import bench_logs

        costs = bench_logs.bench_logs()
        say(bench_logs.as_json(costs), bench_logs.table(costs), json)
        return
    from adadfq_lab.studies.bench import bench as time_it

    b = time_it(load_teacher(teacher), batch=batch, bits=bits, rounds=rounds)
    rows = [
        ("round", f"{b.round_ms:8.1f} ms   {1e3 / b.round_ms:.1f} rounds/s"),
        ("textbook round", f"{b.textbook_ms:8.1f} ms   {b.textbook_ratio:.2f} x the round"),
        ("careful round", f"{b.careful_ms:8.1f} ms   {b.careful_ratio:.2f} x the round"),
        ("its convolutions alone", f"{b.floor_ms:8.1f} ms   the round is {b.floor_ratio:.2f} x this floor"),
        ("round in bf16", f"{b.bf16_ms:8.1f} ms"),
        ("peak memory", f"{b.peak_mb:8.0f} MB"),
        (
            "largest difference",
            f"{b.max_relative_difference:8.1e}   relative, against the textbook and careful rounds, in float64",
        ),
    ]
    text = f"{teacher}, {bits}, batch {batch}, {b.threads} thread{'s' * (b.threads != 1)}, medians of {rounds}\n"
    say(dataclasses.asdict(b), text + "\n".join(f"{name:24}{figure}" for name, figure in rows), json)


def drop_curve(
    teacher: str = "cifar10_resnet20",
    method: str = "adadfq+",
    bits: str = "3w3a",
    warmups: tuple[int, ...] = (20,),
    rates: tuple[float, ...] = (),
    updates: tuple[int, ...] = (0, 5, 10, 25, 50, 100, 180, 400),
    seeds: tuple[int, ...] = (0,),
    goals: tuple[float, ...] = (9.0, 5.0, 4.0, 3.0),
    data: str = "",
    split: Literal["train", "test"] = "train",
    images: int = 2000,
    json: Json = False,
) -> None:
    """Find how many seconds a method needs to come within so many points of its teacher.

    Plays one game for each warm-up, rate and seed, and measures its student on the way. Choose on training images, then confirm
    the choice once on test images. For example: adadfq drop-curve --warmups 5 20 200 --rates 1e-4 1e-3

    Args:
        teacher: A shipped teacher's name or a teacher file.
        method: One; `adadfq methods` lists them.
        bits: Of weights and activations.
        warmups: Rounds in which only the generator learns.
        rates: Q's learning rates; the method's own if not given.
        updates: Of Q, after which it is measured.
        seeds: Each plays every setting.
        goals: Drops in points; the quickest setting is named for each.
        data: Images to measure on; what the teacher was trained on if empty.
        split: train to choose, test to confirm.
        images: How many of them; 0 for all.
    """
    from adadfq_lab.data.loading import load_data
    from adadfq_lab.runs.players import fitting_data
    from adadfq_lab.studies import drop_curve as curve
    from adadfq_lab.studies.bench import textbook_seconds

    P = load_teacher(teacher)
    measured = fitting_data(P, load_data(data or P.info.data, split).take(images or None))
    settings = [curve.Setting(warmup, rate) for warmup in warmups for rate in rates or (None,)]
    points = []
    for seed in seeds:
        for setting in settings:
            for point in curve.play(P, measured, setting, method=method, bits=bits, seed=seed, at=updates):
                points.append(point)
                print(
                    f"seed {seed}, {setting}: {point.updates} updates, drop {point.drop:.2f}, {point.seconds:.1f} s",
                    file=sys.stderr,
                )
    textbook, found = textbook_seconds(P, bits=bits), curve.means(points)
    plain = {"teacher": teacher, "method": method, "bits": bits, "source": measured.source, "textbook_seconds": textbook}
    head = f"{method}, {bits}, {teacher}, measured on {measured.source}; seeds {' '.join(map(str, seeds))}\n"
    say(plain | {"points": [dataclasses.asdict(p) for p in points]}, head + curve.table(found, textbook, goals), json)
