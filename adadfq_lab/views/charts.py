"""A chart: what it is made of, and how it is drawn as SVG.

A `Panel` is one pair of axes with lines, areas, bars, level lines and marks. Two functions draw the same panels:

    charts.chart(panels, alt=...)                  text of one `<svg>` element; no JavaScript, nothing to load
    plotly_charts.plotly_figure(panels, alt=...)   a plotly figure, for those who want to hover and zoom

The SVG has `role="img"` and the description `alt` as its label. Text and axes take the page's own colour, so a chart reads on
light and dark pages. Lines differ by dash pattern and bars by hatching, not by colour alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from adadfq_lab.views.axes import Floats, Span, array, extent, log_ticks, logarithms, ticks, typeset_svg
from adadfq_lab.views.images import data_url
from adadfq_lab.views.images import image as image
from adadfq_lab.views.images import montage as montage

WIDTH, HEIGHT = 420, 250
"""Of one panel, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 46, 44
LEGEND_ROW = 17
SMALL = 'font-size="12" fill="currentColor"'
SMALLER = 'font-size="11" fill="currentColor"'
DASH = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}
PAGE_COLOR = "var(--jp-content-font-color1,currentColor)"
"""The colour of text: JupyterLab's own, which follows its theme, or that of the page around the chart."""


