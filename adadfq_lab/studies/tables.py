"""Methods x bit widths x seeds on one teacher and its test images: the paper's Table 2 at classroom scale.

The protocol, the same for every method: the same quantizer, the same number of student updates, as many images in each of
them, ranges observed on generated images for as many of them, learning rates as each method publishes them, and accuracy after
the *last* round. Rows of the shipped results live in data_stubs/table.json; `adadfq table` prints them, `adadfq table --play`
plays what is asked for and missing.

`table2.PAPER` holds what the paper prints, after 79,200 updates and with the best epoch on the test set chosen: another
protocol, so it stands in a column of its own and enters no average.

Tables as figures: every method's accuracy after the last round, beside its teacher and the paper's own number.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go

from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import load_tensors, write_atomically
from adadfq_lab.machine.reading import read_bytes
from adadfq_lab.methods.registry import every_method, make_method
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.studies import table2
from adadfq_lab.views.pages import page
from adadfq_lab.views.style import GREY, STUDENT, TEACHER, figure


@dataclass(frozen=True)
class Budget:
    """What every method of a table may spend.

    updates: of the student
    batch:   images in each
    warmup:  rounds before them in which only the generator learns; None for what serves the method: 200 for most, none for
             ZAQ, whose paper has none, and for IntraQ as many as its images take
    decay:   share of the updates after which the learning rates are multiplied by 0.1; 1 for never
    """

    updates: int
    batch: int = 16
    warmup: int | None = None
    decay: float = 1.0

    def schedule(self, method: str) -> Schedule:
        """The schedule of `method`'s run within this budget."""
        warmup = make_method(method).warmup if self.warmup is None else self.warmup
        milestones = (warmup + round(self.decay * self.updates),) if self.decay < 1 else ()
        return Schedule(batch=self.batch, warmup=warmup, milestones=milestones)


BUDGETS = {"short": Budget(1500), "long": Budget(5000, decay=0.8)}
"""By name: "short" takes about four minutes a run on two quiet cores, "long" about fifteen."""

TEACHERS = {"fashion_mnist": "fashion_mnist_resnet20", "cifar10": "cifar10_resnet20"}
"""The shipped teacher of each data set."""

USUAL_IMAGES = {
    "fashion_mnist": "2,000 of 10,000 fashion_mnist test images",
    "cifar10": "9,979 of 10,000 cifar10 test images",
}
"""The images that the shipped rows were measured on, by data set."""


@dataclass(frozen=True)
class Row:
    """One run of a table. Accuracies are top-1 in percent on the same images.

    plain:      ranges observed on standard-normal images, nothing trained
    calibrated: ranges observed on the generator's images after the warm-up, nothing trained
    last:       after the last round; low and high are its 95 % interval over the images
    best:       the highest of the accuracies measured on the way: chosen on the test images, so not a result
    images:     drawn in all, the warm-up included
    source:     the images it was measured on, in words; empty in the rows of older files
    sha256:     the first twelve digits of the teacher's; empty in the rows of older files
    """

    method: str
    bits: str
    seed: int
    dataset: str
    budget: str
    fidelity: str
    teacher_name: str
    teacher: float
    plain: float
    calibrated: float | None
    last: float
    low: float
    high: float
    best: float
    updates: int
    images: int
    seconds: float
    source: str = ""
    sha256: str = ""

    @property
    def players(self) -> str:
        """Which teacher and which images, if they are not the usual ones of the data set; nothing if they are."""
        usual = TEACHERS.get(self.dataset) == self.teacher_name and self.source in ("", USUAL_IMAGES.get(self.dataset))
        told = [f"teacher {self.teacher_name}", self.sha256 and f"({self.sha256})", self.source and f"on {self.source}"]
        return "" if usual else " ".join(filter(None, told))

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the row it is."""
        return self.dataset, self.teacher_name, self.players, self.budget, self.fidelity, self.bits, self.method, self.seed


def configurations(
    methods: Sequence[str],
    bits: Sequence[str],
    seeds: Sequence[int],
    *,
    dataset: str,
    budget: str,
    teacher: str = "",
    fidelity: Literal["corrected", "paper", "released"] = "corrected",
    device: str = "auto",
) -> list[RunConfig]:
    """A run for each combination, seed by seed, so that a table is useful before it is full.

    Raises UserError for unknown names.
    """
    if budget not in BUDGETS:
        raise UserError(f"no budget is called {budget!r}; choose from {', '.join(BUDGETS)}")
    for method in methods:
        if method not in every_method():
            raise UserError(f"no method is called {method!r}; choose from {', '.join(every_method())}")
    if not teacher and dataset not in TEACHERS:
        raise UserError(f"no teacher is shipped for {dataset!r}; name one with --teacher, or choose from {', '.join(TEACHERS)}")
    found = []
    for seed in seeds:
        for width in bits:
            for method in methods:
                schedule = BUDGETS[budget].schedule(method)
                config = RunConfig(
                    teacher=teacher or TEACHERS[dataset],
                    data=dataset,
                    stub=dataset == "fashion_mnist",
                    method=method,
                    bits=width,
                    rounds=schedule.warmup + BUDGETS[budget].updates,
                    seed=seed,
                    schedule=schedule,
                    fidelity=fidelity,
                    device=device,
                    evaluate_every=500,
                    gains_every=0,
                )
                found.append(config)
    return found


def row(folder: Path, budget: str) -> Row:
    """The row of the finished run in `folder`."""
    config, result = read_config(folder / "config.json"), json.loads((folder / "result.json").read_text())
    if result["student"] is None:
        raise UserError(f"{folder} was measured on {result['source']}, without labels: it has no accuracy for a table")
    low, high = result["intervals"]["student"]
    return Row(
        config.method,
        config.bits,
        config.seed,
        config.data,
        budget,
        config.fidelity,
        Path(config.teacher).stem,
        result["teacher"],
        result["plain"],
        result["calibrated"],
        result["student"],
        low,
        high,
        result["best"],
        result["rounds"] - config.schedule.warmup,
        result["rounds"] * config.schedule.batch,
        result["seconds"],
        result.get("source", ""),
        _teacher_sha256(folder),
    )


def _teacher_sha256(folder: Path) -> str:
    """Of the teacher that the run's student was made from, as the student's file says."""
    _, meta, _ = load_tensors(folder / "student.safetensors")
    return str(meta.get("teacher", {}).get("sha256", ""))[:12]


def shipped_results() -> Path:
    """Where the rows that come with the package are."""
    return stub_path("table.json")


def read_rows(path: Path) -> list[Row]:
    """The rows in a results file; none if there is no file. Raises UserError if it is damaged."""
    if not path.exists():
        return []
    content = read_bytes(path)
    try:
        return [build(Row, plain) for plain in json.loads(content)]
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or of another version of adadfq; move it away") from None


def write_rows(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Adds `rows` to the results file at `path`, in place of those with the same key; returns all it holds then."""
    kept = {old.key: old for old in read_rows(path)} | {new.key: new for new in rows}
    ordered = [kept[key] for key in sorted(kept)]
    lines = ",\n".join(json.dumps(dataclasses.asdict(one)) for one in ordered)
    write_atomically(path, f"[\n{lines}\n]\n".encode())
    return ordered


