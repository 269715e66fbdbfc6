"""The scales of a chart: how far an axis reaches, where its ticks are, and how a symbol with an index is typeset."""

import math
import re
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Span = tuple[float, float]
INDEXED = re.compile(r"(?<![\w])([A-Za-zΑ-Ωα-ω])_([A-Za-z]{1,4})(?![\w])")
"""A symbol with an index, as in λ_l, Δ_G, p_ds, H_info."""


def typeset(words: str) -> str:
    """`words` as HTML in which λ_l becomes λ<sub>l</sub>: for paragraphs, status lines and plotly."""
    return INDEXED.sub(r"\1<sub>\2</sub>", escape(words))


def typeset_svg(words: str) -> str:
    """`words` as the content of an SVG `<text>`; indices are small and low."""
    return INDEXED.sub(r'\1<tspan dy="3" font-size="75%">\2</tspan><tspan dy="-3">&#8203;</tspan>', escape(words))


def array(values: ArrayLike) -> Floats:
    """`values` as a flat array of floats."""
    return np.asarray(values, dtype=np.float64).reshape(-1)


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
    """Base-10 logarithms within [low, high] of powers of ten; if those are too few, of 1, 2 and 5 or of 1 to 9 times those."""
    decades = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    if len(decades) > 1:
        return decades[:: -(-len(decades) // 5)]
    found: list[float] = []
    for multiples in ((1, 2, 5), range(1, 10)):
        between = [k + math.log10(m) for k in range(math.floor(low), math.floor(high) + 1) for m in multiples]
        found = [value for value in between if low <= value <= high]
        if len(found) > 1:
            break
    return found


def extent(wanted: Span | None, values: Sequence[Floats], *, zero: bool = False, pad: float = 0.05) -> Span:
    """The range of an axis: `wanted`, or that of the finite `values` and a little more; with `zero` it includes 0."""
    if wanted is not None:
        return wanted
    seen = np.concatenate(values) if values else np.zeros(1)
    seen = seen[np.isfinite(seen)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return (0.0, 1.0) if zero and not high else (low - 0.5, high + 0.5)
    more = pad * (high - low)
    return (low if zero and low == 0 else low - more), (high if zero and high == 0 else high + more)


def logarithms(values: ArrayLike) -> Floats:
    """Base-10 logarithms; NaN for what is not above 0."""
    y = array(values)
    return np.log10(y, out=np.full_like(y, np.nan), where=y > 0)
