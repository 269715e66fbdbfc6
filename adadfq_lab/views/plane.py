"""The game in the plane, drawn: H' as colour, the walls λ_l and λ_u as contours, both players' borders, and G's samples.

`plane_picture` draws one moment as SVG. `plane_explorer` plays a game and draws it while it is played: the walls and the other
dials may be dragged at any time. `frames` keeps moments of a game for pages without a kernel.
"""

import base64
import copy
import io
import threading
import time
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adadfq_lab.equations import Bounds, disagreement_entropy, normalized_entropy
from adadfq_lab.game.dials import FREE, Dials
from adadfq_lab.game.game import Game
from adadfq_lab.game.plane import SIDE, Field, field, plane_game, plane_teacher
from adadfq_lab.machine.environment import fast
from adadfq_lab.methods.method import Method
from adadfq_lab.views import controls
from adadfq_lab.views.axes import typeset_svg
from adadfq_lab.views.style import BOUND_COLOUR, INSIDE, PLAYER, TEXT

WIDTH = 440  # pixels of the square's side
MARGIN = 46
POINTS = 128
Floats = NDArray[np.float64]


def contour(values: Floats, level: float) -> list[tuple[float, float, float, float]]:
    """Line segments (x1, y1, x2, y2), in grid steps, along which `values` `(S, S)` crosses `level`.

    Each cell is split into two triangles; a triangle that the level crosses gives one segment, linear between its corners.
    """
    rows, columns = np.indices((values.shape[0] - 1, values.shape[1] - 1)).reshape(2, -1)
    segments = []
    for corners in (((0, 0), (0, 1), (1, 0)), ((1, 1), (0, 1), (1, 0))):
        ys = np.stack([rows + dy for dy, _ in corners])
        xs = np.stack([columns + dx for _, dx in corners])
        v = values[ys, xs] - level
        above = v > 0
        for lone in range(3):  # the corner on the other side of the level than both others
            first, second = (lone + 1) % 3, (lone + 2) % 3
            crossed = (above[lone] != above[first]) & (above[first] == above[second])
            ends = []
            for other in (first, second):
                t = v[lone, crossed] / (v[lone, crossed] - v[other, crossed])
                ends += [a[lone, crossed] + t * (a[other, crossed] - a[lone, crossed]) for a in (xs, ys)]
            segments += list(zip(*(end.tolist() for end in ends), strict=True))
    return segments


