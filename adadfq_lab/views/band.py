"""The band of Eq. (10) to feel: a game whose dials are turned while it is played, and the grid of Fig. 4 cell by cell.

band_game()       λ_l, λ_u and the dials that decide whether samples follow them, beside one figure of a live game
grid_explorer()   accuracy and share inside for every pair of bounds; a cell shows its histogram of H'
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adadfq_lab.equations import Bounds
from adadfq_lab.game.dials import Dials
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import SAMPLES, Column, History, thin
from adadfq_lab.game.recordings import load_grid, paper_region
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.environment import fast, in_kernel, waits
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.views import controls
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.charts import Area, Bars, Line, Panel, Rule, chart
from adadfq_lab.views.controls import Control, film
from adadfq_lab.views.figures import GRID_WORDS
from adadfq_lab.views.game_panels import BINS, POINTS, bound_rules, histogram, span
from adadfq_lab.views.live import LiveRun
from adadfq_lab.views.style import BOUND_COLOUR, BOUND_DASH, GENERATOR, GREY, VERMILLION

PALE_TO_SKY = ((240, 86), (246, 180), (250, 233))
"""Red, green and blue of the smallest and of the largest value of the grid."""


def measured(history: History, floor: str) -> Column:
    """Disagreement of each sample on the scale of a floor, `(R, N)`: H / log C for "zero", else H' of Eq. (3)."""
    entropy, most = history["entropy"], math.log(history.classes)
    if not len(history) or floor == "zero":
        return entropy / np.float32(most)
    least = entropy.min(axis=1, keepdims=True)
    scaled: Column = (entropy - least) / np.maximum(most - least, 1e-12)
    return scaled


