"""Exercises that answer back: the right answer passes, stubs and the commonest wrong answers fail, and words say why."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from adadfq_lab import progress
from adadfq_lab.authoring import build as course
from adadfq_lab.course import check
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import SEEDS, Exercise, Mistake, examine
from adadfq_lab.errors import UserError
from adadfq_lab.integers import packing
from adadfq_lab.student import quantizer

GUIDE = (course.FOLDER / "instructor_guide.md").read_text(encoding="utf-8")
MISTAKES = [(name, i) for name, exercise in EXERCISES.items() for i in range(len(exercise.mistakes))]


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    for kept in ("_session", "_accepted", "_quizzes"):
        monkeypatch.setattr(check, kept, {})


def cells_of(name: str, tag: str) -> str:
    """The cell with `tag` in the solution notebooks that defines the function `name`."""
    (text,) = [
        cell.source
        for path in course.sources()
        for cell in course.read(path).cells
        if tag in course.tags(cell) and f"def {name}(" in cell.source
    ]
    return text


def defined(name: str, tag: str):
    """That function, from a namespace that has what the notebooks import."""
    space: dict = {}
    exec("import math\nimport numpy as np\nimport torch\nimport torch.nn.functional as F\nimport adadfq_lab as lab", space)
    exec(cells_of(name, tag), space)
    return space[name]


@pytest.mark.parametrize("name", EXERCISES)
def test_solution_passes(name):
    """The solution that the course prints, and the library's own function, pass their check."""
    assert getattr(check, name)(defined(name, "solution")).passed
    assert examine(EXERCISES[name], EXERCISES[name].reference).passed


@pytest.mark.parametrize("name", EXERCISES)
def test_stub_fails_as_not_written_yet(name):
    """The stub as handed out fails, and is told apart from a wrong answer."""
    verdict = getattr(check, name)(defined(name, "stub"))
    assert not verdict.passed
    assert "not written yet" in verdict.text
    assert isinstance(verdict.error, NotImplementedError)


@pytest.mark.parametrize(("name", "i"), MISTAKES)
def test_common_wrong_answer_fails_and_is_recognised(name, i):
    """Each of the commonest wrong answers fails, is called by its name, and stands in the instructor's guide."""
    mistake = EXERCISES[name].mistakes[i]
    verdict = examine(EXERCISES[name], mistake.function)
    assert not verdict.passed
    assert mistake.says in verdict.text
    assert mistake.says in GUIDE.replace("\n", " ").replace("  ", " "), f"the guide does not list: {mistake.says}"


@pytest.mark.parametrize("name", EXERCISES)
def test_exercise_has_mistakes_hints_and_a_notebook(name):
    """Every exercise knows at least two wrong answers, has three hints, and belongs to a notebook that uses it."""
    exercise = EXERCISES[name]
    assert len(exercise.mistakes) >= 2
    assert len(exercise.hints) == 3
    assert all(len(hint) >= 8 for hint in exercise.hints)
    (path,) = [path for path in course.sources() if path.name.startswith(exercise.notebook)]
    assert f"lab.check.{name}({name})" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXERCISES)
def test_cases_come_from_seeds(name):
    """The same seed gives the same hidden cases; another seed gives others."""
    cases = EXERCISES[name].cases
    one, again, other = (str(cases(torch.Generator().manual_seed(seed))) for seed in (SEEDS[0], SEEDS[0], SEEDS[1]))
    assert one == again
    assert one != other


DOUBLE = Exercise(
    "double",
    "01",
    lambda x: 2 * x,
    lambda g: [(torch.rand(4, generator=g),)],
    ("How many times?", "2 x", "2 * x"),
    (Mistake(lambda x: x * x, "This squares."),),
)


