"""The bank of images: crops against interpolation, one batch after another, and what it remembers."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_games import BATCH, CLASSES, SHAPE, changed, play, state, tiny_game
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.methods.intraq import ImageBank, crop_boxes, intraq, marginal_distance, resized_crop, soft_inception
from adadfq_lab.teacher.features import pooled_features

WARMUP = 24  # four batches of six rounds


def bank_game(**options):
    return tiny_game(intraq(iterations=6), **({"warmup": WARMUP, "student_lr": None} | options))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Crops


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(0, 0, 6, 8), (1, 2, 4, 5), (0, 5, 3, 3), (2, 0, 4, 8), (5, 7, 1, 1)]
)
def test_boxes_on_pixels_are_cropped_and_resized(top, left, height, width, mirrored, generator):
    """What cutting the box out and bilinear interpolation make of it, in float64."""
    x = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64)
    box = [numbers(v, v) for v in (top, left, height, width)]
    expected = F.interpolate(x[..., top : top + height, left : left + width], (6, 8), mode="bilinear", align_corners=False)
    out = resized_crop(x, *box, torch.tensor([mirrored, False]))
    assert torch.allclose(out[0], expected[0].flip(-1) if mirrored else expected[0], atol=1e-12)
    assert torch.allclose(out[1], expected[1], atol=1e-12)


def test_boxes_between_pixels_by_loops(generator):
    """Every output pixel is the bilinear mixture of the four pixels around its place, which stays in the box."""
    x = torch.randn(1, 1, 5, 5, generator=generator, dtype=torch.float64)
    top, left, height, width = 0.7, 1.2, 3.4, 2.6
    out = resized_crop(x, *(numbers(v) for v in (top, left, height, width)), torch.tensor([False]))

    def place(i: int, start: float, length: float) -> tuple[int, float]:
        where = start + min(max((i + 0.5) * length / 5 - 0.5, 0), length - 1)
        return math.floor(where), where - math.floor(where)

    for i in range(5):
        for j in range(5):
            (a, u), (b, v) = place(i, top, height), place(j, left, width)
            p = x[0, 0, a : a + 2, b : b + 2]
            expected = (1 - u) * ((1 - v) * p[0, 0] + v * p[0, 1]) + u * ((1 - v) * p[1, 0] + v * p[1, 1])
            assert float(out[0, 0, i, j]) == pytest.approx(float(expected), rel=1e-12)


def test_gradients_pass_a_crop(generator):
    """To the pixels, as finite differences have them."""
    x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    box = (numbers(0.3, 1), numbers(0.2, 0), numbers(2.5, 3), numbers(3.1, 2))
    assert torch.autograd.gradcheck(lambda v: resized_crop(v, *box, torch.tensor([True, False])), (x,))


def test_boxes_are_those_of_random_resized_crops(generator):
    """Areas from a half on, aspect ratios from 3/4 to 4/3, inside the image; ends by hand."""
    top, left, height, width = crop_boxes(torch.rand(5000, 4, generator=generator, dtype=torch.float64))
    area, ratio = height * width, width / height
    assert 0.5 <= float(area.min()) < 0.51
    assert float(area.mean()) == pytest.approx(0.75, abs=0.01)
    assert 0.75 <= float(ratio.min()) < 0.76
    assert 1.32 < float(ratio.max()) <= 4 / 3
    assert 0.99 < float(height.max()) <= 1
    for start, length in ((top, height), (left, width)):
        assert float(start.min()) >= 0
        assert float((start + length).max()) <= 1
    draws = torch.tensor([[0.0, 0.5, 0.0, 1.0], [1.0, 0.5, 0.3, 0.3], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    s = math.sqrt(0.5)
    by_hand = ((0, 0, 0), (1 - s, 0, 0), (s, 1, math.sqrt(3 / 8)), (s, 1, math.sqrt(2 / 3)))
    for value, expected in zip(crop_boxes(draws), by_hand, strict=True):
        assert value.tolist() == pytest.approx(expected)


# One batch after another


def test_only_the_batch_on_the_bench_moves():
    """Six rounds each; no other pixel moves, nor does Adam's memory of it, and every step counts from 1 in its own batch."""
    game = bank_game()
    assert len(game.generator.batches) == 4
    for t in range(WARMUP):
        before = state(game)
        game.round()
        moved = {n for n in changed(before, state(game)) if n.startswith(("generator.batches", "generator_optimizer"))}
        assert {name.split(".")[-1 if name.startswith("generator.") else 1] for name in moved} == {str(t // 6)}
    steps = [float(s["step"]) for s in game.generator_optimizer.state_dict()["state"].values()]
    assert steps == [6.0] * 4


def test_when_the_warm_up_ends_the_images_stay():
    """Q learns; no pixel, no target and no centre moves any more."""
    game = play(bank_game(), WARMUP + 1)
    before = state(game)
    play(game, 5)
    moved = changed(before, state(game))
    assert not any(name.startswith("generator") for name in moved)
    assert any(name.startswith("student.") for name in moved)


def test_every_round_of_the_warm_up_sees_the_whole_bench():
    """Each image of it once, of class i mod C; in about half of the rounds uncropped, in the others no image is."""
    game, cropped = bank_game(batch=6), []
    bank = game.generator
    for t in range(WARMUP):
        game.index = t
        z, y = game.draw()
        k = t // 6
        chosen = bank.choose(z, y)
        assert chosen.tolist() == list(range(6 * k, 6 * k + 6))
        assert y.tolist() == [i % CLASSES for i in range(6 * k, 6 * k + 6)]
        same = [torch.equal(a, b) for a, b in zip(bank(z, y), bank.batches[k], strict=True)]
        assert len(set(same)) == 1
        cropped.append(not same[0])
    assert WARMUP / 4 < sum(cropped) < 3 * WARMUP / 4


def test_the_learning_rate_falls_along_half_a_cosine_in_every_batch():
    """1, then (1 + cos(pi i / 6)) / 2; afterwards it does not matter."""
    bank = bank_game().generator
    for k in range(4):
        rates = [bank.rate(6 * k + i) for i in range(6)]
        assert rates == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)])


