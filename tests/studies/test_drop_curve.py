"""The curve of drop against updates: a game that is looked at on the way is the game that is played without looking."""

import pytest
import torch
from helpers.tiny_games import CLASSES, SHAPE, tiny_game, tiny_teacher

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.studies.drop_curve import Point, Setting, means, play, quickest, table


@pytest.fixture(scope="module")
def images():
    random = torch.Generator().manual_seed(1)
    x = torch.randint(256, (200, *SHAPE), generator=random).to(torch.uint8)
    return ImageSet("own", "train", x, torch.randint(CLASSES, (200,), generator=random), tuple("abcde"), "200 images")


def test_the_drop_on_the_way_is_that_of_a_game_of_as_many_rounds(images):
    teacher, setting = tiny_teacher(), Setting(3, 1e-2)
    points = list(play(teacher, images, setting, method="adadfq+", bits="3w3a", seed=2, at=(4, 0, 4, 2)))
    assert [point.updates for point in points] == [0, 2, 4]
    assert points[0].seconds < points[1].seconds < points[2].seconds
    for point in points:
        schedule = Schedule(warmup=3, student_lr=1e-2)
        game = tiny_game(adadfq_plus(), teacher=teacher, seed=2, schedule=schedule)
        for _ in game.play(3 + point.updates):
            pass
        tops = [accuracy(network, images, teacher.normalize).top1 for network in (teacher, game.student)]
        assert point.drop == tops[0] - tops[1]


def test_means_are_over_seeds_and_the_quickest_is_within_the_goal():
    slow, fast = Setting(20), Setting(5, 1e-3)
    points = [
        Point(slow, 0, 10, 6.0, 3.0), Point(fast, 0, 10, 4.0, 2.0), Point(slow, 1, 10, 3.0, 5.0), Point(fast, 1, 10, 8.0, 4.0)
    ]  # fmt: skip
    found = means(points)
    assert [(one.setting, one.drop, one.drops, one.seconds) for one in found] == [
        (slow, 4.5, (6.0, 3.0), 4.0),
        (fast, 6.0, (4.0, 8.0), 3.0),
    ]
    assert [quickest(found, goal) for goal in (6.0, 5.0, 4.0)] == [found[1], found[0], None]
    lines = table(found, 0.5, (5.0, 4.0)).splitlines()
    assert lines[1].split() == ["warm-up", "20,", "rate", "its", "own", "10", "4.50", "4.0", "8", "6.00", "3.00"]
    assert lines[-2:] == ["within 5 points: 4.0 s: warm-up 20, rate its own, 10 updates", "within 4 points: not reached"]


@pytest.mark.parametrize("at", [(), (-1, 5)])
def test_updates_count_from_zero(images, at):
    with pytest.raises(UserError, match="updates must be some whole numbers from 0 on"):
        next(play(tiny_teacher(), images, Setting(1), method="adadfq", bits="3w3a", seed=0, at=at))
