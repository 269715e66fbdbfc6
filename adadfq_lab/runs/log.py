"""records.jsonl: the log of a run, one JSON object a line and a round, and how it is read again.

Everything that watches, draws or tabulates a run reads only this file. It is read line by line, so a log of any length takes
the same memory. At each checkpoint the run also writes the length and the sha256 of its log to records.sums: a resumed run
continues an unchanged log, and says in one line what is missing from a changed one.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Record
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import atomic_file, write_atomically
from adadfq_lab.machine.reading import open_regular, read_bytes

LONGEST = 2**26
"""Bytes of a line above which it is damaged: a round of a million samples has 16 MB."""
_BLOCK = 2**20


# Reading


def record_of(line: bytes) -> dict[str, Any] | None:
    """The record in a line of a log; None if it is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    number = record.get("round") if isinstance(record, dict) else None
    return record if type(number) is int and 0 <= number < 2**53 else None


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of `file` from its current position, without an incomplete last one; b"" for a line longer than LONGEST."""
    kept, too_long = bytearray(), False
    while block := file.read(_BLOCK):
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            line = bytes(kept) + block[start:end] if kept else block[start:end]
            yield b"" if too_long else line
            kept.clear()
            too_long, start = False, end + 1
        if len(kept) + len(block) - start > LONGEST:
            kept.clear()
            too_long = True
        if not too_long:
            kept += block[start:]
    if kept and not too_long and record_of(bytes(kept)) is not None:  # a last line that lacks only its end
        yield bytes(kept)


def iterate_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, one at a time; an incomplete last line is left out. Raises UserError for a damaged line."""
    with open_regular(path) as file:
        for i, line in enumerate(whole_lines(file), 1):
            record = record_of(line)
            if record is None:
                raise UserError(f"line {i} of {path} is damaged")
            yield record


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in a list; raises as `iterate_records` does."""
    return list(iterate_records(path))


def number(value: object) -> float | None:
    """`value` as a finite number; None if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and abs(found) < 1e15 else None


def numbers(values: object) -> list[float]:
    """The finite numbers in a list; none if it is not a list."""
    if not isinstance(values, list):
        return []
    if set(map(type, values)) == {float}:  # as in every line of a run
        array = np.array(values)
        return list(values) if bool((np.abs(array) < 1e15).all()) else array[np.abs(array) < 1e15].tolist()
    return [found for value in values if (found := number(value)) is not None]


# What a resumed run finds


@dataclass(frozen=True)
class Past:
    """The state of a log, up to a checkpoint.

    missing:  spans (first, last) of rounds that it lacks
    trouble:  what is wrong with it, in a few words; empty if nothing is
    measured: "calibrated" and "accuracy", in the order of rounds
    in_place: whether the file can be continued as it is; otherwise the lines in `where` make a new one
    """

    missing: tuple[tuple[int, int], ...] = ()
    trouble: str = ""
    seconds: float = 0.0
    measured: tuple[tuple[str, Accuracy], ...] = ()
    in_place: bool = False
    where: tuple[tuple[int, int], ...] = ()


