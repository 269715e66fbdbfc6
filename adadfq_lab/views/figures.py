"""The figures of the course, as pure functions from numbers to plotly figures: nothing is computed, kept or displayed here.

Each takes tensors, arrays or lists and returns a `go.Figure` with units on its axes and a description of what it shows
(`adadfq_lab.views.style.alt_text`). `lab.show(fig)` displays one. Pictures of a game are panels of `game_panels`, as in the
live figure and the report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.equations import Bounds
from adadfq_lab.game.history import History, Record, Recorder
from adadfq_lab.game.recordings import paper_region
from adadfq_lab.student import quantizer
from adadfq_lab.views import style
from adadfq_lab.views.game_panels import band_panel, describe_lines, h_prime_panel, terms_panels
from adadfq_lab.views.images import data_url, montage, pixels, png
from adadfq_lab.views.plotly_charts import plotly_figure

Numbers = Tensor | ArrayLike
Floats = NDArray[np.float64]

_SERIES = {"P": style.TEACHER, "Q": style.STUDENT, "G": style.GENERATOR, "p_ds": style.PURPLE, "p_as": style.ORANGE}
_HATCH = {"Q": "/", "p_ds": "x", "p_as": "."}


def _array(values: Numbers) -> Floats:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _hatch(fig: go.Figure, shape: str) -> None:
    fig.data[-1].marker.pattern = {"shape": shape, "fillmode": "overlay", "fgcolor": "#FFFFFF", "size": 7, "solidity": 0.3}


# One sample


def probability_bars(probabilities: Mapping[str, Numbers], classes: Sequence[str], *, title: str = "One sample") -> go.Figure:
    """Bars of several probability vectors (C,) of one sample side by side; P, Q, p_ds and p_as have colours of their own."""
    values = {name: _array(p) for name, p in probabilities.items()}
    tops = ", ".join(f"{name} is largest for {classes[int(p.argmax())]} ({p.max():.2f})" for name, p in values.items())
    fig = style.figure(title, "class", "probability", alt=f"Bars of probabilities over {len(classes)} classes: {tops}.")
    for i, (name, p) in enumerate(values.items()):
        colour = _SERIES.get(name, style.OKABE_ITO[i % 8])
        fig.add_bar(x=list(classes), y=p, name=name, marker={"color": colour})
        _hatch(fig, _HATCH.get(name, ""))
    fig.update_yaxes(range=[0, 1.02])
    return fig.update_layout(barmode="group", bargap=0.25)


# Populations of samples


def entropy_histogram(h_prime: Numbers, bounds: Bounds, *, bins: int = 20, title: str = "Where the samples lie") -> go.Figure:
    """Histogram of H' over [0, 1], coloured and hatched below, inside and above the band, with lambda_l and lambda_u drawn.

    A value on a bound is outside the band, as in Eq. (10).
    """
    h = _array(h_prime).reshape(-1)
    panel = band_panel(h.astype(np.float32), bounds, title, bins=bins)
    counts = {"below": int((h <= bounds.lower).sum()), "above": int((h >= bounds.upper).sum())}
    counts["inside"] = len(h) - sum(counts.values())
    shares = ", ".join(f"{counts[name]} {name}" for name in ("below", "inside", "above"))
    alt = f"Histogram of H' of {len(h)} samples, band {bounds.lower:g} to {bounds.upper:g}: {shares} it."
    named = [replace(bars, name=f"{bars.name} ({counts[bars.name]})") for bars in panel.bars]
    return plotly_figure([replace(panel, bars=named)], alt=alt)


# The game


def training_curves(
    records: History | Iterable[Record], *, title: str = "The game, round by round", points: int = 60
) -> go.Figure:
    """Mean H' with the middle 80 % shaded, agreement of P and Q, and the bounds, over rounds.

    points: the largest number of points of a line; longer games are averaged over equal stretches
    """
    history = _history(records)
    last = f"H' {history['h_prime'][-1].mean():.2f}, agreement {100 * history['agreement'][-1]:.0f} %"
    alt = f"H' and agreement over {len(history)} rounds, with the bounds; in the last round {last}."
    panel = h_prime_panel(history, points, agreement=True)
    return plotly_figure([replace(panel, title=title, rules=[])], alt=alt, height=380)


def loss_curves(
    records: History | Iterable[Record], *, title: str = "What the players minimise", points: int = 150
) -> go.Figure:
    """Every loss term of both players over rounds, at most `points` each: a panel a player, a colour and a dash a term."""
    panels = terms_panels(_history(records), points)
    return plotly_figure(panels, alt=f"{title}. {describe_lines(panels)}", height=380)


def _history(records: History | Iterable[Record]) -> History:
    if isinstance(records, History):
        return records
    recorder = Recorder()
    for record in records:
        recorder.add(record)
    return recorder.history()


def histograms(
    groups: Mapping[str, Numbers], *, title: str, x: str, limits: tuple[float, float], bins: int = 30, logarithmic: bool = False
) -> go.Figure:
    """Outlines of several groups' histograms on the same bins, as shares of each group in percent."""
    edges = np.linspace(*limits, bins + 1)
    medians = ", ".join(f"{name} {np.median(_array(values)):.2f}" for name, values in groups.items())
    fig = style.figure(title, x, "share of the group [%]", alt=f"Histograms of {x}; medians: {medians}.")
    for i, (name, values) in enumerate(groups.items()):
        flat = _array(values).reshape(-1)
        counts, _ = np.histogram(flat.clip(*limits), edges)
        y = [0, *(100 * counts / len(flat)), 0]  # the outline of the first and of the last bin is closed
        pen = {"color": _SERIES.get(name, style.OKABE_ITO[i % 8]), "dash": style.DASHES[i % 6], "shape": "hv"}
        fig.add_scatter(x=[edges[0], *edges], y=y, mode="lines", name=name, line=pen)
    if logarithmic:
        fig.update_yaxes(type="log")
    return fig


