"""Marking: every function that was handed in, run again in a sandbox, and one table for the class.

    marks = mark(Path("handed_in"))

Files of one learner (Colab: a file a notebook) are put together by the learner's name. What a file says of itself is not
believed: a function counts if it passes here. See `adadfq_lab.course.sandbox` for what is isolated and what is not.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import combining, east_asian_width

from adadfq_lab.course.answers import Answers, read_answers
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import judge
from adadfq_lab.course.quizzes import quiz
from adadfq_lab.course.sandbox import FORKS, MEGABYTES, SECONDS, Sandbox
from adadfq_lab.errors import UserError
from adadfq_lab.machine.confinement import landlock

NOTEBOOKS = sorted({exercise.notebook for exercise in EXERCISES.values()})


@dataclass(frozen=True)
class Mark:
    """One exercise of one learner.

    claimed: whether the file says that it passed
    ran:     whether the function came to an end and gave something back
    text:    what the check says
    """

    passed: bool
    claimed: bool
    ran: bool
    text: str


@dataclass
class Marks:
    """One learner's marks. quiz_right: questions whose first answer is right; quiz_answered: of how many."""

    learner: str
    date: str = ""
    files: list[str] = field(default_factory=list)
    exercises: dict[str, Mark] = field(default_factory=dict)
    quiz_right: int = 0
    quiz_answered: int = 0

    @property
    def passed(self) -> int:
        return sum(mark.passed for mark in self.exercises.values())

    def of(self, notebook: str) -> tuple[int, int]:
        """(passed, all exercises) of a notebook."""
        names = [name for name, exercise in EXERCISES.items() if exercise.notebook == notebook]
        return sum(name in self.exercises and self.exercises[name].passed for name in names), len(names)

    def remarks(self) -> list[str]:
        """What a lecturer should look at: functions that misbehave, and those that passed in the file but not here."""
        found = []
        for name, mark in self.exercises.items():
            if not mark.passed and mark.claimed:
                found.append(f"{name} passed according to the file, not here: {mark.text}")
            elif not mark.ran:
                found.append(f"{name}: {mark.text}")
        return found


@dataclass
class Class:
    """The marks of everybody, and the files that are none."""

    marks: list[Marks]
    refused: list[str] = field(default_factory=list)


def collect_files(folder: Path) -> tuple[dict[str, tuple[Answers, list[str]]], list[str]]:
    """The answers of each learner in the JSON files of a folder and its subfolders, and a line for each file that is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that holds the handed-in files")
    learners: dict[str, tuple[Answers, list[str]]] = {}
    refused = []
    for path in sorted(folder.rglob("*.json")):
        shown = str(path.relative_to(folder))
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{shown} is a link out of the folder")
            answers = read_answers(path)
            key = answers.learner.casefold()
            if not key:
                raise UserError(f"{shown} has no name in it; ask for a file of lab.hand_in")
        except UserError as error:
            refused.append(str(error).replace(str(path), shown).removesuffix("; choose another name or remove it"))
            continue
        before, files = learners.get(key, (Answers(), []))
        learners[key] = before.merged(answers), [*files, shown]
    if not learners:
        raise UserError(f"{folder} holds no handed-in files; a learner's lab.hand_in writes handin_NAME.json")
    return learners, refused


def mark(
    folder: Path, *, seconds: float = SECONDS, megabytes: int = MEGABYTES, say: Callable[[str], None] = lambda line: None
) -> Class:
    """Marks everything in `folder`. say: called with a line for each learner, while it goes on."""
    learners, refused = collect_files(folder)
    everybody = Class([], refused)
    with Sandbox(seconds=seconds, megabytes=megabytes) as sandbox:
        for i, (answers, files) in enumerate((learners[key] for key in sorted(learners)), 1):
            marks = Marks(answers.learner, answers.date, files)
            for name, attempts in answers.exercises.items():
                if name in EXERCISES:
                    marks.exercises[name] = _mark(sandbox, name, attempts.source, claimed=attempts.passed)
            marks.quiz_right, marks.quiz_answered = _quizzes(answers)
            everybody.marks.append(marks)
            say(f"{i} of {len(learners)}: {answers.learner}, {marks.passed} passed")
    return everybody


def _mark(sandbox: Sandbox, name: str, source: str, *, claimed: bool) -> Mark:
    if not source.strip():
        return Mark(False, claimed, False, "no source was kept: a lambda, or a function that is not a def of its own")
    outcomes = sandbox.run(name, source)
    if isinstance(outcomes, str):
        return Mark(False, claimed, False, outcomes)
    try:
        verdict = judge(replace(EXERCISES[name], plot=False), outcomes)
    except Exception as error:  # whatever was made up to confuse the comparison
        return Mark(False, claimed, False, f"gave back what cannot be compared ({type(error).__name__})")
    return Mark(verdict.passed, claimed, True, verdict.text)


def _quizzes(answers: Answers) -> tuple[int, int]:
    """(right, answered): the first answer to each question counts."""
    right = answered = 0
    for notebook, letters in answers.quizzes.items():
        try:
            questions = quiz(notebook).questions
        except UserError:
            continue
        for i, question in enumerate(questions, 1):
            if chosen := letters.get(str(i), ""):
                answered += 1
                right += question.right(chosen[0])
    return right, answered


# Tables


def warning() -> str:
    """What a lecturer should know before other people's code runs: what is isolated on this machine, and what is not."""
    writing = "no writing of files, no programs, no network"
    if not FORKS:
        limits = "a limit of time, and Python refuses files, programs and network in the usual ways; memory is not limited here"
    elif landlock():
        limits = f"limits of time and memory, {writing} (the kernel refuses them)"
    else:
        limits = f"limits of time and memory, {writing} in the usual ways (Python refuses them; this kernel does not)"
    return (
        f"This runs other people's code. Each function runs in a process of its own: {limits}. The verdict is made outside it. "
        "It runs as you, though, and can read what you can read: if you do not trust these people, mark in a container."
    )


