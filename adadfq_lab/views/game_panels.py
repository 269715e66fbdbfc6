"""What a live run draws: six panels of a `History`, as one FigureWidget, as one SVG, or not at all.

`panels(history)` says once what is drawn; the two views only render it. A view is told to `publish` at most five times a
second and sends at most POINTS points a line, less than 60 kB in all.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from adadfq_lab.equations import Bounds
from adadfq_lab.game.history import Column, History, Record, Recorder, thin
from adadfq_lab.views import style
from adadfq_lab.views.charts import Bars, Line, Panel, Rule, chart
from adadfq_lab.views.style import (
    BOUND,
    BOUND_COLOUR,
    BOUND_DASH,
    GENERATOR,
    GREY,
    INSIDE,
    PATTERN,
    PLAYER,
    PLAYER_DASH,
    STUDENT,
    TEACHER,
    figure,
)

POINTS = 240
BINS = 20
COLUMNS = 2


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


# The game


def training_curves(
    records: History | Iterable[Record], *, title: str = "The game, round by round", points: int = 60
) -> go.Figure:
    """Mean H' with the middle 80 % shaded, agreement of P and Q, and the bounds, over rounds.

    points: at most so many; longer games are averaged over equal stretches
    """
    history = records if isinstance(records, History) else _history(records)
    h = history["h_prime"]
    columns = (history["round"], h.mean(axis=1), *np.quantile(h, (0.1, 0.9), axis=1), history["agreement"])
    rounds, mean, low, high, agreed = (thin(np.asarray(column, np.float32), points) for column in columns)
    last = f"H' {h[-1].mean():.2f}, agreement {100 * history['agreement'][-1]:.0f} %"
    alt = f"H' and agreement over {len(history)} rounds, with the bounds; in the last round {last}."
    fig = style.figure(title, "round", "H', share of samples [0 to 1]", alt=alt, height=380)
    fig.add_scatter(x=rounds, y=low, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    shade = {"fill": "tonexty", "fillcolor": "rgba(0,158,115,0.2)", "line": {"width": 0}}
    fig.add_scatter(x=rounds, y=high, mode="lines", name="middle 80 % of H'", hoverinfo="skip", **shade)
    fig.add_scatter(x=rounds, y=mean, mode="lines", name="mean H'", line={"color": style.GENERATOR})
    fig.add_scatter(x=rounds, y=agreed, mode="lines", name="agreement of P and Q", line=style.line("Q"))
    for name in ("lower", "upper"):
        pen = {"color": style.BOUND_COLOUR[name], "dash": style.BOUND_DASH[name], "shape": "hv"}
        fig.add_scatter(x=history["round"], y=history[name], mode="lines", name=style.BOUND_NAME[name], line=pen)
    fig.update_yaxes(range=[0, 1.02])
    return fig


def loss_curves(
    records: History | Iterable[Record], *, title: str = "What the players minimise", points: int = 150
) -> go.Figure:
    """Every loss term of both players over rounds, logarithmic, at most `points` each; colours tell players, dashes terms."""
    history = records if isinstance(records, History) else _history(records)
    names = [name for name in history.columns if name.startswith(("generator.", "student."))]
    alt = "Loss terms over rounds: " + ", ".join(f"{n} ends at {history[n][-1]:.3g}" for n in names) + "."
    fig = style.figure(title, "round", "weighted loss term (log scale)", alt=alt)
    for name in names:
        player, term = name.split(".")
        same = [other for other in names if other.startswith(player)]
        letter = "G" if player == "generator" else "Q"
        pen = {"color": style.PLAYER[letter], "dash": style.DASHES[same.index(name) % 6]}
        x, y = thin(history["round"], points), thin(history[name].clip(1e-6), points)
        fig.add_scatter(x=x, y=y, mode="lines", name=f"{letter}: {term}", line=pen)
    fig.update_yaxes(type="log")
    return fig


def _history(records: Iterable[Record]) -> History:
    recorder = Recorder()
    for record in records:
        recorder.add(record)
    return recorder.history()


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over `width` rounds; shorter at either end. Missing values are left out of it."""
    kernel = np.ones(max(1, min(width, len(values))))
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([record.get(name, np.nan) for record in records], dtype=float)