class BandGame:
    """A game of AdaDFQ with dials that count from the next round on, drawn while it is played.

    run:   the `LiveRun`: `run.wait()`, `run.history`
    turns: (round, dials) of every change, the first setting included; `play_turns` plays the same game again from them

    The figure has the histogram of the last samples, with the smallest of each batch apart if it is H_min (its H' is 0 whatever
    G does) and an outline of the samples before the last change; below it is the game so far.
    """

    def __init__(self, game: Game, rounds: int, dials: Dials) -> None:
        w = controls.ipywidgets()
        self.turns: list[tuple[int, Dials]] = []
        self.run = LiveRun(game, rounds, backend="none", blocking=fast() or waits() or not in_kernel())
        self._ghost = np.empty(0, np.float32)
        self.inputs = controls.dial_inputs(dials, 0.05)
        self.output = w.HTML(layout={"flex": "1 1 420px", "min_width": "0"})
        left = w.VBox([*self.inputs.values(), self.run.controls], layout={"width": "350px"})
        self.box = w.HBox([left, self.output], layout={"flex_flow": "row wrap", "width": "100%", "overflow": "hidden"})
        for control in self.inputs.values():
            control.observe(self._turned, names="value")
        self.run.on_publish.append(self._played)
        self._turn()
        self._draw(History(classes=game.classes))

    @property
    def dials(self) -> Dials:
        """What the controls say."""
        return controls.read_dials(self.inputs)

    def start(self) -> "BandGame":
        """Begins to play, in the background where there is a front end; returns this."""
        self.run.start()
        return self

    def _turn(self) -> None:
        """Brings the game to what the controls say; the samples before it stay as an outline."""
        dials = self.dials
        if self.turns and self.turns[-1][1] == dials:
            return
        at = dials.turn(self.run.game)
        if self.turns and self.turns[-1][0] == at:
            self.turns.pop()  # turned twice between two rounds
        elif len(self.run.history):
            self._ghost = self._last(self.run.history, dials.floor)
        self.turns.append((at, dials))

    def _turned(self, _: Any) -> None:
        if self.run.state != "running":  # else its thread turns the dials, which need not wait for the end of a round
            self._turn()
        self._draw(self.run.history)

    def _played(self, history: History) -> None:
        self._turn()
        self._draw(history)

    @staticmethod
    def _last(history: History, floor: str) -> Column:
        values = measured(history, floor)
        return values[-max(1, SAMPLES // values.shape[1]) :].reshape(-1) if len(history) else np.empty(0, np.float32)

    def _draw(self, history: History) -> None:
        self.output.value = self.picture(history)

    def picture(self, history: History) -> str:
        """The figure, as an `<svg>` element with a description."""
        dials = self.dials
        bounds, name = dials.bounds, "H / log C" if dials.floor == "zero" else "H′"
        values, samples = measured(history, dials.floor), self._last(history, dials.floor)
        least = (samples == 0) if dials.floor == "batch" else np.zeros(len(samples), bool)
        bars = histogram(samples[~least], bounds)
        if dials.floor == "batch":
            scale = (~least).mean() if len(least) else 1.0
            bars = [Bars(b.name, b.edges, np.asarray(b.heights) * scale, b.color, b.hatch) for b in bars]
            heights = 100 * least.mean() * (np.arange(BINS) == 0) if len(least) else np.zeros(BINS)
            bars.insert(0, Bars("H_min, always 0", np.linspace(0, 1, BINS + 1), heights, GREY))
        ghost = []
        if len(self._ghost):
            counts, edges = np.histogram(self._ghost.clip(0, 1), BINS, (0, 1))
            outline = np.array([0, *(100 * counts / len(self._ghost)), 0])
            ghost = [Line("before", [0, *edges], outline, GREY, "dash", step=True)]
        inside = float(((samples > bounds.lower) & (samples < bounds.upper)).mean()) if len(samples) else 0.0
        median = float(np.median(samples)) if len(samples) else math.nan
        alt = (
            f"{history.played} rounds played. Median {name} of the last {len(samples)} samples {median:.2f}, "
            f"{100 * inside:.0f} % between λ_l = {bounds.lower:g} and λ_u = {bounds.upper:g}."
            if len(samples)
            else "A game that has not begun."
        )
        title = f"{100 * inside:.0f} % of the last {len(samples)} samples inside" if len(samples) else "No round played yet"
        panels = [
            Panel(title, f"{name} (1: agree)", "samples [%]", ghost, bars, bound_rules(bounds), (0, 1)),
            self._course(history, values, name),
        ]
        return chart(panels, alt=alt, columns=1, width=520, height=235)

    def _course(self, history: History, values: Column, name: str) -> Panel:
        """Median and middle half of the samples over the rounds, with the bounds and the changes."""
        rounds = thin(history["round"], POINTS)
        low, middle, high = (
            np.quantile(values, (0.25, 0.5, 0.75), axis=1).astype(np.float32) if len(history) else [history["round"]] * 3
        )
        drawn = [Line("median", rounds, thin(middle, POINTS), GENERATOR)]
        drawn += [
            Line(word, rounds, thin(history[key], POINTS), BOUND_COLOUR[key], BOUND_DASH[key], step=True)
            for word, key in (("λ_l", "lower"), ("λ_u", "upper"))
        ]
        changed = [(at, now.changes(before)) for (_, before), (at, now) in zip(self.turns, self.turns[1:], strict=False)][-6:]
        rules = [
            Rule(at, words if i == len(changed) - 1 else "", GREY, "x", "longdash") for i, (at, words) in enumerate(changed)
        ]
        areas = [Area("middle half", rounds, thin(low, POINTS), thin(high, POINTS), GENERATOR)]
        return Panel("The samples so far", "round", name, drawn, (), rules, span(history), (0, 1), areas=areas)

    def _ipython_display_(self) -> None:
        controls.display(self.box, self.output.value)


def band_game(game: Game | None = None, *, rounds: int = 600, dials: Dials | None = None) -> BandGame:
    """A game to turn the dials of while it is played: `band_game().start()`. See `BandGame`.

    game:  one of AdaDFQ; if not given, the shipped Fashion-MNIST ResNet-20 at 3 bits
    dials: the first setting; if not given, one in which the bounds alone decide: H_min zero, β = γ = 0, Q held
    """
    if game is None:
        P = load_teacher("fashion_mnist_resnet20")
        game = Game(P, quantize(P, "3w3a"), adadfq(), schedule=Schedule(batch=16, warmup=0, observe=20, student_lr=1e-3))
    return BandGame(game, rounds, dials or Dials(floor="zero", beta=0.0, gamma=0.0, student_learns=False))


def grid_explorer(grid: Mapping[str, Any] | None = None) -> Control:
    """Fig. 4 in small: a button for every pair of bounds with its value; pressed, it shows the histogram of H' there.

    The region that the paper calls optimal has a border. grid: arrays as `load_grid` gives them
    """
    w = controls.ipywidgets()
    arrays = load_grid()[0] if grid is None else grid
    lower, upper = (np.asarray(arrays[name], np.float64) for name in ("lower", "upper"))
    known = np.isfinite(np.asarray(arrays["accuracy"], np.float64))
    rows, columns = paper_region(lower, upper)
    quantities = [("accuracy [%]", "accuracy"), ("share inside", "inside"), ("mean H′", "mean_h_prime")]
    inputs: dict[str, Any] = {"quantity": controls.toggle("in the cells", quantities, "accuracy")}
    pairs = [(i, j) for i in range(len(lower)) for j in range(len(upper)) if known[i, j]]
    inputs["cell"] = w.Dropdown(
        options=[(f"{lower[i]:.1f} to {upper[j]:.1f}", (i, j)) for i, j in pairs],
        value=pairs[0], **controls.named("λ_l to λ_u"),
    )  # fmt: skip
    buttons = {pair: w.Button(layout={"width": "62px", "height": "34px"}) for pair in pairs}

    def draw() -> str:
        quantity = inputs["quantity"].value
        title, digits = GRID_WORDS[quantity]
        values = np.asarray(arrays[quantity], np.float64)
        least, most = np.nanmin(values), np.nanmax(values)
        for (i, j), button in buttons.items():
            share = (values[i, j] - least) / (most - least)
            button.description = f"{values[i, j]:{digits}}"
            button.style.button_color = "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in PALE_TO_SKY)
            button.tooltip = f"{title}, λ_l {lower[i]:.1f}, λ_u {upper[j]:.1f}"
            pressed, red = (i, j) == inputs["cell"].value, rows[i] and columns[j]
            button.layout.border = (
                "3px solid #222222" if pressed else f"2px solid {VERMILLION}" if red else "2px solid transparent"
            )
        i, j = inputs["cell"].value
        samples, bounds = np.asarray(arrays["h_prime"][i, j], np.float32), Bounds(float(lower[i]), float(upper[j]))
        words = f"λ_l = {lower[i]:.1f}, λ_u = {upper[j]:.1f}: {title} {values[i, j]:{digits}}"
        panel = Panel(
            words, "H′ (1: P and Q agree)", "samples [%]", (), histogram(samples, bounds), bound_rules(bounds), (0, 1)
        )
        region = "The vermillion border is the region that the paper calls optimal."
        return chart([panel], alt=f"{words}. Histogram of H′, mean {samples.mean():.2f}.", width=560) + controls.status(region)

    control = controls.control("Fig. 4, cell by cell", inputs, draw)
    for pair, button in buttons.items():
        button.on_click(lambda _, pair=pair: setattr(inputs["cell"], "value", pair))
    cell = {"layout": {"width": "62px", "height": "34px"}}
    every = range(len(upper))
    lines = [
        w.HBox([w.Label(f"{lower[i]:.1f}", **cell), *(buttons.get((i, j)) or w.Label("", **cell) for j in every)])
        for i in reversed(range(len(lower)))
    ]
    foot = w.HBox([w.Label("", **cell), *(w.Label(f"{high:.1f}", **cell) for high in upper)])
    axes = w.HTML(typeset("rows: λ_l, columns: λ_u"))
    table = w.VBox([*lines, foot, axes], layout={"overflow": "auto"})
    heading, quantity, chosen, output = control.box.children
    row = {"flex_flow": "row wrap", "width": "100%", "overflow": "hidden"}
    control.box.children = (
        heading,
        quantity,
        w.HBox([table, w.VBox([chosen, output], layout={"flex": "1 1 300px"})], layout=row),
    )

    def as_film() -> str:
        cells = dict(zip(pairs, control.over("cell", pairs), strict=True))
        empty = "<p>The two bounds are equal: no game was played.</p>"
        pictures = [cells.get((i, j), empty) for i in range(len(lower)) for j in every]
        return film({"λ_l": lower.tolist(), "λ_u": upper.tolist()}, pictures, (1, 3))

    control.film = as_film
    return control