@dataclass(frozen=True)
class Summary:
    """The runs of one cell: a method at one bit width, over its seeds. Percent and seconds; `half` is of a 95 % interval.

    half: Student's t over the seeds where there are two or more (so it covers what a seed changes, not which images were
          measured); None for a single seed
    """

    method: str
    bits: str
    dataset: str
    budget: str
    fidelity: str
    teacher: float
    plain: float
    calibrated: float | None
    last: float
    half: float | None
    best: float
    seeds: int
    updates: int
    images: int
    seconds: float
    paper: float | None
    players: str = ""
    cell: str = ""


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles of Student's t, 1 to 9 degrees


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of `values` by Student's t; None for fewer than two, 1.96 s/sqrt(n) above ten."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return (_T[n - 2] if n <= 10 else 1.96) * deviation / math.sqrt(n)


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """mean(a) - mean(b) and half the width of its 95 % interval, variances unequal (Welch); None without two values in each."""
    if min(len(a), len(b)) < 2:
        return None
    means = [sum(values) / len(values) for values in (a, b)]
    noise = [
        sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
        for values, mean in zip((a, b), means, strict=True)
    ]
    spread = sum(v**2 / (len(values) - 1) for v, values in zip(noise, (a, b), strict=True))
    freedom = int(sum(noise) ** 2 / spread + 1e-9) if spread else len(a) + len(b) - 2  # 3 may come out as 2.9999999999999996
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return means[0] - means[1], t * math.sqrt(sum(noise))


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary for each data set, budget, fidelity, bit width and method, in the paper's order of methods."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for one in rows:
        cells.setdefault(one.key[:-1], []).append(one)
    order = list(every_method())
    found = []
    for key in sorted(cells, key=lambda k: (*k[:-1], order.index(k[-1]) if k[-1] in order else len(order), k[-1])):
        runs, (dataset, teacher_name, players, budget, fidelity, bits, method) = cells[key], key
        mean = {
            name: sum(getattr(r, name) for r in runs) / len(runs) for name in ("teacher", "plain", "last", "best", "seconds")
        }
        calibrated = [r.calibrated for r in runs if r.calibrated is not None]
        cell = table2.cell_of(dataset, teacher_name)
        found.append(
            Summary(
                method,
                bits,
                dataset,
                budget,
                fidelity,
                mean["teacher"],
                mean["plain"],
                sum(calibrated) / len(calibrated) if calibrated else None,
                mean["last"],
                half_width([r.last for r in runs]),
                mean["best"],
                len(runs),
                runs[0].updates,
                runs[0].images,
                mean["seconds"],
                table2.PAPER.get(cell, {}).get(bits, {}).get(method),
                players,
                cell,
            )
        )
    return found


