"""How a live figure reaches the page: as SVG, as a plotly widget, or not at all. What it shows is `game_panels`.

What changes on a page is an ipywidget: every page follows it, also one that was reloaded or opened as a second tab. When the
run is over the widget is replaced by ordinary output (`Shown.replace`), which stays in the saved notebook without a kernel.
"""

import threading
import time
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from adadfq_lab.game.history import History
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.charts import Panel, as_images
from adadfq_lab.views.game_panels import COLUMNS, describe, panels, svg
from adadfq_lab.views.plotly_charts import axis, plotly_figure, rules, traces
from adadfq_lab.views.style import TEXT, import_renderers

WIDTH = 820
"""Of the FigureWidget, in pixels: in a notebook's output plotly does not fill the width by itself."""
PATIENCE = 6.0
"""Seconds without an answer from the page after which the FigureWidget is replaced by SVG."""
Bundle = dict[str, Any]


def _ipython() -> Any:
    """IPython.display, which has no types."""
    return import_module("IPython.display")


def html_widget() -> Any:
    """An empty `ipywidgets.HTML` as wide as the page; None if ipywidgets is not installed."""
    return import_module("ipywidgets").HTML(layout={"width": "100%"}) if find_spec("ipywidgets") else None


def picture(drawn: str, words: str) -> Bundle:
    """A chart as ordinary output that needs neither kernel nor JavaScript."""
    return {"text/html": as_images(drawn, TEXT), "text/plain": f"[figure] {words}"}


