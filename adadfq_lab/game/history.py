"""What happened in a game: a `Record` of each round, and a `History` of all rounds as columns, which plots and recordings use.

A `Recorder` collects the records of `Game.play`, one a round, in the thread that plays. In any thread, `history()` returns a
`History` that does not change any more, and `drawn()` a short one for figures, with at most 256 rows. The columns of a
`History` of R rounds with N samples each:

    round            (R,)     number of the round
    h_prime, entropy (R, N)   H' and H_info of each sample, the latter in nats
    agreement        (R,)     share of the samples that P and Q give the same class
    lower, upper     (R,)     lambda_l and lambda_u in force
    gain_g, gain_q   (R,)     Delta_G and Delta_Q in nats; NaN where not measured
    generator.<term>, student.<term>  (R,)   loss terms, weighted; NaN in rounds without that term
    test.accuracy, ...        (R,)     what was measured beside the game; NaN where not measured
"""

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adadfq_lab.equations import Bounds

Column = NDArray[np.float32]
Row = Mapping[str, float | Column]
SAMPLES = 320
"""Default number of samples that "the last samples" of a history are."""


@dataclass(frozen=True)
class Record:
    """What happened in one round; tensors are detached and stay on their device.

    terms:     loss terms by name, "generator.<term>" and "student.<term>", 0-dim
    entropy:   H_info of each sample, `(N,)`, nats; h_prime: H', `(N,)`
    agreement: share of the samples that P and Q give the same class, 0-dim, in [0, 1]
    gain_g:    by how much G's step raised the mean disagreement log C - H_info on this batch's z and y, nats, or None
    gain_q:    by how much Q's step then changed it (it should lower it: negative), nats; 0 in the warm-up. Fig. 3
    """

    index: int
    phase: Literal["warm-up", "play"]
    terms: dict[str, Tensor]
    entropy: Tensor
    h_prime: Tensor
    agreement: Tensor
    bounds: Bounds
    observing: bool
    gain_g: Tensor | None = None
    gain_q: Tensor | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as plain numbers, for a JSON line."""
        plain: dict[str, Any] = {"round": self.index, "phase": self.phase, "observing": self.observing}
        plain |= {name: round(float(value), 6) for name, value in self.terms.items()}
        plain |= {"agreement": float(self.agreement), "lower": self.bounds.lower, "upper": self.bounds.upper}
        plain |= {
            "entropy": [round(v, 5) for v in self.entropy.tolist()],
            "h_prime": [round(v, 5) for v in self.h_prime.tolist()],
        }
        for name, gain in (("gain_g", self.gain_g), ("gain_q", self.gain_q)):
            if gain is not None:
                plain[name] = round(float(gain), 6)
        return plain


@dataclass(frozen=True)
class Mark:
    """Something that happened at the beginning of a round, in a word or two: "λ_l 0.2"."""

    round: int
    text: str


@dataclass(frozen=True)
class History:
    """The rounds so far, as columns; see the module's docstring. `history["h_prime"]` is a column.

    recent: the last rounds one by one, if the rows of this history are means of several rounds each
    rounds: how many rounds it stands for, in that case
    """

    columns: dict[str, Column] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    classes: int = 10
    recent: "History | None" = None
    rounds: int | None = None

    @property
    def played(self) -> int:
        """How many rounds were played."""
        return len(self) if self.rounds is None else self.rounds

    def __len__(self) -> int:
        return len(self.columns["round"]) if "round" in self.columns else 0

    def __getitem__(self, name: str) -> Column:
        """A column by name; all NaN if there is none of that name."""
        return self.columns[name] if name in self.columns else np.full(len(self), np.nan, np.float32)

    def total(self, player: str) -> Column:
        """The loss of "generator" or "student", the sum of its terms, shape (R,); NaN where it did not move."""
        terms = [column for name, column in self.columns.items() if name.startswith(f"{player}.")]
        if not terms:
            return np.full(len(self), np.nan, np.float32)
        stacked = np.stack(terms)
        total: Column = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(stacked, 0)).astype(np.float32)
        return total

    def bounds(self) -> Bounds:
        """The bounds of the last round."""
        if self.recent is not None:
            return self.recent.bounds()
        return Bounds(round(float(self["lower"][-1]), 6), round(float(self["upper"][-1]), 6))

    def upto(self, count: int) -> "History":
        """The first `count` rounds."""
        last = int(self["round"][count - 1]) if 0 < count <= len(self) else math.inf
        marks = tuple(mark for mark in self.marks if mark.round <= last) if count else ()
        return History({name: column[:count] for name, column in self.columns.items()}, marks, self.classes)

    def last_samples(self, count: int = SAMPLES) -> Column:
        """H' of at least the last `count` samples, or of all there are, flat."""
        if self.recent is not None:
            return self.recent.last_samples(count)
        column = self["h_prime"]
        if not len(self):
            return column.reshape(-1)
        rounds = max(1, -(-count // column.shape[1]))
        return column[-rounds:].reshape(-1)


def thin(column: Column, points: int) -> Column:
    """`column` as at most `points` numbers: means of equally long stretches, missing values left out."""
    if len(column) <= points:
        return column
    starts = (np.arange(points) * len(column)) // points
    known = np.isfinite(column)
    count = np.add.reduceat(known.astype(np.float64), starts)
    total = np.add.reduceat(np.where(known, column, 0).astype(np.float64), starts)
    means: Column = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    return means


class Thinned:
    """A game of any length in at most KEPT rows, means of equally long stretches of rounds, which grow with the game.

    Samples of a stretch are averaged in order of size, so that means and quantiles of a row are the means of those of its
    rounds. Of what was measured beside the game ("test.") each row has the last value. Memory and the time of `history` do not
    depend on the number of rounds.
    """

    KEPT = 256

    def __init__(self, classes: int = 10) -> None:
        self.classes = classes
        self.rounds = 0
        self._length = 1
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._recent: deque[Row] = deque()
        self._first = 0.0

    def add(self, row: Row) -> None:
        """Adds one round: its number as "round", and its other numbers and arrays of samples."""
        if self.rounds == self._length * self.KEPT:
            self._halve()
        if self.rounds == 0:
            self._first = float(row["round"])
        at = self.rounds // self._length
        for name, value in row.items():
            samples = np.asarray(value, np.float64)
            if name not in self._sums:
                self._sums[name], self._counts[name] = np.zeros((self.KEPT, *samples.shape)), np.zeros(self.KEPT, np.int64)
            if not np.isfinite(samples).all():
                continue
            sums, counts = self._sums[name], self._counts[name]
            if samples.ndim and self._length > 1:
                samples = np.sort(np.resize(samples, sums.shape[1:]))
            if name.startswith("test."):
                sums[at], counts[at] = samples, 1
            else:
                sums[at] += np.resize(samples, sums.shape[1:])
                counts[at] += 1
        self.rounds += 1
        self._recent.append(row)
        while len(self._recent) > 10 and sum(np.size(old.get("h_prime", 0.0)) for old in self._recent) > 2 * SAMPLES:
            self._recent.popleft()

    def _halve(self) -> None:
        """Makes one stretch of every two."""
        for name, sums in self._sums.items():
            counts = self._counts[name]
            if sums.ndim > 1 and self._length == 1:
                sums.sort(axis=1)
            if name.startswith("test."):
                later = counts[1::2] > 0
                halved, number = np.where(later, sums[1::2], sums[::2]), np.maximum(counts[1::2], counts[::2])
            else:
                halved, number = sums[::2] + sums[1::2], counts[::2] + counts[1::2]
            half = self.KEPT // 2
            sums[:half], sums[half:], counts[:half], counts[half:] = halved, 0, number, 0
        self._length *= 2

    def history(self, marks: tuple[Mark, ...] = ()) -> History:
        """The rounds so far. Up to KEPT rounds, each row is one round."""
        rows = -(-self.rounds // self._length)
        columns: dict[str, Column] = {}
        for name, sums in self._sums.items():
            counts = self._counts[name][:rows].reshape(-1, *(1,) * (sums.ndim - 1))
            means = np.where(counts > 0, sums[:rows] / np.maximum(counts, 1), np.nan)
            columns[name] = means.astype(np.float32)
        if self._length == 1:
            return History(columns, marks, self.classes)
        recent = _Columns()
        for row in self._recent:
            recent.add(row)
        columns["round"][0], columns["round"][-1] = self._first, float(self._recent[-1]["round"])
        return History(columns, marks, self.classes, History(recent.columns(), (), self.classes), self.rounds)


class _Columns:
    """Rows as columns that grow; what `columns` returns is not copied, and does not change when rows are added."""

    def __init__(self) -> None:
        self._arrays: dict[str, Column] = {}
        self._rows, self._room = 0, 64

    def add(self, row: Row) -> None:
        if self._rows == self._room:
            self._room *= 2
            for name, array in self._arrays.items():
                self._arrays[name] = np.full((self._room, *array.shape[1:]), np.nan, np.float32)
                self._arrays[name][: self._rows] = array
        for name in row.keys() - self._arrays.keys():
            self._arrays[name] = np.full((self._room, *np.shape(row[name])), np.nan, np.float32)
        for name, value in row.items():
            array = self._arrays[name]
            array[self._rows] = np.resize(value, array.shape[1:]) if array.ndim > 1 else value
        self._rows += 1

    def columns(self) -> dict[str, Column]:
        found = {name: array[: self._rows] for name, array in self._arrays.items()}
        for column in found.values():
            column.flags.writeable = False
        return found


class Recorder:
    """Collects records, from one thread, for readers in others."""

    def __init__(self, classes: int = 10) -> None:
        self.classes = classes
        self._lock = threading.Lock()
        self._pending: list[tuple[Record, dict[str, float]]] = []
        self._columns = _Columns()
        self._thinned = Thinned(classes)
        self._marks: list[Mark] = []
        self._bounds: Bounds | None = None

    def add(self, record: Record, measured: Mapping[str, float] | None = None) -> None:
        """Adds one round, and what was `measured` after it, as {"test.accuracy": percent}.

        The record's tensors are read when a history is asked for, so that the game does not wait for an accelerator; and every
        1,000 rounds, so that they do not use up memory.
        """
        with self._lock:
            if self._bounds is not None and record.bounds != self._bounds:
                self._marks.append(Mark(record.index, _change(self._bounds, record.bounds)))
            self._bounds = record.bounds
            self._pending.append((record, dict(measured or {})))
            if len(self._pending) >= 1000:
                self._settle()

    def history(self) -> History:
        """Everything so far; it will not change, and must not be written to."""
        with self._lock:
            self._settle()
            return History(self._columns.columns(), tuple(self._marks), self.classes)

    def drawn(self) -> History:
        """The game so far in at most 256 rows, for figures: takes the same time at any round."""
        with self._lock:
            self._settle()
            return self._thinned.history(tuple(self._marks))

    def _settle(self) -> None:
        pending, self._pending = self._pending, []
        for record, measured in pending:
            row: dict[str, float | Column] = {"round": record.index, "agreement": float(record.agreement)}
            row |= {"lower": record.bounds.lower, "upper": record.bounds.upper}
            row |= {"h_prime": _samples(record.h_prime), "entropy": _samples(record.entropy)}
            row |= {name: float(value) for name, value in record.terms.items()} | measured
            row |= {k: float(g) for k, g in (("gain_g", record.gain_g), ("gain_q", record.gain_q)) if g is not None}
            self._columns.add(row)
            self._thinned.add(row)


def _samples(values: Tensor) -> Column:
    return np.asarray(values.tolist(), np.float32)


def _change(old: Bounds, new: Bounds) -> str:
    parts = [("λ_l", old.lower, new.lower), ("λ_u", old.upper, new.upper)]
    return ", ".join(f"{name} {after:g}" for name, before, after in parts if before != after)
