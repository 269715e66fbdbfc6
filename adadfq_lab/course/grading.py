"""Grading: what an exercise is, and whether a learner's function solves it.

The function is run on hidden cases drawn from seeds and compared with the library's own function: no answer is stored anywhere.
A wrong answer that is a known misunderstanding is called by its name. Learners meet this module as `lab.check`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.views.style import show

Case = tuple[Any, ...]
Function = Callable[..., Any]
SEEDS = (1, 2, 3)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


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
    cases:     from a seeded torch.Generator to hidden arguments, each a tuple
    hint:      what to say after the second failure
    mistakes:  the commonest wrong answers
    observe:   what is compared, from the function and a case: its value unless said otherwise (or its gradient, ...)
    plot:      whether a figure of yours against expected is drawn, for the first case that differs
    tolerance: relative and absolute
    """

    name: str
    notebook: str
    reference: Function
    cases: Callable[[torch.Generator], Sequence[Case]]
    hint: str
    mistakes: tuple[Mistake, ...] = ()
    observe: Callable[..., Any] = _apply
    plot: bool = False
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Verdict:
    """What a check found, in words; shows itself, with a figure where there is one, as the last expression of a cell.

    error: what the function raised, if it did: `raise verdict.error` shows the whole traceback
    """

    exercise: str
    passed: bool
    text: str
    hint: str = ""
    figure: Any = field(default=None, repr=False)
    error: Exception | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"{'PASSED' if self.passed else 'NOT YET'} {self.exercise}: {self.text}" + (
            f" Hint: {self.hint}" * bool(self.hint)
        )

    def _repr_html_(self) -> str:
        colour, mark, word = ("#009E73", "✓", "Passed") if self.passed else ("#D55E00", "✗", "Not yet")
        hint = f"<p style='margin:0.4em 0 0 0'><b>Hint.</b> {escape(self.hint)}</p>" if self.hint else ""
        return (
            f"<div role='status' style='border-left:4px solid {colour};padding:0.3em 0.8em'>"
            f"<b>{mark} {word}: {escape(self.exercise)}</b><p style='margin:0.2em 0 0 0'>{escape(self.text)}</p>{hint}</div>"
        )

    def _ipython_display_(self) -> None:
        from IPython import display

        display.display(display.HTML(self._repr_html_()))  # type: ignore[no-untyped-call]
        if self.figure is not None:
            show(self.figure)


def examine(exercise: Exercise, function: Function) -> Verdict:
    """The verdict on `function`, without a record: the first hidden case on which it differs from the reference, if any."""
    cases = [case for seed in SEEDS for case in exercise.cases(torch.Generator().manual_seed(seed))]
    stub = "NotImplementedError" in getattr(getattr(function, "__code__", None), "co_names", ())  # torch raises it, too

    def answer(*arguments: Any) -> Any:
        return _plain(function(*arguments))

    for number, case in enumerate(cases, 1):
        mine = copy.deepcopy(case)
        try:
            theirs = exercise.observe(answer, *mine)
        except Exception as error:  # whatever a learner's code raises is the answer to report
            if stub and isinstance(error, NotImplementedError):
                text = "not written yet: replace the ... and the raise by your code."
                return Verdict(exercise.name, False, text, error=error)
            where = f"case {number}, arguments {_shapes(case)}"
            return Verdict(exercise.name, False, f"stopped with {type(error).__name__}: {error} ({where}).", error=error)
        if not _same(mine, case, 0.0):
            return Verdict(exercise.name, False, "changes its arguments in place; work on a copy (x + 1, not x += 1).")
        expected = exercise.observe(exercise.reference, *copy.deepcopy(case))
        if what := _difference(theirs, expected, exercise.tolerance):
            text = f"case {number} of {len(cases)}: {what}"
            if mistake := _recognise(exercise, answer, cases) or _recognise_here(exercise, case, theirs, expected):
                text = f"{text} {mistake.says}"
            return Verdict(exercise.name, False, text, figure=_drawn(theirs, expected) if exercise.plot else None)
    return Verdict(exercise.name, True, f"agrees with the library on {len(cases)} hidden cases.")


def _recognise(exercise: Exercise, function: Function, cases: Sequence[Case]) -> Mistake | None:
    """The mistake that gives the same as `function` on every case, if one does."""
    outcomes = [_outcome(exercise, function, case) for case in cases]
    for mistake in exercise.mistakes:
        if all(_gives(exercise, mistake.function, case, outcome) for case, outcome in zip(cases, outcomes, strict=True)):
            return mistake
    return None


