"""Learned ranges: LSQ's gradient element by element, grids that start from the fitted ones, and integers at the end of it."""

import dataclasses
import math

import pytest
import torch
from helpers.tiny_games import SCHEDULE, SHAPE, WARMUP, changed, play, state, tiny_game, tiny_teacher, twin
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.game.game import Game
from adadfq_lab.integers.inference import run_integer
from adadfq_lab.integers.layers import to_integers
from adadfq_lab.integers.packing import pack, unpack
from adadfq_lab.methods.adadfq_lsq import adadfq_lsq
from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.arc_ait import arc_ait
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.method import Rates
from adadfq_lab.methods.registry import BEYOND, make_method
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.players import build_game
from adadfq_lab.student.learned_scales import learned_quantize
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import QuantActivation, codes, dequantize, fake_quantize, quant_range, weight_qparams
from adadfq_lab.student.range_fitting import fit_ranges
from adadfq_lab.student.student_files import load_student, quantization_json, save_student

RATES = {"student_lr": 1e-2}


def weights(generator: torch.Generator, bits: int, narrower: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """A weight `(4, 3, 2, 2)` and grids over its channels that reach to less than their ends, in float64."""
    x = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    scale, zero_point = weight_qparams(narrower * x, bits)
    return x, scale, zero_point


def lsq(x: float, scale: float, zero_point: int, lowest: int, highest: int) -> tuple[float, float, float]:
    """(x_hat, d x_hat / d x, d x_hat / d scale) of one number, as the paper prints them, nothing shared with the code."""
    v = x / scale + zero_point
    if v <= lowest:
        return (lowest - zero_point) * scale, 0.0, lowest - zero_point
    if v >= highest:
        return (highest - zero_point) * scale, 0.0, highest - zero_point
    return (round(v) - zero_point) * scale, 1.0, round(v) - v


# The formula


def test_the_gradient_of_a_scale_by_hand():
    """Grid 0, 0.5, ..., 3.5: -1 is clipped to 0 (gradient 0), 0.6 is 1.2 steps (1 - 1.2), 9 is clipped to seven steps (7); of
    three values a sample, the sum is taken times 1/sqrt(3 x 7)."""
    x = torch.tensor([[-1.0, 0.6, 9.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    out = learned_quantize(x, scale, None, 0, 7)
    assert out.tolist() == [[0, 0.5, 3.5]]
    of_x, of_scale = torch.autograd.grad(out.sum(), (x, scale))
    assert of_x.tolist() == [[0, 1, 0]]
    assert float(of_scale) == pytest.approx((0 - 0.2 + 7) / math.sqrt(21), rel=1e-12)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_gradients_are_lsqs_number_by_number(bits, generator):
    """Per output channel with a zero point, and per tensor from 0: values, and gradients of sum g x_hat for any g."""
    x, scale, zero_point = weights(generator, bits)
    g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    lowest, highest = quant_range(bits)
    x.requires_grad_(), scale.requires_grad_()
    out = learned_quantize(x, scale, zero_point, *quant_range(bits))
    of_x, of_scale = torch.autograd.grad((g * out).sum(), (x, scale))
    for i in range(len(x)):
        z, s = int(zero_point[i]), float(scale[i].detach())
        each = [lsq(v, s, z, lowest, highest) for v in x[i].flatten().tolist()]
        assert out[i].flatten().tolist() == pytest.approx([e[0] for e in each], rel=1e-12)
        assert of_x[i].flatten().tolist() == [a * e[1] for a, e in zip(g[i].flatten().tolist(), each, strict=True)]
        total = sum(a * e[2] for a, e in zip(g[i].flatten().tolist(), each, strict=True))
        assert float(of_scale[i]) == pytest.approx(total / math.sqrt(12 * highest), rel=1e-9, abs=1e-12)
    step = torch.tensor(1.7 / (2**bits - 1), dtype=torch.float64, requires_grad=True)
    out = learned_quantize(x, step, None, 0, 2**bits - 1)
    of_x, of_step = torch.autograd.grad((g * out).sum(), (x, step))
    each = [lsq(v, float(step.detach()), 0, 0, 2**bits - 1) for v in x.flatten().tolist()]
    assert out.flatten().tolist() == pytest.approx([e[0] for e in each], rel=1e-12)
    total = sum(a * e[2] for a, e in zip(g.flatten().tolist(), each, strict=True))
    assert float(of_step) == pytest.approx(total / math.sqrt(12 * (2**bits - 1)), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_gradient_of_a_scale_is_the_slope_where_rounding_is_held(bits, generator):
    """Central differences in float64 of (clamp(x/scale + z) + r - z) scale, with the rounding's own share r left as it is."""
    x, scale, zero_point = weights(generator, bits)
    lowest, highest = quant_range(bits)
    clamped = (x / scale + zero_point).clamp(lowest, highest)
    held = clamped.round() - clamped

    def value(s: Tensor) -> Tensor:
        return ((x / s + zero_point).clamp(lowest, highest) + held - zero_point).mul(s).flatten(1).sum(1)

    h = 1e-7 * scale
    slope = (value(scale + h) - value(scale - h)) / (2 * h.flatten())
    scale.requires_grad_()
    (of_scale,) = torch.autograd.grad(learned_quantize(x, scale, zero_point, *quant_range(bits)).sum(), scale)
    torch.testing.assert_close(of_scale.flatten() * math.sqrt(12 * highest), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_what_it_computes_is_fake_quantization(bits, generator):
    """The forward is bit for bit that of a grid which is not learned, and (q - zero_point) * scale of its codes."""
    x = torch.randn(6, 5, 3, 3, generator=generator)
    scale, zero_point = weight_qparams(0.6 * x, bits)
    out = learned_quantize(x, scale, zero_point, *quant_range(bits))
    assert torch.equal(out, fake_quantize(x, scale, zero_point, bits))
    assert torch.equal(out, dequantize(codes(x, scale, zero_point, bits), scale, zero_point))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("relu", ["none", "relu", "relu6"])
def test_an_activation_computes_the_same_learned_or_not(relu, bits, generator):
    """Observed, then fixed: the grid of a learned range is the observed one until something moves it."""
    x = 3 * torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    plain, learned = QuantActivation(bits, relu), QuantActivation(bits, relu)
    learned.learn_range()
    for activation in (plain, learned):
        activation(x)
        activation.observing = False
    y = 1.5 * x + 0.01
    assert torch.equal(plain(y), learned(y))
    assert plain(y).stride() == learned(y).stride()
    assert [float(q) for q in plain.qparams()] == [float(q) for q in learned.qparams()]


@pytest.mark.parametrize("relu", ["none", "relu", "relu6"])
def test_while_a_range_is_observed_it_is_not_learned(relu, generator):
    """Its scale follows the batch and has no gradient; afterwards the batch does not move it, and it has one."""
    x = torch.randn(4, 3, generator=generator).requires_grad_()
    activation = QuantActivation(3, relu)
    activation.learn_range()
    assert activation.grid is not None
    out = activation(x)
    assert torch.autograd.grad(out.sum(), (x, activation.grid.scale), allow_unused=True)[1] is None
    activation.observing = False
    before = activation.grid.scale.detach().clone()
    (gradient,) = torch.autograd.grad(activation(2 * x).square().sum(), activation.grid.scale)
    assert bool(gradient.isfinite()) and bool(gradient) and torch.equal(before, activation.grid.scale)


def test_a_relu6_clips_at_six_wherever_its_grid_ends():
    """With steps of 1.5 the grid of three bits reaches to 10.5; 8 is clipped to 6 and passes nothing to the image."""
    activation = QuantActivation(3, "relu6")
    activation.learn_range()
    activation.observing = False
    assert activation.grid is not None
    activation.grid.place(torch.tensor(1.5), torch.tensor(-4.0))
    x = torch.tensor([[-1.0, 2.0, 8.0]], requires_grad=True)
    out = activation(x)
    assert out.tolist() == [[0, 1.5, 6]]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_at_0_or_below_is_the_smallest_there_is(scale):
    """The network stays finite, its integers exist, and the gradient points back up where values are clipped."""
    activation = QuantActivation(3)
    activation.learn_range()
    activation.observing = False
    assert activation.grid is not None
    activation.grid.place(torch.tensor(scale), torch.tensor(-4.0))
    x = torch.ones(2, 3)
    out = activation(x)
    assert out.unique().tolist() == pytest.approx([7e-8]) and float(activation.qparams()[0]) == pytest.approx(1e-8)
    (gradient,) = torch.autograd.grad((out - x).square().sum(), activation.grid.scale)
    assert gradient < 0


def test_a_grid_on_a_low_precision_input_has_a_gradient_of_its_own_precision(generator):
    """Under bf16 autocast activations are bfloat16 and scales float32: the sum over values is taken in float32."""
    x = torch.randn(4, 3, 5, 5, generator=generator)
    scale = torch.tensor(0.2, requires_grad=True)
    (wide,) = torch.autograd.grad(learned_quantize(x.bfloat16().float(), scale, None, 0, 7).square().sum(), scale)
    (low,) = torch.autograd.grad(learned_quantize(x.bfloat16(), scale, None, 0, 7).square().sum(), scale)
    assert low.dtype == torch.float32 and float(low) == pytest.approx(float(wide), rel=0.1)


# The game


def test_until_the_warm_up_ends_it_is_the_game_of_adadfq_plus():
    """Bit for bit; and at its end activations are fitted alike, weights start from minimum and maximum."""
    lsq, plus = tiny_game(adadfq_lsq()), tiny_game(adadfq_plus())
    scales = {name for name in state(lsq) if ".grid." in name}
    assert len(scales) == 2 * len([*lsq.student.layers(), *lsq.student.activations()])
    for rounds in (WARMUP - 1, 1):
        play(lsq, rounds)
        play(plus, rounds)
        assert changed(state(lsq), state(plus)) == scales
    for a, b in zip(lsq.student.activations().values(), plus.student.activations().values(), strict=True):
        assert [float(q) for q in a.qparams()] == [float(q) for q in b.qparams()]
    for c, d in zip(lsq.student.layers().values(), plus.student.layers().values(), strict=True):
        assert torch.equal(c.quantized_weight(), d.quantized_weight())


def test_scales_learn_and_zero_points_and_observed_ranges_stay():
    """In every round after the warm-up every scale moves, unless its gradient is 0."""
    game = play(tiny_game(adadfq_lsq(), **RATES), WARMUP)
    before = state(game)
    play(game, 2)
    moved = changed(before, state(game))
    assert {f"student.{n}" for n, _ in game.student.named_parameters() if n.endswith("grid.scale")} <= moved
    assert not [name for name in moved if name.endswith("zero_point") or ".range." in name]


def test_scales_have_a_learning_rate_of_their_own_and_no_weight_decay():
    """One step of plain SGD by hand: -scale_lr x (1 + 0.9) x gradient for the first Nesterov step, decayed at milestones."""
    for milestones, factor in (((), 1.0), ((WARMUP,), 0.1)):
        method = dataclasses.replace(adadfq_lsq(), rates=Rates(scale_lr=0.02, weight_decay=0.5))
        game = play(tiny_game(method, milestones=milestones), WARMUP)
        before = [scale.detach().clone() for scale in game.student.learned_scales()]
        game.student_optimizer.zero_grad = lambda **_: None  # the gradients are to be seen
        play(game, 1)
        for scale, old in zip(game.student.learned_scales(), before, strict=True):
            assert scale.grad is not None
            torch.testing.assert_close(scale.detach(), old - factor * 0.02 * 1.9 * scale.grad, rtol=1e-5, atol=1e-8)


def test_without_a_warm_up_activations_are_observed_first_and_learned_after():
    game = play(tiny_game(adadfq_lsq(), warmup=0, observe=2, **RATES), 2)
    activations = list(game.student.activations().values())
    assert all(float(a.range.batches) == 2 for a in activations)
    assert all(torch.equal(a.qparams()[0], a.observed_qparams()[0]) for a in activations)
    play(game, 2)
    assert all(float(a.range.batches) == 2 for a in activations)
    assert not any(torch.equal(a.qparams()[0], a.observed_qparams()[0]) for a in activations)


@pytest.mark.parametrize("at", [0, WARMUP - 1, WARMUP, WARMUP + 2])
def test_a_game_is_resumed_bit_for_bit(at, tmp_path):
    """In the warm-up, at its end, and while scales learn: the same numbers, the optimizer's among them."""
    game = play(tiny_game(adadfq_lsq(), **RATES), at)
    game.save(tmp_path / "game.ckpt")
    resumed = Game.resume(tmp_path / "game.ckpt", teacher=tiny_teacher())
    assert not changed(state(game), state(resumed)) and resumed.student.quantization.learned
    assert not changed(state(play(twin(game), 3)), state(play(resumed, 3)))


@pytest.mark.parametrize("fidelity", FIDELITY)
def test_it_plays_at_every_fidelity(fidelity):
    """Finite terms in the warm-up and after; where zero points are real ("paper") they are as constant as integers are."""
    game = build_game(RunConfig(method="adadfq+lsq", fidelity=fidelity, schedule=SCHEDULE, device="cpu"), tiny_teacher())
    play(game, WARMUP)
    before = {name: value.clone() for name, value in state(game).items() if name.endswith("grid.zero_point")}
    for record in game.play(3):
        assert all(bool(term.isfinite()) for term in record.terms.values())
    assert before and all(torch.equal(state(game)[name], value) for name, value in before.items())


@pytest.mark.parametrize("make", [gdfq, adadfq_plus])
def test_any_method_can_learn_its_ranges(make):
    """ranges="learned" is a field like another; ARC+AIT's steps are made for grids that follow the weights, and says so."""
    game = play(tiny_game(dataclasses.replace(make(), ranges="learned"), **RATES), WARMUP + 1)
    assert game.student.quantization.learned
    with pytest.raises(UserError, match="gradient inundation counts codes on grids that follow the weights"):
        tiny_game(dataclasses.replace(arc_ait(), ranges="learned"))


def test_its_name_makes_it_again():
    """As it is written in tables and as it is stored in checkpoints."""
    for name in ("adadfq+lsq", "AdaDFQ+LSQ"):
        again = make_method(name, **adadfq_lsq(alpha_ds=0.3).settings)
        assert (again.name, again.ranges, again.settings["alpha_ds"]) == ("AdaDFQ+LSQ", "learned", 0.3)
    assert "adadfq+lsq" in BEYOND and adadfq_lsq().rates == Rates(student_lr=3e-4, scale_lr=1e-3)


# What is left of it


@pytest.mark.parametrize("bits", ["2w2a", "3w3a", "4w8a"])
def test_its_integers_are_its_forward(bits, tmp_path):
    """After a few steps: codes of n bits that stand for the very weights, the integer network's logits, packed and read."""
    game = play(tiny_game(adadfq_lsq(), bits=bits, **RATES), WARMUP + 3)
    student = game.student
    student.observing = False
    found = to_integers(student)
    for name, layer in found.layers.items():
        low, high = quant_range(layer.bits)
        assert layer.codes.min() >= low and layer.codes.max() <= high
        shape = (-1,) + (1,) * (layer.codes.dim() - 1)
        assert torch.equal(layer.centred * layer.weight_scale.view(shape), student.layers()[name].quantized_weight())
    x = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(1))
    errors = (run_integer(student, x) - student(x)).detach().abs().amax(1)
    assert float(errors.quantile(0.8)) < 1e-3  # a rounding tie may befall an image or two
    unpacked = unpack(pack(student, tmp_path / "student.packed"))
    for name, layer in unpacked.layers.items():
        assert torch.equal(layer.codes, found.layers[name].codes)


def test_an_exported_file_predicts_what_the_student_predicts(tmp_path):
    """ONNX Runtime on integers: every convolution, and the same class for every image but ties."""
    pytest.importorskip("onnxruntime")
    from adadfq_lab.integers.export import export_onnx
    from adadfq_lab.integers.verification import verify

    game = play(tiny_game(adadfq_lsq(), **RATES), WARMUP + 3)
    game.student.observing = False
    done = export_onnx(game.student, tmp_path / "q.onnx", shape=SHAPE)
    images = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = verify(done.file, images, student=game.student, repeats=1)
    assert found.ok and found.agreement >= 99


def test_a_student_comes_back_bit_for_bit_from_its_file(tmp_path):
    """With its scales; and a file of a student without them says so by saying nothing."""
    teacher = tiny_teacher()
    game = play(tiny_game(adadfq_lsq(), teacher=teacher, **RATES), WARMUP + 2)
    game.student.observing = False
    save_student(game.student, teacher, tmp_path / "student.safetensors")
    _, again = load_student(tmp_path / "student.safetensors", teacher)
    assert again.quantization == game.student.quantization and again.quantization.learned
    x = torch.randn(3, *SHAPE)
    assert torch.equal(again(x), game.student(x))
    assert not quantization_json(quantize(teacher, "3w3a"))["learned"]


def test_the_report_says_so():
    student = quantize(tiny_teacher(), "3w3a")
    assert "learned" not in student.report()
    student.learn_ranges()
    assert student.report().count("scales learned") == 2
    assert quantize(tiny_teacher(), "3w3a", learned=True).report() == student.report()


def test_fitting_places_the_grids_of_activations():
    """A learned grid ends where the fitted range ends."""
    student = quantize(tiny_teacher(), "3w3a", learned=True)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    student(x)
    wide = [float(a.qparams()[0]) for a in student.activations().values()]
    fit_ranges(student, [x])
    for activation, before in zip(student.activations().values(), wide, strict=True):
        assert float(activation.qparams()[0]) == pytest.approx(float(activation.range.high) / 7)
        assert float(activation.qparams()[0]) <= before