@dataclass(frozen=True)
class Line:
    """A polyline. Where y is NaN it is interrupted; with `dots` its known points are drawn and joined across the gaps.

    step:  horizontal until the next point
    rings: a ring at each point instead of a line
    low, high: ends of an interval around each y, drawn as a vertical stroke
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    color: str
    dash: str = "solid"
    dots: bool = False
    step: bool = False
    rings: bool = False
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True)
class Area:
    """The area between two curves over the same x, in a pale shade of `color`."""

    name: str
    x: ArrayLike
    low: ArrayLike
    high: ArrayLike
    color: str


@dataclass(frozen=True)
class Bars:
    """A histogram's bars: between edges (n + 1), of heights (n,), on top of the bars before them.

    hatch:     "", "/" or "\\"
    low, high: ends of an interval around the top of each bar; NaN for none
    words:     a text above each bar
    """

    name: str
    edges: ArrayLike
    heights: ArrayLike
    color: str
    hatch: str = ""
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    words: Sequence[str] = ()


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
    x_range: Span | None = None
    y_range: Span | None = None
    x_names: Sequence[str] = ()
    y_names: Sequence[str] = ()
    log: bool = False
    areas: Sequence[Area] = ()


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
        f'style="width:100%;max-width:{w}px;height:auto;color:{PAGE_COLOR};font:13px system-ui,sans-serif">'
        f"{HATCHES}{body}</svg>"
    )


def standing_alone(svg: str, color: str) -> str:
    """A chart as a file of its own: its text in `color`, since there is no page to take a colour from."""
    return svg.replace(PAGE_COLOR, color)


def as_images(page: str, color: str) -> str:
    """HTML whose charts are images by address: JupyterLab removes inline SVG from notebooks that it does not trust."""

    def replaced(found: re.Match[str]) -> str:
        width, words = found["width"], found["words"]
        source = data_url(standing_alone(found[0], color).encode(), "image/svg+xml")
        return f'<img alt="{words}" style="width:100%;max-width:{width}px" src="{source}">'

    return re.sub(
        r'<svg [^>]*viewBox="0 0 (?P<width>\d+) [^>]*aria-label="(?P<words>[^"]*)".*?</svg>', replaced, page, flags=re.S
    )


def stacked(bars: Sequence[Bars]) -> list[Floats]:
    """Where the tops of bars are that stand on those before them."""
    return list(np.cumsum([array(one.heights) for one in bars], axis=0)) if bars else []


def _hatch(name: str, path: str) -> str:
    stroke = '" stroke="#222222" stroke-opacity=".75" stroke-width="1.2"/>'
    return f'<pattern id="adadfq-{name}" width="6" height="6" patternUnits="userSpaceOnUse"><path d="{path}{stroke}</pattern>'


HATCHES = (
    "<defs>" + _hatch("up", "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2") + _hatch("down", "M-1,5 l2,2 M0,0 l6,6 M5,-1 l2,2") + "</defs>"
)


@dataclass(frozen=True)
class _Frame:
    """Where the axes of a panel are, in pixels, and what they reach over."""

    left: float
    right: float
    top: float
    bottom: float
    xs: Span
    ys: Span

    def sx(self, x: float) -> float:
        return self.left + (x - self.xs[0]) / (self.xs[1] - self.xs[0]) * (self.right - self.left)

    def sy(self, y: float) -> float:
        return self.top + (self.ys[1] - y) / (self.ys[1] - self.ys[0]) * (self.bottom - self.top)


def _text(x: float, y: float, words: str, anchor: str = "start", look: str = 'fill="currentColor"') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {look}>{typeset_svg(words)}</text>'


def _panel(panel: Panel, width: int, height: int) -> str:
    panel = _logarithms(panel) if panel.log else panel
    legend, rows = _legend(panel, width)
    xs, ys = _ranges(panel)
    numbers = [(y, f"{10**y:g}") for y in log_ticks(*ys)] if panel.log else _marks(panel.y_names, ticks(*ys, most=5))
    longest = max((len(word) for _, word in numbers), default=0)
    left = LEFT if panel.y_names else max(LEFT, 26 + 7 * longest)  # room for long numbers beside the label of y
    frame = _Frame(left, width - RIGHT, TOP + LEGEND_ROW * (rows - 1), height - BOTTOM, xs, ys)
    parts = [_text(LEFT, 16, panel.title, look='font-weight="600" fill="currentColor"'), legend]
    parts += [_axes(panel, frame, numbers, height)]
    parts += [_area(area, frame) for area in panel.areas]
    parts += [_bars(bars, top, frame) for bars, top in zip(panel.bars, stacked(panel.bars), strict=True)]
    parts += [_rule(rule, frame) for rule in panel.rules]
    parts += [_line(line, frame) for line in panel.lines]
    return "".join(parts)


def _logarithms(panel: Panel) -> Panel:
    """The panel with the base-10 logarithms of its y."""
    lines = [replace(line, y=logarithms(line.y)) for line in panel.lines]
    return replace(panel, lines=lines, areas=[replace(a, low=logarithms(a.low), high=logarithms(a.high)) for a in panel.areas])


def _ranges(panel: Panel) -> tuple[Span, Span]:
    xs = [array(line.x) for line in panel.lines] + [array(area.x) for area in panel.areas]
    xs += [array(bars.edges) for bars in panel.bars]
    ys = [array(line.y) for line in panel.lines] + stacked(panel.bars)
    ends = [end for line in panel.lines for end in (line.low, line.high)]
    ends += [end for area in panel.areas for end in (area.low, area.high)]
    ends += [end for bars in panel.bars for end in (bars.low, bars.high)]
    ys += [array(end) for end in ends if end is not None]
    y_low, y_high = extent(panel.y_range, ys, zero=bool(panel.bars))
    named = any(rule.text and rule.axis == "x" for rule in panel.rules) or any(bars.words for bars in panel.bars)
    if panel.bars and panel.y_range is None and named:
        y_high += 0.12 * (y_high - y_low)  # room above the bars for the words
    return extent(panel.x_range, xs, pad=0 if panel.bars else 0.05), (y_low, y_high)


def _legend(panel: Panel, width: int) -> tuple[str, int]:
    """The legend, and the number of rows that it takes."""
    parts, x, row = [], float(LEFT), 0
    items: list[Line | Area | Bars] = [*panel.lines, *panel.areas, *panel.bars]
    for item in items:
        if not item.name:
            continue
        room = 38 + 7 * len(item.name)
        if x > LEFT and x + room > width:
            x, row = float(LEFT), row + 1
        y = 30 + LEGEND_ROW * row
        if isinstance(item, Line) and item.rings:
            parts.append(_ring(x + 11, y, item.color))
        elif isinstance(item, Line):
            look = f'stroke="{item.color}" stroke-width="2.5" stroke-dasharray="{DASH[item.dash]}"'
            parts.append(f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y}" y2="{y}" {look}/>')
        elif isinstance(item, Area):
            parts.append(f'<g opacity=".25">{_box(x, y - 6, 22, 11, item.color, "")}</g>')
        else:
            parts.append(_box(x + 5, y - 6, 12, 11, item.color, item.hatch))
        parts.append(_text(x + 26, y + 4, item.name, look=SMALL))
        x += room
    return "".join(parts), row + 1


def _axes(panel: Panel, frame: _Frame, numbers: list[tuple[float, str]], height: int) -> str:
    left, right, top, bottom = frame.left, frame.right, frame.top, frame.bottom
    parts = []
    for x, word in _marks(panel.x_names, ticks(*frame.xs)):
        parts.append(_text(frame.sx(x), bottom + 16, word, "middle", SMALL))
    for y, word in numbers:
        at = frame.sy(y)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" opacity=".18"/>')
        parts.append(_text(left - 6, at + 4, word, "end", SMALL if not panel.y_names else SMALLER))
    parts.append(f'<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="currentColor" opacity=".6"/>')
    parts.append(_text((left + right) / 2, height - 8, panel.x, "middle"))
    if panel.y_names:
        return "".join([*parts, _text(left - 6, top - 4, panel.y, "end", SMALL)])
    middle = height / 2
    size = min(13.0, (height - 8) / (0.56 * max(1, len(panel.y))))  # a long label is written smaller, not cut off
    look = f'font-size="{size:.1f}" fill="currentColor" transform="rotate(-90 14 {middle})"'
    return "".join([*parts, _text(14, middle, panel.y, "middle", look)])


def _marks(names: Sequence[str], numbers: list[float]) -> list[tuple[float, str]]:
    """Where an axis has a word, and which: `names` at 0, 1, ..., or else the numbers themselves."""
    return [(float(i), name) for i, name in enumerate(names)] or [(number, f"{number:g}") for number in numbers]


def _ring(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{color}" stroke-width="2"/>'


def _box(x: float, y: float, w: float, h: float, color: str, hatch: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}"'
    over = {"/": "up", "\\": "down"}.get(hatch)
    return f'<rect {box} fill="{color}"/>' + (f'<rect {box} fill="url(#adadfq-{over})"/>' if over else "")


def _interval(x: float, low: float, high: float, frame: _Frame, color: str) -> str:
    if not np.isfinite([low, high]).all():
        return ""
    ends = f"M{x - 4:.1f},{frame.sy(low):.1f}h8m-4,0V{frame.sy(high):.1f}m-4,0h8"
    return f'<path d="{ends}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _bars(bars: Bars, tops: Floats, frame: _Frame) -> str:
    parts = []
    none = np.full(len(tops), np.nan)
    lows, highs = (none if end is None else array(end) for end in (bars.low, bars.high))
    words = [*bars.words, *[""] * len(tops)]
    for i, ((left, right), height, top) in enumerate(zip(pairwise(array(bars.edges)), array(bars.heights), tops, strict=True)):
        if not height:
            continue
        start, end = frame.sx(left) + 0.5, frame.sx(right) - 0.5
        parts.append(_box(start, frame.sy(top), end - start, frame.sy(top - height) - frame.sy(top), bars.color, bars.hatch))
        parts.append(_interval((start + end) / 2, lows[i], highs[i], frame, "currentColor"))
        if words[i]:
            parts.append(_text((start + end) / 2, frame.sy(np.nanmax([top, highs[i]])) - 5, words[i], "middle", SMALL))
    return "".join(parts)


def _rule(rule: Rule, frame: _Frame) -> str:
    low, high = frame.xs if rule.axis == "x" else frame.ys
    if not low <= rule.value <= high:
        return ""
    look = f'stroke="{rule.color}" stroke-width="2" stroke-dasharray="{DASH[rule.dash]}"'
    words = f'font-size="12" fill="{rule.color}"'
    if rule.axis == "x":
        at = frame.sx(rule.value)
        right_half = at > frame.left + 0.6 * (frame.right - frame.left)  # words stand towards the middle of the panel
        anchor = "end" if right_half else "start"
        text = _text(at - 3 if right_half else at + 3, frame.top + 11, rule.text, anchor, words)
        return f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top}" y2="{frame.bottom}" {look}/>{text}'
    at = frame.sy(rule.value)
    text = _text(frame.right, at - 4, rule.text, "end", words)
    return f'<line x1="{frame.left}" x2="{frame.right}" y1="{at:.1f}" y2="{at:.1f}" {look}/>{text}'


def _area(area: Area, frame: _Frame) -> str:
    x, low, high = array(area.x), *(array(end).clip(*frame.ys) for end in (area.low, area.high))
    known = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    there = [f"{frame.sx(a):.1f},{frame.sy(b):.1f}" for a, b in zip(x[known], high[known], strict=True)]
    back = [f"{frame.sx(a):.1f},{frame.sy(b):.1f}" for a, b in zip(x[known][::-1], low[known][::-1], strict=True)]
    return f'<polygon points="{" ".join(there + back)}" fill="{area.color}" opacity=".25"/>' if there else ""


def _line(line: Line, frame: _Frame) -> str:
    x, y = array(line.x), array(line.y)
    finite = np.isfinite(x) & np.isfinite(y)
    intervals = ""
    if line.low is not None and line.high is not None:
        ends = zip(x[finite], array(line.low)[finite], array(line.high)[finite], strict=True)
        intervals = "".join(_interval(frame.sx(at), low, high, frame, line.color) for at, low, high in ends)
    if line.dots:
        x, y, finite = x[finite], y[finite], finite[finite]
    y = np.clip(y, *frame.ys)
    if line.rings:
        return "".join(_ring(frame.sx(x[i]), frame.sy(y[i]), line.color) for i in finite.nonzero()[0])
    path, pen = [], False
    for i in range(len(x)):
        if not finite[i]:
            pen = False
            continue
        if pen and line.step:
            path.append(f"H{frame.sx(x[i]):.1f}V{frame.sy(y[i]):.1f}")
        else:
            path.append(f"{'L' if pen else 'M'}{frame.sx(x[i]):.1f},{frame.sy(y[i]):.1f}")
        pen = True
    look = f'fill="none" stroke="{line.color}" stroke-width="2" stroke-dasharray="{DASH[line.dash]}"'
    at = zip(x, y, strict=True) if line.dots else ()
    dots = "".join(f'<circle cx="{frame.sx(a):.1f}" cy="{frame.sy(b):.1f}" r="3" fill="{line.color}"/>' for a, b in at)
    return f'<path d="{"".join(path)}" {look}/>{dots}{intervals}'
