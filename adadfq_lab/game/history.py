"""What happened in a game: a `Record` of each round, and so far, as columns: what plots draw, recordings store, exercises read.

A `Recorder` takes in the records of `Game.play`, one a round, from the thread that plays; `history()` gives whoever asks,
from any thread, a `History` that does not change any more. Its columns, R rounds of N samples each:

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adadfq_lab.equations import Bounds

Column = NDArray[np.float32]


@dataclass(frozen=True)
class Record:
    """What happened in one round; tensors are detached and stay on their device.

    terms:     loss terms by name, "generator.<term>" and "student.<term>", 0-dim
    entropy:   H_info of each sample, `(N,)`, nats; h_prime: H', `(N,)`
    agreement: share of the samples that P and Q give the same class, 0-dim, in [0, 1]
    gain_g:    by how much G's step raised the mean disagreement log C - H_info on this batch's z and y, nats; None if not asked
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
    """The rounds so far, as columns; see the module's docstring. `history["h_prime"]` is a column."""

    columns: dict[str, Column] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    classes: int = 10

    def __len__(self) -> int:
        return len(self.columns["round"]) if "round" in self.columns else 0

    def __getitem__(self, name: str) -> Column:
        """A column by name; one of NaN where nothing of that name ever happened."""
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
        return Bounds(round(float(self["lower"][-1]), 6), round(float(self["upper"][-1]), 6))

    def upto(self, count: int) -> "History":
        """The first `count` rounds."""
        last = int(self["round"][count - 1]) if 0 < count <= len(self) else math.inf
        marks = tuple(mark for mark in self.marks if mark.round <= last) if count else ()
        return History({name: column[:count] for name, column in self.columns.items()}, marks, self.classes)

    def last_samples(self, count: int = 320) -> Column:
        """H' of at least the last `count` samples, or of all there are, flat."""
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


class Recorder:
    """Collects records, from one thread, for readers in others."""

    def __init__(self, classes: int = 10) -> None:
        self.classes = classes
        self._lock = threading.Lock()
        self._pending: list[tuple[Record, dict[str, float]]] = []
        self._columns: dict[str, list[Any]] = {}
        self._marks: list[Mark] = []
        self._bounds: Bounds | None = None
        self._rounds = 0

    def add(self, record: Record, measured: Mapping[str, float] | None = None) -> None:
        """Takes in one round, and what was `measured` after it, as {"test.accuracy": percent}.

        The record's tensors are not looked at before somebody asks: an accelerator is not waited for.
        """
        with self._lock:
            if self._bounds is not None and record.bounds != self._bounds:
                self._marks.append(Mark(record.index, _change(self._bounds, record.bounds)))
            self._bounds = record.bounds
            self._pending.append((record, dict(measured or {})))

    def history(self) -> History:
        """Everything so far, as it will stay."""
        with self._lock:
            self._settle()
            columns = {name: np.asarray(values, np.float32) for name, values in self._columns.items()}
            return History(columns, tuple(self._marks), self.classes)

    def _settle(self) -> None:
        pending, self._pending = self._pending, []
        for record, measured in pending:
            row: dict[str, Any] = {"round": record.index, "agreement": float(record.agreement)}
            row |= {"lower": record.bounds.lower, "upper": record.bounds.upper}
            row |= {"h_prime": record.h_prime.tolist(), "entropy": record.entropy.tolist()}
            row |= {name: float(value) for name, value in record.terms.items()} | measured
            row |= {k: float(g) for k, g in (("gain_g", record.gain_g), ("gain_q", record.gain_q)) if g is not None}
            for name in row.keys() - self._columns.keys():
                self._columns[name] = [math.nan] * self._rounds
            for name, column in self._columns.items():
                column.append(row.get(name, math.nan))
            self._rounds += 1


def _change(old: Bounds, new: Bounds) -> str:
    parts = [("λ_l", old.lower, new.lower), ("λ_u", old.upper, new.upper)]
    return ", ".join(f"{name} {after:g}" for name, before, after in parts if before != after)
