"""Quizzes: three questions a notebook, ungraded. Each answer opens to say whether it is right, and why.

Plain HTML `<details>`: no widget and no JavaScript, so it works in every front end, on every version, by keyboard, on paper.
Questions are in `quiz_questions/NN.json`: a list of {"question": ..., "answers": [{"text", "right", "reason"}, ...]}.
"""

import json
from dataclasses import dataclass
from html import escape
from importlib import resources

from adadfq_lab.errors import UserError


@dataclass(frozen=True)
class Answer:
    """One answer on offer, whether it is right, and the reason why or why not."""

    text: str
    right: bool
    reason: str


@dataclass(frozen=True)
class Question:
    """A question and its answers, of which exactly one is right."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Quiz:
    """The questions of one notebook; as the last expression of a cell it shows itself."""

    questions: tuple[Question, ...]

    def _repr_html_(self) -> str:
        return "".join(_question(number, question) for number, question in enumerate(self.questions, 1))

    def __repr__(self) -> str:
        return "\n".join(
            f"{i}. {q.text}\n" + "\n".join(f"   - {a.text}" for a in q.answers) for i, q in enumerate(self.questions, 1)
        )


def _question(number: int, question: Question) -> str:
    answers = "".join(
        f"<details style='margin:0.2em 0 0.2em 1em'><summary style='cursor:pointer'>{escape(a.text)}</summary>"
        f"<p style='margin:0.2em 0 0.6em 1.2em'><b>{'Right.' if a.right else 'No.'}</b> {escape(a.reason)}</p></details>"
        for a in question.answers
    )
    return f"<p style='margin-bottom:0.3em'><b>{number}.</b> {escape(question.text)}</p>{answers}"


def quiz(notebook: str) -> Quiz:
    """The quiz of notebook "00" to "10". Raises UserError where there is none."""
    path = resources.files("adadfq_lab") / "course" / "quiz_questions" / f"{notebook}.json"
    if not path.is_file():
        raise UserError(f"there is no quiz {notebook!r}; name a notebook by its two digits, as in quiz('01')")
    read = json.loads(path.read_text(encoding="utf-8"))
    return Quiz(tuple(Question(q["question"], tuple(Answer(**answer) for answer in q["answers"])) for q in read))
