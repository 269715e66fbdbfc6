"""Every picture of a game, as panels of a chart: what the live figure, the report, the notebooks and the gallery draw.

    h_prime_panel   H' over rounds, with the middle 80 % of the samples and the bounds
    band_panel      the histogram of H' over the band
    losses_panel    both players' losses; `terms_panels` splits them into their terms
    gains_panel     what each player's step does to the disagreement
    entropy_panel   H_info over rounds
    accuracy_panel  how often Q agrees with P, and is right; `steps_panel` compares calibration and learning

`panels(history)` are the six of a live run. Long games are drawn as means of equal stretches of rounds (`history.thin`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.equations import Bounds
from adadfq_lab.game.history import Column, History, thin
from adadfq_lab.views.charts import Area, Bars, Line, Panel, Rule, chart
from adadfq_lab.views.style import (
    BOUND_COLOUR,
    BOUND_DASH,
    DASHES,
    GENERATOR,
    GREY,
    INSIDE,
    OKABE_ITO,
    PATTERN,
    PLAYER,
    PLAYER_DASH,
    SKY,
    STUDENT,
    TEACHER,
)

POINTS = 120
"""Largest number of points of a line."""
BINS = 20
COLUMNS = 2
AGREE = "H′ (1: P and Q agree)"
LETTER = {"generator": "G", "student": "Q"}


def histogram(h_prime: Column, bounds: Bounds, bins: int = BINS) -> list[Bars]:
    """Shares [%] of the samples below, inside and above the band, binned over [0, 1]; each bin belongs to its samples' side."""
    edges = np.linspace(0, 1, bins + 1)
    below, above = h_prime <= bounds.lower, h_prime >= bounds.upper
    sides = {"below": below, "inside": ~(below | above), "above": above}
    colors = {"below": BOUND_COLOUR["lower"], "inside": INSIDE, "above": BOUND_COLOUR["upper"]}
    total = max(1, len(h_prime))
    made = []
    for name, chosen in sides.items():
        counts, _ = np.histogram(h_prime[chosen].clip(0, 1), edges)
        made.append(Bars(name, edges, 100 * counts / total, colors[name], PATTERN[name]))
    return made


def bound_rules(bounds: Bounds, axis: str = "x") -> list[Rule]:
    """λ_l and λ_u as lines across a panel of H'."""
    values = (("lower", "λ_l", bounds.lower), ("upper", "λ_u", bounds.upper))
    return [Rule(value, f"{name} {value:g}", BOUND_COLOUR[key], axis, BOUND_DASH[key]) for key, name, value in values]


def marks(history: History, *, named: bool = True) -> list[Rule]:
    """The last six changes of the bounds as vertical lines; only the newest is named: words would lie on each other."""
    newest = history.marks[-1:]
    return [Rule(m.round, m.text if named and m in newest else "", GREY, "x", "longdash") for m in history.marks[-6:]]


def span(history: History) -> tuple[float, float]:
    """The first and the last round, at least one apart."""
    if not len(history):
        return 0.0, 1.0
    first, last = float(history["round"][0]), float(history["round"][-1])
    return first, max(last, first + 1)


def band_panel(h_prime: Column, bounds: Bounds, title: str, *, bins: int = BINS) -> Panel:
    """The histogram of H' coloured by the band."""
    bars, rules = histogram(h_prime, bounds, bins), bound_rules(bounds)
    return Panel(title, AGREE, "samples [%]", bars=bars, rules=rules, x_range=(0, 1))


def h_prime_panel(history: History, points: int = POINTS, *, agreement: bool = False) -> Panel:
    """Mean H' and the middle 80 % of the samples of each round, with the bounds; with `agreement` also that of P and Q."""
    rounds, h = thin(history["round"], points), history["h_prime"]
    if len(history):
        mean, low, high = h.mean(1), *np.quantile(h, (0.1, 0.9), axis=1).astype(np.float32)
    else:
        mean = low = high = rounds
    drawn = [Line("mean H′", rounds, thin(mean, points), GENERATOR)]
    if agreement:
        drawn.append(Line("agreement of P and Q", rounds, thin(history["agreement"], points), STUDENT, PLAYER_DASH["Q"]))
    drawn += [
        Line(name, rounds, thin(history[key], points), BOUND_COLOUR[key], BOUND_DASH[key], step=True)
        for name, key in (("λ_l", "lower"), ("λ_u", "upper"))
    ]
    middle = Area("middle 80 %", rounds, thin(low, points), thin(high, points), GENERATOR)
    y = "H′, share of samples" if agreement else AGREE
    title, rules, xs = "Disagreement against the band", marks(history), span(history)
    return Panel(title, "round", y, drawn, rules=rules, x_range=xs, y_range=(0, 1), areas=[middle])