def table(everybody: Class) -> str:
    """One line a learner: exercises passed in each notebook, of all, and the quizzes; then what needs a look."""
    rows = [["learner", *NOTEBOOKS, "passed", "quiz"]]
    for marks in everybody.marks:
        cells = [f"{done}/{whole}" if done else "·" for done, whole in map(marks.of, NOTEBOOKS)]
        quizzed = f"{marks.quiz_right}/{marks.quiz_answered}" if marks.quiz_answered else "·"
        rows.append([_cut(marks.learner, 24), *cells, f"{marks.passed}/{len(EXERCISES)}", quizzed])
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first + " " * (widths[0] - _columns(first)), *cells]))
    remarks = [f"{_cut(marks.learner, 24)}: {_cut(remark, 200)}" for marks in everybody.marks for remark in marks.remarks()]
    for title, more in (("to look at:", remarks), ("not marked:", [_cut(line, 200) for line in everybody.refused])):
        lines += ["", title, *(f"- {line}" for line in more)] if more else []
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _columns(text: str) -> int:
    """How many columns of a terminal `text` takes; a Chinese character takes two."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def as_csv(everybody: Class) -> str:
    """The same for a spreadsheet: 1 or 0 an exercise, empty if it was not handed in."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["learner", "date", "passed", "quiz_right", "quiz_answered", *EXERCISES])
    for marks in everybody.marks:
        cells = [str(int(marks.exercises[name].passed)) if name in marks.exercises else "" for name in EXERCISES]
        writer.writerow(
            [_harmless(marks.learner), _harmless(marks.date), marks.passed, marks.quiz_right, marks.quiz_answered, *cells]
        )
    return out.getvalue()


def _harmless(text: str) -> str:
    """A spreadsheet takes a cell that begins with one of these for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def as_json(everybody: Class) -> dict[str, Any]:
    """Everything: for each exercise whether it passes, what the file says, and the words of the check."""
    return {
        "learners": [
            {
                "learner": marks.learner,
                "date": marks.date,
                "files": marks.files,
                "passed": marks.passed,
                "quiz": {"right": marks.quiz_right, "answered": marks.quiz_answered},
                "exercises": {
                    name: {"passed": mark.passed, "claimed": mark.claimed, "text": mark.text}
                    for name, mark in marks.exercises.items()
                },
            }
            for marks in everybody.marks
        ],
        "not_marked": everybody.refused,
    }


def as_json_text(everybody: Class) -> str:
    return json.dumps(as_json(everybody), indent=1, ensure_ascii=False) + "\n"