def scatter(groups: Mapping[str, tuple[Numbers, Numbers]], *, title: str, x: str, y: str, alt: str) -> go.Figure:
    """Points (x, y) of several groups, told apart by colour and symbol."""
    fig = style.figure(title, x, y, alt=alt)
    symbols = ("circle", "diamond", "cross", "triangle-up", "square", "x")
    for i, (name, (xs, ys)) in enumerate(groups.items()):
        marker = {"color": style.OKABE_ITO[i % 8], "symbol": symbols[i % 6], "size": 6, "opacity": 0.6}
        fig.add_scatter(x=_array(xs), y=_array(ys), mode="markers", name=name, marker=marker)
    return fig


def curves(series: Mapping[str, Numbers], at: Numbers, *, title: str, x: str, y: str, alt: str = "") -> go.Figure:
    """Lines over the common positions `at`; P, Q and G keep their colours, the dash patterns differ throughout."""
    fig = style.figure(title, x, y, alt=alt)
    first = len(style.PLAYER) if series.keys() & style.PLAYER.keys() else 0  # beside players, others have none of their looks
    for i, (name, values) in enumerate(series.items(), first):
        pen = style.line(name) if name in style.PLAYER else {"color": style.OKABE_ITO[i % 8], "dash": style.DASHES[i % 6]}
        fig.add_scatter(x=_array(at), y=_array(values), mode="lines", name=name, line=pen)
    return fig


def ends_of_the_band(groups: Mapping[str, tuple[Numbers, Numbers]], bounds: Bounds) -> go.Figure:
    """(H', loss of Q) of several groups, log scale, the sides of the band named: too hard (underfitting), nothing to learn."""
    medians = ", ".join(f"{n} {np.median(_array(h)):.2f} and {np.median(_array(loss)):.1e}" for n, (h, loss) in groups.items())
    alt = (
        f"Scatter of the loss of Q against H'; medians of H' and loss: {medians}. The left end, disagreement, is marked "
        "underfitting; the right end, agreement, overfitting."
    )
    labels = {"x": "H' (floor 0)", "y": "KL(P ‖ Q) on the sample [nats, log scale]"}
    fig = scatter(groups, title="Which end of H' is which", **labels, alt=alt)
    shapes, notes = style.band(bounds.lower, bounds.upper)
    sides = (
        ("lower", 0.0, bounds.lower, "← disagreement:<br>too hard for Q,<br><b>underfitting</b>", "left", bounds.lower + 0.01),
        ("upper", bounds.upper, 1.0, "agreement: →<br>nothing to learn,<br><b>overfitting</b>", "right", bounds.upper - 0.01),
    )
    for name, x0, x1, text, anchor, at in sides:
        area = {"type": "rect", "x0": x0, "x1": x1, "y0": 0, "y1": 1, "yref": "y domain", "line": {"width": 0}}
        shapes.append({**area, "fillcolor": style.BOUND_COLOUR[name], "opacity": 0.2, "layer": "below"})
        place = {"xanchor": anchor, "yanchor": "bottom", "align": anchor, "showarrow": False}
        notes.append({"text": text, "x": at, "y": 0.03, "yref": "y domain", **place})
    fig.update_xaxes(range=[0, 1.005])
    fig.update_yaxes(type="log", exponentformat="power")
    return fig.update_layout(shapes=shapes, annotations=notes, height=400)


