"""What a live run draws: six panels of a `History`, as one FigureWidget, as one SVG, or not at all.

`panels(history)` says once what is drawn; the two views only render it. A view is told to `publish` at most five times a
second and sends at most POINTS points a line, less than 60 kB in all.
"""

import math
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from adadfq_lab.equations import Bounds
from adadfq_lab.game.history import Column, History, thin
from adadfq_lab.style import (
    BOUND_COLOUR,
    BOUND_DASH,
    GREY,
    INSIDE,
    PATTERN,
    PLAYER,
    PLAYER_DASH,
    TEMPLATE,
    TEXT,
    import_renderers,
)
from adadfq_lab.svg import Bars, Line, Panel, Rule, chart

POINTS = 240
BINS = 20
COLUMNS = 2
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


def histogram(h_prime: Column, bounds: Bounds, bins: int = BINS) -> list[Bars]:
    """Shares [%] of the samples below, inside and above the band, binned over [0, 1]; each bin belongs to its samples' side."""
    edges = np.linspace(0, 1, bins + 1)
    below, above = h_prime <= bounds.lower, h_prime >= bounds.upper
    sides = {"below": below, "inside": ~(below | above), "above": above}
    colors = {"below": BOUND_COLOUR["lower"], "inside": INSIDE, "above": BOUND_COLOUR["upper"]}
    total = max(1, len(h_prime))
    made = []
    for name, chosen in sides.items():
        counts, _ = np.histogram(h_prime[chosen], edges)
        made.append(Bars(name, edges, 100 * counts / total, colors[name], PATTERN[name]))
    return made


def bound_rules(bounds: Bounds, axis: str = "x") -> list[Rule]:
    """λ_l and λ_u as lines across a panel of H'."""
    values = (("lower", "λ_l", bounds.lower), ("upper", "λ_u", bounds.upper))
    return [Rule(value, f"{name} {value:g}", BOUND_COLOUR[key], axis, BOUND_DASH[key]) for key, name, value in values]


def panels(history: History, points: int = POINTS) -> list[Panel]:
    """The six panels of a run; their number and that of their lines never changes."""
    empty = len(history) == 0
    rounds = thin(history["round"], points)
    bounds = Bounds() if empty else history.bounds()
    log_c = math.log(history.classes)
    mean_h = history["h_prime"].mean(1) if not empty else history["round"]
    mean_entropy = history["entropy"].mean(1) if not empty else history["round"]

    def line(name: str, column: Column, color: str, dash: str = "solid", *, dots: bool = False, step: bool = False) -> Line:
        return Line(name, rounds, thin(column, points), color, dash, dots, step)

    def player(name: str, player: str, column: Column) -> Line:
        return line(name, column, PLAYER[player], PLAYER_DASH[player])

    last = float(history["round"][-1]) if not empty else 1.0
    first = float(history["round"][0]) if not empty else 0.0
    span = (first, max(last, first + 1))
    newest = history.marks[-1:]  # only the newest is named: the words of several would lie on each other
    marks = [Rule(mark.round, "" if mark not in newest else mark.text, GREY, "x", "longdash") for mark in history.marks[-6:]]
    samples = history.last_samples()
    losses = [history.total("generator"), history.total("student")]
    log = not empty and not any((loss <= 0).any() for loss in losses)  # G's is often a hundred times Q's
    accuracy = history["test.accuracy"]
    return [
        Panel(
            "Disagreement against the band",
            "round",
            "H′ (1: P and Q agree)",
            [
                line("mean H′", mean_h, PLAYER["G"]),
                line("λ_l", history["lower"], BOUND_COLOUR["lower"], BOUND_DASH["lower"], step=True),
                line("λ_u", history["upper"], BOUND_COLOUR["upper"], BOUND_DASH["upper"], step=True),
            ],
            rules=marks,
            x_range=span,
            y_range=(0, 1),
        ),
        Panel(
            f"H′ of the last {len(samples)} samples",
            "H′ (1: P and Q agree)",
            "samples [%]",
            bars=histogram(samples, bounds),
            rules=bound_rules(bounds),
            x_range=(0, 1),
        ),
        Panel(
            "What the players minimise",
            "round",
            "loss (log scale)" if log else "loss",
            [player("G", "G", losses[0]), player("Q", "Q", losses[1])],
            rules=marks,
            x_range=span,
            log=log,
        ),
        Panel(
            "What a step does to the disagreement",
            "round",
            "gain [nats]",
            [player("Δ_G", "G", history["gain_g"]), player("Δ_Q", "Q", history["gain_q"])],
            rules=[Rule(0, "", GREY, "y", "dot"), *marks],
            x_range=span,
        ),
        Panel(
            "Entropy of the disagreement",
            "round",
            "H_info [nats]",
            [player("mean H_info", "G", mean_entropy)],
            rules=[Rule(log_c, "log C: full agreement", GREY, "y", "dot"), *(replace(mark, text="") for mark in marks)],
            x_range=span,
            y_range=(0, log_c * 1.15),
        ),
        Panel(
            "How often Q is right",
            "round",
            "share [%]",
            [
                line("agrees with P (generated)", 100 * history["agreement"], PLAYER["G"], "dot"),
                line("correct (real)", accuracy, PLAYER["Q"], "solid", dots=True),
            ],
            rules=marks,
            x_range=span,
            y_range=(0, 100),
        ),
    ]


def describe(history: History) -> str:
    """The state of a run in a sentence: the text alternative of its figure."""
    if not len(history):
        return "A game that has not begun: six empty charts."
    bounds, h_prime = history.bounds(), history.last_samples()
    inside = float(((h_prime > bounds.lower) & (h_prime < bounds.upper)).mean())
    known = history["test.accuracy"][np.isfinite(history["test.accuracy"])]
    right = f" Q is right on {known[-1]:.1f} % of the real test images." if len(known) else ""
    return (
        f"{len(history)} rounds played. H′ of the last {len(h_prime)} samples: mean {h_prime.mean():.2f}, "
        f"{100 * inside:.0f} % between λ_l = {bounds.lower:g} and λ_u = {bounds.upper:g}. "
        f"P and Q agree on {100 * float(history['agreement'][-10:].mean()):.0f} % of the generated images.{right}"
    )


def svg(history: History, points: int = 120) -> str:
    """The six panels as one SVG."""
    return chart(panels(history, points), alt=describe(history), columns=COLUMNS, width=440, height=225)


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
