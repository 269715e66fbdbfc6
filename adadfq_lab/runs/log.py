"""records.jsonl: what a run writes down, one JSON object a line and a round, and how it is read again.

Everything that watches, draws or tabulates a run reads this file alone.
"""

import dataclasses
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Record
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import write_atomically


class RecordLog:
    """records.jsonl: one JSON object a line, appended round by round; on resuming, lines of unsaved rounds are dropped.

    every: rounds that are written together, so that an accelerator is not waited for after each
    """

    def __init__(self, path: Path, index: int, *, every: int = 1) -> None:
        self._waiting: list[tuple[Record, dict[str, Any]]] = []
        self._every = every
        self.past = [line for line in read_records(path) if line["round"] < index] if path.exists() else []
        try:
            self.seconds = float(self.past[-1].get("seconds", 0.0)) if self.past else 0.0
            """Seconds played before this session."""
            self._found = {n: [build(Accuracy, line[n]) for line in self.past if n in line] for n in ("calibrated", "accuracy")}
        except (TypeError, ValueError):
            raise UserError(f"a measurement in {path} is damaged; remove that line to play on without it") from None
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.past).encode())
        self._file = path.open("a")

    def measured(self, name: str) -> Accuracy | None:
        """The last "calibrated" or "accuracy" of earlier sessions."""
        return self._found[name][-1] if self._found[name] else None

    def best(self) -> Accuracy | None:
        """The highest accuracy of earlier sessions."""
        return max(self._found["accuracy"], key=lambda a: a.top1, default=None)

    def write(self, record: Record, extra: dict[str, Any]) -> None:
        """Appends a record and what else was measured in its round."""
        self._waiting.append((record, {k: dataclasses.asdict(v) if isinstance(v, Accuracy) else v for k, v in extra.items()}))
        if len(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        waiting, self._waiting = self._waiting, []
        self._file.write("".join(json.dumps(record.as_json() | extra) + "\n" for record, extra in waiting))
        self._file.flush()

    def sync(self) -> None:
        """Writes what waits and has it reach the disk: a checkpoint must not know of rounds that the log does not."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what waits and closes the file, on a full disk too."""
        try:
            self.flush()
        finally:
            with suppress(OSError):
                self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a records.jsonl; a last line that was cut off is left out. Raises UserError for one in the middle."""
    lines = path.read_bytes().splitlines()
    records = []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record["round"]) is not int:
                raise ValueError("no record")
            records.append(record)
        except (ValueError, KeyError, RecursionError):
            if i < len(lines) - 1:
                raise UserError(f"line {i + 1} of {path} is damaged") from None
    return records
