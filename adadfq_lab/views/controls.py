"""What every widget of the course is: a box of labelled inputs over a chart that is drawn again when one of them changes.

They work with ipywidgets 7.7 and 8, need no JavaScript of their own and can all be reached by keyboard. A page without widgets
shows the chart as it was when the cell ran.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

from adadfq_lab.machine.environment import NOTEBOOKS, import_extra
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.charts import as_images
from adadfq_lab.views.renderers import widget_bundle
from adadfq_lab.views.style import TEXT

WIDE = {"width": "95%", "max_width": "640px"}
STYLE = {"description_width": "130px"}


@dataclass
class Control:
    """A box of widgets. inputs: its sliders and buttons by name; output: the HTML widget they redraw."""

    box: Any
    inputs: dict[str, Any]
    output: Any

    def _ipython_display_(self) -> None:
        still = {"text/html": as_images(self.output.value, TEXT), "text/plain": "a widget; it needs a running kernel"}
        import_module("IPython.display").display(widget_bundle(self.box, still), raw=True)


def ipywidgets() -> Any:
    """The package, imported when a widget is made. Raises UserError if the extra `notebooks` is not installed."""
    return import_extra("ipywidgets", NOTEBOOKS)


def control(title: str, inputs: Mapping[str, Any], draw: Callable[[], str]) -> Control:
    """Stacks the inputs over an HTML widget that shows `draw()`, now and after every change of an input."""
    w = ipywidgets()
    output = w.HTML(layout={"width": "100%"})
    heading = w.HTML(f"<strong>{escape(title)}</strong>")
    made = Control(w.VBox([heading, *inputs.values(), output]), dict(inputs), output)

    def redraw(_: Any = None) -> None:
        output.value = draw()

    for one in inputs.values():
        one.observe(redraw, names="value")
    redraw()
    return made


def toggle(name: str, options: Sequence[Any], value: Any) -> Any:
    """Buttons of which one is pressed; `options` as ipywidgets has them: values, or (label, value) pairs."""
    return ipywidgets().ToggleButtons(
        options=options, value=value, description=name, style={**STYLE, "button_width": "auto"}, layout=WIDE
    )


def slider(name: str, value: float, low: float, high: float, step: float, **more: Any) -> Any:
    """A slider of whole numbers if `step` is one, else of reals; without `more` it reports its value when released."""
    w = ipywidgets()
    kind = w.IntSlider if isinstance(step, int) else w.FloatSlider
    settings = {"value": value, "min": low, "max": high, "step": step, "description": name, "style": STYLE, "layout": WIDE}
    return kind(**settings | {"continuous_update": False} | more)


def status(words: str) -> str:
    """`words` as a paragraph that screen readers read out when it changes."""
    return f'<p role="status" aria-live="polite">{typeset(words)}</p>'
