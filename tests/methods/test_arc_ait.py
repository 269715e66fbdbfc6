"""Gradient inundation: SGD, but the integers move."""

import copy
import dataclasses

import pytest
import torch
from helpers.tiny_games import OBSERVE, WARMUP, changed, play, state, tiny_game, tiny_teacher, twin
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.methods.arc_ait import RESOLUTION, GradientInundation, arc_ait, multipliers
from adadfq_lab.methods.method import nesterov
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import codes, weight_qparams
from adadfq_lab.student.student import Student

SHARE = 0.01


def a_student(bits: str = "3w3a") -> Student:
    return quantize(tiny_teacher(), bits)


def with_gradients(student: Student, size: float, *, seed: int = 0) -> Student:
    random = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():  # laid out in memory as the parameter is, as autograd's are: fused steps rely on it
        parameter.grad = torch.empty_like(parameter).copy_(size * torch.randn(parameter.shape, generator=random))
    return student


def to_integers(student: Student) -> list[Tensor]:
    return [layer.integer_weight() for layer in student.layers().values()]


def optimizers(student: Student, lr: float, **options: object) -> tuple[GradientInundation, torch.optim.Optimizer, Student]:
    """Inundation for the student, plain SGD for a copy of it, and the copy."""
    plain = copy.deepcopy(student)
    made = GradientInundation(student, **({"share": SHARE} | options)), nesterov(plain, 0.0, FIDELITY["corrected"])
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = lr
    return *made, plain


def share_changed(before: Tensor, after: Tensor) -> float:
    return sum(a != b for a, b in zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)) / before.numel()


@pytest.mark.parametrize("bits", ["2w2a", "3w3a", "8w8a"])
@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e-3])
def test_a_share_of_the_integers_changes_in_every_step(size, bits):
    """Without a cap, of each tensor at least tau of the codes, counted one by one, however small the gradients are."""
    student = a_student(bits)
    optimizer, _, _ = optimizers(student, 1e-4)
    for seed in range(3):
        before = to_integers(student)
        with_gradients(student, size, seed=seed)
        optimizer.step()
        shares = [share_changed(a, b) for a, b in zip(before, to_integers(student), strict=True)]
        assert min(shares) >= SHARE
        assert max(shares) < 0.5  # and not everything


def test_the_multiplier_is_the_smallest_within_its_resolution(generator):
    """Against brute force over log2 kappa in steps of 1/16, which is also how far from the threshold it may be."""
    weights = [torch.randn(8, 4, 3, 3, generator=generator), torch.randn(5, 36, generator=generator)]
    moves = [1e-3 * torch.randn(w.shape, generator=generator) for w in weights]

    def share(w: Tensor, move: Tensor, kappa: float) -> float:
        before, after = (codes(v, *weight_qparams(v, 3), 3) for v in (w, w + kappa * move))
        return share_changed(before, after)

    kappa = multipliers(weights, moves, 3, "rounded", 0.05, 1000.0)
    for w, move, found in zip(weights, moves, kappa.tolist(), strict=True):
        reached = [i * RESOLUTION for i in range(int(10 / RESOLUTION)) if share(w, move, 2 ** (i * RESOLUTION)) >= 0.05]
        assert share(w, move, found) >= 0.05 > share(w, move, found / 2 ** (2 * RESOLUTION))
        assert abs(torch.tensor(found).log2() - reached[0]) <= 2 * RESOLUTION


