"""Comparing an answer with what is expected, and saying in words what differs."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
FLOOR = 1e-2
"""Numbers smaller than this are compared as if they were this large, so that rounding around 0 is not a difference."""


@dataclass(frozen=True)
class Other:
    """Stands for a value that is neither a number, a text, a tensor nor a collection of these. kind: what it is, in words."""

    kind: str


def plain(value: Any) -> Any:
    """`value` with numpy's numbers and arrays as Python's and torch's: right answers may come from numpy too."""
    if type(value) is int and abs(value) > 10**300:  # more than a float holds
        return math.inf if value > 0 else -math.inf
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(value))
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else value


def number(value: Any) -> bool:
    """Whether `value` is one real number, a bool or a 0-dim tensor included."""
    return isinstance(value, int | float) or (dense(value) and value.ndim == 0 and not value.is_complex())


def dense(value: Any) -> bool:
    """Whether `value` is an ordinary tensor that holds its numbers: not sparse, not quantised, not on the device "meta"."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two values agree, structure included, to within `tolerance` of the larger numbers in `b`."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            dense(a) and dense(b) and a.shape == b.shape and a.is_complex() == b.is_complex() and bool(_near(a, b, tolerance))
        )
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if number(a) and number(b):
        return same(torch.tensor(float(a)), torch.tensor(float(b)), tolerance)
    return type(a) is type(b) and bool(a == b)


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.is_complex():
        return torch.equal(a, b)
    return torch.allclose(a.detach().double(), b.detach().double(), tolerance, tolerance * _scale(b), equal_nan=True)


def _scale(expected: Tensor) -> float:
    """The size of `expected`, at most 1: what an absolute tolerance is a fraction of."""
    finite = expected.detach().double()[expected.detach().isfinite()].abs()
    return min(1.0, max(FLOOR, float(finite.max()))) if finite.numel() else FLOOR


def difference(theirs: Any, expected: Any, tolerance: float) -> str:
    """What differs, in words; "" if nothing does."""
    if theirs is None:
        return "the function returns nothing; is its `return` missing?"
    if theirs is ...:
        return "the function returns `...`, the gap itself; put your formula in its place."
    if isinstance(expected, tuple):
        if dense(theirs) and theirs.shape[:1] == (len(expected),):
            theirs = tuple(theirs)  # results may be stacked
        if not isinstance(theirs, tuple | list) or len(theirs) != len(expected):
            return f"expected {len(expected)} results, got {kind(theirs)}."
        parts = [difference(t, e, tolerance) for t, e in zip(theirs, expected, strict=True)]
        return next((f"result {i}: {what}" for i, what in enumerate(parts, 1) if what), "")
    if isinstance(theirs, complex) or (isinstance(theirs, Tensor) and theirs.is_complex()):
        return "these are complex numbers; asked for are real ones."
    if isinstance(theirs, Tensor) and not dense(theirs):
        return f"this is not an ordinary tensor ({_storage(theirs)}); return a dense one, as with .to_dense()."
    if number(expected) and number(theirs):
        return "" if same(theirs, expected, tolerance) else _unequal(theirs, expected)
    if not isinstance(expected, Tensor):
        return "" if same(theirs, expected, tolerance) else f"expected {_short(expected)}, got {_short(theirs)}."
    if not isinstance(theirs, Tensor):
        more = "; torch.tensor(...) or torch.stack(...) makes one" if type(theirs) in (list, tuple) else ""
        return f"expected a tensor of shape {tuple(expected.shape)}, got {kind(theirs)}{more}."
    if theirs.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(theirs.shape)}."
    return _entries(theirs, expected, tolerance)


def _entries(theirs: Tensor, expected: Tensor, tolerance: float) -> str:
    """The difference between two tensors of one shape."""
    if theirs.isnan().any() and not expected.isnan().any():
        return (
            f"{int(theirs.isnan().sum())} of {theirs.numel()} entries are NaN, not a number; where is 0 divided by 0 or logged?"
        )
    if same(theirs, expected, tolerance):
        wanted = expected.dtype
        if wanted.is_floating_point or theirs.dtype == wanted or (theirs.dtype in INTEGERS and wanted != torch.uint8):
            return ""
        return f"the numbers are right, but their type is {theirs.dtype}; asked for is {wanted}."
    gap = (theirs.detach().double() - expected.detach().double()).abs().flatten().nan_to_num(torch.inf)
    i = int(gap.argmax())
    wrong = int((gap > tolerance * (_scale(expected) + expected.double().abs().flatten())).sum())
    should, is_ = digits(float(expected.flatten()[i]), float(theirs.flatten()[i]))
    what = f"{wrong} of {gap.numel()} entries differ" if gap.numel() > 1 else "the one entry differs"
    return f"{what}; entry {i} should be {should} and is {is_}."


def _unequal(theirs: Any, expected: Any) -> str:
    if isinstance(expected, bool):
        return f"expected {expected}, got {bool(theirs)}."
    should, is_ = digits(float(expected), float(theirs))
    return f"expected {should}, got {is_}."


def digits(expected: float, theirs: float) -> tuple[str, str]:
    """Both numbers with four digits, or with more if they would look the same."""
    for count in (4, 6, 8, 12):
        if f"{theirs:.{count}g}" != f"{expected:.{count}g}":
            break
    return f"{expected:.{count}g}", f"{theirs:.{count}g}"


def kind(value: Any) -> str:
    """What sort of thing `value` is, for a sentence."""
    if isinstance(value, Other):
        return value.kind
    if isinstance(value, torch.return_types.min | torch.return_types.max):
        return (
            "values and indices, as .min(dim=...) and torch.max(x, 0) return them; take .values or use amin and amax, "
            "and for max(x, 0) torch.relu(x)"
        )
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} results in a tuple" if isinstance(value, tuple) else f"a value of type {type(value).__name__}"


def _storage(tensor: Tensor) -> str:
    return "quantised" if tensor.is_quantized else "without numbers" if tensor.is_meta else str(tensor.layout)


def _short(value: Any, width: int = 60) -> str:
    text = repr(value) if isinstance(value, int | float | str | tuple | list | type(None)) else kind(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def shapes(case: Sequence[Any]) -> str:
    """The arguments of a case in words: shapes of tensors, other values as they are."""

    def words(a: Any) -> str:
        if isinstance(a, list) and not all(map(number, a)):
            return f"a list of {len(a)}"
        return f"of shape {tuple(a.shape)}" if isinstance(a, Tensor) else _short(a)

    return ", ".join(map(words, case))


# Gradients


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in `value` that a gradient can reach: floating, and of a layer's statistics only those of the batch."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif hasattr(value, "running_mean"):
        yield from (value.mean, value.var)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)


def with_gradient(case: Sequence[Any]) -> list[Any]:
    """A copy of `case` in which each of its `leaves` asks for a gradient."""
    mine = copy.deepcopy(list(case))
    for tensor in leaves(mine):
        tensor.requires_grad_()
    return mine


def gradients(value: Any, case: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The gradients of a fixed weighting of `value` to the leaves of `case`; None for a leaf that none reaches."""
    parts = [tensor for tensor in (value if isinstance(value, tuple | list) else [value]) if _learnable(tensor)]
    inputs = list(leaves(list(case)))
    if not parts:
        return (None,) * len(inputs)
    weighted = [(tensor * torch.linspace(0.5, 1.5, tensor.numel()).view(tensor.shape)).sum() for tensor in parts]
    return torch.autograd.grad(torch.stack(weighted).sum(), inputs, allow_unused=True)


def _learnable(value: Any) -> bool:
    return dense(value) and value.requires_grad