def in_place(x):
    x *= 2
    return x


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: None, "returns nothing"),
        (lambda x: 2.0, "expected a tensor of shape (4,), got a value of type float"),
        (lambda x: 2 * x[:3], "expected shape (4,), got (3,)"),
        (lambda x: 2 * x / 0 * 0, "NaN"),
        (lambda x: 2 * x + 0.1, "4 of 4 entries differ"),
        (lambda x: x.no_such(), "AttributeError"),
        (in_place, "in place"),
        (lambda x: x * x, "This squares."),
    ],
)
def test_verdict_says_what_is_wrong(function, says):
    """Nothing returned, a wrong type, shape or value, NaN, an exception, a changed argument: each has its words."""
    verdict = examine(DOUBLE, function)
    assert not verdict.passed
    assert says in verdict.text


def test_right_to_within_rounding_passes():
    """An answer that differs by less than the tolerance passes: another order of operations is no mistake."""
    assert examine(DOUBLE, lambda x: (2 * x).double().float() + 1e-7).passed


def test_several_results_are_compared_one_by_one():
    """Of a tuple the first wrong result is named; the wrong number of results is told."""
    pair = replace(DOUBLE, reference=lambda x: (x, 2 * x), mistakes=())
    assert examine(pair, lambda x: [x, 2 * x]).passed
    assert "result 2" in examine(pair, lambda x: (x, x)).text
    assert "expected 2 results" in examine(pair, lambda x: x).text


def test_right_answers_of_numpy_pass():
    """numpy's arrays, floats and booleans are numbers too, and a pair may come as one array."""
    assert check.p_ds(lambda p, q: np.exp((p - q).numpy()) / np.exp((p - q).numpy()).sum(1, keepdims=True)).passed
    assert check.game_value(lambda h: np.float32(np.mean(1 - h.numpy()))).passed
    assert check.is_equilibrium(lambda v, g, q: np.all(np.array(g) <= v) and np.all(np.array(q) >= v)).passed
    assert check.gains(lambda a, b, c: np.array([(a - b).mean(), (b - c).mean()])).passed


def test_floats_are_no_integers():
    """Where integers are asked for, right numbers of another type are told from wrong ones; any width will do."""
    verdict = check.codes(lambda x, s, z, b: quantizer.codes(x, s, z, b).float())
    assert "the numbers are right, but their type is torch.float32" in verdict.text
    assert check.codes(lambda x, s, z, b: quantizer.codes(x, s, z, b).long()).passed
    assert "asked for is torch.uint8" in check.pack_bits(lambda q, b: packing.pack_bits(q, b).long()).text


def test_error_of_torch_is_not_taken_for_an_unwritten_answer():
    """torch raises NotImplementedError too, as for the difference of two bool tensors: that is no stub."""
    verdict = check.fitting_risk(lambda h, b: (h >= b.upper) - (h <= b.lower))
    assert not verdict.passed
    assert "not written yet" not in verdict.text


def test_one_of_two_mistakes_is_named():
    """Bits instead of nats is called by its name although NaN at p = 0 is a second mistake, in a later case."""
    verdict = check.entropy(lambda p: -(p * p.log2()).sum(-1))
    assert "These are bits" in verdict.text
    assert "take .values" in check.channel_range(lambda w: (w.flatten(1).min(1), w.flatten(1).max(1))).text


def test_hints_come_one_more_after_each_failure():
    """A stub counts as nothing; each failure adds a hint behind a fold of its own; passing resets nothing."""

    def stub(x):
        raise NotImplementedError("double it")

    def wrong(x):
        return x

    assert check.check(DOUBLE, stub).hints == ()
    assert check._session["double"].count == 0
    assert check.check(DOUBLE, wrong).hints == DOUBLE.hints[:1]
    assert check.check(DOUBLE, wrong).hints == DOUBLE.hints[:2]
    third = check.check(DOUBLE, wrong)
    assert third.hints == DOUBLE.hints
    assert third._repr_html_().count("<details") == 3
    assert check.check(DOUBLE, lambda x: 2 * x).passed
    assert check._session["double"].passed
    assert (check._session["double"].count, check._session["double"].failures) == (4, 3)


