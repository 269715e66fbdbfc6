"""What was tried and what passed, as a table: this notebook's exercises first, the others folded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from adadfq_lab.course.answers import Attempts
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import read_json

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Progress:
    """Which exercises were passed, by name; shows itself as a table.

    notebook: "01": whose exercises are shown open; "" for all
    quizzes:  for each notebook, for each question, the letters chosen
    """

    exercises: dict[str, Attempts]
    notebook: str = ""
    quizzes: dict[str, dict[str, str]] | None = None

    def as_json(self) -> dict[str, Any]:
        """{"exercises": {name: {"notebook", "passed", "attempts"}}} of every exercise of the course."""
        rows = {}
        for name, exercise in EXERCISES.items():
            attempts = self.exercises.get(name, Attempts())
            rows[name] = {"notebook": exercise.notebook, "passed": attempts.passed, "attempts": attempts.count}
        return {"exercises": rows}

    def save(self, path: str | Path) -> None:
        """Writes the progress as JSON. What an earlier session passed and wrote to the same file stays passed.

        Raises UserError if the file is not of this form, or cannot be written.
        """
        path = Path(path)
        mine = self.as_json()["exercises"]
        before = _read(path) if path.exists() else {}
        for name in mine.keys() & before.keys():
            mine[name]["passed"] |= before[name]["passed"]
            mine[name]["attempts"] = max(mine[name]["attempts"], before[name]["attempts"])
        write_atomically(path, (json.dumps({"exercises": mine}, indent=1) + "\n").encode())

    def _rows(self) -> Iterator[Row]:
        for name, row in self.as_json()["exercises"].items():
            state = "✓ passed" if row["passed"] else ("✗ not yet" if row["attempts"] else "· not tried")
            yield row["notebook"], name, f"{state} ({row['attempts']} tried)" if row["attempts"] else state

    def _quiz(self, notebook: str) -> str:
        answered = len((self.quizzes or {}).get(notebook, {}))
        return f"quiz of {notebook}: {answered} of 3 questions answered"

    def __repr__(self) -> str:
        done = sum(attempts.passed for attempts in self.exercises.values())
        rows = [row for row in self._rows() if self.notebook in ("", row[0])]
        lines = [f"{notebook} {name}: {state}" for notebook, name, state in rows]
        if self.notebook:
            lines += [self._quiz(self.notebook), f"{done} of {len(EXERCISES)} exercises passed in all"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = list(self._rows())
        done = sum(attempts.passed for attempts in self.exercises.values())
        here = [row for row in rows if row[0] == self.notebook]
        rest = [row for row in rows if row[0] != self.notebook]
        total = f"{done} of {len(EXERCISES)} exercises passed"
        if not here:
            return f"<p>{total}</p>{_table(rest)}"
        fold = f"<details><summary style='cursor:pointer'>all notebooks: {total}</summary>{_table(rest)}</details>"
        return f"{_table(here)}<p>{escape(self._quiz(self.notebook))}</p>{fold}"


def _table(rows: list[Row]) -> str:
    cells = "".join(f"<tr><td>{escape(n)}</td><td>{escape(e)}</td><td>{escape(s)}</td></tr>" for n, e, s in rows)
    return f"<table><tr><th>notebook</th><th>exercise</th><th>state</th></tr>{cells}</table>"


def _read(path: Path) -> dict[str, Any]:
    try:
        read = read_json(path)["exercises"]
        return {str(name): {"passed": bool(row["passed"]), "attempts": int(row["attempts"])} for name, row in read.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no progress file; choose another name or remove it") from None
