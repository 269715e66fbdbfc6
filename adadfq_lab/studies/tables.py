"""Methods x bit widths x seeds on one teacher and its test images: the paper's Table 2 at classroom scale.

The protocol is the same for every method: the same quantizer, the same number of student updates with as many images in each,
ranges observed on generated images for as many of them, learning rates as each method publishes them, and accuracy after the
*last* round. Rows of the shipped results are in data_stubs/table.json; `adadfq table` prints them, `adadfq table --play` plays
what is asked for and missing.

`table2.PAPER` holds what the paper prints, after 79,200 updates and with the best epoch on the test set chosen. That is
another protocol, so it stands in a column of its own and enters no average.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.registry import every_method
from adadfq_lab.studies import table2
from adadfq_lab.studies.intervals import difference, half_width
from adadfq_lab.studies.table_rows import (
    BUDGETS,
    USUAL_IMAGES,
    Budget,
    Row,
    configurations,
    read_rows,
    row,
    rows_of,
    shipped_results,
    write_rows,
)
from adadfq_lab.views.pages import page
from adadfq_lab.views.style import GREY, STUDENT, TEACHER, figure

__all__ = [
    "BUDGETS",
    "USUAL_IMAGES",
    "Budget",
    "Row",
    "Summary",
    "as_csv",
    "configurations",
    "difference",
    "half_width",
    "markdown",
    "read_rows",
    "row",
    "rows_of",
    "shipped_results",
    "summaries",
    "table_figure",
    "write_rows",
    "write_table_figure",
]


@dataclass(frozen=True)
class Summary:
    """The runs of one cell: a method at one bit width, over its seeds. Percent and seconds; `half` is of a 95 % interval.

    half:  Student's t over the seeds, so it covers what a seed changes, not which images were measured; None for a single seed
    lasts: what each seed ended with; `last` is their mean
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
    lasts: tuple[float, ...] = ()

    @property
    def ended(self) -> str:
        """Mean and interval; the seeds' own figures where so few of them make an interval that reaches 0 %."""
        if self.half is None:
            return f"{self.last:.1f}"
        if self.half >= self.last:
            return ", ".join(f"{last:.1f}" for last in self.lasts)
        return f"{self.last:.1f} ± {self.half:.1f}"

    @property
    def table(self) -> tuple[str, str, str, str]:
        """What the summaries of one table have in common."""
        return self.dataset, self.budget, self.fidelity, self.players


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary for each data set, budget, fidelity, bit width and method, in the paper's order of methods."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for one in rows:
        cells.setdefault(one.key[:-1], []).append(one)
    order = list(every_method())
    found = []
    for key in sorted(cells, key=lambda k: (*k[:-1], order.index(k[-1]) if k[-1] in order else len(order), k[-1])):
        runs, (dataset, teacher_name, players, budget, fidelity, bits, method) = cells[key], key
        names = ("teacher", "plain", "last", "best", "seconds")
        means = {name: sum(getattr(run, name) for run in runs) / len(runs) for name in names}
        calibrated = [run.calibrated for run in runs if run.calibrated is not None]
        cell = table2.cell_of(dataset, teacher_name)
        summary = Summary(
            method=method,
            bits=bits,
            dataset=dataset,
            budget=budget,
            fidelity=fidelity,
            calibrated=sum(calibrated) / len(calibrated) if calibrated else None,
            half=half_width([run.last for run in runs]),
            seeds=len(runs),
            updates=runs[0].updates,
            images=runs[0].images,
            paper=table2.PAPER.get(cell, {}).get(bits, {}).get(method),
            players=players,
            cell=cell,
            lasts=tuple(run.last for run in runs),
            **means,
        )
        found.append(summary)
    return found


def _cells(one: Summary) -> tuple[str, ...]:
    return (
        one.method,
        one.bits,
        f"{one.teacher:.1f}",
        f"{one.plain:.1f}",
        "" if one.calibrated is None else f"{one.calibrated:.1f}",
        one.ended,
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
    for here in dict.fromkeys(one.table for one in found):
        dataset, budget, fidelity, players = here
        part = [one for one in found if one.table == here]
        lines += [
            f"### {dataset}, {budget}"
            + (" budget" if budget in BUDGETS else "")
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
    "Top-1 in percent. plain, calibrated: nothing trained. last round: mean over seeds ± 95 % interval of that mean, or "
    "each seed's where that would reach 0 %. best: the "
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
    if len({(one.table, one.bits) for one in cells}) != 1:
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
    for one in rows:
        tables.setdefault((one.dataset, one.budget, one.fidelity, one.bits, one.players), []).append(one)
    write_atomically(path, page("adadfq table", map(table_figure, tables.values())).encode())