def test_a_raise_left_below_an_answer_is_no_stub():
    """The stub's dead `raise` below a return is harmless, and an answer that is wrong is told so."""

    def fitting_risk(h, b):
        return (h >= b.upper).long() - (h <= b.lower).long()
        raise NotImplementedError("compare H' with both bounds")

    assert check.fitting_risk(fitting_risk).passed

    def turned(h, b):
        return (h <= b.lower).long() - (h >= b.upper).long()
        raise NotImplementedError("compare H' with both bounds")

    assert "ends are swapped" in check.fitting_risk(turned).text


def test_figure_of_yours_against_expected_is_drawn_for_a_wrong_value():
    """An exercise with a plot shows both sets of numbers where values differ, and nothing where the shape does."""
    verdict = check.p_ds(lambda p, q: torch.softmax(q - p, -1))
    names = [trace.name for trace in verdict.figure.data]
    assert names == ["expected", "yours"]
    assert check.p_ds(lambda p, q: torch.zeros(1)).figure is None


def test_verdict_escapes_what_it_shows():
    """A learner's exception text cannot inject HTML into the page."""

    def evil(x):
        raise ValueError("<script>")

    html = examine(DOUBLE, evil)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_call_instead_of_the_function_is_a_users_mistake():
    """lab.check.x(f(…)) in place of lab.check.x(f) is explained in one line."""
    with pytest.raises(UserError, match="takes your function"):
        check.p_ds(torch.zeros(3))


def test_an_unknown_exercise_lists_the_known():
    """A misspelt exercise is an AttributeError that names those there are."""
    with pytest.raises(AttributeError, match="p_ds"):
        check.no_such_exercise  # noqa: B018
    assert set(dir(check)) == set(EXERCISES)


# Progress


def test_progress_counts_and_exports(tmp_path):
    """The panel lists every exercise of the course; the JSON holds notebook, passed and attempts of each."""
    check.p_ds(lambda p, q: p)
    check.p_ds(EXERCISES["p_ds"].reference)
    check.entropy(lambda p: p)
    rows = progress().as_json()["exercises"]
    assert rows.keys() == EXERCISES.keys()
    assert rows["p_ds"] == {"notebook": "01", "passed": True, "attempts": 2}
    assert rows["entropy"] == {"notebook": "01", "passed": False, "attempts": 1}
    assert rows["codes"]["attempts"] == 0
    html = progress()._repr_html_()
    here, _, rest = html.partition("<details>")
    assert "1 of" in rest and ">p_ds<" in here and ">codes<" not in here and ">codes<" in rest
    assert "01 p_ds: ✓ passed (2 tried)" in repr(progress())
    progress().save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == progress().as_json()


def test_progress_of_another_session_is_kept(tmp_path, monkeypatch):
    """Saving to the file of an earlier session keeps what was passed there: each notebook has a session of its own."""
    path = tmp_path / "p.json"
    check.p_ds(EXERCISES["p_ds"].reference)
    progress().save(path)
    for kept in ("_session", "_accepted", "_quizzes"):
        monkeypatch.setattr(check, kept, {})
    check.entropy(EXERCISES["entropy"].reference)
    progress().save(path)
    rows = json.loads(path.read_text())["exercises"]
    assert rows["p_ds"]["passed"] and rows["entropy"]["passed"] and not rows["codes"]["passed"]


@pytest.mark.parametrize("content", ["", "[]", '{"exercises": {"p_ds": 3}}', '{"a": 1}'])
def test_a_foreign_file_is_not_overwritten(tmp_path, content):
    """A file that is no progress file is refused in one line and left as it is."""
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(UserError, match="no progress file"):
        progress().save(path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*p\.json; name a file in a folder that exists and can be written to$"):
        progress().save(tmp_path / "nowhere" / "p.json")
