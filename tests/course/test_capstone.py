"""The capstone: the learner's functions play AdaDFQ as the library does."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_games import CLASSES, SHAPE, tiny_teacher

import adadfq_lab as lab
from adadfq_lab.course import check
from adadfq_lab.course.capstone import PARTS, capstone
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError


@pytest.fixture(autouse=True)
def session(monkeypatch):
    for kept in ("_session", "_accepted", "_quizzes"):
        monkeypatch.setattr(check, kept, {})


def played(rounds: int = 4):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, *SHAPE), generator=random, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (40,), generator=random)
    data = ImageSet("tiny", "test", images, labels, tuple("abcde"), "noise")
    return capstone(rounds, teacher=tiny_teacher(), data=data)


def normalized_entropy(H, num_classes):
    return (H - H.min()) / (torch.tensor(float(num_classes)).log() - H.min())


def hinge(h, bounds):
    return F.relu(bounds.lower - h) + F.relu(h - bounds.upper)


def generator_objective(h, balance, bns, bounds):
    return lab.hinge(h, bounds).mean() + balance + bns


def test_the_librarys_own_functions_play_the_librarys_game():
    result = played()
    assert result.equal == 4
    assert result.accuracy[1] == result.accuracy[2]
    assert set(result.borrowed) == set(PARTS)
    assert "Borrowed" in repr(result) and "<table>" in result._repr_html_()


def test_the_learners_functions_play_and_are_named():
    """An H' whose minimum has a gradient is played against a library that does so too."""
    for name in ("normalized_entropy", "hinge", "generator_objective"):
        assert getattr(check, name)(globals()[name]).passed
    result = played()
    assert result.equal == 4
    assert set(result.own) == {"normalized_entropy", "hinge", "generator_objective"}
    assert any("minimum" in note for note in result.notes)


@pytest.mark.parametrize("name", PARTS)
def test_every_function_really_plays(name, monkeypatch):
    """A function that is off makes the games part: none is decoration."""
    right = check.EXERCISES[name].reference

    def off(*arguments):
        result = right(*arguments)
        if name == "play_round":
            return [2 * loss for loss in result]
        if name == "round_ste":
            return arguments[0].round()  # no gradient: Q would not learn
        if name == "codes":
            return result + 1
        return tuple(1.01 * part for part in result) if isinstance(result, tuple) else 1.01 * result + 0.001

    monkeypatch.setattr(check, "_accepted", {name: off})
    result = played(3)
    assert name in result.own
    assert result.equal < 3 or result.accuracy[1] != result.accuracy[2]


def test_an_answer_in_numpy_is_borrowed():
    assert check.game_value(lambda h: float((1 - h.detach().numpy()).mean())).passed
    assert "no gradient" in played(1).borrowed["game_value"]


def test_the_names_are_the_librarys_again_afterwards():
    before = lab.hinge
    check._accepted["hinge"] = hinge
    played(1)
    assert lab.hinge is before
    with pytest.raises(UserError, match="at least 1 round"):
        capstone(0)
