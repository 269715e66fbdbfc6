"""Slips that happen in any exercise, called by their names: results in the wrong order, one sample only, torch.max(x, 0), ...

Each exercise knows its own misunderstandings (`Mistake`); what is here is looked for where none of them fits.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.course.comparing import dense, difference, number, same

Function = Callable[..., Any]


def in_values(theirs: Any, expected: Any, case: Sequence[Any], reference: Function, tolerance: float) -> str:
    """What is wrong with the result of one case, if it is one of the common slips; "" if it is none."""
    for says, value in _variants(expected, case, reference):
        if value is not None and not same(value, expected, tolerance) and not difference(theirs, value, tolerance):
            return says
    half = isinstance(theirs, Tensor) and theirs.dtype in (torch.float16, torch.bfloat16)
    if half and not difference(theirs.float(), expected, 20 * tolerance):
        return "This is half precision, with three digits or fewer; compute in float32."
    return ""


def _variants(expected: Any, case: Sequence[Any], reference: Function) -> Iterator[tuple[str, Any]]:
    """Pairs of what to say and the result that would show that slip."""
    if isinstance(expected, tuple) and len(expected) == 2:
        yield "These are the right two results in the wrong order.", expected[::-1]
        yield "The first result is right; the second has its sign turned.", (expected[0], _minus(expected[1]))
        yield "The second result is right; the first has its sign turned.", (_minus(expected[0]), expected[1])
    size = _batch(case)
    if isinstance(expected, Tensor) and expected.ndim and len(expected) > 1:
        yield "This is the answer for the first sample alone; return one for each.", expected[0]
        yield "The last sample is missing.", expected[:-1]
    if size > 1:
        yield "Only the first sample was looked at.", _on(reference, case, size, slice(0, 1))
        yield "The last sample was left out.", _on(reference, case, size, slice(0, -1))
    if number(expected) and not isinstance(expected, bool) and size > 1:
        yield f"This is {size} times too large: a sum over the batch; asked for is the mean.", expected * size
    if (number(expected) and not isinstance(expected, bool)) or isinstance(expected, Tensor):
        yield "The sign is turned.", _minus(expected)
        yield "This is twice what is asked for.", 2 * expected
        yield "This is half of what is asked for.", expected / 2


def _minus(value: Any) -> Any:
    return -value if number(value) or (isinstance(value, Tensor) and value.dtype not in (torch.uint8, torch.bool)) else None


def _batch(case: Sequence[Any]) -> int:
    """N if every tensor of the case with a dimension has N rows, else 0."""
    rows = {len(a) for a in case if dense(a) and a.ndim}
    return rows.pop() if len(rows) == 1 else 0


def _on(reference: Function, case: Sequence[Any], size: int, rows: slice) -> Any:
    part = [a[rows] if dense(a) and a.ndim and len(a) == size else a for a in copy.deepcopy(list(case))]
    try:
        return reference(*part)
    except Exception:
        return None  # a batch of one may be nothing the reference can answer


ERRORS = (
    ("with two bool tensors", "Turn comparisons into numbers before you subtract: .long() or .float()."),
    ("bool tensors is not supported", "Turn comparisons into numbers before you subtract: .long() or .float()."),
    (
        "Boolean value of Tensor with more than one value",
        "Python's max, min, if, and, or take one truth value, not one a sample; use torch.relu, .clamp(min=0) or torch.where.",
    ),
    (
        "torch.return_types.",
        "torch.max(x, 0) takes the maximum over dimension 0 and returns values and indices; for max(x, 0) use torch.relu(x).",
    ),
    (
        "max(): argument 'other'",
        "torch.max(x, y) takes two tensors; for max(x, 0) use torch.relu(x) or x.clamp(min=0).",
    ),
    ("empty sequence", "A list may be empty: max([]) and min([]) fail; all(...) does not."),
    ("list index out of range", "A list may be empty, or shorter than you think."),
    ("'ellipsis'", "A `...` of the stub is still there."),
    ("Can't call numpy() on Tensor that requires grad", "numpy cuts the gradient; stay in torch."),
)


def in_error(error: str) -> str:
    """What to do about an exception with this text; "" if it is not one of the common ones."""
    return next((says for fragment, says in ERRORS if fragment in error), "")
