"""Eq. (5) on measured values, and Eq. (14) to (17) as numbers and curves."""

import math

import numpy as np
import pytest

from adadfq_lab.theory import (
    bound_student_label,
    bound_student_teacher,
    bound_teacher_label,
    bound_total,
    decompose_bound,
    estimation_error,
    is_equilibrium,
)


def test_saddle_point_of_a_known_game_is_an_equilibrium():
    """H(g, q) = q^2 - g^2 has its equilibrium at (0, 0): moves of either player do not pay there, and do at (1, 1)."""

    def value(g: float, q: float) -> float:
        return q**2 - g**2

    moves = [-2.0, -0.5, 0.0, 0.5, 2.0]
    assert is_equilibrium(value(0, 0), [value(g, 0) for g in moves], [value(0, q) for q in moves])
    assert not is_equilibrium(value(1, 1), [value(g, 1) for g in moves], [value(1, q) for q in moves])


def test_either_player_can_break_an_equilibrium():
    """A generator that gets more against q*, or a student that gets less against g*, breaks Eq. (5); ties do not."""
    assert is_equilibrium(0.5, [0.5, 0.4], [0.5, 0.6])
    assert not is_equilibrium(0.5, [0.4, 0.51], [0.6])
    assert not is_equilibrium(0.5, [0.4], [0.6, 0.49])
    assert is_equilibrium(0.5, [0.4, 0.51], [0.49], tolerance=0.02)
    assert is_equilibrium(0.5, [], [])


@pytest.mark.parametrize(
    "values", [(math.nan, [0.4], [0.6]), (0.5, [math.nan], [0.6]), (0.5, [0.4], [math.nan]), (math.nan, [], [])]
)
def test_nan_is_no_equilibrium(values):
    """A value that could not be measured proves nothing."""
    assert not is_equilibrium(*values)


def test_negative_tolerance_is_refused():
    """A tolerance below 0 would refuse exact equilibria."""
    with pytest.raises(ValueError, match=r"at least 0, not -0\.1"):
        is_equilibrium(0.5, [], [], tolerance=-0.1)


def test_bounds_by_hand():
    """With |F| = 6, n = 9: 6/3 at the slow rate, 6/9 at the fast; each bound adds its approximation error."""
    assert estimation_error(6, 9, 0.5) == pytest.approx(2)
    assert estimation_error(6, 9, 1, constant=3) == pytest.approx(2)
    assert bound_student_label(6, 9, 0.5, 0.25) == pytest.approx(2.25)
    assert bound_teacher_label(12, 9, 1, 0.5) == pytest.approx(12 / 9 + 0.5)
    assert bound_student_teacher(6, 9, 0.5, 0.25, constant=2) == pytest.approx(4.25)


def test_total_is_teacher_plus_student_and_stacks_in_two():
    """Eq. (17) is Eq. (15) plus Eq. (16); its two braces are the estimation and the approximation errors and add up to it."""
    n = np.logspace(0, 6, 13)
    student, teacher = (
        {"capacity_q": 5, "rate_qp": 0.6, "epsilon_qp": 0.2},
        {"capacity_p": 7, "rate_pr": 0.9, "epsilon_pr": 0.1},
    )
    total = bound_total(n, **student, **teacher, constant=2)
    parts = decompose_bound(n, **student, **teacher, constant=2)
    np.testing.assert_allclose(
        total, bound_student_teacher(5, n, 0.6, 0.2, constant=2) + bound_teacher_label(7, n, 0.9, 0.1, constant=2)
    )
    np.testing.assert_allclose(parts.total, total)
    np.testing.assert_allclose(parts.estimation, 2 * (5 / n**0.6 + 7 / n**0.9))
    np.testing.assert_allclose(parts.approximation, np.full(13, 0.3))


def test_more_samples_and_a_faster_rate_tighten_the_bound_down_to_the_approximation_error():
    """The estimation error falls in n and in alpha; with n without end the bound is epsilon_qp + epsilon_pr."""
    n, rate = np.array([2, 10, 100, 1e4])[:, None], np.linspace(0.5, 1, 6)[None, :]
    bound = bound_total(n, capacity_q=3, rate_qp=rate, epsilon_qp=0.2, capacity_p=4, rate_pr=rate, epsilon_pr=0.1)
    assert bound.shape == (4, 6)
    assert (np.diff(bound, axis=0) < 0).all()
    assert (np.diff(bound, axis=1) < 0).all()
    limit = bound_total(1e300, capacity_q=3, rate_qp=0.5, epsilon_qp=0.2, capacity_p=4, rate_pr=0.5, epsilon_pr=0.1)
    assert limit == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10, 0.4), r"\[1/2, 1\]"),
        ((1, 10, [0.5, 1.1]), r"\[1/2, 1\]"),
        ((1, 10, math.nan), r"\[1/2, 1\]"),
        ((1, 0, 0.5), "number of samples"),
        ((-1, 10, 0.5), "capacity"),
    ],
)
def test_values_outside_the_theory_are_refused(arguments, message):
    """Rates lie in [1/2, 1], capacities are not negative, and there is at least one sample."""
    with pytest.raises(ValueError, match=message):
        estimation_error(*arguments)
