"""Tables as figures: every method's accuracy after the last round, beside its teacher and the paper's own number."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from adadfq_lab.machine.files import write_atomically
from adadfq_lab.tables import Row, Summary, summaries
from adadfq_lab.views.style import GREY, STUDENT, TEACHER, figure, page


def table_figure(rows: Sequence[Row]) -> go.Figure:
    """Top-1 of each method after the last round; rows of one data set, budget, fidelity and bit width.

    A marker is the mean over seeds, its bar the 95 % interval of that mean, a small tick each seed; the teacher is a line, the
    paper's number a hollow grey diamond that belongs to another protocol. Raises ValueError for rows of several tables.
    """
    cells = summaries(rows)
    if len({(one.dataset, one.budget, one.fidelity, one.bits) for one in cells}) != 1:
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
        tables.setdefault((row.dataset, row.budget, row.fidelity, row.bits), []).append(row)
    write_atomically(path, page("adadfq table", map(table_figure, tables.values())).encode())
