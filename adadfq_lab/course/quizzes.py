"""Quizzes: three questions a notebook. Each answer says at once whether it is right, and why; what was chosen is kept.

In a notebook with widgets an answer is a click. Without widgets, and in a static page, each answer opens by itself (plain HTML
`<details>`, no JavaScript), and `lab.quiz("01").answer("b", "a", "c")` records a choice. The first choice counts.
Questions are in `quiz_questions/NN.json`: a list of {"question": ..., "answers": [{"text", "right", "reason"}, ...]}.
"""

import json
from dataclasses import dataclass
from html import escape
from importlib import resources
from importlib.util import find_spec
from typing import Any

from adadfq_lab.course.check import record_answer
from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import in_kernel

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Answer:
    """One answer on offer, whether it is right, and the reason why or why not."""

    text: str
    right: bool
    reason: str

    def reply(self) -> str:
        """What is said to whoever chose it, as HTML."""
        return f"<b>{'Right.' if self.right else 'No.'}</b> {escape(self.reason)}"


@dataclass(frozen=True)
class Question:
    """A question and its answers, of which exactly one is right."""

    text: str
    answers: tuple[Answer, ...]

    def right(self, letter: str) -> bool:
        """Whether "a", "b", ... is the right answer; False for a letter that is on no answer."""
        return any(answer.right for name, answer in zip(LETTERS, self.answers, strict=False) if name == letter)


@dataclass(frozen=True)
class Reply:
    """What is said to the answers given to a quiz; shows itself."""

    lines: tuple[tuple[str, Answer], ...]

    def __repr__(self) -> str:
        return "\n".join(f"{i}. {letter}: {'right' if a.right else 'no'}. {a.reason}" for i, (letter, a) in self._numbered())

    def _repr_html_(self) -> str:
        return "".join(f"<p>{i}. {letter}: {answer.reply()}</p>" for i, (letter, answer) in self._numbered())

    def _numbered(self) -> "enumerate[tuple[str, Answer]]":
        return enumerate(self.lines, 1)


@dataclass(frozen=True)
class Quiz:
    """The questions of one notebook; as the last expression of a cell it shows itself."""

    questions: tuple[Question, ...]
    notebook: str = ""

    def answer(self, *letters: str) -> Reply:
        """Records one letter a question and says what is right. Raises UserError if letters do not fit."""
        offered = [LETTERS[: len(question.answers)] for question in self.questions]
        given = [letter.strip().lower() for letter in letters if isinstance(letter, str)]
        if len(given) != len(offered) or any(
            len(letter) != 1 or letter not in on for letter, on in zip(given, offered, strict=True)
        ):
            example = ", ".join(repr(on[0]) for on in offered)
            raise UserError(f"give one letter for each of the {len(offered)} questions, as in .answer({example})")
        for number, letter in enumerate(given, 1):
            record_answer(self.notebook, number, letter)
        chosen = [question.answers[LETTERS.index(letter)] for question, letter in zip(self.questions, given, strict=True)]
        return Reply(tuple(zip(given, chosen, strict=True)))

    def _repr_html_(self) -> str:
        return "".join(_question(number, question) for number, question in enumerate(self.questions, 1))

    def __repr__(self) -> str:
        return "\n".join(
            f"{i}. {q.text}\n" + "\n".join(f"   {letter}) {a.text}" for letter, a in zip(LETTERS, q.answers, strict=False))
            for i, q in enumerate(self.questions, 1)
        )

    def _ipython_display_(self) -> None:
        from IPython import display  # only a notebook has it

        shown: dict[str, Any] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if self.notebook and in_kernel() and find_spec("ipywidgets"):
            shown |= self._widget()._repr_mimebundle_()
            shown["text/html"], shown["text/plain"] = self._repr_html_(), repr(self)
        display.display(shown, raw=True)  # type: ignore[no-untyped-call]

    def _widget(self) -> Any:
        """Radio buttons under each question, and what is said to the answer chosen."""
        import ipywidgets  # of the extra `notebooks`

        parts: list[Any] = []
        for number, question in enumerate(self.questions, 1):
            named = list(zip(LETTERS, question.answers, strict=False))
            choice = ipywidgets.RadioButtons(
                options=[(f"{letter}) {answer.text}", letter) for letter, answer in named],
                value=None,
                layout={"width": "auto"},
            )
            reply = ipywidgets.HTML()

            def chosen(change: Any, number: int = number, question: Question = question, reply: Any = reply) -> None:
                if change["new"] is not None:
                    reply.value = question.answers[LETTERS.index(change["new"])].reply()
                    record_answer(self.notebook, number, change["new"])

            choice.observe(chosen, "value")
            parts += [ipywidgets.HTML(f"<b>{number}.</b> {escape(question.text)}"), choice, reply]
        return ipywidgets.VBox(parts)


def _question(number: int, question: Question) -> str:
    answers = "".join(
        f"<details style='margin:0.2em 0 0.2em 1em'><summary style='cursor:pointer'>{letter}) {escape(answer.text)}</summary>"
        f"<p style='margin:0.2em 0 0.6em 1.2em'>{answer.reply()}</p></details>"
        for letter, answer in zip(LETTERS, question.answers, strict=False)
    )
    return f"<p style='margin-bottom:0.3em'><b>{number}.</b> {escape(question.text)}</p>{answers}"


def quiz(notebook: str) -> Quiz:
    """The quiz of notebook "00" to "10". Raises UserError if there is none."""
    path = resources.files("adadfq_lab") / "course" / "quiz_questions" / f"{notebook}.json"
    if not (len(notebook) == 2 and notebook.isdigit() and path.is_file()):
        raise UserError(f"there is no quiz {notebook!r}; name a notebook by its two digits, as in quiz('01')")
    read = json.loads(path.read_text(encoding="utf-8"))
    return Quiz(tuple(Question(q["question"], tuple(Answer(**answer) for answer in q["answers"])) for q in read), notebook)
