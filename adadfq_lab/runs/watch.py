"""A run in progress, seen from outside: from its config.json and records.jsonl alone.

Nothing of the run's process is needed, so it may play on another machine whose folder is shared. The log is followed as it
grows: a last line that is only half there is waited for, and a log that is written anew (a resumed run) is read anew.

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
from typing import Any, Literal

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.timing import duration
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.views.pages import page

LATELY = 200  # rounds that "now" is an average over
BARS = "▁▂▃▄▅▆▇█"


class Log:
    """records.jsonl, read piece by piece: `new()` gives the whole lines that were written since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._offset = -1, 0

    def new(self) -> tuple[list[dict[str, Any]], bool]:
        """The new lines, and whether they begin a log that is written anew. Lines that are damaged are left out."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())  # of what was opened: by now another file may be of that name
                anew = status.st_ino != self._inode or status.st_size < self._offset
                if anew:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return [], False
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [record for line in whole.splitlines() if (record := _record(line)) is not None], anew


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("round"), int) else None


@dataclass(frozen=True)
class Status:
    """A run at a moment; what was not measured yet is None. Averages are over the last 200 rounds.

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

        done = self.round / self.rounds
        bar = "█" * int(width * done) + "░" * (width - int(width * done))
        pace = "-" if self.rounds_per_second is None else f"{self.rounds_per_second:.1f} rounds/s"
        left = "-" if self.left is None else duration(self.left)
        h_prime = "-" if self.h_prime is None else f"{self.h_prime:.2f}"
        top1 = "-" if self.accuracy is None else f"{self.accuracy:.2f} %"
        lines = [
            f"{self.run}  {title}".rstrip(),
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
    """Follows the run in `folder`; `look()` says how it stands. Raises UserError where no run is."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} holds no run to watch; give the folder that adadfq train writes to, as runs/NAME")
        self.folder = folder
        self.config: RunConfig = read_config(folder / "config.json")
        self.log = Log(folder / "records.jsonl")
        self.recent: deque[dict[str, Any]] = deque(maxlen=LATELY)
        self.curve: list[float] = []

    @property
    def title(self) -> str:
        """What is played."""
        c = self.config
        return f"{c.method} on {c.teacher}, {c.bits}, seed {c.seed}"

    def look(self) -> Status:
        """Reads what is new."""
        lines, anew = self.log.new()
        if anew:
            self.recent.clear()
            self.curve.clear()
        for line in lines:
            self.recent.append(line)
            top1 = line["accuracy"].get("top1") if isinstance(line.get("accuracy"), dict) else None
            self.curve += [float(top1)] if isinstance(top1, int | float) else []
        if not self.recent:
            return Status(str(self.folder), "waiting", 0, self.config.rounds, "warm-up")
        return self._status()

    def _status(self) -> Status:
        last, total = self.recent[-1], self.config.rounds
        done, seconds = last["round"] + 1, float(last.get("seconds", 0))
        earlier = self.recent[0]
        spent, played = seconds - float(earlier.get("seconds", 0)), last["round"] - earlier["round"]
        pace = played / spent if spent > 0 and played > 0 else None
        quiet = time.time() - self.log.path.stat().st_mtime
        silent = quiet > max(60.0, 20 / pace if pace else 0.0)
        h = [(v, r["lower"], r["upper"]) for r in self.recent for v in r.get("h_prime", ()) if "lower" in r and "upper" in r]
        agreement = [r["agreement"] for r in self.recent if "agreement" in r]
        return Status(
            run=str(self.folder),
            state="finished" if done >= total else "silent" if silent else "playing",
            round=done,
            rounds=total,
            phase=str(last.get("phase", "")),
            rounds_per_second=pace,
            seconds=seconds,
            left=(total - done) / pace if pace else None,
            h_prime=sum(v for v, _, _ in h) / len(h) if h else None,
            occupancy=sum(low <= v <= high for v, low, high in h) / len(h) if h else None,
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
    """`frame` as a web page that loads itself again."""
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
    """What of a line is one number: losses, gains, agreement, mean H', accuracies in percent."""
    plain = {k: float(v) for k, v in line.items() if k != "round" and isinstance(v, int | float) and not isinstance(v, bool)}
    plain |= {k: float(v["top1"]) for k, v in line.items() if isinstance(v, dict) and "top1" in v}
    return plain | ({"h_prime": sum(line["h_prime"]) / len(line["h_prime"])} if line.get("h_prime") else {})


def to_tensorboard(folder: Path, logs: Path) -> None:
    """Writes a run's log to TensorBoard's `logs` as it grows. Raises UserError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed; pip install 'adadfq-lab[tensorboard]'") from None
    with SummaryWriter(str(logs)) as writer:
        for line in follow(folder):
            for name, value in scalars(line).items():
                writer.add_scalar(name.replace(".", "/"), value, line["round"])
