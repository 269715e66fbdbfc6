"""Charts as inline SVG: no JavaScript, nothing to load, drawn by every front end, printed as they look.

A `Panel` is one pair of axes with lines, bars, dots, level lines and marks; `chart` sets panels in a grid and returns the text
of one `<svg>` element with `role="img"` and the description as its label. Text and axes take the page's own colour
(`currentColor`), so a chart reads on light and dark pages; lines differ by dash pattern, bars by hatching, not by colour alone.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 420, 250
"""Of one panel, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 46, 44
SMALL = 'font-size="12" fill="currentColor"'
SMALLER = 'font-size="11" fill="currentColor"'
DASH = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}


@dataclass(frozen=True)
class Line:
    """A polyline; where y is NaN it is interrupted, or, with `dots`, its points are drawn and joined over the gaps.

    rings: instead of a line, a ring at each point
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str
    dash: str = "solid"
    dots: bool = False
    step: bool = False
    rings: bool = False


@dataclass(frozen=True)
class Bars:
    """A histogram's bars: between edges (n + 1) of heights (n,), on top of the bars before them. hatch: "", "/" or "\\"."""

    name: str
    edges: ArrayLike
    heights: ArrayLike
    color: str
    hatch: str = ""


@dataclass(frozen=True)
class Rule:
    """A line across the whole panel, at a value of x or of y, with a word beside it."""

    value: float
    text: str
    color: str
    axis: str = "x"
    dash: str = "dash"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Ranges are (low, high); None fits what is drawn.

    x_names, y_names: words instead of numbers at 0, 1, 2, ... of an axis; for y, from the bottom up, its label stands on top
    log: whether y is drawn by its logarithm; what is not above 0 is left out
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line] = ()
    bars: Sequence[Bars] = ()
    rules: Sequence[Rule] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_names: Sequence[str] = ()
    y_names: Sequence[str] = ()
    log: bool = False


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms, to the base 10 and within [low, high], of powers of ten; of 1, 2 and 5 times those if they are too few."""
    decades = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    if len(decades) > 1:
        return decades[:: -(-len(decades) // 5)]
    between = [k + math.log10(m) for k in range(math.floor(low), math.floor(high) + 1) for m in (1, 2, 5)]
    return [value for value in between if low <= value <= high]


def chart(panels: Sequence[Panel], *, alt: str, columns: int = 2, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The panels in rows of `columns`, as one `<svg>` element; `alt` says what they show. It shrinks with its page."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    w, h = columns * width, rows * height
    body = "".join(
        f'<g transform="translate({i % columns * width},{i // columns * height})">{_panel(panel, width, height)}</g>'
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img" aria-label="{escape(alt)}" '
        f'style="width:100%;max-width:{w}px;height:auto;color:var(--jp-content-font-color1,currentColor);'
        f'font:13px system-ui,sans-serif">{HATCHES}{body}</svg>'
    )


def _hatch(name: str, path: str) -> str:
    stroke = '" stroke="currentColor" stroke-opacity=".75" stroke-width="1.2"/>'
    return f'<pattern id="adadfq-{name}" width="6" height="6" patternUnits="userSpaceOnUse"><path d="{path}{stroke}</pattern>'


HATCHES = (
    "<defs>" + _hatch("up", "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2") + _hatch("down", "M-1,5 l2,2 M0,0 l6,6 M5,-1 l2,2") + "</defs>"
)


def _text(x: float, y: float, words: str, anchor: str = "start", look: str = 'fill="currentColor"') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {look}>{escape(words)}</text>'


def _array(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _extent(wanted: tuple[float, float] | None, values: list[NDArray[np.float64]], zero: bool = False) -> tuple[float, float]:
    if wanted is not None:
        return wanted
    seen = np.concatenate(values) if values else np.zeros(1)
    seen = seen[np.isfinite(seen)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return low - 0.5, high + 0.5
    pad = 0.05 * (high - low)
    return (low if zero and low == 0 else low - pad), (high if zero and high == 0 else high + pad)


def _logarithms(panel: Panel) -> Panel:
    """The panel with the logarithms of its y, to the base 10; NaN where there is none."""

    def log(y: ArrayLike) -> NDArray[np.float64]:
        y = _array(y)
        return np.log10(y, out=np.full_like(y, np.nan), where=y > 0)

    return replace(panel, lines=[replace(line, y=log(line.y)) for line in panel.lines])


def _panel(panel: Panel, width: int, height: int) -> str:
    panel = _logarithms(panel) if panel.log else panel
    xs = [_array(line.x) for line in panel.lines] + [_array(bars.edges) for bars in panel.bars]
    tops = np.cumsum([_array(bars.heights) for bars in panel.bars], axis=0) if panel.bars else np.zeros((0, 0))
    ys = [_array(line.y) for line in panel.lines] + [tops.reshape(-1)] * bool(panel.bars)
    x_low, x_high = _extent(panel.x_range, xs) if not panel.bars else (panel.x_range or _limits(xs))
    y_low, y_high = _extent(panel.y_range, ys, zero=bool(panel.bars))
    if panel.bars and panel.y_range is None and any(rule.text and rule.axis == "x" for rule in panel.rules):
        y_high += 0.12 * (y_high - y_low)  # room above the bars for the words of the rules
    inner_w, inner_h = width - LEFT - RIGHT, height - TOP - BOTTOM

    def sx(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * inner_w

    def sy(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * inner_h

    parts = [
        _text(LEFT, 16, panel.title, look='font-weight="600" fill="currentColor"'),
        _legend(panel),
    ]
    parts += [_axes(panel, sx, sy, (x_low, x_high), (y_low, y_high), width, height)]
    for i, bars in enumerate(panel.bars):
        parts.append(_bars(bars, tops[i], sx, sy))
    parts += [_rule(rule, sx, sy, (x_low, x_high), (y_low, y_high), width, height) for rule in panel.rules]
    parts += [_line(line, sx, sy, (y_low, y_high)) for line in panel.lines]
    return "".join(parts)


def _limits(values: list[NDArray[np.float64]]) -> tuple[float, float]:
    seen = np.concatenate(values)
    return float(seen.min()), float(seen.max())


def _legend(panel: Panel) -> str:
    parts, x = [], float(LEFT)
    items: list[Line | Bars] = [*panel.lines, *panel.bars]
    for item in items:
        if not item.name:
            continue
        if isinstance(item, Line) and item.rings:
            parts.append(_ring(x + 11, 30, item.color))
        elif isinstance(item, Line):
            look = f'stroke="{item.color}" stroke-width="2.5" stroke-dasharray="{DASH[item.dash]}"'
            parts.append(f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="30" y2="30" {look}/>')
        else:
            parts.append(_box(x + 5, 24, 12, 11, item.color, item.hatch))
        parts.append(_text(x + 26, 34, item.name, look=SMALL))
        x += 38 + 7 * len(item.name)
    return "".join(parts)


def _axes(panel: Panel, sx: Any, sy: Any, xs: tuple[float, float], ys: tuple[float, float], width: int, height: int) -> str:
    bottom, right = height - BOTTOM, width - RIGHT
    parts = []
    for x, word in _marks(panel.x_names, ticks(*xs)):
        parts.append(_text(sx(x), bottom + 16, word, "middle", SMALL))
    numbers = [(y, f"{10**y:g}") for y in log_ticks(*ys)] if panel.log else _marks(panel.y_names, ticks(*ys, most=5))
    for y, word in numbers:
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{sy(y):.1f}" y2="{sy(y):.1f}" stroke="currentColor" opacity=".18"/>')
        parts.append(_text(LEFT - 6, sy(y) + 4, word, "end", SMALL if not panel.y_names else SMALLER))
    parts.append(f'<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="currentColor" opacity=".6"/>')
    parts.append(_text((LEFT + right) / 2, height - 8, panel.x, "middle"))
    if panel.y_names:
        return "".join([*parts, _text(LEFT - 6, TOP - 4, panel.y, "end", SMALL)])
    middle = (TOP + bottom) / 2
    parts.append(_text(14, middle, panel.y, "middle", f'fill="currentColor" transform="rotate(-90 14 {middle})"'))
    return "".join(parts)


def _marks(names: Sequence[str], numbers: list[float]) -> list[tuple[float, str]]:
    """Where an axis has a word, and which: `names` at 0, 1, ..., or else the numbers themselves."""
    return [(float(i), name) for i, name in enumerate(names)] or [(number, f"{number:g}") for number in numbers]


def _ring(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{color}" stroke-width="2"/>'


def _box(x: float, y: float, w: float, h: float, color: str, hatch: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}"'
    over = {"/": "up", "\\": "down"}.get(hatch)
    return f'<rect {box} fill="{color}"/>' + (f'<rect {box} fill="url(#adadfq-{over})"/>' if over else "")


def _bars(bars: Bars, tops: NDArray[np.float64], sx: Any, sy: Any) -> str:
    parts = []
    for (left, right), height, top in zip(pairwise(_array(bars.edges)), _array(bars.heights), tops, strict=True):
        if height:
            parts.append(
                _box(sx(left) + 0.5, sy(top), sx(right) - sx(left) - 1, sy(top - height) - sy(top), bars.color, bars.hatch)
            )
    return "".join(parts)


def _rule(rule: Rule, sx: Any, sy: Any, xs: tuple[float, float], ys: tuple[float, float], width: int, height: int) -> str:
    low, high = xs if rule.axis == "x" else ys
    if not low <= rule.value <= high:
        return ""
    look = f'stroke="{rule.color}" stroke-width="2" stroke-dasharray="{DASH[rule.dash]}"'
    words = f'font-size="12" fill="{rule.color}"'
    if rule.axis == "x":
        at = sx(rule.value)
        right_half = at > LEFT + 0.6 * (width - LEFT - RIGHT)  # words stand towards the middle of the panel
        text = _text(at - 3 if right_half else at + 3, TOP + 11, rule.text, "end" if right_half else "start", words)
        return f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}" {look}/>{text}'
    at, right = sy(rule.value), width - RIGHT
    text = _text(right, at - 4, rule.text, "end", words)
    return f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" {look}/>{text}'


def _line(line: Line, sx: Any, sy: Any, ys: tuple[float, float]) -> str:
    x, y = _array(line.x), _array(line.y)
    finite = np.isfinite(x) & np.isfinite(y)
    if line.dots:
        x, y, finite = x[finite], y[finite], finite[finite]
    y = np.clip(y, ys[0], ys[1])
    if line.rings:
        return "".join(_ring(sx(x[i]), sy(y[i]), line.color) for i in finite.nonzero()[0])
    path, pen = [], False
    for i in range(len(x)):
        if not finite[i]:
            pen = False
            continue
        if pen and line.step:
            path.append(f"H{sx(x[i]):.1f}V{sy(y[i]):.1f}")
        else:
            path.append(f"{'L' if pen else 'M'}{sx(x[i]):.1f},{sy(y[i]):.1f}")
        pen = True
    look = f'fill="none" stroke="{line.color}" stroke-width="2" stroke-dasharray="{DASH[line.dash]}"'
    dots = "".join(f'<circle cx="{sx(a):.1f}" cy="{sy(b):.1f}" r="3" fill="{line.color}"/>' for a, b in zip(x, y, strict=True))
    return f'<path d="{"".join(path)}" {look}/>' + (dots if line.dots else "")


def montage(images: NDArray[np.uint8], gap: int = 2) -> NDArray[np.uint8]:
    """Images (rows, columns, H, W) or (..., 3) of uint8 side by side, `gap` grey pixels apart."""
    rows, columns, height, width = images.shape[:4]
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[4:]), 128, np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            page[top : top + height, left : left + width] = images[i, j]
    return page


def image(pixels: NDArray[np.uint8], *, alt: str, scale: int = 3) -> str:
    """An `<img>` of uint8 pixels (H, W) or (H, W, 3), each `scale` screen pixels wide, as PNG within the text."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"image-rendering:pixelated;width:{pixels.shape[1] * scale}px;max-width:100%"
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" style="{style}">'