def losses_panel(history: History, points: int = POINTS) -> Panel:
    """The loss of either player; on a log axis unless one falls to 0 or below: G's is often a hundred times Q's."""
    totals = {name: history.total(name) for name in LETTER}
    log = len(history) > 0 and not any((loss <= 0).any() for loss in totals.values())
    drawn = [
        Line(letter, thin(history["round"], points), thin(totals[name], points), PLAYER[letter], PLAYER_DASH[letter])
        for name, letter in LETTER.items()
    ]
    y = "loss (log scale)" if log else "loss"
    return Panel("What the players minimise", "round", y, drawn, rules=marks(history), x_range=span(history), log=log)


def terms_panels(history: History, points: int = POINTS) -> list[Panel]:
    """A panel for each player that has a loss: its terms as weighted in it, each with a colour and a dash of its own.

    Terms that are 0 at times have gaps on the log axis; the axis is linear if a term is ever negative.
    """
    made = []
    for player, letter in LETTER.items():
        terms = {name.partition(".")[2]: column for name, column in history.columns.items() if name.startswith(f"{player}.")}
        if not terms:
            continue
        log = not any((column < 0).any() for column in terms.values())
        drawn = [
            Line(name, thin(history["round"], points), thin(column, points), OKABE_ITO[i % 8], DASHES[i % 6])
            for i, (name, column) in enumerate(terms.items())
        ]
        y = "weighted term (log scale)" if log else "weighted term"
        made.append(Panel(f"What {letter} minimises", "round", y, drawn, x_range=span(history), log=log))
    return made


def gains_panel(history: History, points: int = POINTS, *, total: bool = False) -> Panel:
    """Δ_G and Δ_Q, and with `total` their sum, in the rounds in which they were measured: Fig. 3."""
    known = np.isfinite(history["gain_g"])
    rounds, g, q = (thin(history[name][known], points) for name in ("round", "gain_g", "gain_q"))
    drawn = [Line(f"Δ_{p}", rounds, gain, PLAYER[p], PLAYER_DASH[p]) for p, gain in (("G", g), ("Q", q))]
    drawn += [Line("sum", rounds, g + q, GREY, "longdash")] if total else []
    rules = [Rule(0, "", GREY, "y", "dot"), *marks(history)]
    return Panel("What a step does to the disagreement", "round", "gain [nats]", drawn, rules=rules, x_range=span(history))


def entropy_panel(history: History, points: int = POINTS) -> Panel:
    """Mean H_info below its largest value, log C."""
    log_c = math.log(history.classes)
    mean = history["entropy"].mean(1) if len(history) else history["round"]
    drawn = [Line("mean H_info", thin(history["round"], points), thin(mean, points), GENERATOR, PLAYER_DASH["G"])]
    rules = [Rule(log_c, "log C: full agreement", GREY, "y", "dot"), *marks(history, named=False)]
    title, xs, ys = "Entropy of the disagreement", span(history), (0, log_c * 1.15)
    return Panel(title, "round", "H_info [nats]", drawn, rules=rules, x_range=xs, y_range=ys)


def accuracy_panel(history: History, points: int = POINTS, *, levels: Mapping[str, float] | None = None) -> Panel:
    """How often Q agrees with P on generated images, and is right on real ones, with its interval if it was recorded.

    levels: other accuracies [%] by name, drawn as horizontal lines: "P" and others
    """
    known = np.isfinite(history["test.accuracy"])
    agreed = Line(
        "agrees with P (generated)",
        thin(history["round"], points),
        thin(100 * history["agreement"], points),
        PLAYER["G"],
        PLAYER_DASH["G"],
    )
    rounds, top1, low, high = (
        thin(history[name][known], points) for name in ("round", "test.accuracy", "test.low", "test.high")
    )
    right = Line("correct (real)", rounds, top1, PLAYER["Q"], dots=True)
    if "test.low" in history.columns:
        right = replace(right, low=low, high=high)
    rules = [Rule(value, name, PLAYER.get(name, GREY), "y", "longdash") for name, value in (levels or {}).items()]
    rules += marks(history)
    title, xs, ys = "How often Q is right", span(history), (0, 105 if levels else 100)
    return Panel(title, "round", "share [%]", [agreed, right], rules=rules, x_range=xs, y_range=ys)


