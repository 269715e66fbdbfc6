"""The claims about the game: when it is at rest (Eq. 5), and what bounds the student's error (Eq. 14 to 17).

Plain functions of numbers; the bounds take NumPy arrays that broadcast as well, so that a plot can draw them in one call.
The paper leaves the constant of each O(.), the capacities and the approximation errors open: they are arguments here, and a
curve shows how a bound moves, never what an error is.

Two places where the paper disagrees with itself. Eq. (14) prints the exponent alpha_qp where its text defines alpha_qr; the
latter is meant. And its text gives samples of little information the fast rate, alpha near 1, under which the estimation
error n^-alpha is *small*, whereas the discussion after Eq. (17) explains overfitting by the estimation error of the same
samples being *large*. The formulas cannot settle that; a notebook can show it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def is_equilibrium(
    value_at_optimum: float, values_g: Iterable[float], values_q: Iterable[float], *, tolerance: float = 0.0
) -> bool:
    """Whether measured values satisfy H(g, q*) <= H(g*, q*) <= H(g*, q): nobody gains by moving alone. Eq. (5).

    value_at_optimum: H(g*, q*), the `game_value` of the pair in question
    values_g:         H(g, q*) of other generators against the same student
    values_q:         H(g*, q) of other students against the same generator
    tolerance:        by how much a measured value may miss either inequality, at least 0

    True says that none of these moves pays, not that no move does; with no moves it is True. NaN anywhere gives False.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}")
    if math.isnan(value_at_optimum):
        return False
    low, high = value_at_optimum - tolerance, value_at_optimum + tolerance
    return all(bool(value <= high) for value in values_g) and all(bool(low <= value) for value in values_q)


def estimation_error(capacity: ArrayLike, n: ArrayLike, rate: ArrayLike, *, constant: float = 1.0) -> Array:
    """constant * capacity / n^rate: the O(|F|_C / n^alpha) of Eq. (14) to (17).

    capacity: |F|_C of the function class, at least 0
    n:        number of generated samples, at least 1
    rate:     alpha, from 1/2 (slow: much information in a sample) to 1 (fast: little)
    constant: what O(.) hides

    Raises ValueError outside these ranges.
    """
    capacity, n, rate = (np.asarray(value, dtype=np.float64) for value in (capacity, n, rate))
    if not np.all(capacity >= 0):
        raise ValueError("a capacity must be at least 0")
    if not np.all(n >= 1):
        raise ValueError("n, the number of samples, must be at least 1")
    if not np.all((rate >= 0.5) & (rate <= 1)):
        raise ValueError("a learning rate alpha of Eq. (14) to (17) must lie in [1/2, 1]")
    error: Array = constant * capacity / n**rate
    return error


def bound_student_label(
    capacity_q: ArrayLike, n: ArrayLike, rate_qr: ArrayLike, epsilon_qr: ArrayLike, *, constant: float = 1.0
) -> Array:
    """R(f_q) - R(f_r) <= O(|F_q|_C / n^alpha_qr) + epsilon_qr: Q learning from labels. Eq. (14)."""
    return estimation_error(capacity_q, n, rate_qr, constant=constant) + np.asarray(epsilon_qr, dtype=np.float64)


def bound_teacher_label(
    capacity_p: ArrayLike, n: ArrayLike, rate_pr: ArrayLike, epsilon_pr: ArrayLike, *, constant: float = 1.0
) -> Array:
    """R(f_p) - R(f_r) <= O(|F_p|_C / n^alpha_pr) + epsilon_pr: P learning from labels. Eq. (15)."""
    return estimation_error(capacity_p, n, rate_pr, constant=constant) + np.asarray(epsilon_pr, dtype=np.float64)


def bound_student_teacher(
    capacity_q: ArrayLike, n: ArrayLike, rate_qp: ArrayLike, epsilon_qp: ArrayLike, *, constant: float = 1.0
) -> Array:
    """R(f_q) - R(f_p) <= O(|F_q|_C / n^alpha_qp) + epsilon_qp: Q learning from P. Eq. (16)."""
    return estimation_error(capacity_q, n, rate_qp, constant=constant) + np.asarray(epsilon_qp, dtype=np.float64)


@dataclass(frozen=True)
class ErrorBound:
    """The right-hand side of Eq. (17) in its two braces, to be stacked in a plot."""

    estimation: Array  # O(|F_q|_C / n^alpha_qp) + O(|F_p|_C / n^alpha_pr): shrinks with samples
    approximation: Array  # epsilon_qp + epsilon_pr: does not

    @property
    def total(self) -> Array:
        return self.estimation + self.approximation


def decompose_bound(
    n: ArrayLike,
    *,
    capacity_q: ArrayLike,
    rate_qp: ArrayLike,
    epsilon_qp: ArrayLike,
    capacity_p: ArrayLike,
    rate_pr: ArrayLike,
    epsilon_pr: ArrayLike,
    constant: float = 1.0,
) -> ErrorBound:
    """Eq. (17), the sum of Eq. (15) and (16), as estimation and approximation error of the arguments' common shape."""
    student = estimation_error(capacity_q, n, rate_qp, constant=constant)
    teacher = estimation_error(capacity_p, n, rate_pr, constant=constant)
    epsilon = np.asarray(epsilon_qp, dtype=np.float64) + np.asarray(epsilon_pr, dtype=np.float64)
    estimation, approximation = np.broadcast_arrays(student + teacher, epsilon)
    return ErrorBound(estimation, approximation)


def bound_total(
    n: ArrayLike,
    *,
    capacity_q: ArrayLike,
    rate_qp: ArrayLike,
    epsilon_qp: ArrayLike,
    capacity_p: ArrayLike,
    rate_pr: ArrayLike,
    epsilon_pr: ArrayLike,
    constant: float = 1.0,
) -> Array:
    """R(f_q) - R(f_r) for Q that learns from P, which learned from labels: the right-hand side of Eq. (17)."""
    return decompose_bound(
        n,
        capacity_q=capacity_q,
        rate_qp=rate_qp,
        epsilon_qp=epsilon_qp,
        capacity_p=capacity_p,
        rate_pr=rate_pr,
        epsilon_pr=epsilon_pr,
        constant=constant,
    ).total
