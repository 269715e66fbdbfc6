"""One look for every figure: colour-blind-safe colours, axes with units, text on light and dark pages, and a description.

Colours are Okabe and Ito's eight. A player has one colour everywhere, and so has a bound; lines differ in dash pattern too.
Backgrounds are transparent and text is a grey of 4.3 : 1 or more against white and against the black of JupyterLab's dark
theme, so one figure serves both.

Every figure carries its description: `figure(..., alt=...)` stores it, `alt_text(fig)` returns it, `show(fig)` puts it below.
"""

import sys
from html import escape
from importlib import import_module
from typing import Any, Final

import plotly.graph_objects as go

from adadfq_lab.machine import environment

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7A7A7A"
OKABE_ITO = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, GREY)

TEACHER, STUDENT, GENERATOR, BOUND = BLUE, VERMILLION, GREEN, GREY
PLAYER: Final = {"P": TEACHER, "Q": STUDENT, "G": GENERATOR}
"""Colour of teacher, student and generator."""
PLAYER_DASH: Final = {"P": "solid", "Q": "dash", "G": "dot"}
BOUND_COLOUR: Final = {"lower": PURPLE, "upper": ORANGE}
"""Colour of lambda_l and lambda_u, and of the samples beyond them."""
BOUND_DASH: Final = {"lower": "dash", "upper": "dot"}
BOUND_NAME: Final = {"lower": "λ<sub>l</sub>", "upper": "λ<sub>u</sub>"}
INSIDE: Final = SKY
"""Colour of samples within the band."""
PATTERN: Final = {"below": "/", "inside": "", "above": "\\"}
"""Hatching of bars below, inside and above the band: the histogram reads without colour as well."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

TEXT = "#797979"
GRID = "rgba(128,128,128,0.25)"
CLEAR = "rgba(0,0,0,0)"

_AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "linecolor": TEXT,
    "zeroline": False,
    "showline": True,
    "ticks": "outside",
    "tickcolor": TEXT,
    "automargin": True,
}
TEMPLATE = go.layout.Template(
    layout={
        "colorway": list(OKABE_ITO),
        "font": {"color": TEXT, "size": 14},
        "title": {"font": {"size": 16}, "x": 0.0, "xanchor": "left", "xref": "paper"},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 55},
        "legend": {"bgcolor": CLEAR},
        "hoverlabel": {"font": {"size": 13}},
    }
)
"""The look, as a plotly template."""


def figure(title: str, x: str, y: str, *, alt: str = "", height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure with the house's look. x and y are axis labels with their units, as in "H_info [nats]".

    alt: what the figure shows, in a sentence or two, for readers who cannot see it; by default title and axes
    Raises ValueError if the title or a label is empty.
    """
    if not (title and x and y):
        raise ValueError("a figure needs a title and a label on both axes")
    alt = alt or f"{title}: {y} against {x}."
    fig = go.Figure()
    fig.update_layout(template=TEMPLATE, title={"text": title}, height=height, meta={"alt": alt}, **layout)
    fig.update_xaxes(title={"text": x})
    fig.update_yaxes(title={"text": y})
    return fig


def line(name: str) -> dict[str, str]:
    """Colour and dash of a player's line: `line("Q")`."""
    return {"color": PLAYER[name], "dash": PLAYER_DASH[name]}


def alt_text(fig: Any) -> str:
    """The description of a figure made by `figure`; "" for any other."""
    meta = fig.layout.meta
    return str(meta["alt"]) if isinstance(meta, dict) and "alt" in meta else ""


def import_renderers() -> None:
    """Imports what plotly displays figures with, in a tenth of the time.

    plotly's renderers import nbformat for its version number. That imports jsonschema, which imports rfc3987_syntax if it is
    installed, as it is with JupyterLab; and that compiles a grammar of internationalised addresses for two seconds. plotly has
    no switch for it and an importlib.util.LazyLoader is loaded at once here. So this one import fails, as jsonschema allows;
    the price is that jsonschema does not check the format "iri" in this process.
    """
    grammar = "rfc3987_syntax"
    if grammar in sys.modules or "jsonschema" in sys.modules:
        return
    sys.modules[grammar] = None  # type: ignore[assignment]  # how Python documents that an import is made to fail
    try:
        import_module("plotly.io").renderers  # noqa: B018
    finally:
        del sys.modules[grammar]


def show(fig: Any) -> None:
    """Displays a figure in the notebook with its description, folded, below it; outside a notebook, prints the description."""
    if not environment.in_kernel():
        print(f"[figure] {alt_text(fig)}")
        return
    from IPython import display  # only a notebook has it

    words = f"<details><summary>Description of the figure</summary><p>{escape(alt_text(fig))}</p></details>"
    import_renderers()
    display.display(fig)  # type: ignore[no-untyped-call]
    display.display(display.HTML(words))  # type: ignore[no-untyped-call]


Drawn = list[dict[str, Any]]


def band(lower: float, upper: float, *, axis: str = "x", row: str = "") -> tuple[Drawn, Drawn]:
    """(shapes, annotations) that draw lambda_l and lambda_u across an axis of H', for `layout.shapes` and `.annotations`.

    axis: "x" draws vertical lines at H' = lambda, "y" horizontal ones; row: the axis number of a subplot, "" or "2", "3", ...
    """
    other = "y" if axis == "x" else "x"
    shapes, notes = [], []
    for name, value in (("lower", lower), ("upper", upper)):
        position = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1}
        refs = {f"{axis}ref": f"{axis}{row}", f"{other}ref": f"{other}{row} domain"}
        shapes.append(
            {"type": "line", "line": {"color": BOUND_COLOUR[name], "dash": BOUND_DASH[name], "width": 2}, **position, **refs}
        )
        note = {"text": BOUND_NAME[name], "showarrow": False, "font": {"color": BOUND_COLOUR[name], "size": 15}}
        anchor = {"yanchor": "bottom"} if axis == "x" else {"xanchor": "left"}
        notes.append({**note, axis: value, other: 1, **anchor, **refs})
    return shapes, notes