def plane_picture(
    seen: Field, points: Floats, entropy: Floats, bounds: Bounds, *, floor: float = 0.0, before: Floats | None = None
) -> str:
    """One moment of a game in the plane, as an `<svg>` element with a description.

    points:  G's samples, `(N, 2)`; entropy: H / log C of each, `(N,)`
    bounds:  λ_l and λ_u; the walls are the lines on which H' has these values
    floor:   H_min / log C of Eq. (3): 0, or the smallest of `entropy`
    before:  samples of an earlier moment, drawn as rings
    """
    values = seen.h_prime.double().numpy()
    step = WIDTH / (values.shape[0] - 1)

    def path(segments: Sequence[tuple[float, float, float, float]]) -> str:
        lines = ((MARGIN + a * step, WIDTH - b * step, MARGIN + c * step, WIDTH - d * step) for a, b, c, d in segments)
        return "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in lines)

    def stroke(segments: Sequence[tuple[float, float, float, float]], colour: str, width: float, dash: str = "") -> str:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        return f'<path d="{path(segments)}" stroke="{colour}" stroke-width="{width}" fill="none"{dashes}/>'

    def borders(logits: torch.Tensor) -> list[tuple[float, float, float, float]]:
        """Where a class's logit equals the largest of the others."""
        found = []
        for c in range(logits.shape[-1]):
            others = torch.cat((logits[..., :c], logits[..., c + 1 :]), dim=-1).amax(-1)
            found += contour((logits[..., c] - others).double().numpy(), 0.0)
        return found

    def place(xy: Floats) -> tuple[float, float]:
        return MARGIN + (xy[0] / SIDE + 1) / 2 * WIDTH, WIDTH - (xy[1] / SIDE + 1) / 2 * WIDTH

    low, high = (floor + wall * (1 - floor) for wall in (bounds.lower, bounds.upper))  # H' = wall, as H / log C
    below, above = entropy <= low, entropy >= high
    inside = ~(below | above)
    colours = np.where(below, BOUND_COLOUR["lower"], np.where(above, BOUND_COLOUR["upper"], INSIDE))
    circles = []
    for xy in before[:POINTS] if before is not None else ():
        x, y = place(xy)
        circles.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="none" stroke="{TEXT}" stroke-width="0.8"/>')
    for xy, colour in zip(points[:POINTS], colours, strict=False):
        x, y = place(xy)
        circles.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}" stroke="#222222" stroke-width="0.7"/>')
    alt = (
        f"The plane coloured by H over log C, from {values.min():.2f} to {values.max():.2f}. Of {len(entropy)} samples "
        f"{np.mean(below):.0%} lie below λ_l = {bounds.lower:g}, {np.mean(inside):.0%} between the walls, "
        f"{np.mean(above):.0%} above λ_u = {bounds.upper:g}. P and Q see the same class on "
        f"{seen.agreement:.0%} of the plane."
    )
    words = (
        (INSIDE, "between the walls"),
        (BOUND_COLOUR["lower"], f"λ_l = {bounds.lower:.2f}: H′ below it"),
        (BOUND_COLOUR["upper"], f"λ_u = {bounds.upper:.2f}: H′ above it"),
        (PLAYER["P"], "border of P"),
        (PLAYER["Q"], "border of Q"),
    )
    legend = "".join(
        f'<rect x="{MARGIN + WIDTH + 14}" y="{14 + 24 * i}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{MARGIN + WIDTH + 32}" y="{25 + 24 * i}">{typeset_svg(text)}</text>'
        for i, (colour, text) in enumerate(words)
    )
    legend += f'<text x="{MARGIN + WIDTH + 14}" y="{25 + 24 * len(words)}">dark: P and Q disagree</text>'
    ticks = "".join(
        f'<text x="{MARGIN + (v / SIDE + 1) / 2 * WIDTH:.0f}" y="{WIDTH + 18}" text-anchor="middle">{v}</text>'
        f'<text x="{MARGIN - 8}" y="{WIDTH - (v / SIDE + 1) / 2 * WIDTH + 5:.0f}" text-anchor="end">{v}</text>'
        for v in (-2, -1, 0, 1, 2)
    )
    wide = WIDTH + MARGIN + 200
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {WIDTH + 50}" role="img" aria-label="{escape(alt)}" '
        f'style="width:100%;max-width:{wide}px;height:auto" font-size="14" font-family="sans-serif" fill="{TEXT}">'
        '<g transform="translate(0,6)">'
        f'<image x="{MARGIN}" y="0" width="{WIDTH}" height="{WIDTH}" preserveAspectRatio="none" href="{_png(values)}"/>'
        + stroke(borders(seen.teacher), PLAYER["P"], 2.5)
        + stroke(borders(seen.student), PLAYER["Q"], 2.0, "6 3")
        + stroke(contour(values, low), BOUND_COLOUR["lower"], 2.0)
        + stroke(contour(values, high), BOUND_COLOUR["upper"], 2.0)
        + "".join(circles)
        + ticks
        + f'<text x="{MARGIN + WIDTH / 2}" y="{WIDTH + 36}" text-anchor="middle">x₁</text>'
        + f'<text x="12" y="{WIDTH / 2}" text-anchor="middle">x₂</text>'
        + legend
        + "</g></svg>"
    )


def _png(values: Floats) -> str:
    """Values in [0, 1] as a data URI: from dark blue, where P and Q disagree, to near white, where they agree."""
    dark, light = np.array([22.0, 42.0, 84.0]), np.array([246.0, 246.0, 240.0])
    pixels = dark + np.clip(values, 0, 1)[::-1, :, None] * (light - dark)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def moment(game: Game, *, before: Floats | None = None, size: int = 61) -> str:
    """The picture of `game` as it stands: 128 samples from always the same z; looking changes nothing."""
    points = samples(game)
    x = torch.from_numpy(points).float()[:, :, None, None]
    with torch.no_grad(), game.student.frozen():
        h = normalized_entropy(disagreement_entropy(game.teacher(x), game.student(x)), game.classes, floor="zero")
    entropy: Floats = h.double().numpy()
    floor = 0.0 if game.fidelity.entropy_floor == "zero" else float(entropy.min())
    return plane_picture(field(game, size), points, entropy, game.bounds, floor=floor, before=before)


def samples(game: Game, count: int = POINTS) -> Floats:
    """`count` samples of G as it is now, `(count, 2)`, always from the same z; the classes take turns."""
    points: Floats = game.generate(torch.arange(count) % game.classes).flatten(1).double().numpy()
    return points


