"""Fitted ranges: the end of each grid is where rounding costs least, found by brute force, and nothing else changes."""

import pytest
import torch
from helpers.tiny_games import BATCH, SHAPE, WARMUP, changed, play, state, tiny_game, tiny_teacher, twin

from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.registry import make_method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.range_fitting import FRACTIONS, fit_ranges, rounding_error


@pytest.mark.parametrize(("relu", "bits"), [("relu", 3), ("relu6", 4), ("none", 2), ("none", 8)])
def test_the_rounding_error_is_that_of_the_grid(relu, bits, generator):
    """For each fraction, by setting the range to it and rounding with the quantiser itself."""
    activation = QuantActivation(bits, relu).double()
    x = 3 * torch.randn(500, generator=generator, dtype=torch.float64)
    activation(x)
    activation.observing = False
    low, high = activation.range.low.clone(), activation.range.high.clone()
    found = rounding_error(x, activation)
    kept = x if relu == "none" else x.clamp(0, 6 if relu == "relu6" else None)
    for fraction, error in zip(FRACTIONS, found, strict=True):
        activation.range.low.copy_(low * fraction)
        activation.range.high.copy_(high * fraction)
        assert float(error) == pytest.approx(float((activation(x) - kept).square().sum()), rel=1e-9)


def test_a_range_is_cut_where_outliers_cost_less_than_steps():
    """1,000 values below 1 and a single 10 at three bits: the grid that ends at 10 has one step of 1.4 for nearly all."""
    student = quantize(tiny_teacher(), "3w3a")
    first = next(iter(student.activations().values()))
    x = torch.cat((torch.linspace(0, 1, 1000), torch.tensor([10.0])))
    first.range.high.fill_(10.0)
    errors = rounding_error(x, first)
    best = FRACTIONS[int(errors.argmin())]
    assert 0.1 <= best < 0.6
    by_hand = [float((((x / s).round().clamp(0, 7) * s - x) ** 2).sum()) for s in (10 * f / 7 for f in FRACTIONS)]
    assert errors.tolist() == pytest.approx(by_hand, rel=1e-4)


def test_fitting_lowers_the_error_of_every_range_and_touches_nothing_else():
    game = play(tiny_game(), WARMUP)
    student, images = game.student, torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1))
    before, high = state(game), [float(a.range.high) for a in student.activations().values()]
    fit_ranges(student, [images])
    ranges = set(changed(before, state(game)))
    assert ranges and all(".range." in name for name in ranges)
    shares = [float(a.range.high) / h for a, h in zip(student.activations().values(), high, strict=True)]
    assert all(min(abs(share - f) for f in FRACTIONS) < 1e-6 for share in shares) and min(shares) < 1
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_the_game_fits_once_when_the_warm_up_ends():
    """Until then it is AdaDFQ's game bit for bit; the ranges are cut after the last round of the warm-up and stay."""
    plus, plain = tiny_game(adadfq_plus()), tiny_game(adadfq())
    play(plus, WARMUP - 1)
    play(plain, WARMUP - 1)
    assert not changed(state(plus), state(plain))
    play(plus, 1)
    play(plain, 1)
    cut = changed(state(plus), state(plain))
    assert cut and all(".range." in name for name in cut)
    after = {name: value.clone() for name, value in state(plus).items() if ".range." in name}
    play(plus, 3)
    assert all(bool((state(plus)[name] == value).all()) for name, value in after.items())


def test_a_game_resumed_before_the_fit_fits_alike(tmp_path):
    """Saved in the warm-up and resumed, the ranges come out the same bits."""
    game = play(tiny_game(adadfq_plus()), WARMUP - 1)
    game.save(tmp_path / "game.ckpt")
    other = twin(game)
    resumed = type(game).resume(tmp_path / "game.ckpt", teacher=tiny_teacher())
    assert not changed(state(play(other, 3)), state(play(resumed, 3)))
    resumed.save(tmp_path / "later.ckpt")
    again = type(game).resume(tmp_path / "later.ckpt", teacher=tiny_teacher())
    assert not changed(state(play(other, 2)), state(play(again, 2)))


def test_what_is_clipped_passes_no_gradient_once_ranges_are_fitted():
    """In the warm-up the student's own rule holds; afterwards, resumed or not, the clipped one."""
    game = tiny_game(adadfq_plus())
    rules = []
    for _ in game.play(WARMUP + 2):
        rules.append({a.ste for a in game.student.activations().values()})
    assert rules == [{"identity"}] * WARMUP + [{"clipped"}] * 2


def test_without_a_warm_up_ranges_are_observed():
    game = play(tiny_game(adadfq_plus(), warmup=0, observe=2), 3)
    assert all(float(a.range.batches) == 2 for a in game.student.activations().values())


def test_its_name_makes_it_again():
    again = make_method("AdaDFQ+", **adadfq_plus(alpha_ds=0.3).settings)
    assert (again.name, again.ranges, again.settings["alpha_ds"]) == ("AdaDFQ+", "fitted", 0.3)