@pytest.mark.parametrize(
    ("warmup", "batch", "batches"), [(0, 4, 2), (5, 4, 2), (12, 8, 2), (13, 5, 2), (24, 16, 4), (60, 2, 10)]
)
def test_the_bank_is_as_large_as_the_warm_up_allows(warmup, batch, batches):
    """A batch for every six rounds, but at least an image a class; any warm-up and any batch play."""
    game = bank_game(warmup=warmup, batch=batch)
    assert len(game.generator.batches) == batches
    play(game, warmup + 1)
    labels = torch.arange(CLASSES).repeat(3)
    assert game.generate(labels).shape == (15, *SHAPE)


def test_a_batch_without_rounds_is_refused():
    """In one line."""
    with pytest.raises(UserError, match="iterations must be at least 1, not 0"):
        tiny_game(intraq(iterations=0))


def test_generated_images_are_whole_images_of_their_class():
    """Every one is in the bank, under a number that belongs to the class asked for; all of them come up."""
    game = play(bank_game(), WARMUP)
    bank = torch.cat(list(game.generator.batches)).detach()
    labels = torch.arange(CLASSES).repeat(40)
    seen = set()
    for image, label in zip(game.generate(labels, seed=3), labels.tolist(), strict=True):
        (number,) = (i for i, other in enumerate(bank) if torch.equal(image, other))
        assert number % CLASSES == label
        seen.add(number)
    assert seen == set(range(16))


# What it remembers


def test_class_centres_are_means_over_finished_images():
    """After two batches of four: the features of their images as they are now, class by class; of other classes nothing."""
    game = play(bank_game(), 13)  # the first round of the third batch
    bank: ImageBank = game.generator
    features, _ = pooled_features(game.teacher)
    with torch.no_grad():
        f = features(torch.cat(list(bank.batches)[:2]))
    notes = bank.notes(torch.zeros(CLASSES, 1), torch.arange(CLASSES))
    for c in range(CLASSES):
        assert torch.allclose(notes["centre"][c], f[[i for i in range(8) if i % CLASSES == c]].mean(0), atol=1e-5)
    assert notes["seen"].all()
    assert bank.counts.tolist() == [2, 2, 2, 1, 1]
    first = bank_game().generator.notes(torch.zeros(CLASSES, 1), torch.arange(CLASSES))
    assert not first["seen"].any()
    assert not first["centre"].any()


def test_targets_are_one_or_not_far_below():
    """Half of them 1, the others uniform from `easiest` on; of the seed alone."""
    bank = tiny_game(intraq(iterations=1, easiest=0.6), batch=16, warmup=125).generator
    soft = bank.targets[bank.targets < 1]
    assert len(bank.targets) == 2000
    assert 900 < len(soft) < 1100
    assert 0.6 <= float(soft.min()) < 0.61
    assert float(soft.mean()) == pytest.approx(0.8, abs=0.01)


def test_soft_inception_by_hand():
    """Probabilities 3/4 and 1/2 against targets 1 and 0.9: (1/16 + 0.16) / 2."""
    logits = torch.log(numbers(3, 1, 1, 1)).view(2, 2)
    assert float(soft_inception(logits, torch.tensor([0, 1]), numbers(1, 0.9))) == pytest.approx((0.0625 + 0.16) / 2)


def test_marginal_distance_by_hand():
    """At distances 0, 1 and 2 in the band [0.2, 0.9], 0.2, 0.1 and 1.1 are outside; images of unseen classes do not count."""
    f = numbers(1, 0, 0, 2, -3, 0).view(3, 2)
    centre = numbers(5, 0).expand(3, 2)
    for seen, expected in (((1, 1, 1), 1.4 / 3), ((1, 0, 1), 0.65), ((0, 1, 0), 0.1), ((0, 0, 0), 0)):
        assert float(marginal_distance(f, centre, torch.tensor(seen) > 0, 0.2, 0.9)) == pytest.approx(expected)


@pytest.mark.parametrize("lower", [0.05, 0.6])
def test_gradients_of_both_losses_are_finite_differences(lower, generator):
    """In float64; a class that was not seen gives none."""
    f, centre = (torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    seen = torch.tensor([True, True, False, True])
    f.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: marginal_distance(v, centre, seen, lower, 0.8), (f,))
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: soft_inception(v, torch.tensor([0, 2, 1, 1]), f.detach()[:, 0]), (z,))
    (gradient,) = torch.autograd.grad(marginal_distance(f, centre, seen, 0.6, 0.8), f)
    assert not gradient[2].any()


def test_ranges_are_observed_on_finished_images():
    """From ten rounds before the warm-up ends until `observe` rounds after it, not while pixels are noise."""
    game = bank_game(observe=3)
    observing = [record.observing for record in game.play(WARMUP + 6)]
    assert observing == [WARMUP - 10 <= t < WARMUP + 3 for t in range(WARMUP + 6)]
    assert BATCH == 4