def _recognise_here(exercise: Exercise, case: Case, theirs: Any, expected: Any) -> Mistake | None:
    """The mistake that gives the same in this case: of two mistakes at once, the first to mend."""
    if isinstance(expected, bool) or _same(theirs, expected, exercise.tolerance):
        return None
    return next((m for m in exercise.mistakes if _gives(exercise, m.function, case, theirs)), None)


def _plain(value: Any) -> Any:
    """`value` with what is numpy's as torch's or Python's, for right answers come from numpy, too."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value


def _outcome(exercise: Exercise, function: Function, case: Case) -> Any:
    try:
        return exercise.observe(function, *copy.deepcopy(case))
    except Exception as error:  # two functions that fail alike are alike
        return type(error)


def _gives(exercise: Exercise, function: Function, case: Case, outcome: Any) -> bool:
    return _same(_outcome(exercise, function, case), outcome, exercise.tolerance)


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if _number(a) and _number(b):
        return _same(torch.tensor(float(a)), torch.tensor(float(b)), tolerance)
    return type(a) is type(b) and a == b


def _number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _difference(theirs: Any, expected: Any, tolerance: float) -> str:
    """What differs, in words; "" if nothing does."""
    if theirs is None:
        return "the function returns nothing; is its `return` missing?"
    if isinstance(expected, tuple):
        if isinstance(theirs, Tensor) and theirs.shape[:1] == (len(expected),):
            theirs = tuple(theirs)  # results may be stacked
        if not isinstance(theirs, tuple | list) or len(theirs) != len(expected):
            return f"expected {len(expected)} results, got {_kind(theirs)}."
        parts = [_difference(t, e, tolerance) for t, e in zip(theirs, expected, strict=True)]
        return next((f"result {i}: {what}" for i, what in enumerate(parts, 1) if what), "")
    if _number(expected) and _number(theirs):
        return "" if _same(theirs, expected, tolerance) else _unequal(theirs, expected)
    if not isinstance(expected, Tensor):
        return "" if _same(theirs, expected, tolerance) else f"expected {expected!r}, got {theirs!r}."
    if not isinstance(theirs, Tensor):
        return f"expected a tensor of shape {tuple(expected.shape)}, got {_kind(theirs)}."
    if theirs.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(theirs.shape)}."
    if theirs.isnan().any() and not expected.isnan().any():
        return (
            f"{int(theirs.isnan().sum())} of {theirs.numel()} entries are NaN, not a number; where is 0 divided by 0 or logged?"
        )
    if _same(theirs, expected, tolerance):
        wanted = expected.dtype
        if wanted.is_floating_point or theirs.dtype == wanted or (theirs.dtype in INTEGERS and wanted != torch.uint8):
            return ""
        return f"the numbers are right, but their type is {theirs.dtype}; asked for is {wanted}."
    gap = (theirs.double() - expected.double()).abs().flatten()
    i = int(gap.argmax())
    wrong = int((gap > tolerance * (1 + expected.double().abs().flatten())).sum())
    return (
        f"{wrong} of {gap.numel()} entries differ; entry {i} should be {float(expected.flatten()[i]):.4g} "
        f"and is {float(theirs.flatten()[i]):.4g}."
    )


def _unequal(theirs: Any, expected: Any) -> str:
    if isinstance(expected, bool):
        return f"expected {expected}, got {bool(theirs)}."
    digits = 4 if f"{float(theirs):.4g}" != f"{float(expected):.4g}" else 8
    return f"expected {float(expected):.{digits}g}, got {float(theirs):.{digits}g}."


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.return_types.min | torch.return_types.max):
        return "values and indices, as .min(dim=...) and .max(dim=...) return them; take .values, or use amin and amax"
    return f"{len(value)} results in a tuple" if isinstance(value, tuple) else type(value).__name__


def _shapes(case: Case) -> str:
    def words(a: Any) -> str:
        if isinstance(a, list) and not all(map(_number, a)):
            return f"a list of {len(a)}"
        return f"of shape {tuple(a.shape)}" if isinstance(a, Tensor) else repr(a)

    return ", ".join(map(words, case))


def _drawn(theirs: Any, expected: Any) -> Any:
    """The figure of yours against expected, where both are tensors of one shape."""
    if not (isinstance(theirs, Tensor) and isinstance(expected, Tensor) and theirs.shape == expected.shape):
        return None
    from adadfq_lab.views.figures import yours_against_expected  # plotly is slow to import, and most answers are right

    return yours_against_expected(theirs, expected)