def _thin(count: int, most: int = 1000) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def band_figure(records: list[dict[str, Any]]) -> go.Figure:
    """H' of the samples of each round between lambda_l and lambda_u: median, and the range of the middle 80 %."""
    h = np.array([np.quantile(record["h_prime"], [0.1, 0.5, 0.9]) for record in records])
    width = max(1, len(records) // 60)
    low, middle, high = (smooth(h[:, i], width) for i in range(3))
    keep = _thin(len(records))
    rounds = _column(records, "round")[keep]
    fig = figure("Disagreement of the generated samples", "round", "H' (1: P and Q agree)")
    fig.add_scatter(x=rounds, y=low[keep], mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=rounds, y=high[keep], fill="tonexty", mode="lines", line={"width": 0}, name="middle 80 %")
    fig.data[-1].fillcolor = "rgba(0,158,115,0.2)"
    fig.add_scatter(x=rounds, y=middle[keep], mode="lines", line={"color": GENERATOR, "width": 2}, name="median H'")
    for name, key in (("λ_l", "lower"), ("λ_u", "upper")):
        line = {"color": BOUND_COLOUR[key], "dash": BOUND_DASH[key]}
        fig.add_scatter(x=rounds, y=_column(records, key)[keep], mode="lines", line=line, name=name)
    fig.update_yaxes(range=[0, 1.02])
    return fig


def loss_figure(records: list[dict[str, Any]]) -> go.Figure:
    """Every loss term of both players, smoothed, on a logarithmic axis; a linear one where a term is negative, as with ZAQ."""
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith(("generator.", "student."))))
    columns = {name: _column(records, name) for name in names}
    log = not any((column < 0).any() for column in columns.values())
    fig = figure("What the players minimise", "round", f"weighted loss term{' (log scale)' if log else ''}")
    keep, dashes = _thin(len(records)), ("solid", "dash", "dot", "dashdot", "longdash")
    rounds = _column(records, "round")[keep]
    for i, (name, column) in enumerate(columns.items()):
        player, term = name.split(".")
        values = smooth(column, max(1, len(records) // 60))[keep]
        colour = GENERATOR if player == "generator" else STUDENT
        label = f"{'G' if player == 'generator' else 'Q'}: {term}"
        values = np.maximum(values, 1e-5) if log else values
        fig.add_scatter(x=rounds, y=values, mode="lines", name=label, line={"color": colour, "dash": dashes[i % 5]})
    fig.update_yaxes(type="log" if log else "linear")
    return fig


def accuracy_figure(records: list[dict[str, Any]], result: dict[str, Any]) -> go.Figure:
    """Accuracy of the student where it was measured, between the teacher's and the plainly quantised student's."""
    fig = figure("What the student gains", "round", "top-1 accuracy (%)")
    points = [(r["round"] + 1, r[k]) for r in records for k in ("calibrated", "accuracy") if k in r]
    last = records[-1]["round"] + 1
    for name, key, colour, dash in (("teacher P", "teacher", TEACHER, "solid"), ("plainly quantised", "plain", BOUND, "dot")):
        fig.add_scatter(x=[0, last], y=[result[key]] * 2, mode="lines", name=name, line={"color": colour, "dash": dash})
    x, y = [p[0] for p in points], [p[1]["top1"] for p in points]
    error = {"array": [p[1]["high"] - p[1]["top1"] for p in points], "arrayminus": [p[1]["top1"] - p[1]["low"] for p in points]}
    fig.add_scatter(x=x, y=y, mode="lines+markers", name="student Q", line={"color": STUDENT}, error_y=error)
    return fig


def gains_figure(records: list[dict[str, Any]]) -> go.Figure | None:
    """The players' gains Δ_G and Δ_Q and their sum, as in Fig. 3; None where none were measured."""
    found = [r for r in records if "gain_g" in r and r["phase"] == "play"]
    if not found:
        return None
    fig = figure("The players' gains", "round", "change of disagreement in one move (nats)")
    rounds, g, q = (np.array([r[k] for r in found]) for k in ("round", "gain_g", "gain_q"))
    for values, name, colour, dash in (
        (g, "Δ_G", GENERATOR, "solid"),
        (q, "Δ_Q", STUDENT, "solid"),
        (g + q, "sum", BOUND, "dot"),
    ):
        fig.add_scatter(x=rounds, y=values, mode="lines", name=name, line={"color": colour, "dash": dash})
    return fig