# The quantizer


def weights_on_grid(weights: Numbers, bits: int, *, title: str = "") -> go.Figure:
    """Histogram of weights that share one range, and the levels of the grid of `bits` bits over it as vertical lines."""
    w = torch.as_tensor(_array(weights).reshape(1, -1))
    scale, zero_point = quantizer.weight_qparams(w, bits)
    low, high = quantizer.quant_range(bits)
    levels = quantizer.dequantize(torch.arange(low, high + 1), scale, zero_point).flatten()
    off = (quantizer.fake_quantize(w, scale, zero_point, bits) - w).square().mean().sqrt()
    alt = f"Histogram of {w.numel()} weights and {2**bits} vertical lines, the levels; root-mean-square error {float(off):.3g}."
    fig = style.figure(title or f"Weights and the levels of {bits} bits", "weight", "count", alt=alt)
    fig.add_histogram(x=_array(w).reshape(-1), nbinsx=60, name="float weights", marker={"color": style.TEACHER})
    pen = {"color": style.STUDENT, "width": 1, "dash": "dash"}
    shape = {"type": "line", "y0": 0, "y1": 1, "yref": "y domain", "line": pen}
    return fig.update_layout(shapes=[{**shape, "x0": float(v), "x1": float(v)} for v in levels], showlegend=True)


def accuracy_cliff(accuracies: Mapping[int, Accuracy], teacher: Accuracy) -> go.Figure:
    """Top-1 of plainly quantised students over bits, with 95 % intervals, under the teacher's."""
    bits = sorted(accuracies)
    values = [accuracies[b] for b in bits]
    listed = ", ".join(f"{b} bits {a.top1:.1f} %" for b, a in zip(bits, values, strict=True))
    alt = f"Accuracy over bits: {listed}; the teacher has {teacher.top1:.1f} %."
    fig = style.figure(f"Plain quantization, {teacher.images} images", "bits of weights and activations", "top-1 [%]", alt=alt)
    error = {"array": [a.high - a.top1 for a in values], "arrayminus": [a.top1 - a.low for a in values]}
    fig.add_scatter(x=[bits[0], bits[-1]], y=[teacher.top1] * 2, mode="lines", name="P", line=style.line("P"))
    tops = [a.top1 for a in values]
    fig.add_scatter(x=bits, y=tops, mode="lines+markers", name="Q", error_y=error, line=style.line("Q"))
    fig.update_xaxes(tickvals=bits)
    fig.update_yaxes(range=[0, 100])
    return fig


# Images


def image_grid(images: Tensor, columns: Sequence[str], *, rows: Sequence[str] = (), title: str, x: str, y: str) -> go.Figure:
    """Images (N, C, H, W) with values in [0, 1] in a grid, row by row, one column for each of `columns`; C is 1 or 3.

    x and y say what columns and rows are. Raises ValueError if N is not a multiple of the number of columns.
    """
    n, channels, height, width = images.shape
    if n % len(columns) or channels not in (1, 3):
        raise ValueError(f"{n} images of {channels} channels do not fill columns of {len(columns)}; give 1 or 3 channels")
    count, gap = n // len(columns), 2
    labels = list(rows) or [str(i + 1) for i in range(count)]
    sheet = montage(pixels(images).reshape(count, len(columns), height, width, 3), gap, ground=255)
    alt = f"{title}: a grid of {n} images; columns ({x}): {', '.join(columns)}; rows ({y}): {', '.join(labels)}."
    fig = style.figure(title, x, y, alt=alt, height=110 + max(1, count) * 78)
    fig.add_trace(go.Image(source=data_url(png(sheet)), hoverinfo="skip"))
    axis = {"showgrid": False, "showline": False, "ticks": "outside", "ticklen": 5, "tickcolor": style.CLEAR}
    fig.update_xaxes(tickvals=[i * (width + gap) + width / 2 for i in range(len(columns))], ticktext=list(columns), **axis)
    fig.update_yaxes(tickvals=[i * (height + gap) + height / 2 for i in range(count)], ticktext=labels, **axis)
    return fig


