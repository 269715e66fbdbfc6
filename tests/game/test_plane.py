"""The game in the plane: what the picture shows is what the game computes, and the dials do what their text says."""

import math

import pytest
import torch
from torch import Tensor

from adadfq_lab.equations import Bounds
from adadfq_lab.game.dials import FREE, PAPER, Dials
from adadfq_lab.game.game import Game
from adadfq_lab.game.plane import SIDE, field, plane_game, plane_teacher, spiral
from adadfq_lab.teacher.teacher import Teacher

WALLS = Bounds(0.7, 0.85)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return plane_teacher()


def share_inside(game: Game, rounds: int = 150) -> float:
    """The share of the last round's samples whose H / log C lies between the walls."""
    *_, record = game.play(rounds)
    h = record.entropy / math.log(3)
    return float(((h > WALLS.lower) & (h < WALLS.upper)).float().mean())


def state(game: Game) -> list[Tensor]:
    return [value.clone() for module in (game.generator, game.student) for value in module.state_dict().values()]


def test_the_teacher_knows_the_spiral(teacher):
    """P is right on 98 % and more of 1,000 new points; the same seed gives the same weights, whatever torch drew before."""
    points, labels = spiral(1000, torch.Generator().manual_seed(1))
    assert (teacher(points).argmax(1) == labels).float().mean() > 0.98
    torch.rand(3)
    again = plane_teacher().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in teacher.state_dict().items())


def test_samples_follow_the_walls_when_nothing_else_pulls(teacher):
    """With the floor at zero, no other terms and Q held, nine samples in ten end between the walls; Q that learns undoes it."""
    assert share_inside(plane_game(Dials(WALLS, "zero", 0.0, 0.0, student_learns=False), teacher=teacher)) > 0.9
    assert share_inside(plane_game(Dials(WALLS, "zero", 0.0, 0.0, student_learns=True), teacher=teacher)) < 0.1


def test_dials_turn_between_rounds(teacher):
    """Each dial counts from the next round on: the terms there are, the floor of H', whether Q moves."""
    game = plane_game(FREE, teacher=teacher)
    (record,) = game.play(1)
    assert set(record.terms) == {"generator.band", "student.entropy"} and record.h_prime.min() > 0
    before = [p.clone() for p in game.student.parameters()]
    (_,) = game.play(1)
    assert all(map(torch.equal, before, game.student.parameters()))
    PAPER.turn(game)
    (record,) = game.play(1)
    assert {"generator.ds", "generator.as", "generator.bns"} < set(record.terms) and record.h_prime.min() == 0
    assert not all(map(torch.equal, before, game.student.parameters()))


def test_the_field_is_what_the_players_compute(teacher):
    """At a grid point it holds the entropy by hand, in units of log 3, and both classes; looking changes nothing."""
    game = plane_game(teacher=teacher)
    before = state(game)
    seen = field(game, size=5)
    assert all(map(torch.equal, before, state(game)))
    point = torch.tensor([-SIDE / 2, SIDE])[None, :, None, None]  # column 1, row 4
    with game.student.frozen(), torch.no_grad():
        z_p, z_q = teacher(point)[0], game.student(point)[0]
    p = torch.softmax(z_p - z_q, 0).tolist()
    assert float(seen.h_prime[4, 1]) == pytest.approx(-sum(v * math.log(v) for v in p) / math.log(3), abs=1e-5)
    torch.testing.assert_close(seen.teacher[4, 1], z_p)
    torch.testing.assert_close(seen.student[4, 1], z_q)
