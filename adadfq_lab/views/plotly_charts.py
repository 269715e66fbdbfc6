"""The panels of `charts` as a plotly figure: the same picture, for those who want to hover and zoom.

Everything is sent as lists: arrays would become binary buffers in a widget's state, which static pages cannot read.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from adadfq_lab.views.axes import array, logarithms, typeset
from adadfq_lab.views.charts import Area, Bars, Line, Panel, Rule, stacked
from adadfq_lab.views.style import TEMPLATE, TEXT

Trace = dict[str, Any]


def plotly_figure(
    panels: Sequence[Panel], *, alt: str, columns: int = 2, width: int | None = None, height: int = 340
) -> go.Figure:
    """The panels in rows of `columns`, as one figure that fills the page or is `width` pixels wide; `alt` describes it."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    titles = [typeset(panel.title) for panel in panels]
    many = len(panels) > 1
    spacing = {"horizontal_spacing": 0.11, "vertical_spacing": 0.125} if many else {}
    made = make_subplots(rows, columns, subplot_titles=titles if many else None, **spacing)
    shapes: list[Trace] = []
    notes = [note.to_plotly_json() for note in made.layout.annotations]
    for i, panel in enumerate(panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for trace in traces(panel):
            made.add_trace(trace, **at)
        made.update_xaxes(**axis(panel, "x"), **at)
        made.update_yaxes(**axis(panel, "y"), **at)
        drawn, written = rules(panel, "" if i == 0 else str(i + 1))
        shapes += drawn
        notes += written
    made.update_layout(template=TEMPLATE, width=width, height=height * rows, barmode="stack", bargap=0.05, showlegend=True)
    made.update_layout(shapes=shapes, annotations=notes, meta={"alt": alt}, hovermode="closest")
    if many:
        made.update_layout(margin={"t": 40, "b": 90, "l": 50, "r": 10}, font={"size": 12})
        below = -55 / (height * rows - 130)  # of the height of the axes: under the labels of the lowest row
        made.update_layout(legend={"orientation": "h", "y": below, "yanchor": "top"})
        made.update_annotations(font={"size": 14, "color": TEXT}, selector=lambda note: note.text in titles)
    else:
        made.update_layout(title={"text": titles[0]})
    return made


def traces(panel: Panel) -> list[Trace]:
    """What a panel draws, in an order that does not depend on the data: areas, lines, bars."""
    made = [trace for area in panel.areas for trace in _area(area)]
    return [*made, *map(_line, panel.lines), *map(_bars, panel.bars)]


def axis(panel: Panel, which: str) -> Trace:
    """Title, kind, range and names of an axis of `panel`, "x" or "y"."""
    title, span, names = (getattr(panel, name) for name in (which, f"{which}_range", f"{which}_names"))
    made: Trace = {"title": {"text": typeset(title), "standoff": 6}}
    if which == "y":
        made["type"] = "log" if panel.log else "linear"
        if span is None and panel.bars:
            span = _above(panel)
        span = tuple(logarithms(span)) if panel.log and span is not None else span
    if span is not None:
        made["range"] = [float(end) for end in span]
    if names:
        made |= {"tickvals": list(range(len(names))), "ticktext": [typeset(name) for name in names]}
    return made


def rules(panel: Panel, number: str) -> tuple[list[Trace], list[Trace]]:
    """(shapes, annotations) of the level lines and marks of the panel whose axes have that number: "", "2", "3", ..."""
    pairs = [_rule(rule, number, panel) for rule in panel.rules]
    return [shape for shape, _ in pairs], [note for _, note in pairs if note is not None]


def _above(panel: Panel) -> tuple[float, float]:
    """From 0, or from the lowest bar, to a little above the bars, so that the words of the rules have room."""
    ends = [array(bars.high) for bars in panel.bars if bars.high is not None]
    known = np.concatenate([*stacked(panel.bars), *ends])
    return min(0.0, float(np.nanmin(known))), 1.15 * max(float(np.nanmax(known)), 1e-9)


def _numbers(values: Any) -> list[float | None]:
    return [float(f"{value:.6g}") if isfinite(value) else None for value in array(values).tolist()]


def _shade(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.25)"


def _area(area: Area) -> list[Trace]:
    x, edge = _numbers(area.x), {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    low = {"type": "scatter", "x": x, "y": _numbers(area.low), "showlegend": False, **edge}
    fill = {"fill": "tonexty", "fillcolor": _shade(area.color)}
    return [low, {"type": "scatter", "x": x, "y": _numbers(area.high), "name": typeset(area.name), **edge, **fill}]


def _line(line: Line) -> Trace:
    x, y = array(line.x), array(line.y)
    known = np.isfinite(x) & np.isfinite(y) if line.dots else np.ones(len(x), bool)
    mode = "markers" if line.rings else "lines+markers" if line.dots else "lines"
    look = {"color": line.color, "dash": line.dash, "width": 2, "shape": "hv" if line.step else "linear"}
    made: Trace = {"type": "scatter", "x": _numbers(x[known]), "y": _numbers(y[known]), "mode": mode, "line": look}
    made |= {"name": typeset(line.name), "showlegend": bool(line.name)}
    if line.rings:
        made["marker"] = {"symbol": "circle-open", "size": 10, "color": line.color}
    if line.low is not None and line.high is not None:
        made["error_y"] = _interval(y[known], array(line.low)[known], array(line.high)[known])
    return made


def _bars(bars: Bars) -> Trace:
    edges, heights = array(bars.edges), array(bars.heights)
    pattern = {"shape": bars.hatch, "size": 6, "fgcolor": "#333333", "fillmode": "overlay"}
    made: Trace = {"type": "bar", "x": _numbers((edges[1:] + edges[:-1]) / 2), "y": _numbers(heights)}
    made |= {"width": _numbers(np.diff(edges)), "name": typeset(bars.name), "showlegend": bool(bars.name)}
    made["marker"] = {"color": bars.color, "pattern": pattern}
    if bars.words:
        made |= {"text": [typeset(word) for word in bars.words], "textposition": "inside", "insidetextanchor": "middle"}
    if bars.low is not None and bars.high is not None:
        made["error_y"] = _interval(heights, array(bars.low), array(bars.high))
    return made


def _interval(y: Any, low: Any, high: Any) -> Trace:
    return {"type": "data", "array": _numbers(high - y), "arrayminus": _numbers(y - low), "color": TEXT}


def _rule(rule: Rule, number: str, panel: Panel) -> tuple[Trace, Trace | None]:
    other = "y" if rule.axis == "x" else "x"
    refs = {f"{rule.axis}ref": f"{rule.axis}{number}", f"{other}ref": f"{other}{number} domain"}
    look = {"color": rule.color, "dash": rule.dash, "width": 1.5}
    ends = {f"{rule.axis}0": rule.value, f"{rule.axis}1": rule.value, f"{other}0": 0, f"{other}1": 1}
    shape = {"type": "line", "line": look, **ends, **refs}
    if not rule.text:
        return shape, None
    low, high = panel.x_range or (0, 1)
    side = "right" if rule.value > low + 0.6 * (high - low) else "left"  # towards the middle of the panel
    place = {"xanchor": side, "yanchor": "top"} if rule.axis == "x" else {"xanchor": "right", "yanchor": "bottom"}
    note = {"text": typeset(rule.text), "showarrow": False, "font": {"size": 11, "color": rule.color}}
    at = float(logarithms([rule.value])[0]) if panel.log and rule.axis == "y" else rule.value  # plotly: shapes by value
    return shape, note | {rule.axis: at, other: 1} | refs | place