def widget_bundle(widget: Any, plain: Bundle) -> Bundle:
    """A widget as output, with `plain` for pages that have no widgets."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"application/vnd.jupyter.widget-view+json": view, **plain}


class Shown:
    """A widget on the page, as often as it was displayed, until ordinary output takes its place.

    Without a widget the output is there from the beginning and changed in place.
    """

    def __init__(self, widget: Any, plain: Bundle | None = None) -> None:
        self.widget = widget
        self.plain = plain
        """What is displayed instead of the widget; None as long as the widget is to be seen."""
        self._lock = threading.Lock()
        self._handles: list[Any] = []

    def display(self) -> None:
        """Shows the widget, or what replaced it, in the cell that runs."""
        with self._lock:
            bundle = self.plain
            if bundle is None:
                bundle = widget_bundle(self.widget, {"text/plain": "a live run"})
            self._handles.append(_ipython().display(bundle, raw=True, display_id=True))

    def replace(self, bundle: Bundle) -> None:
        """Puts ordinary output in the place of the widget, from any thread.

        The widget itself stays: a page that was reloaded in the meantime is not told of the replacement.
        """
        with self._lock:
            self.plain = bundle
            for handle in self._handles:
                if handle is not None:  # outside a kernel
                    handle.update(bundle, raw=True)


class View(Protocol):
    """Something that shows a run.

    publish: takes what happened so far
    display: puts the view on the page, in the cell that runs; twice shows it twice
    finish:  takes the whole run; from then on the picture is ordinary output
    bundle:  the picture as it is now, as a mimebundle
    """

    def publish(self, history: History) -> None: ...
    def display(self) -> None: ...
    def finish(self, history: History) -> None: ...
    def bundle(self) -> Bundle: ...
    def close(self) -> None: ...


class SvgView:
    """The panels as one SVG in an `ipywidgets.HTML`; without ipywidgets, as ordinary output that is changed in place."""

    def __init__(self) -> None:
        self.latest, self.words = svg(History()), describe(History())
        self.over = False
        self._lock = threading.Lock()
        self._shown: Shown | None = None

    @property
    def widget(self) -> Any:
        """The `ipywidgets.HTML` on the page, made when it is first asked for; None if ipywidgets is not installed."""
        return self._place().widget

    def _place(self) -> Shown:
        with self._lock:
            if self._shown is None:
                widget = None if self.over else html_widget()
                self._shown = Shown(widget, self.bundle() if widget is None else None)
                if widget is not None:
                    widget.value = self.latest
            return self._shown

    def bundle(self) -> Bundle:
        return picture(self.latest, self.words)

    def publish(self, history: History) -> None:
        drawn, words = svg(history), describe(history)
        with self._lock:
            self.latest, self.words = drawn, words
            if self._shown is None:
                return
            if self._shown.widget is not None:
                self._shown.widget.value = drawn
            else:
                self._shown.replace(self.bundle())

    def finish(self, history: History) -> None:
        self.publish(history)
        with self._lock:
            self.over = True
            if self._shown is not None:
                self._shown.replace(self.bundle())

    def display(self) -> None:
        self._place().display()

    def close(self) -> None:
        if self._shown is not None and self._shown.widget is not None:
            self._shown.widget.close()


class FigureView:
    """The panels as one plotly FigureWidget, changed in one batch by each publish.

    A page answers what it has drawn. If none does for some seconds, an SVG takes the place of the widget. The last picture is
    also ordinary output, folded, below the widget.

    The figure is made when it is first asked for: JupyterLab shows one that was made in an earlier cell than the one that
    displays it as an empty chart, once another plotly figure is on the page.
    """

    def __init__(self) -> None:
        self.fallback = SvgView()
        self.fallen = False
        self._box: Any = None
        self._below = Shown(None, {"text/html": "", "text/plain": ""})
        self._silent: float | None = None
        self._around: tuple[list[Any], list[Any]] = [], []

    @cached_property
    def figure(self) -> Any:
        import plotly.graph_objects as go

        import_renderers()
        base = plotly_figure(panels(History()), alt=describe(History()), columns=COLUMNS, width=WIDTH, height=250)
        self._titles = [note.to_plotly_json() for note in base.layout.annotations if note.xref == "paper"]
        widget = go.FigureWidget(base)
        widget._config = {**widget._config, "displayModeBar": False}  # it would lie over the titles
        widget.observe(self._heard, names=["_js2py_traceDeltas", "_js2py_layoutDelta"])
        return widget

    def _heard(self, change: Any) -> None:
        if change["new"]:
            self._silent = None

    def bundle(self) -> Bundle:
        return self.fallback.bundle()

    def publish(self, history: History) -> None:
        if self.fallen:
            self.fallback.publish(history)
            return
        made = panels(history)
        with self.figure.batch_update():
            shapes, notes = [], [dict(title) for title in self._titles]
            drawn = iter(self.figure.data)
            for i, panel in enumerate(made):
                number = "" if i == 0 else str(i + 1)
                notes[i]["text"] = typeset(panel.title)
                for trace in traces(panel):
                    one = next(drawn)  # arrays, as plotly looks at every number of a list
                    one.x, one.y = np.array(trace["x"], np.float32), np.array(trace["y"], np.float32)
                self._ranges(panel, number)
                lines, words = rules(panel, number)
                shapes += lines
                notes += words
            if (shapes, notes) != self._around:
                self.figure.layout.shapes, self.figure.layout.annotations = shapes, notes
                self._around = shapes, notes
        self._listen()

    def _listen(self) -> None:
        """Shows the SVG if no page has answered for too long."""
        now = time.monotonic()
        if self._box is None:
            return
        if self._silent is None:
            self._silent = now
        elif now - self._silent > PATIENCE:
            self.fallen = True
            self._box.children = (self.fallback.widget,)

    def _ranges(self, panel: Panel, number: str) -> None:
        y, wanted = self.figure.layout[f"yaxis{number}"], axis(panel, "y")
        if y.type != wanted["type"]:  # an axis that is told its type, even the one it has, forgets its range
            y.update(type=wanted["type"], title_text=wanted["title"]["text"])
        if panel.x_range and panel.x_range != (0, 1):
            self.figure.layout[f"xaxis{number}"].range = panel.x_range
        if panel.bars:
            self.figure.layout[f"yaxis{number}"].range = wanted["range"]

    def display(self) -> None:
        if self._box is None:
            self._box = import_module("ipywidgets").VBox([self.figure])
            self._silent = time.monotonic()
        Shown(self._box).display()
        self._below.display()

    def finish(self, history: History) -> None:
        self.publish(history)
        self.fallback.finish(history)
        last = self.bundle()
        folded = f"<details><summary>The last picture, as an image</summary>{last['text/html']}</details>"
        self._below.replace(last | {"text/html": folded})

    def close(self) -> None:
        self.fallback.close()
        if "figure" in vars(self):
            self.figure.close()


class NoView:
    """Draws nothing."""

    def publish(self, history: History) -> None:
        pass

    def display(self) -> None:
        pass

    def finish(self, history: History) -> None:
        pass

    def bundle(self) -> Bundle:
        return {}

    def close(self) -> None:
        pass


def make_view(backend: str) -> View:
    """The view for "svg", "widget" or "none"."""
    if backend == "widget":
        return FigureView()
    return SvgView() if backend == "svg" else NoView()
