"""Grading: what an exercise is, and whether a learner's function solves it.

    collect(exercise, function)    runs the function on hidden cases: a list of outcomes
    judge(exercise, outcomes)      compares them with the library's own function: a verdict
    examine(exercise, function)    both at once; learners meet it as `lab.check`

Running and judging are apart, because `adadfq course mark` runs other people's code in a process that is not trusted and judges
what it gave in one that is. Hidden cases are drawn from seeds and compared with the library's function: no answer is stored
anywhere. A wrong answer that is a known misunderstanding is called by its name. Where a gradient is the point, it is compared.
"""

import copy
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.course import slips
from adadfq_lab.course.comparing import dense, difference, gradients, leaves, number, plain, same, shapes, with_gradient
from adadfq_lab.views.figures import yours_against_expected
from adadfq_lab.views.style import show

Case = tuple[Any, ...]
Function = Callable[..., Any]
Learns = Literal["", "noted", "required"]
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners really give: the function, and what to tell whoever wrote it."""

    function: Function
    says: str


def _apply(function: Function, *arguments: Any) -> Any:
    return function(*arguments)


@dataclass(frozen=True)
class Exercise:
    """One graded exercise.

    name:      of the function to write, and of its check
    notebook:  "01"
    reference: the library's function, which is right
    cases:     from a seeded torch.Generator to hidden arguments, each a tuple; the first of a seed has no ties and no zeros
    hints:     a nudge, the formula, the code
    mistakes:  the commonest wrong answers
    observe:   what is compared, from the function and a case: its value unless said otherwise (or its gradient, ...)
    plot:      whether a figure of yours against expected is drawn, for the first case that differs
    learns:    "required" if the gradients must be right too, "noted" if an answer without any passes with a remark
    tolerance: relative to the numbers compared
    """

    name: str
    notebook: str
    reference: Function
    cases: Callable[[torch.Generator], Sequence[Case]]
    hints: tuple[str, str, str]
    mistakes: tuple[Mistake, ...] = ()
    observe: Callable[..., Any] = _apply
    plot: bool = False
    learns: Learns = ""
    tolerance: float = 1e-4


@dataclass
class Outcome:
    """What a function gave for one case.

    value:     its result, or what the exercise observes of it
    error:     "ValueError: what it said", if it raised
    unwritten: whether that was the stub's own NotImplementedError
    changed:   whether the function changed its arguments
    gradients: of the result to each floating-point argument, None where none arrives; only for the first case of a seed
    """

    value: Any = None
    error: str = ""
    unwritten: bool = False
    changed: bool = False
    gradients: tuple[Tensor | None, ...] | None = None
    raised: Exception | None = None


@dataclass(frozen=True)
class Verdict:
    """What a check found, in words; shows itself, with a figure where there is one, as the last expression of a cell.

    hints: those that are due: one after the first failure, two after the second, three from the third on
    error: what the function raised, if it did: `raise verdict.error` shows the whole traceback
    """

    exercise: str
    passed: bool
    text: str
    hints: tuple[str, ...] = ()
    unwritten: bool = False
    figure: Any = field(default=None, repr=False)
    error: Exception | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        hints = "".join(f" {name}: {hint}" for name, hint in zip(HINTS, self.hints, strict=False))
        return f"{'PASSED' if self.passed else 'NOT YET'} {self.exercise}: {self.text}{hints}"

    def _repr_html_(self) -> str:
        colour, mark, word = ("#009E73", "✓", "Passed") if self.passed else ("#D55E00", "✗", "Not yet")
        return (
            f"<div role='status' style='border-left:4px solid {colour};padding:0.3em 0.8em'>"
            f"<b>{mark} {word}: {escape(self.exercise)}</b><p style='margin:0.2em 0 0 0'>{escape(self.text)}</p>"
            f"{folded(self.hints)}</div>"
        )

    def _ipython_display_(self) -> None:
        from IPython import display  # only a notebook has it

        display.display(display.HTML(self._repr_html_()))  # type: ignore[no-untyped-call]
        if self.figure is not None:
            show(self.figure)


HINTS = ("Hint 1, a nudge", "Hint 2, the formula", "Hint 3, the code")


def folded(hints: Sequence[str]) -> str:
    """Hints as HTML, each behind a fold of its own."""
    shown = [f"<code>{escape(hint)}</code>" if i == 2 else escape(hint) for i, hint in enumerate(hints)]
    return "".join(
        f"<details style='margin:0.2em 0 0 0'><summary style='cursor:pointer'>{name}</summary>"
        f"<p style='margin:0.2em 0 0.4em 1.2em'>{hint}</p></details>"
        for name, hint in zip(HINTS, shown, strict=False)
    )


def examine(exercise: Exercise, function: Function) -> Verdict:
    """The verdict on `function`, without a record: the first hidden case on which it differs from the reference, if any."""
    return judge(exercise, collect(exercise, function))


# Running


def hidden_cases(exercise: Exercise) -> list[tuple[Case, bool]]:
    """All hidden cases, each with whether its gradients are compared too."""
    drawn = [exercise.cases(torch.Generator().manual_seed(seed)) for seed in SEEDS]
    return [(case, bool(exercise.learns) and i == 0) for cases in drawn for i, case in enumerate(cases)]


def collect(exercise: Exercise, function: Function) -> list[Outcome]:
    """What `function` gives for each hidden case; one that is not written yet is asked only once."""
    outcomes: list[Outcome] = []
    for case, smooth in hidden_cases(exercise):
        outcomes.append(_outcome(exercise, function, case, smooth=smooth))
        if outcomes[-1].unwritten:
            break
    return outcomes


def _outcome(exercise: Exercise, function: Function, case: Case, *, smooth: bool) -> Outcome:
    mine = copy.deepcopy(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning is no wrong answer
        try:
            value = exercise.observe(lambda *arguments: plain(function(*arguments)), *mine)
        except Exception as error:  # whatever a learner's code raises is the answer to report
            return Outcome(error=f"{type(error).__name__}: {_text(error)}", unwritten=_is_stub(error), raised=error)
        changed = not _unchanged(mine, case)
        if not smooth or changed:
            return Outcome(value, changed=changed)
        try:
            asked = with_gradient(case)
            return Outcome(value, gradients=gradients(function(*asked), asked))
        except Exception:  # numpy, a list, a graph that is cut: no gradient
            return Outcome(value, gradients=(None,) * len(list(leaves(list(case)))))


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return "an error that cannot be printed"


def _unchanged(mine: Case, case: Case) -> bool:
    try:
        return same(mine, case, 0.0)
    except Exception:  # an argument that can no longer be compared was changed
        return False


def _is_stub(error: Exception) -> bool:
    """Whether the learner's own code says NotImplementedError; torch raises it too."""
    if not isinstance(error, NotImplementedError) or error.__traceback__ is None:
        return False
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    home = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return home not in ("torch", "numpy", "adadfq_lab") and any(str(error) == constant for constant in frame.f_code.co_consts)