def test_tensors_that_move_enough_take_plain_steps():
    """Where SGD alone changes the share, kappa is 1: the weights are SGD's to the bit. Others are longer moves the same way."""
    student = with_gradients(a_student(), 1e-3)
    start = [p.detach().clone() for p in student.parameters()]
    names = [n for n, _ in student.named_parameters()]
    student.layers()["conv1"].weight.grad.mul_(1e4)
    optimizer, sgd, plain = optimizers(student, 1e-2)
    with_gradients(plain, 1e-3)
    plain.layers()["conv1"].weight.grad.mul_(1e4)
    before = to_integers(plain)
    optimizer.step()
    sgd.step()
    enough = {
        id(dict(student.named_modules())[f"graph.{name}"].weight): share_changed(old, new) >= SHARE
        for name, old, new in zip(student.layers(), before, to_integers(plain), strict=True)
    }
    assert set(enough.values()) == {True, False}
    for name, p, q, s in zip(names, student.parameters(), plain.parameters(), start, strict=True):
        if enough.get(id(p), True):
            assert torch.equal(p, q), name
        else:
            longer, step = (p - s).double().flatten(), (q - s).double().flatten()
            assert longer.norm() > step.norm(), name
            assert torch.cosine_similarity(longer, step, 0) > 0.999, name


def test_with_a_cap_of_one_it_is_sgd():
    """A whole game of it is a game of plain Nesterov SGD, to the bit."""
    capped = dataclasses.replace(FIDELITY["corrected"], gi_cap=1.0)
    plain = dataclasses.replace(arc_ait(), student_optimizer=nesterov)
    games = [play(tiny_game(method, fidelity=capped), OBSERVE + 1) for method in (arc_ait(), plain)]
    a, b = ({k: v for k, v in state(game).items() if "_optimizer" not in k} for game in games)
    assert changed(a, b) == set()


@pytest.mark.parametrize("cap", [2.0, 100.0])
def test_the_cap_is_respected(cap):
    """Gradients of 1e-7 are too small for it: each weight moves by exactly cap times SGD's step, whatever the codes do."""
    student = a_student().double()
    start = {n: p.detach().clone() for n, p in student.named_parameters()}
    with_gradients(student, 1e-7)
    optimizer, _, _ = optimizers(student, 1e-4, cap=cap)
    quantised = {id(layer.weight) for layer in student.layers().values()}
    optimizer.step()
    for name, p in student.named_parameters():
        factor = cap if id(p) in quantised else 1.0
        torch.testing.assert_close(p - start[name], -factor * 1e-4 * 1.9 * p.grad, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("cap", [None, 100.0])
def test_no_gradient_moves_nothing(cap):
    """Zero or absent: weights stay to the bit and nothing becomes NaN, also in the second step."""
    student = with_gradients(a_student(), 0.0)
    before = [p.detach().clone() for p in student.parameters()]
    optimizer, _, _ = optimizers(student, 1e-2, cap=cap)
    optimizer.step()
    optimizer.step()
    for p in student.parameters():
        p.grad = None
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))


def test_steps_too_small_for_float32_are_not_lost():
    """A step of 1e-13 on a weight of 1 disappears in w - step; stretched from the gradient itself, it does not."""
    student = with_gradients(a_student(), 1e-9)
    optimizer, sgd, plain = optimizers(student, 1e-4)
    with_gradients(plain, 1e-9)
    before = to_integers(plain)
    sgd.step()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, to_integers(plain), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, to_integers(student), strict=True))


def test_every_parameter_of_the_student_is_in_one_group():
    """Each once: the quantised weights with their grid, the others without."""
    student = a_student("4w4a")
    groups = GradientInundation(student).param_groups
    assert [(g["bits"], g["zero_point"]) for g in groups] == [(4, "rounded"), (None, None)]
    assert {id(p) for p in groups[0]["params"]} == {id(layer.weight) for layer in student.layers().values()}
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in student.parameters())


def test_a_copied_game_plays_on_alike():
    """The optimizer's groups go with it."""
    game = play(tiny_game(arc_ait()), WARMUP + 1)
    copied = twin(game)
    assert changed(state(play(game, 2)), state(play(copied, 2))) == set()


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_that_makes_no_sense_is_refused(share):
    """In one line."""
    with pytest.raises(UserError, match="share must be between 0 and 1"):
        tiny_game(arc_ait(share=share))
