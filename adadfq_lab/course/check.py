"""Exercises that answer back: `lab.check.p_ds(p_ds)` says in words, at once, whether a learner's function is right.

After the second failure there is a hint. What passed in this session is kept: `lab.progress()` shows it, and
`lab.progress().save("progress.json")` writes it for handing in. How answers are judged is in `adadfq_lab.course.grading`; the
exercises are in `adadfq_lab.course.exercises.catalogue`.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import Exercise, Function, Verdict, examine
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically


@dataclass
class Attempts:
    """How often an exercise was checked in this session, how often it failed, and whether it ever passed."""

    count: int = 0
    failures: int = 0
    passed: bool = False


_session: dict[str, Attempts] = {}


def check(exercise: Exercise, function: Function) -> Verdict:
    """The verdict on `function`, recorded in this session's progress. Raises UserError for something that cannot be called."""
    if not callable(function):
        raise UserError(f"lab.check.{exercise.name} takes your function, as in lab.check.{exercise.name}({exercise.name})")
    verdict = examine(exercise, function)
    attempts = _session.setdefault(exercise.name, Attempts())
    attempts.count += 1
    attempts.failures += not verdict.passed
    attempts.passed |= verdict.passed
    if not verdict.passed and attempts.failures >= 2:
        return replace(verdict, hint=exercise.hint)
    return verdict


# Progress


@dataclass(frozen=True)
class Progress:
    """Which exercises were passed, by name; shows itself as a table."""

    exercises: dict[str, Attempts]

    def as_json(self) -> dict[str, Any]:
        """{"exercises": {name: {"notebook", "passed", "attempts"}}} of every exercise of the course."""
        rows = {}
        for name, exercise in EXERCISES.items():
            attempts = self.exercises.get(name, Attempts())
            rows[name] = {"notebook": exercise.notebook, "passed": attempts.passed, "attempts": attempts.count}
        return {"exercises": rows}

    def save(self, path: str | Path) -> None:
        """Writes the progress as JSON. What an earlier session passed and wrote to the same file stays passed.

        Raises UserError where the file is not of this form, or cannot be written.
        """
        path = Path(path)
        mine = self.as_json()["exercises"]
        before = _read_progress(path) if path.exists() else {}
        for name in mine.keys() & before.keys():
            mine[name]["passed"] |= before[name]["passed"]
            mine[name]["attempts"] = max(mine[name]["attempts"], before[name]["attempts"])
        write_atomically(path, (json.dumps({"exercises": mine}, indent=1) + "\n").encode())

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        for name, row in self.as_json()["exercises"].items():
            state = "✓ passed" if row["passed"] else ("✗ not yet" if row["attempts"] else "· not tried")
            yield row["notebook"], name, f"{state} ({row['attempts']} tried)" if row["attempts"] else state

    def __repr__(self) -> str:
        return "\n".join(f"{notebook} {name}: {state}" for notebook, name, state in self._rows())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{n}</td><td>{escape(e)}</td><td>{s}</td></tr>" for n, e, s in self._rows())
        done = sum(attempts.passed for attempts in self.exercises.values())
        head = "<tr><th>notebook</th><th>exercise</th><th>state</th></tr>"
        return f"<p>{done} of {len(EXERCISES)} exercises passed in this session</p><table>{head}{rows}</table>"


def _read_progress(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))["exercises"]
        return {str(name): {"passed": bool(row["passed"]), "attempts": int(row["attempts"])} for name, row in read.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no progress file; choose another name or remove it") from None


def progress() -> Progress:
    """What was checked in this session so far."""
    return Progress({name: copy.copy(attempts) for name, attempts in _session.items()})


# lab.check.<exercise>


def __getattr__(name: str) -> Callable[[Function], Verdict]:
    if name.startswith("__") or name not in EXERCISES:
        raise AttributeError(f"there is no exercise {name!r}; the exercises are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]

    def check_exercise(function: Function) -> Verdict:
        return check(exercise, function)

    check_exercise.__doc__ = f"Checks your `{name}`, the exercise of notebook {exercise.notebook}."
    return check_exercise


def __dir__() -> list[str]:
    return sorted(EXERCISES)