# Judging


def judge(exercise: Exercise, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on what a function gave for the hidden cases of `exercise`."""

    def not_yet(text: str, **more: Any) -> Verdict:
        return Verdict(exercise.name, False, text, **more)

    hidden = hidden_cases(exercise)
    remark = ""
    for i, ((case, smooth), outcome) in enumerate(zip(hidden, outcomes, strict=False), 1):
        if outcome.unwritten:
            return not_yet("not written yet: replace the ... and the raise by your code.", unwritten=True, error=outcome.raised)
        expected = exercise.observe(exercise.reference, *copy.deepcopy(case))
        if outcome.error:
            where = f"stopped with {outcome.error} (case {i}, arguments {shapes(case)})."
            more = slips.in_error(outcome.error) or _says(_recognise(exercise, outcomes))
            return not_yet(f"{where} {more}".strip(), error=outcome.raised)
        if outcome.changed:
            return not_yet("changes its arguments in place; work on a copy (x + 1, not x += 1).")
        if what := difference(outcome.value, expected, exercise.tolerance):
            says = _says(_recognise(exercise, outcomes) or _recognise_here(exercise, case, outcome.value, expected))
            if not says and exercise.observe is _apply:
                says = slips.in_values(outcome.value, expected, case, exercise.reference, exercise.tolerance)
            figure = _drawn(outcome.value, expected) if exercise.plot else None
            return not_yet(f"case {i} of {len(hidden)}: {what} {says}".strip(), figure=figure)
        if smooth and (what := _gradient_difference(exercise, case, outcome)):
            if exercise.learns == "required" or not what.startswith("no gradient"):
                return not_yet(f"the value is right, but {what}")
            remark = f" But {what}"
    if len(outcomes) < len(hidden):
        return not_yet(f"gave {len(outcomes)} of {len(hidden)} answers.")
    return Verdict(exercise.name, True, f"agrees with the library on {len(hidden)} hidden cases.{remark}")


def _gradient_difference(exercise: Exercise, case: Case, outcome: Outcome) -> str:
    """What is wrong with the gradients in one case, in words; "" if nothing is."""
    asked = with_gradient(case)
    expected = gradients(exercise.reference(*asked), asked)
    got = outcome.gradients or (None,) * len(expected)
    if all(gradient is None for gradient in got):
        return "no gradient comes out of it: numpy, float(), .item() and .detach() cut it, and nobody could learn from it."
    if exercise.learns == "noted":
        return ""
    names = [name for name, a in zip(signature(exercise.reference).parameters, case, strict=False) for _ in leaves(a)]
    for name, theirs, wanted in zip(names, got, expected, strict=False):
        if wanted is not None and theirs is None:
            return f"no gradient reaches {name}: nothing may be detached or turned into a number on the way."
        if wanted is not None and not same(theirs, wanted, 10 * exercise.tolerance):
            return f"the gradient to {name} is not: is a part detached?"
    return ""


def _recognise(exercise: Exercise, outcomes: Sequence[Outcome]) -> Mistake | None:
    """The mistake that gives the same as these outcomes on every case, if one does."""
    hidden = hidden_cases(exercise)
    if len(hidden) != len(outcomes):
        return None
    for mistake in exercise.mistakes:
        if all(_gives(exercise, mistake.function, case, o) for (case, _), o in zip(hidden, outcomes, strict=True)):
            return mistake
    return None


def _recognise_here(exercise: Exercise, case: Case, theirs: Any, expected: Any) -> Mistake | None:
    """The mistake that gives the same in this case: of two mistakes at once, the first to mend."""
    if isinstance(expected, bool) or (number(theirs) and theirs in (0, 1)) or same(theirs, expected, exercise.tolerance):
        return None  # 0 and 1 come from many mistakes
    return next((m for m in exercise.mistakes if _gives(exercise, m.function, case, Outcome(theirs))), None)


def _gives(exercise: Exercise, function: Function, case: Case, outcome: Outcome) -> bool:
    mine = _outcome(exercise, function, case, smooth=False)
    if mine.error or outcome.error:
        return mine.error == outcome.error
    return mine.changed == outcome.changed and same(mine.value, outcome.value, exercise.tolerance)


def _says(mistake: Mistake | None) -> str:
    return mistake.says if mistake else ""


def _drawn(theirs: Any, expected: Any) -> Any:
    """The figure of yours against expected, where both are tensors of one shape."""
    if not (dense(theirs) and isinstance(expected, Tensor) and theirs.shape == expected.shape) or theirs.is_complex():
        return None
    return yours_against_expected(theirs.detach(), expected)