def steps_panel(steps: Mapping[str, Accuracy | None]) -> Panel:
    """Top-1 after each step towards the student as bars with 95 % intervals; what calibration and what learning adds.

    steps: "teacher", "plain", "calibrated", "student"; a step that was not measured is None and has no bar
    """
    looks = {
        "plain": ("plain", GREY, ""),
        "calibrated": ("+ calibration", SKY, "/"),
        "student": ("+ learning", STUDENT, "\\"),
        "teacher": ("teacher P", TEACHER, ""),
    }
    measured = {key: found for key in looks if (found := steps.get(key)) is not None}
    drawn, before = [], None
    for i, (key, found) in enumerate(measured.items()):
        color, hatch = looks[key][1:]
        change = f" ({found.top1 - before:+.1f})" if before is not None and key != "teacher" else ""
        one = np.arange(len(measured)) == i
        words = ["" if not here else f"{found.top1:.1f}{change}" for here in one]
        low, high = np.where(one, found.low, np.nan), np.where(one, found.high, np.nan)
        edges = np.arange(len(measured) + 1) - 0.5
        drawn.append(Bars("", edges, np.where(one, found.top1, 0.0), color, hatch, low, high, words))
        before = found.top1
    names = [looks[key][0] for key in measured]
    title = "Where the accuracy comes from"
    return Panel(title, "step", "top-1 accuracy [%]", bars=drawn, x_names=names, y_range=(0, 115))


def panels(history: History, points: int = POINTS) -> list[Panel]:
    """The six panels of a run; their number and that of their lines never changes."""
    bounds = history.bounds() if len(history) else Bounds()
    samples = history.last_samples()
    return [
        h_prime_panel(history, points),
        band_panel(samples, bounds, f"H′ of the last {len(samples)} samples"),
        losses_panel(history, points),
        gains_panel(history, points),
        entropy_panel(history, points),
        accuracy_panel(history, points),
    ]


def describe(history: History) -> str:
    """The state of a run in a sentence: the text alternative of its figure."""
    if not len(history):
        return "A game that has not begun: six empty charts."
    bounds, h_prime = history.bounds(), history.last_samples()
    inside = float(((h_prime > bounds.lower) & (h_prime < bounds.upper)).mean())
    known = history["test.accuracy"][np.isfinite(history["test.accuracy"])]
    right = f" Q is right on {known[-1]:.1f} % of the real test images." if len(known) else ""
    agreed = float((history.recent or history)["agreement"][-10:].mean())
    return (
        f"{history.played} rounds played. H′ of the last {len(h_prime)} samples: mean {h_prime.mean():.2f}, "
        f"{100 * inside:.0f} % between λ_l = {bounds.lower:g} and λ_u = {bounds.upper:g}. "
        f"P and Q agree on {100 * agreed:.0f} % of the generated images.{right}"
    )


def describe_lines(panels: Sequence[Panel]) -> str:
    """What the lines of `panels` end at, in a sentence a panel."""
    sentences = []
    for panel in panels:
        ends = [(line.name, np.asarray(line.y, np.float64)) for line in panel.lines]
        words = [f"{name} ends at {y[np.isfinite(y)][-1]:.3g}" for name, y in ends if np.isfinite(y).any()]
        sentences.append(f"{panel.title}: {', '.join(words) or 'nothing was measured'}.")
    return " ".join(sentences)


def describe_bars(panel: Panel) -> str:
    """The bars of a panel with names below them, in a sentence."""
    words = [(name, word) for bars in panel.bars for name, word in zip(panel.x_names, bars.words, strict=True) if word]
    return f"{panel.title}: {', '.join(f'{name} {word}' for name, word in words)}."


def svg(history: History, points: int = POINTS) -> str:
    """The six panels as one SVG."""
    return chart(panels(history, points), alt=describe(history), columns=COLUMNS, width=440, height=225)
