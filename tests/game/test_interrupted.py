"""Rounds are whole: an error or interrupt anywhere in a round leaves the game as it was before, or as it is after."""

import itertools
import sys

import pytest
import torch
from helpers.tiny_games import changed, play, state, tiny_game, tiny_teacher, twin, with_term

from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game, NonFiniteError
from adadfq_lab.game.undo import Undo
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.registry import make_method

ROUNDS = ("/adadfq_lab/game/", "/adadfq_lab/student/student.py", "/torch/optim/adam.py", "/torch/optim/sgd.py")
"""The files at whose lines a round is interrupted."""


class StruckError(BaseException):
    """Stands for KeyboardInterrupt: nothing catches it."""


def struck(game: Game, at: int) -> bool:
    """Plays one round that is interrupted before its line number `at`; whether it has so many lines."""
    lines = itertools.count(1)

    def local(frame, event, argument):
        if event == "line" and next(lines) == at:
            raise StruckError
        return local

    def enter(frame, event, argument):
        return local if any(part in frame.f_code.co_filename for part in ROUNDS) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        game.round()
    except StruckError:
        return True
    finally:
        sys.settrace(before)
    return False


def strikes(name: str, at: int, step: int, **options) -> int:
    """Interrupts round `at` of a game at every `step`-th line; checks each; how often the round had already been made."""
    teacher, first = tiny_teacher(), {"warmup": 2, "observe": 4, "student_lr": 1e-3}
    begun = play(tiny_game(make_method(name), teacher=teacher, **(first | options)), at)
    states = [state(play(twin(begun), rounds)) for rounds in range(3)]
    made = 0
    for line in itertools.count(1, step):
        game = twin(begun)
        if not struck(game, line):
            return made
        done = game.index - at
        assert changed(state(game), states[done]) == set(), line
        assert not any(activation.observing for activation in game.student.activations().values())
        assert changed(state(play(game, 2 - done)), states[2]) == set(), line
        made += done
    raise AssertionError


@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupt_anywhere_leaves_a_whole_round_or_none(at):
    """At lines all over the first round, and the first in which both players step: it goes on as if nothing had happened."""
    strikes("adadfq", at, 97)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at", "options"),
    [
        ("adadfq", 1, {}),
        ("adadfq", 4, {}),
        ("adadfq", 2, {"gains_every": 1}),
        ("adadfq+", 1, {}),
        ("adadfq+lsq", 3, {}),
        ("zaq", 1, {}),
        ("arc_ait", 3, {}),
        ("qimera", 3, {}),
    ],
)
def test_an_interrupt_at_any_line(name, at, options):
    """Every seventh line, of methods that move batch norms, fitted and learned ranges, and have optimizers of their own."""
    strikes(name, at, 7, **options)


def test_an_interrupt_while_it_is_put_back_is_put_back_later(monkeypatch):
    """A second Ctrl-C in the middle of putting back: whoever uses the game next finishes it."""
    game, wanted = play(tiny_game(), 3), state(play(tiny_game(), 4))

    def fails(*_: object) -> None:
        raise StruckError

    with monkeypatch.context() as broken:
        broken.setattr(game.generator_optimizer, "step", fails)  # Q has made its step by then
        broken.setattr(Undo, "put_back", fails)
        with pytest.raises(StruckError):
            game.round()
    assert changed(state(play(game, 1)), wanted) == set()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("player", ["generator", "student"])
def test_an_error_of_a_loss_leaves_the_game_as_it_was(error, player):
    """The same game plays on once the loss does no longer fail."""
    fails = [False]

    def term(r):
        if fails[0]:
            raise error("in the middle of a round")
        return 0 * (r.images.sum() + r.student_logits.sum())

    game = play(tiny_game(with_term(adadfq(), player, term)), 2)
    before, wanted = state(game), state(play(twin(game), 2))
    fails[0] = True
    with pytest.raises(error):
        game.round()
    assert changed(before, state(game)) == set()
    fails[0] = False
    assert changed(state(play(game, 2)), wanted) == set()


def test_a_loss_that_is_no_number_moves_nothing():
    """On a CPU each round is looked at before it moves anything, so that the game can be saved, and played at another rate."""
    bad = with_term(adadfq(), "student", lambda r: r.student_logits.sum() * (torch.nan if r.index == 3 else 0))
    game = play(tiny_game(bad), 3)
    before = state(game)
    with pytest.raises(NonFiniteError, match=r"^round 3: student\.extra is not finite"):
        game.round()
    assert changed(before, state(game)) == set()


def test_a_loss_that_uses_its_own_game_is_refused():
    """Saving, generating or playing in the middle of a round would see half of it."""
    asked = []

    def term(r):
        for ask in (lambda: game.generate(torch.arange(5)), lambda: next(game.play(1)), lambda: game.draw(), game.check):
            with pytest.raises(UserError, match="in the middle of a round"):
                ask()
            asked.append(ask)
        return 0 * r.images.sum()

    game = tiny_game(with_term(adadfq(), "generator", term))
    plain = with_term(adadfq(), "generator", lambda r: 0 * r.images.sum())
    assert changed(state(play(game, 1)), state(play(tiny_game(plain), 1))) == set()
    assert len(asked) == 4


def test_looking_at_real_images_does_not_calibrate():
    """The student of a game is called between its first rounds, while ranges follow G's images: the game stays the same."""
    game, plain = tiny_game(), tiny_game()
    for _ in range(4):
        game.student(9 * torch.ones(2, 2, 8, 8))
        assert not game.student.observing
        play(game, 1)
    assert changed(state(game), state(play(plain, 4))) == set()
    assert [r.observing for r in tiny_game().play(6)] == [True] * 4 + [False] * 2