class _Reader:
    """Reads a log once and keeps what a resumed run needs of it, in constant memory while the log is in order."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.next = 0
        self.seconds = 0.0
        self.measured: list[tuple[int, str, Accuracy]] = []
        self.damaged = self.foreign = 0

    def take(self, line: bytes) -> int | None:
        """Keeps what is needed of a line and returns its round; None if it is damaged or of another run."""
        record = record_of(line)
        found: list[tuple[int, str, Accuracy]] = []
        try:
            if record is None:
                raise ValueError("no record")
            seconds = float(record.get("seconds", 0.0))
            found = [(record["round"], n, build(Accuracy, record[n])) for n in ("calibrated", "accuracy") if n in record]
        except (TypeError, ValueError, OverflowError):
            self.damaged += 1
            return None
        samples = record.get("h_prime")
        if self.batch is not None and (not isinstance(samples, list) or len(samples) != self.batch):
            self.foreign += 1
            return None
        self.seconds = max(self.seconds, seconds if 0 <= seconds < 1e12 else 0.0)
        self.measured += found
        return int(record["round"])


def read_past(path: Path, index: int, *, batch: int | None = None) -> Past:
    """What the log at `path` holds of the rounds before `index`, for a run that continues there.

    batch: how many samples a round has; lines with another number are of another run
    """
    if not path.exists():
        return Past(_gaps([], index), "it is not there" if index else "")
    with open_regular(path) as file:
        reader = _Reader(batch)
        offset, in_order, ended = 0, True, 0
        for line in whole_lines(file):
            if reader.next == index:
                break  # rounds after the checkpoint are played again
            if reader.take(line) != reader.next:
                in_order = False
                break
            reader.next += 1
            offset += len(line) + 1
            ended = offset
        whole = in_order and reader.next == index
        if whole:
            size = os.fstat(file.fileno()).st_size
            measured = tuple((name, one) for number, name, one in reader.measured if number < index)
            return Past((), "", reader.seconds, measured, size == ended, ((0, ended),))
        return _mended(file, index, batch)


def _mended(file: BinaryIO, index: int, batch: int | None) -> Past:
    """What is usable of a damaged log: each round once, in order; contradicting lines of a round are dropped."""
    reader, where = _Reader(batch), dict[int, tuple[int, int]]()
    offset, last, doubled, disorder, contradicting = 0, -1, 0, False, set[int]()
    file.seek(0)
    for line in whole_lines(file):
        before = len(reader.measured)
        number = reader.take(line)
        if number is not None and number < index:
            if number in where:
                doubled += 1
                del reader.measured[before:]  # a measurement counts once
                first, length = where[number]
                if os.pread(file.fileno(), length, first) != line:
                    contradicting.add(number)
            else:
                disorder |= number < last
                where[number], last = (offset, len(line)), number
        else:
            del reader.measured[before:]
        offset += len(line) + 1
    for number in contradicting:
        del where[number]
    faults = {
        "damaged line{}": reader.damaged,
        "line{} of another run": reader.foreign,
        "repeated line{}": doubled - len(contradicting),
        "round{} with contradicting lines": len(contradicting),
    }
    said = [f"{count:,} {name.format('s' * (count > 1))}" for name, count in faults.items() if count > 0]
    said += ["lines out of order"] if disorder else []
    missing = _gaps(sorted(where), index)
    if missing and not said:
        said = ["its end was cut off" if missing[-1][1] == index - 1 else "lines are missing"]
    measured = tuple((n, one) for number, n, one in sorted(reader.measured, key=lambda m: m[0]) if number in where)
    return Past(missing, ", ".join(said), reader.seconds, measured, False, tuple(where[n] for n in sorted(where)))


def _gaps(there: list[int], index: int) -> tuple[tuple[int, int], ...]:
    """Spans (first, last) of the rounds before `index` that are not in the sorted list `there`."""
    ends = [-1, *there, index]
    return tuple((before + 1, after - 1) for before, after in pairwise(ends) if after > before + 1)


def spans_text(spans: tuple[tuple[int, int], ...], most: int = 3) -> str:
    """Spans of rounds in words: rounds 0 to 4, 7, 9 to 12 and 3 more spans."""
    shown = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans[:most])
    more = f" and {len(spans) - most} more spans" if len(spans) > most else ""
    return f"round{'s' * (spans[0][0] != spans[-1][1])} {shown}{more}"


# Writing


class RecordLog:
    """records.jsonl: one JSON object a line, appended round by round; on resuming, lines of unsaved rounds are dropped.

    index: the round that is written next; the log must hold those before it
    batch: how many samples a round has, to tell lines of another run
    every: rounds that are written together, so that the host does not wait for an accelerator after each one

    `trouble` says in one line what a resumed run's log lacks, or that it was changed; it is empty if nothing is wrong.
    """

    def __init__(self, path: Path, index: int, *, every: int = 1, batch: int | None = None) -> None:
        self._waiting: list[tuple[Record, dict[str, Any]]] = []
        self._every, self.path = every, path
        past = read_past(path, index, batch=batch)
        self.missing, self.seconds = past.missing, past.seconds
        """seconds: of play before this session."""
        self._measured = past.measured
        if not past.in_place:
            _keep(path, past.where)
        self._sums = _Sums(path, index)
        self.trouble = self._describe(past)
        self._file = path.open("ab")

    def _describe(self, past: Past) -> str:
        said = f"{self.path} is damaged ({past.trouble})" if past.trouble else ""
        if past.missing:
            verb = "is" if past.missing[0][0] == past.missing[-1][1] else "are"
            said += f"; {spans_text(past.missing)} {verb} missing from the log and from all that is read from it"
        elif past.trouble:
            said += "; it was put in order, and no round is missing"
        elif self._sums.changed:
            said = f"{self.path} was changed after it was written; what is read from it may be of another run"
        return said

    def measured(self, name: str) -> Accuracy | None:
        """The last "calibrated" or "accuracy" of earlier sessions."""
        return next((one for kind, one in reversed(self._measured) if kind == name), None)

    def best(self) -> Accuracy | None:
        """The highest accuracy of earlier sessions."""
        return max((one for kind, one in self._measured if kind == "accuracy"), key=lambda a: a.top1, default=None)

    def write(self, record: Record, extra: dict[str, Any]) -> None:
        """Appends a record and what else was measured in its round."""
        self._waiting.append((record, {k: dataclasses.asdict(v) if isinstance(v, Accuracy) else v for k, v in extra.items()}))
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting records."""
        waiting, self._waiting = self._waiting, []
        content = "".join(json.dumps(record.as_json() | extra) + "\n" for record, extra in waiting).encode()
        self._file.write(content)
        self._file.flush()
        self._sums.add(content, waiting[-1][0].index + 1 if waiting else None)

    def sync(self) -> None:
        """Writes the waiting records to disk (fsync): a checkpoint must not hold rounds that the log lacks."""
        self.flush()
        os.fsync(self._file.fileno())
        self._sums.write()

    def close(self) -> None:
        """Writes the waiting records and closes the file, even on a full disk."""
        try:
            self.flush()
        finally:
            with suppress(OSError):
                self._file.close()