def _cells(one: Summary) -> tuple[str, ...]:
    interval = "" if one.half is None else f" ± {one.half:.1f}"
    return (
        one.method,
        one.bits,
        f"{one.teacher:.1f}",
        f"{one.plain:.1f}",
        "" if one.calibrated is None else f"{one.calibrated:.1f}",
        f"{one.last:.1f}{interval}",
        f"{one.teacher - one.last:.1f}",
        str(one.seeds),
        f"{one.best:.1f}",
        f"{one.updates:,}",
        f"{one.images:,}",
        f"{one.seconds:.0f}",
        "" if one.paper is None else f"{one.paper:.2f}",
    )


_HEADER = ("method", "bits", "teacher", "plain", "calibrated", "last round", "drop", "seeds", "best", "updates", "images", "s")


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown: one section for each data set and budget."""
    found, lines = summaries(rows), []
    sections = dict.fromkeys((one.dataset, one.budget, one.fidelity, one.players) for one in found)
    for dataset, budget, fidelity, players in sections:
        here = (dataset, budget, fidelity, players)
        part = [one for one in found if (one.dataset, one.budget, one.fidelity, one.players) == here]
        lines += [
            f"### {dataset}, {budget} budget"
            + (f", {fidelity} losses and ranges" if fidelity != "corrected" else "")
            + (f", {players}" if players else ""),
            "",
        ]
        table = [(*_HEADER, "paper"), *map(_cells, part)]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        text = ["| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in table]
        lines += [text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:], ""]
    return "\n".join([*lines, NOTE + _of_paper(found)])


def _of_paper(found: Sequence[Summary]) -> str:
    """What the column "paper" is, if it has a number."""
    cells = dict.fromkeys(one.cell for one in found if one.paper is not None)
    if not cells:
        return ""
    teachers = " and ".join(f"{table2.FULL_PRECISION[cell]:.2f} % on {cell}" for cell in cells)
    return f" paper: its own Table 2, from another teacher ({teachers}), after 79,200 updates, best epoch on the test set."


NOTE = (
    "Top-1 in percent. plain, calibrated: nothing trained. last round: mean over seeds ± 95 % interval of that mean. best: the "
    "best round, chosen on the test images, so not a result. s: seconds of a run, on machines that did other work beside it."
)


def as_csv(rows: Sequence[Row]) -> str:
    """Every run as a line of CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(one) for one in rows)
    return text.getvalue()


def table_figure(rows: Sequence[Row]) -> go.Figure:
    """Top-1 of each method after the last round; rows of one data set, budget, fidelity and bit width.

    A marker is the mean over seeds, its bar the 95 % interval of that mean, a small tick each seed; the teacher is a line, the
    paper's number a hollow grey diamond that belongs to another protocol. Raises ValueError for rows of several tables.
    """
    cells = summaries(rows)
    if len({(one.dataset, one.budget, one.fidelity, one.bits, one.players) for one in cells}) != 1:
        raise ValueError("rows of one data set, budget and bit width make a figure")
    first, names = cells[0], [one.method for one in cells]
    fig = figure(
        f"{first.dataset}, {first.bits}, {first.updates:,} student updates, {first.fidelity}",
        "method",
        "top-1 after the last round [%]",
        alt=_words(cells),
    )
    fig.add_scatter(
        x=[row.method for row in rows],
        y=[row.last for row in rows],
        mode="markers",
        name="one seed",
        marker={"symbol": "line-ew-open", "size": 14, "color": STUDENT},
        opacity=0.6,
    )
    fig.add_scatter(
        x=names,
        y=[one.last for one in cells],
        mode="markers",
        name="mean, 95 % interval",
        marker={"size": 10, "color": STUDENT},
        error_y={"type": "data", "array": [one.half or 0.0 for one in cells], "color": STUDENT},
    )
    printed = [one for one in cells if one.paper is not None]
    if printed:
        fig.add_scatter(
            x=[one.method for one in printed],
            y=[one.paper for one in printed],
            mode="markers",
            name="the paper's (another protocol)",
            marker={"symbol": "diamond-open", "size": 11, "color": GREY},
        )
    fig.add_hline(y=first.teacher, line={"color": TEACHER, "dash": "dash"}, annotation_text="teacher P")
    fig.update_xaxes(categoryorder="array", categoryarray=names)
    return fig


def _words(cells: Sequence[Summary]) -> str:
    scores = "; ".join(f"{one.method} {one.last:.1f}" for one in cells)
    first = cells[0]
    return (
        f"Top-1 in percent on {first.dataset} at {first.bits} after the last round: {scores}; the teacher {first.teacher:.1f}."
    )


def write_table_figure(rows: Sequence[Row], path: Path) -> None:
    """One figure for each table in `rows`, in one HTML file that needs no network."""
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.dataset, row.budget, row.fidelity, row.bits, row.players), []).append(row)
    write_atomically(path, page("adadfq table", map(table_figure, tables.values())).encode())
