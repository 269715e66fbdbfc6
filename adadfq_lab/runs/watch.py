"""A run in progress, seen from outside: from its config.json and records.jsonl only.

The run may play in another process, or on another machine with which the folder is shared. The log is followed as it
grows: an incomplete last line is read when it is complete, a log that is written anew (a resumed run) is read anew. The first
look at a long log reads its end, and of the rest the accuracies. Nothing in a log is trusted: what is not a finite number
counts as missing, and no control character reaches the terminal.

    for line in follow(folder): tracker.log(scalars(line), step=line["round"])     # wandb, trackio, or your own
"""

import dataclasses
import html
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from adadfq_lab.errors import UserError, printable
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import open_regular
from adadfq_lab.machine.timing import duration
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.runs.log import LONGEST, number, numbers, record_of
from adadfq_lab.views.pages import page

LATELY = 200  # rounds that "now" is an average over
BLOCK = 2**20
BARS = "▁▂▃▄▅▆▇█"


class Log:
    """records.jsonl, read piece by piece: `new()` gives the whole lines that were written since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modified = 0.0
        """When the log was last written, in seconds since 1970."""
        self._inode, self._offset = -1, 0

    def new(self, last: int | None = None) -> tuple[list[dict[str, Any]], bool]:
        """Some of the new lines, and whether they begin a log that is written anew. Damaged lines are left out.

        last: how many lines at the end are returned whole. Of those before only the accuracies are returned, as
            {"accuracy": {...}}, which reads a log of any length in a fraction of a second.

        At most about 4 MB of whole lines are read at a time: ask again until nothing comes. Raises UserError if the log is
        not a file or cannot be read; a log that is missing has no lines.
        """
        if not self.path.exists():
            return [], False
        with open_regular(self.path) as file:
            status = os.fstat(file.fileno())  # of the opened file; by now the path may name another
            self.modified = status.st_mtime
            anew = status.st_ino != self._inode or status.st_size < self._offset
            if anew:
                self._inode, self._offset = status.st_ino, 0
            records: list[dict[str, Any]] = []
            if last is not None and status.st_size - self._offset > 4 * BLOCK:
                start = _last_lines(file, self._offset, status.st_size, last)
                records = _accuracies(file, self._offset, start)
                self._offset = start
            return records + self._read(file), anew

    def _read(self, file: BinaryIO) -> list[dict[str, Any]]:
        file.seek(self._offset)
        content = bytearray()
        while len(content) < 4 * BLOCK or (b"\n" not in content and len(content) < LONGEST):
            if not (block := file.read(BLOCK)):
                break
            content += block
        end = content.rfind(b"\n") + 1
        if not end and len(content) >= LONGEST:  # too long for a line: skipped, and its rest is damaged too
            end = len(content)
        self._offset += end
        return [record for line in bytes(content[:end]).splitlines() if (record := record_of(line)) is not None]


def _last_lines(file: BinaryIO, start: int, end: int, count: int) -> int:
    """Where the last `count` lines of [start, end) begin, or fewer if these are longer than 16 MB."""
    at, found = end, 0
    while at > max(start, end - 16 * BLOCK):
        size = min(BLOCK // 4, at - start)
        at -= size
        file.seek(at)
        block = file.read(size)
        here = block.count(b"\n")
        if found + here > count:
            for _ in range(found + here - count):
                block = block[block.index(b"\n") + 1 :]
            return at + size - len(block)
        found += here
    return start if at <= start else at + block.find(b"\n") + 1


def _accuracies(file: BinaryIO, start: int, end: int) -> list[dict[str, Any]]:
    """The measured accuracies between two places of a log, each as {"accuracy": {...}}.

    It searches for braces, which are rare in a line of numbers and found as fast as memory is read.
    """
    file.seek(start)
    buffer, kept, at, found = bytearray(_KEPT + BLOCK), 0, 0, []
    view = memoryview(buffer)
    while start < end and (count := file.readinto(view[kept : kept + min(BLOCK, end - start)])):  # type: ignore[attr-defined]
        start += count
        filled = kept + count
        last = filled if start >= end else max(at, filled - _OBJECT)  # an object may be incomplete here
        while (at := buffer.find(b"{", at, last)) >= 0:
            if at and buffer[at - 1] != 10 and bytes(buffer[max(0, at - 20) : at]).rstrip().endswith(b'"accuracy":'):
                measured = _measured(bytes(buffer[at : min(filled, at + _OBJECT)]))
                found += [{"accuracy": measured}] if measured is not None else []
            at += 1
        kept = min(_KEPT, filled)
        at = last - (filled - kept)
        buffer[:kept] = buffer[filled - kept : filled]
    return found


_OBJECT = 400  # bytes that the object of an accuracy has at most
_KEPT = _OBJECT + 20


def _measured(text: bytes) -> dict[str, Any] | None:
    """The JSON object at the beginning of `text`, if there is one."""
    try:
        found, _ = _DECODER.raw_decode(text.decode(errors="replace").lstrip())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_DECODER = json.JSONDecoder()


def top1(record: dict[str, Any]) -> float | None:
    """The accuracy in a line, percent."""
    measured = record.get("accuracy")
    return number(measured.get("top1")) if isinstance(measured, dict) else None


@dataclass(frozen=True)
class Look:
    """The few numbers that `Watch` keeps of a line."""

    round: int
    seconds: float
    phase: str
    agreement: float | None
    samples: int
    total: float
    inside: int

    @classmethod
    def at(cls, line: dict[str, Any]) -> "Look":
        low, high = number(line.get("lower")), number(line.get("upper"))
        h = np.asarray(numbers(line.get("h_prime")) if low is not None and high is not None else [], np.float64)
        phase = line.get("phase")
        return cls(
            round=line["round"],
            seconds=number(line.get("seconds")) or 0.0,
            phase=printable(phase)[:20] if isinstance(phase, str) else "",
            agreement=number(line.get("agreement")),
            samples=len(h),
            total=float(h.sum()),
            inside=int(((h >= low) & (h <= high)).sum()) if low is not None and high is not None else 0,
        )


@dataclass(frozen=True)
class Status:
    """The state of a run; what was not measured yet is None. Averages are over the last 200 rounds.

    state:      waiting (no round yet), playing, silent (the log has not grown for long), finished
    left:       seconds to go at the present pace, measurements included
    occupancy:  share of the samples whose H' is between lambda_l and lambda_u
    agreement:  share of the samples that P and Q give the same class
    accuracy:   of the last measurement, percent; best is the highest so far
    curve:      the accuracies measured, percent
    """

    run: str
    state: Literal["waiting", "playing", "silent", "finished"]
    round: int
    rounds: int
    phase: str
    rounds_per_second: float | None = None
    seconds: float = 0.0
    left: float | None = None
    h_prime: float | None = None
    occupancy: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    best: float | None = None
    curve: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def frame(self, title: str = "", width: int = 40) -> str:
        """The status as lines of text for a terminal."""

        def percent(share: float | None) -> str:
            return "-" if share is None else f"{100 * share:.0f} %"

        done = min(1.0, self.round / self.rounds)
        bar = "█" * int(width * done) + "░" * (width - int(width * done))
        pace = "-" if self.rounds_per_second is None else f"{self.rounds_per_second:.1f} rounds/s"
        left = "-" if self.left is None else duration(self.left)
        h_prime = "-" if self.h_prime is None else f"{self.h_prime:.2f}"
        top1 = "-" if self.accuracy is None else f"{self.accuracy:.2f} %"
        lines = [
            printable(f"{self.run}  {title}".rstrip()),
            f"{bar} {100 * done:5.1f} %   round {self.round:,} of {self.rounds:,}, {self.phase}, {self.state}",
            f"pace        {pace}, {duration(self.seconds)} so far, {left} left",
            f"H'          {h_prime} on average, {percent(self.occupancy)} of the samples within the band",
            f"agreement   {percent(self.agreement)} of the samples get the same class from P and Q",
            f"accuracy    {top1}" + ("" if self.best is None else f", best {self.best:.2f} %"),
        ]
        return "\n".join([*lines, f"            {sparkline(self.curve, width)}"] if len(self.curve) > 1 else lines)


def sparkline(values: tuple[float, ...], width: int = 40) -> str:
    """`values` as a line of bars, the lowest and the highest at its ends; at most `width` of them, the last one included."""
    step = max(1, math.ceil(len(values) / width))
    shown = values[::-1][::step][::-1]
    low, high = min(shown), max(shown)
    return "".join(BARS[round((len(BARS) - 1) * (v - low) / (high - low))] if high > low else BARS[0] for v in shown)


class Watch:
    """Follows the run in `folder`; `look()` says how it stands. Raises UserError if there is no run."""

    def __init__(self, folder: Path) -> None:
        path = folder / "config.json"
        if not os.path.lexists(path):
            raise UserError(f"{folder} holds no run to watch; give the folder that adadfq train writes to, as runs/NAME")
        self.folder = folder
        self.config: RunConfig = read_config(path)
        self.log = Log(folder / "records.jsonl")
        self.recent: deque[Look] = deque(maxlen=LATELY)
        self.curve: list[float] = []

    @property
    def title(self) -> str:
        """Method, teacher, bits and seed."""
        c = self.config
        return f"{c.method} on {c.teacher}, {c.bits}, seed {c.seed}"

    def look(self) -> Status:
        """The state of the run after the new lines."""
        while True:
            lines, anew = self.log.new(last=LATELY)
            if anew:
                self.recent.clear()
                self.curve.clear()
            for line in lines:
                if "round" in line:
                    self.recent.append(Look.at(line))
                if (measured := top1(line)) is not None:
                    self.curve.append(measured)
            if not lines:
                break
        if not self.recent:
            return Status(str(self.folder), "waiting", 0, self.config.rounds, "warm-up")
        return self._status()

    def _status(self) -> Status:
        first, last, total = self.recent[0], self.recent[-1], self.config.rounds
        done, seconds = last.round + 1, last.seconds
        spent, played = seconds - first.seconds, last.round - first.round
        pace = played / spent if spent > 1e-6 and played > 0 else None
        silent = time.time() - self.log.modified > max(60.0, 20 / pace if pace else 0.0)
        samples = sum(look.samples for look in self.recent)
        agreement = [look.agreement for look in self.recent if look.agreement is not None]
        return Status(
            run=str(self.folder),
            state="finished" if done >= total else "silent" if silent else "playing",
            round=done,
            rounds=total,
            phase=last.phase,
            rounds_per_second=pace,
            seconds=seconds,
            left=max(0, total - done) / pace if pace else None,
            h_prime=sum(look.total for look in self.recent) / samples if samples else None,
            occupancy=sum(look.inside for look in self.recent) / samples if samples else None,
            agreement=sum(agreement) / len(agreement) if agreement else None,
            accuracy=self.curve[-1] if self.curve else None,
            best=max(self.curve, default=None),
            curve=tuple(self.curve),
        )


def watch(folder: Path, *, every: float = 2.0, copy: Path | None = None) -> Status:
    """Draws the run in the terminal every so many seconds until it is finished, and writes the same to the web page `copy`."""
    watched = Watch(folder)
    while True:
        status = watched.look()
        frame = status.frame(watched.title)
        print(("\x1b[H\x1b[J" if sys.stdout.isatty() else "") + frame, flush=True)
        if copy:
            write_page(copy, frame, every)
        if status.state == "finished":
            return status
        time.sleep(every)


def write_page(path: Path, frame: str, every: float) -> None:
    """`frame` as a web page that reloads itself."""
    body = f'<pre style="font-size: 1.1rem">{html.escape(frame)}</pre>'
    write_atomically(path, page("adadfq", [body], refresh=max(1, round(every))).encode())


# To a tracker


def follow(folder: Path, *, every: float = 2.0) -> Iterator[dict[str, Any]]:
    """The lines of a run's log as they are written, each round once, until the last."""
    watched, due = Watch(folder), 0
    while due < watched.config.rounds:
        lines, _ = watched.log.new()
        for line in lines:
            if line["round"] >= due:
                due = line["round"] + 1
                yield line
        if not lines:
            time.sleep(every)


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a line: losses, gains, agreement, mean H', accuracies in percent."""
    plain = {name: found for name, value in line.items() if name != "round" and (found := number(value)) is not None}
    for name, value in line.items():
        if isinstance(value, dict) and (found := number(value.get("top1"))) is not None:
            plain[name] = found
    h = numbers(line.get("h_prime"))
    return plain | ({"h_prime": sum(h) / len(h)} if h else {})


def to_tensorboard(folder: Path, logs: Path) -> None:
    """Writes a run's log to TensorBoard's `logs` as it grows. Raises UserError if TensorBoard is not installed."""
    import_extra("tensorboard", "pip install '.[tensorboard]'")
    with import_extra("torch.utils.tensorboard").SummaryWriter(str(logs)) as writer:
        for line in follow(folder):
            for name, value in scalars(line).items():
                writer.add_scalar(name.replace(".", "/"), value, line["round"])