# What P's batch norms remember


def bns_by_layer(distances: Mapping[str, Numbers], *, title: str = "Distance from what P remembers") -> go.Figure:
    """L_BNS of each batch-norm layer, on a logarithmic axis, for several batches of images."""
    sums = ", ".join(f"{name} {_array(d).mean():.3g}" for name, d in distances.items())
    alt = f"L_BNS by layer for several batches; means over layers: {sums}."
    fig = style.figure(title, "batch-norm layer, from the image to the logits", "L_BNS of the layer (log scale)", alt=alt)
    for i, (name, d) in enumerate(distances.items()):
        pen = {"color": style.OKABE_ITO[i % 8], "dash": style.DASHES[i % 6]}
        fig.add_scatter(x=np.arange(1, len(_array(d)) + 1), y=_array(d), mode="lines+markers", name=name, line=pen)
    fig.update_yaxes(type="log", exponentformat="power")
    return fig


def story() -> go.Figure:
    """The paper in one picture: who makes, who looks, and which way images and gradients go."""
    alt = (
        "Diagram. Noise z and a label y enter the generator G, which makes images x. Teacher P and student Q both look at x. "
        "Their logits are compared as the disagreement. From there an arrow goes back to G: keep H' between lambda_l and "
        "lambda_u; and one to Q: disagree less."
    )
    fig = style.figure("Data-free quantization as a game", " ", " ", alt=alt, height=360)
    boxes = (
        ("G", 0.18, 0.5, "<b>G</b><br>generator"),
        ("P", 0.52, 0.82, "<b>P</b><br>teacher, frozen"),
        ("Q", 0.52, 0.18, "<b>Q</b><br>student, few bits"),
    )
    notes = [_box(text, x, y, style.PLAYER[name]) for name, x, y, text in boxes]
    notes.append(_box("disagreement<br>p<sub>ds</sub> → H'", 0.86, 0.5, style.PURPLE))
    solid = [((0.03, 0.5), (0.11, 0.5)), ((0.26, 0.56), (0.42, 0.78)), ((0.26, 0.44), (0.42, 0.22))]
    solid += [((0.62, 0.78), (0.78, 0.57)), ((0.62, 0.22), (0.78, 0.43))]
    notes += [_arrow(start, end, style.TEXT) for start, end in solid]
    notes += [_arrow((0.77, 0.5), (0.27, 0.5), style.GENERATOR), _arrow((0.9, 0.4), (0.62, 0.1), style.STUDENT)]
    words = [(0.02, 0.58, "z, y", style.TEXT), (0.52, 0.55, "keep H' between λ<sub>l</sub> and λ<sub>u</sub>", style.GENERATOR)]
    words += ((0.31, 0.72, "x", style.TEXT), (0.31, 0.28, "x", style.TEXT), (0.83, 0.13, "disagree less", style.STUDENT))
    words += ((0.71, 0.74, "z<sub>p</sub>", style.TEXT), (0.69, 0.38, "z<sub>q</sub>", style.TEXT))
    notes += [{"x": x, "y": y, "text": t, "showarrow": False, "font": {"color": c}} for x, y, t, c in words]
    fig.update_xaxes(range=[0, 1], visible=False)
    fig.update_yaxes(range=[0, 1], visible=False)
    return fig.update_layout(annotations=notes, margin={"l": 10, "r": 10, "t": 50, "b": 10})


def _box(text: str, x: float, y: float, colour: str) -> dict[str, Any]:
    frame = {"bordercolor": colour, "borderwidth": 2, "borderpad": 8}
    return {"text": text, "x": x, "y": y, "showarrow": False, "font": {"color": colour, "size": 15}, **frame}


