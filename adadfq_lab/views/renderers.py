"""How a live figure reaches the page: as a plotly widget, as SVG, or not at all. What it shows is `game_panels`."""

from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from adadfq_lab.game.history import Column, History
from adadfq_lab.views.charts import Line, Panel, Rule
from adadfq_lab.views.game_panels import COLUMNS, panels, svg
from adadfq_lab.views.style import TEMPLATE, TEXT, import_renderers

WIDTH = 900
"""Of the FigureWidget, in pixels: in a notebook's output plotly does not fill the width by itself."""


def _ipython() -> Any:
    """IPython.display, which has no types."""
    return import_module("IPython.display")


class View(Protocol):
    """Something that shows a run: `publish` gets what happened so far; `widget` is what a notebook displays, if anything."""

    def publish(self, history: History) -> None: ...
    def display(self) -> None: ...
    def close(self) -> None: ...


class FigureView:
    """The panels as one FigureWidget. Each publish changes it in one batch.

    The figure is made when it is first asked for: JupyterLab shows one that was made in an earlier cell than the one that
    displays it as an empty chart, once another plotly figure is on the page.
    """

    titles: list[dict[str, Any]]

    @cached_property
    def figure(self) -> Any:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        import_renderers()
        made = panels(History())
        rows = -(-len(made) // COLUMNS)
        titles = [panel.title for panel in made]
        base = make_subplots(rows, COLUMNS, subplot_titles=titles, horizontal_spacing=0.11, vertical_spacing=0.125)
        for i, panel in enumerate(made):
            at = {"row": i // COLUMNS + 1, "col": i % COLUMNS + 1}
            for trace in _traces(panel):
                base.add_trace(trace, **at)
            base.update_xaxes(title={"text": panel.x, "standoff": 4}, range=panel.x_range, **at)
            base.update_yaxes(title={"text": panel.y, "standoff": 6}, range=panel.y_range, type="linear", **at)
        base.update_layout(template=TEMPLATE, width=WIDTH, height=250 * rows, barmode="stack", bargap=0.05, showlegend=True)
        base.update_layout(margin={"t": 40, "b": 40, "l": 50, "r": 10}, font={"size": 12})
        base.update_layout(legend={"orientation": "h", "y": -0.09, "yanchor": "top"}, hovermode="closest")
        base.update_annotations(font={"size": 14, "color": TEXT})
        self.titles = [annotation.to_plotly_json() for annotation in base.layout.annotations]
        return go.FigureWidget(base)

    def publish(self, history: History) -> None:
        made = panels(history)
        with self.figure.batch_update():
            shapes, notes = [], [dict(title) for title in self.titles]
            traces = iter(self.figure.data)
            for i, panel in enumerate(made):
                notes[i]["text"] = panel.title
                axis = "" if i == 0 else str(i + 1)
                for line in panel.lines:
                    trace = next(traces)
                    trace.x, trace.y = _points(line)
                for bars in panel.bars:
                    trace = next(traces)
                    trace.y = bars.heights
                self._ranges(panel, axis)
                for rule in panel.rules:
                    shape, note = _rule(rule, axis, panel)
                    shapes.append(shape)
                    notes += [note] if note else []
            self.figure.layout.shapes, self.figure.layout.annotations = shapes, notes

    def _ranges(self, panel: Panel, axis: str) -> None:
        kind, y = "log" if panel.log else "linear", self.figure.layout[f"yaxis{axis}"]
        if y.type != kind:  # to be told its kind, even the one that it is, makes an axis forget its range
            y.update(type=kind, title_text=panel.y)
        if panel.x_range and panel.x_range != (0, 1):
            self.figure.layout[f"xaxis{axis}"].range = panel.x_range
        if panel.bars:  # room above them for the words of the rules
            top = float(np.stack([np.asarray(bars.heights, np.float64) for bars in panel.bars]).sum(0).max())
            self.figure.layout[f"yaxis{axis}"].range = (0, 1.15 * max(top, 1.0))

    def display(self) -> None:
        _ipython().display(self.figure)

    def close(self) -> None:
        if "figure" in vars(self):
            self.figure.close()


def _points(line: Line) -> tuple[Column, Column]:
    x, y = np.asarray(line.x, np.float32), np.asarray(line.y, np.float32)
    known = np.isfinite(y)
    return (x[known], y[known]) if line.dots or not known.all() else (x, y)


def _traces(panel: Panel) -> list[Any]:
    import plotly.graph_objects as go

    made: list[Any] = []
    for line in panel.lines:
        mode = "lines+markers" if line.dots else "lines"
        look = {"color": line.color, "dash": line.dash, "width": 2, "shape": "hv" if line.step else "linear"}
        made.append(go.Scatter(x=[], y=[], name=line.name, mode=mode, line=look, legendgroup=line.name))
    for bars in panel.bars:
        edges = np.asarray(bars.edges)
        look = {"color": bars.color, "pattern": {"shape": bars.hatch, "size": 6, "fgcolor": "#333333", "fillmode": "overlay"}}
        x, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
        made.append(go.Bar(x=x, y=np.zeros(len(x)), width=width, name=bars.name, marker=look))
    return made


def _rule(rule: Rule, axis: str, panel: Panel) -> tuple[dict[str, Any], dict[str, Any] | None]:
    other = "y" if rule.axis == "x" else "x"
    refs = {f"{rule.axis}ref": f"{rule.axis}{axis}", f"{other}ref": f"{other}{axis} domain"}
    look = {"color": rule.color, "dash": rule.dash, "width": 1.5}
    ends = {f"{rule.axis}0": rule.value, f"{rule.axis}1": rule.value, f"{other}0": 0, f"{other}1": 1}
    shape = {"type": "line", "line": look, **ends, **refs}
    if not rule.text:
        return shape, None
    low, high = panel.x_range or (0, 1)
    side = "right" if rule.value > low + 0.6 * (high - low) else "left"  # towards the middle of the panel
    place = {"xanchor": side, "yanchor": "top"} if rule.axis == "x" else {"xanchor": "right", "yanchor": "bottom"}
    note = {"text": rule.text, "showarrow": False, "font": {"size": 11, "color": rule.color}, rule.axis: rule.value, other: 1}
    return shape, note | refs | place


class SvgView:
    """The panels as one SVG that is replaced in place; needs no JavaScript."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.latest = svg(History())

    def publish(self, history: History) -> None:
        self.latest = svg(history)
        if self.handle is not None:
            self.handle.update(_ipython().HTML(self.latest))

    def display(self) -> None:
        self.handle = _ipython().display(_ipython().HTML(self.latest), display_id=True)

    def close(self) -> None:
        self.handle = None


class NoView:
    """Draws nothing."""

    def publish(self, history: History) -> None:
        pass

    def display(self) -> None:
        pass

    def close(self) -> None:
        pass


def make_view(backend: str) -> View:
    """The view for "widget", "svg" or "none"."""
    if backend == "widget":
        return FigureView()
    return SvgView() if backend == "svg" else NoView()
