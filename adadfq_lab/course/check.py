"""Exercises that answer back: `lab.check.p_ds(p_ds)` says in words, at once, whether a learner's function is right.

Hints come in three steps, each behind a fold: a nudge after the first failure, the formula after the second, the code after the
third. A stub that is not written yet is no failure. What passed is kept (see `adadfq_lab.course.answers`): `lab.progress()`
shows it, `lab.mine("p_ds")` gives the function back, and `lab.hand_in("name")` writes it for handing in. How answers are judged
is in `adadfq_lab.course.grading`; the exercises are in `adadfq_lab.course.exercises.catalogue`.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unicodedata import normalize

from adadfq_lab.course import answers
from adadfq_lab.course.answers import Answers, Attempts
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import Exercise, Function, Verdict, examine
from adadfq_lab.course.progress import Progress
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically

_session: dict[str, Attempts] = {}
_accepted: dict[str, Function] = {}
_quizzes: dict[str, dict[str, str]] = {}
_notebook = ""  # of the last check or quiz: whose exercises `progress` shows open


def check(exercise: Exercise, function: Function) -> Verdict:
    """The verdict on `function`, kept in this session's progress. Raises UserError for something that cannot be called."""
    if not callable(function):
        raise UserError(f"lab.check.{exercise.name} takes your function, as in lab.check.{exercise.name}({exercise.name})")
    _visit(exercise.notebook)
    verdict = examine(exercise, function)
    attempts = _session.setdefault(exercise.name, Attempts())
    if verdict.unwritten:
        return verdict
    attempts.count += 1
    attempts.failures += not verdict.passed
    if verdict.passed or not attempts.passed:
        attempts.source, attempts.when = answers.source_of(function, exercise.name), answers.now()
    attempts.passed |= verdict.passed
    if verdict.passed:
        _accepted[exercise.name] = function
    if exercise.name in EXERCISES:
        answers.keep(Answers(exercises={exercise.name: attempts}, versions=_versions(), date=answers.now()))
    return verdict if verdict.passed else replace(verdict, hints=exercise.hints[: attempts.failures])


def record_answer(notebook: str, question: int, letter: str) -> None:
    """Keeps that `letter` was chosen in a quiz; the first choice counts, the others are kept behind it."""
    _visit(notebook)
    chosen = _all().quizzes.get(notebook, {}).get(str(question), "")
    if not chosen.endswith(letter):
        _quizzes.setdefault(notebook, {})[str(question)] = (chosen + letter)[:20]
        answers.keep(Answers(quizzes={notebook: {str(question): (chosen + letter)[:20]}}, date=answers.now()))


def _visit(notebook: str) -> None:
    global _notebook
    _notebook = notebook


def _all() -> Answers:
    """What this session has, and what earlier ones kept."""
    mine = Answers(exercises={name: replace(attempts) for name, attempts in _session.items()}, quizzes=_quizzes)
    return mine.merged(answers.kept())


def progress(notebook: str | None = None) -> Progress:
    """What was checked so far: the exercises of `notebook` ("01"), the others folded. Without it, of the one at work."""
    everything = _all()
    return Progress(everything.exercises, _notebook if notebook is None else notebook, everything.quizzes)


# Answers that were accepted


@dataclass(frozen=True)
class Mine:
    """An accepted function of the learner, or the library's in its place. borrowed: why, "" if it is the learner's own."""

    name: str
    function: Function
    borrowed: str = ""


def own(name: str) -> Mine:
    """The learner's function if it was accepted in this notebook or an earlier one (it is then checked again)."""
    if name not in EXERCISES:
        raise UserError(f"there is no exercise {name!r}; the exercises are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    if name in _accepted:
        return Mine(name, _accepted[name])
    row = answers.kept().exercises.get(name)
    why = "not accepted yet" if row is None or not row.passed else "its source was not kept"
    if row is not None and row.passed and row.source:
        try:
            function = answers.rebuild(name, row.source)
            if examine(exercise, function).passed:
                return Mine(name, function)
            why = "what was kept no longer passes"
        except Exception as error:  # whatever the learner's file raises
            why = f"what was kept does not run: {type(error).__name__}"
    return Mine(name, exercise.reference, why)


def mine(name: str) -> Function:
    """Your function of an exercise, if its check passed; else the library's, which you borrow (a printed line says so)."""
    found = own(name)
    if found.borrowed:
        print(f"{name}: borrowed from the library ({found.borrowed}; notebook {EXERCISES[name].notebook})")
    return found.function


# Handing in


def hand_in(learner: str, folder: str | Path = ".") -> str:
    """Writes all your answers so far to one file in `folder` and says which; a file you handed in before is added to.

    The file holds your name, the source of each function that was checked, what passed, your quiz answers, versions and the
    date. It is sent nowhere: give it to your lecturer. On Colab each notebook is a machine of its own: hand in from each, with
    the same name; files of one name are put together when they are marked.

    Raises UserError if the name is empty or the file cannot be written.
    """
    name = " ".join(learner.split()) if isinstance(learner, str) else ""
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise UserError('hand_in takes your name, as in lab.hand_in("Ada Lovelace")')
    path = Path(folder) / f"handin_{_slug(name)}.json"
    everything = replace(_all(), learner=name, versions=_versions(), date=answers.now())
    if path.exists():
        before = answers.read_answers(path)
        if before.learner != name:
            raise UserError(f"{path} is of {before.learner!r}; hand in with another spelling of your name or another folder")
        everything = everything.merged(before)
    write_atomically(path, everything.as_json().encode())
    passed = sum(attempts.passed for attempts in everything.exercises.values())
    what = f"{passed} of {len(EXERCISES)} exercises passed, {len(everything.quizzes)} quizzes"
    return f"{path}: {what}; give this file to your lecturer"


def _slug(name: str) -> str:
    plain = normalize("NFKC", name).casefold()
    return "_".join("".join(c if c.isalnum() else " " for c in plain).split()) or "learner"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.system()}
    for package in ("adadfq-lab", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


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