def frames(game: Game, rounds: int, every: int = 5) -> list[str]:
    """Plays `rounds` rounds and returns a picture after every `every`-th of them: a film for pages without a kernel."""
    return [moment(game) for number, _ in enumerate(game.play(rounds), 1) if number % every == 0]


class PlaneExplorer:
    """A game in the plane that is played while its walls and dials are moved.

    The buttons play, pause and start again; "compare" keeps the present samples as rings. Shown by a notebook as controls
    beside the picture. `play(rounds)` plays in this thread, for scripts and tests.
    """

    def __init__(self, dials: Dials = FREE, *, method: Method | None = None, seed: int = 0) -> None:
        self._teacher, self._method, self._seed = plane_teacher(), method, seed
        self._lock, self._running = threading.RLock(), threading.Event()
        self._before: Floats | None = None
        w = controls.ipywidgets()
        self.inputs = controls.dial_inputs(dials, 0.01)
        self.buttons = {
            name: w.Button(description=text, layout={"width": "104px"})
            for name, text in (("play", "play"), ("again", "start again"), ("compare", "compare"))
        }
        self.output, self.status = w.HTML(layout={"flex": "1 1 420px", "min_width": "0"}), w.HTML()
        left = w.VBox([*self.inputs.values(), w.HBox(list(self.buttons.values())), self.status], layout={"width": "350px"})
        self.box = w.HBox([left, self.output], layout={"flex_flow": "row wrap", "width": "100%", "overflow": "hidden"})
        self.game = plane_game(dials, teacher=self._teacher, method=method, seed=seed)
        for control in self.inputs.values():
            control.observe(self._turned, names="value")
        self.buttons["play"].on_click(lambda _: self.pause() if self._running.is_set() else self.start())
        self.buttons["again"].on_click(lambda _: self.again())
        self.buttons["compare"].on_click(lambda _: self.compare())
        self._draw()

    @property
    def dials(self) -> Dials:
        """What the controls say."""
        return controls.read_dials(self.inputs)

    def play(self, rounds: int) -> None:
        """Plays `rounds` rounds with the dials as they stand, then draws."""
        with self._lock:
            self.dials.turn(self.game)
            for _ in self.game.play(rounds):
                pass
            self._draw()

    def start(self) -> None:
        """Plays in the background until `pause`."""
        if not self._running.is_set():
            self._running.set()
            self.buttons["play"].description = "pause"
            threading.Thread(target=self._loop, daemon=True).start()

    def pause(self) -> None:
        """Ends `start`."""
        self._running.clear()
        self.buttons["play"].description = "play"

    def again(self) -> None:
        """A new game from the same seed, with the dials as they stand."""
        with self._lock:
            self._before = None
            self.game = plane_game(self.dials, teacher=self._teacher, method=self._method, seed=self._seed)
            self._draw()

    def compare(self) -> None:
        """Keeps the present samples as rings."""
        with self._lock:
            self._before = samples(self.game)
            self._draw()

    def _loop(self) -> None:
        while self._running.is_set():
            started = time.perf_counter()
            self.play(4)
            time.sleep(max(0.02, 0.1 - (time.perf_counter() - started)))  # leaves the lock to the controls

    def _turned(self, _: Any) -> None:
        if not self._running.is_set():  # else the loop turns the dials before its next round
            with self._lock:
                self.dials.turn(self.game)
                self._draw()

    def _draw(self) -> None:
        self.output.value = moment(self.game, before=self._before)
        self.status.value = controls.status(f"round {self.game.index}")

    @property
    def agreement(self) -> float:
        """The part of the square on which P and Q see the same class."""
        return field(self.game).agreement

    def film(self) -> str:
        """The next rounds of a copy of this game, as pictures to scrub through without a kernel."""
        game = copy.deepcopy(self.game)
        begun, step = game.index, 2 if fast() else 12
        pictures = [moment(game), *frames(game, 12 * step, step)]
        return controls.film({"round": [begun + step * i for i in range(len(pictures))]}, pictures, (len(pictures) - 1,))

    def _ipython_display_(self) -> None:
        controls.display(self.box, self.output.value, self.film)


def plane_explorer(dials: Dials = FREE, *, method: Method | None = None, seed: int = 0) -> PlaneExplorer:
    """The game in the plane to play with: drag the walls and watch G's samples flow between them. See `PlaneExplorer`."""
    return PlaneExplorer(dials, method=method, seed=seed)