def _keep(path: Path, where: tuple[tuple[int, int], ...]) -> None:
    """Replaces the log by the parts of it at `where`, each an (offset, length)."""
    with atomic_file(path) as new:
        if not sum(length for _, length in where):
            return
        with open_regular(path) as old:
            for offset, length in where:
                old.seek(offset)
                block = b""
                while length > 0 and (block := old.read(min(length, _BLOCK))):
                    new.write(block)
                    length -= len(block)
                if not block.endswith(b"\n"):
                    new.write(b"\n")


class _Sums:
    """records.sums beside a log: its length and sha256 at the checkpoints, a JSON object a line, the last few of them."""

    def __init__(self, path: Path, index: int) -> None:
        self.path, self.index = path.with_suffix(".sums"), index
        self.length, self._hash = 0, hashlib.sha256()
        with open_regular(path) as file:
            while block := file.read(_BLOCK):
                self.length += len(block)
                self._hash.update(block)
        self.noted = _read_sums(self.path)
        told = next((one for one in reversed(self.noted) if one["round"] == index), None)
        self.changed = any(one.get("changed") for one in self.noted) or (
            told is not None and (told["bytes"], told["sha256"]) != (self.length, self._hash.hexdigest())
        )
        self.noted = [one for one in self.noted if one["round"] < index]

    def add(self, content: bytes, index: int | None) -> None:
        self.length += len(content)
        self._hash.update(content)
        self.index = self.index if index is None else index

    def write(self) -> None:
        """Adds a line for the log as it is now; the newest four stay."""
        one = {"round": self.index, "bytes": self.length, "sha256": self._hash.hexdigest()}
        self.noted = [
            *[n for n in self.noted if n["round"] != self.index][-3:],
            one | ({"changed": True} if self.changed else {}),
        ]
        write_atomically(self.path, "".join(json.dumps(n) + "\n" for n in self.noted).encode())


def _read_sums(path: Path) -> list[dict[str, Any]]:
    """The lines of records.sums; none if it is missing or damaged, and then a log is judged by its own lines."""
    try:
        lines = [json.loads(line) for line in read_bytes(path, limit=2**16).splitlines()] if path.exists() else []
    except (ValueError, RecursionError):
        return []
    return [n for n in lines if isinstance(n, dict) and type(n.get("round")) is int and {"bytes", "sha256"} <= n.keys()]
