"""What learners write: right answers in many forms pass, wrong ones are refused, and so is every mutant."""

from dataclasses import replace

import pytest
from helpers.answers import answers, function
from helpers.mutations import mutants

from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import collect, examine, hidden_cases, judge


@pytest.mark.parametrize(("name", "source"), answers("right"))
def test_right_answer_in_another_form_passes(name, source):
    assert examine(EXERCISES[name], function(source)).passed


@pytest.mark.parametrize(("name", "source"), answers("wrong"))
def test_wrong_answer_is_refused(name, source):
    assert not examine(EXERCISES[name], function(source)).passed


QUICK = {name: replace(exercise, mistakes=(), plot=False) for name, exercise in EXERCISES.items()}
"""The exercises without the words for their mistakes, which take most of the time."""


def survivors(every: int) -> list[str]:
    """Mutants of right answers that pass though they are not known to compute the same; every so many-th mutant is tried."""
    tried = [(name, mutant) for name, source in answers("right") for mutant in mutants(source)]
    known = set(answers("equivalent"))
    return [
        f"{name}: {mutant}"
        for name, mutant in tried[::every]
        if (name, mutant) not in known and examine(QUICK[name], function(mutant)).passed
    ]


def test_mutants_are_refused():
    """One changed operator, constant, reduction, bound or comparison in a right answer makes it wrong: one in 25."""
    assert survivors(25) == []


@pytest.mark.slow
def test_every_mutant_is_refused():
    assert survivors(1) == []


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("agreement", "lambda p, q: (p.argmax() == q.argmax()).float()", "argmax without dim"),
        ("channel_statistics", "lambda u: (u.var((0, 2, 3), correction=0), u.mean((0, 2, 3)))", "in the wrong order"),
        ("channel_range", "lambda w: (w.flatten(1).amax(1), w.flatten(1).amin(1))", "in the wrong order"),
        ("gains", "lambda a, b, c: ((b - c).mean(), (a - b).mean())", "in the wrong order"),
        ("hinge", "lambda h, b: torch.max(b.lower - h, 0)", "torch.max("),
        ("hinge", "lambda h, b: max(b.lower - h, 0)", "one truth value"),
        ("fitting_risk", "lambda h, b: (h >= b.upper) - (h <= b.lower)", ".long()"),
        ("game_value", "lambda h: 1 - h[0]", "Only the first sample"),
        ("loss_ds", "lambda p, q, y: F.cross_entropy(p - q.detach(), y)", "no gradient reaches z_q"),
        ("loss_ds", "lambda p, q, y: F.cross_entropy(p - q, y).item()", "no gradient comes out"),
        ("is_equilibrium", "lambda v, g, q: max(g) <= v <= min(q)", "A list may be empty"),
        ("is_equilibrium", "lambda v, g, q: all(x < v for x in g) and all(x > v for x in q)", "<=, not <"),
        ("samples_needed", "lambda c, a, t: int((c / t) ** (1 / a))", "int()"),
        ("p_ds", "lambda p, q: torch.softmax(p - q, -1).to_sparse()", "not an ordinary tensor"),
        ("p_ds", "lambda p, q: torch.softmax(p - q, -1) + 0j", "complex"),
        ("p_ds", "lambda p, q: torch.softmax((p - q).half(), -1)", "half precision"),
        ("round_ste", "lambda x: x.round()", "should be 1 and is 0"),
        ("p_ds", "lambda p, q: ...", "the gap itself"),
    ],
)
def test_common_slips_have_words(name, source, says):
    assert says in examine(EXERCISES[name], function(source)).text


def test_an_answer_without_a_gradient_passes_with_a_remark_where_none_is_asked_for():
    verdict = examine(EXERCISES["game_value"], function("lambda h: np.mean(1 - h.numpy())"))
    assert verdict.passed
    assert "no gradient" in verdict.text


def test_too_few_outcomes_are_no_pass():
    """What a process gave back is judged as a whole: an answer to some of the cases is none."""
    exercise = EXERCISES["p_ds"]
    outcomes = collect(exercise, exercise.reference)
    assert judge(exercise, outcomes).passed
    assert not judge(exercise, outcomes[:-1]).passed
    assert not judge(exercise, []).passed
    assert len(outcomes) == len(hidden_cases(exercise))