def _arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> dict[str, Any]:
    refs = {
        "xref": "x",
        "yref": "y",
        "axref": "x",
        "ayref": "y",
        "showarrow": True,
        "arrowhead": 3,
        "arrowwidth": 2,
        "text": "",
    }
    return {"x": end[0], "y": end[1], "ax": start[0], "ay": start[1], "arrowcolor": colour, **refs}


# Checks


def yours_against_expected(yours: Numbers, expected: Numbers) -> go.Figure:
    """Entries of a learner's result beside the expected ones, at most 40 of each."""
    mine, theirs = _array(yours).reshape(-1)[:40], _array(expected).reshape(-1)[:40]
    gaps = np.abs(mine - theirs)[np.isfinite(mine - theirs)]
    largest = f"the largest difference is {gaps.max():.3g}" if len(gaps) else "none of yours is a number"
    alt = f"Yours against expected for {len(mine)} entries; {largest}."
    fig = style.figure("Yours against expected", "entry", "value", alt=alt, height=260)
    at = np.arange(len(mine))
    fig.add_scatter(
        x=at, y=theirs, mode="markers", name="expected", marker={"color": style.TEACHER, "symbol": "circle-open", "size": 10}
    )
    fig.add_scatter(x=at, y=mine, mode="markers", name="yours", marker={"color": style.STUDENT, "symbol": "x", "size": 7})
    return fig


GRID_WORDS = {
    "accuracy": ("Accuracy of Q on real images [%]", ".1f"),
    "test_loss": ("Cross-entropy of Q on real images [nats]", ".2f"),
    "mean_h_prime": ("Mean H' of the last 320 samples", ".2f"),
    "inside": ("Share of the last 320 samples in the band", ".2f"),
    "mean_entropy": ("Mean H_info of the last 320 samples [nats]", ".2f"),
}


def grid_map(grid: Mapping[str, Any], quantity: str) -> go.Figure:
    """A recorded quantity over the bounds, as Fig. 4(a): lambda_l upwards, lambda_u to the right, the value in each cell.

    The region that the paper calls optimal is outlined.
    """
    title, digits = GRID_WORDS[quantity]
    values, lower, upper = (np.asarray(grid[name], np.float64) for name in (quantity, "lower", "upper"))
    known = values[np.isfinite(values)]
    extent = f"from {known.min():{digits}} to {known.max():{digits}}, mean {known.mean():{digits}}"
    alt = f"{title} for {len(known)} pairs of bounds: {extent}."
    fig = style.figure(title, "upper bound λ_u", "lower bound λ_l", alt=alt, height=400)
    text = [[f"{v:{digits}}" if np.isfinite(v) else "" for v in row] for row in values]
    names = [f"{v:.1f}" for v in upper], [f"{v:.1f}" for v in lower]
    fig.add_heatmap(z=values, x=names[0], y=names[1], text=text, texttemplate="%{text}", colorscale="Cividis", xgap=2, ygap=2)
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category")
    rows, columns = (np.nonzero(inside)[0] for inside in paper_region(lower, upper))
    ends = {"x0": columns[0] - 0.5, "x1": columns[-1] + 0.5, "y0": rows[0] - 0.5, "y1": rows[-1] + 0.5}
    fig.add_shape(type="rect", line={"color": style.VERMILLION, "width": 3}, **ends)
    return fig


def bars(values: Mapping[str, float], *, title: str, x: str, y: str, errors: ArrayLike | None = None) -> go.Figure:
    """One bar a name, with its value written on it and, if given, an interval of +- `errors`."""
    words = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    fig = style.figure(title, x, y, alt=f"{title}: {words}.")
    interval = None if errors is None else {"type": "data", "array": np.asarray(errors), "color": style.TEXT}
    numbers = [f"{value:.2f}" for value in values.values()]
    fig.add_bar(x=list(values), y=list(values.values()), text=numbers, textposition="auto", error_y=interval, showlegend=False)
    fig.data[0].marker.color = style.BLUE
    return fig if errors is None else fig.update_traces(textposition="inside", insidetextanchor="middle")  # clear of intervals
