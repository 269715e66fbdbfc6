"""What every widget of the course is: a box of labelled inputs over a chart that is drawn again when one of them changes.

They work with ipywidgets 7.7 and 8, need no JavaScript of their own and can all be reached by keyboard. A page without widgets
shows the chart as it was when the cell ran; if the notebook is executed for such a page (ADADFQ_LAB_WAIT=1), it shows a film.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from math import prod
from typing import Any

from adadfq_lab.equations import Bounds
from adadfq_lab.game.dials import Dials
from adadfq_lab.machine.environment import NOTEBOOKS, import_extra, waits
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.charts import as_images
from adadfq_lab.views.renderers import widget_bundle
from adadfq_lab.views.style import TEXT

WIDE = {"width": "95%", "max_width": "640px"}
STYLE = {"description_width": "130px"}


@dataclass
class Control:
    """A box of widgets. inputs: its sliders and buttons by name; output: the HTML widget they redraw.

    film: makes HTML that can be scrubbed through without a kernel
    """

    box: Any
    inputs: dict[str, Any]
    output: Any
    film: Callable[[], str] | None = None

    def _ipython_display_(self) -> None:
        display(self.box, self.output.value, self.film)

    def over(self, name: str, values: Sequence[Any]) -> list[str]:
        """What the output shows for each of `values` of one input; the input then has its old value again."""
        one, shown = self.inputs[name], []
        before = one.value
        for value in values:
            one.value = value
            shown.append(self.output.value)
        one.value = before
        return shown


def display(box: Any, picture: str, film: Callable[[], str] | None = None) -> None:
    """Shows a box of widgets, and on pages without a kernel `picture`, or `film()` if the notebook is executed for them."""
    still = film() if film is not None and waits() else as_images(picture, TEXT)
    plain = {"text/html": still, "text/plain": "a widget; it needs a running kernel"}
    import_module("IPython.display").display(widget_bundle(box, plain), raw=True)


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


LOW = {"λ_l": "λₗ", "λ_u": "λᵤ", "H_min": "Hₘᵢₙ"}
"""Names with low letters of Unicode: ipywidgets strips `<sub>` from a description."""


def named(name: str) -> dict[str, Any]:
    """Arguments that give a widget its description and the look of the others."""
    for written, low in LOW.items():
        name = name.replace(written, low)
    return {"description": name, "style": STYLE, "layout": WIDE}


def toggle(name: str, options: Sequence[Any], value: Any, **more: Any) -> Any:
    """Buttons of which one is pressed; `options` as ipywidgets has them: values, or (label, value) pairs."""
    kind = ipywidgets().ToggleButtons
    settings = named(name) | {"style": {**STYLE, "button_width": "auto"}}
    return kind(options=options, value=value, **settings | more)


def slider(name: str, value: float, low: float, high: float, step: float, **more: Any) -> Any:
    """A slider of whole numbers if `step` is one, else of reals; without `more` it reports its value when released."""
    w = ipywidgets()
    kind = w.IntSlider if isinstance(step, int) else w.FloatSlider
    settings = {"value": value, "min": low, "max": high, "step": step, "continuous_update": False, **named(name)}
    return kind(**settings | more)


def dial_inputs(dials: Dials, step: float) -> dict[str, Any]:
    """An input for each of the dials, set to `dials`; the bounds move in steps of `step`, λ_u above λ_l."""
    more: dict[str, Any] = {"continuous_update": True, "layout": {"width": "330px"}}
    floors, holds = [("zero", "zero"), ("the batch's", "batch")], [("held", False), ("learns", True)]
    inputs = {
        "lower": slider("λ_l", dials.bounds.lower, 0.0, 0.95, step, **more),
        "upper": slider("λ_u", dials.bounds.upper, dials.bounds.lower + step, 1.0, step, **more),
        "floor": toggle("H_min", floors, dials.floor, layout=more["layout"]),
        "beta": slider("β, balance", dials.beta, 0.0, 1.0, 0.05, **more),
        "gamma": slider("γ, statistics", dials.gamma, 0.0, 1.0, 0.05, **more),
        "student": toggle("Q", holds, dials.student_learns, layout=more["layout"]),
    }

    def push(change: Any) -> None:
        inputs["upper"].min = round(change["new"] + step, 4)  # moves its value up if need be

    inputs["lower"].observe(push, names="value")
    return inputs


def read_dials(inputs: Mapping[str, Any]) -> Dials:
    """What these inputs say."""
    bounds = Bounds(*(round(inputs[name].value, 4) for name in ("lower", "upper")))
    return Dials(bounds, inputs["floor"].value, inputs["beta"].value, inputs["gamma"].value, inputs["student"].value)


def status(words: str) -> str:
    """`words` as a paragraph that screen readers read out when it changes."""
    return f'<p role="status" aria-live="polite">{typeset(words)}</p>'


# Films

_SCRIPT = """(() => {
const film = document.getElementById("%s"), words = %s;
const inputs = [...film.querySelectorAll("input")], pictures = [...film.querySelectorAll(".adadfq-frame")];
const show = () => {
  let at = 0;
  inputs.forEach((one, i) => {
    at = at * words[i].length + Number(one.value);
    one.setAttribute("aria-valuetext", words[i][one.value]);
    one.nextElementSibling.textContent = words[i][one.value];
  });
  pictures.forEach((one, i) => { one.style.display = i === at ? "" : "none"; });
};
inputs.forEach(one => one.addEventListener("input", show));
show();
})();"""


def film(axes: Mapping[str, Sequence[object]], pictures: Sequence[str], start: Sequence[int] | None = None) -> str:
    """HTML with a slider for each of `axes`, over the picture that belongs to their positions.

    axes:     what varies, and its values in order
    pictures: one piece of HTML, such as an `<svg>`, for each combination; the last of the axes varies fastest
    start:    the first positions, the middle of each axis if not given

    Raises ValueError if there is not one picture for each combination.
    """
    lengths = [len(values) for values in axes.values()]
    if prod(lengths) != len(pictures) or not pictures:
        raise ValueError(f"{prod(lengths)} pictures are needed, not {len(pictures)}")
    start = [length // 2 for length in lengths] if start is None else start
    first = 0
    for length, position in zip(lengths, start, strict=True):
        first = first * length + position
    name = "film-" + hashlib.sha256("".join(pictures).encode()).hexdigest()[:12]
    words = [[f"{value:g}" if isinstance(value, float) else str(value) for value in values] for values in axes.values()]
    sliders = "".join(
        f'<label style="display:flex;gap:.6em;align-items:center;max-width:560px"><span>{typeset(axis)}</span>'
        f'<input type="range" min="0" max="{len(said) - 1}" value="{at}" style="flex:1;min-width:0">'
        f'<output style="min-width:3em">{escape(said[at])}</output></label>'
        for axis, said, at in zip(axes, words, start, strict=True)
    )
    shown = "".join(
        f'<div class="adadfq-frame"{"" if i == first else " style=display:none"}>{as_images(picture, TEXT)}</div>'
        for i, picture in enumerate(pictures)
    )
    script = _SCRIPT % (name, json.dumps(words))
    return f'<div id="{name}" class="adadfq-film">{sliders}{shown}<script>{script}</script></div>'
