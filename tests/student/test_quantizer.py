"""Eq. (18): codes and grids by hand, against torch's own operators, and as properties of any tensor."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.student.quantizer import (
    BitWidths,
    QuantActivation,
    Range,
    codes,
    dequantize,
    fake_quantize,
    qparams,
    quant_range,
    quantize_linear,
    weight_qparams,
)

BITS = range(2, 9)
THETA = torch.tensor([-1.0, 0.0, 0.6, 1.0, 2.0], dtype=torch.float64)


def close(actual: Tensor, expected: object, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def equal_up_to_ties(ours: Tensor, theirs: Tensor, position: Tensor, step: Tensor, most: int) -> None:
    """Equal, except for at most `most` elements: these lie halfway between two codes and went to either neighbour."""
    differ = ~torch.isclose(ours, theirs, rtol=1e-5, atol=0)
    assert int(differ.sum()) <= most, f"{int(differ.sum())} of {ours.numel()} differ"
    distance_to_tie = (position - position.floor() - 0.5).abs()
    assert (distance_to_tie[differ] < 1e-4).all()
    torch.testing.assert_close((ours - theirs).abs()[differ], step.expand_as(ours)[differ], rtol=1e-4, atol=0)


# By hand


@pytest.mark.parametrize(("bits", "expected"), [(2, (-2, 1)), (3, (-4, 3)), (4, (-8, 7)), (8, (-128, 127))])
def test_codes_of_n_bits_reach_from_minus_two_to_the_n_minus_one(bits, expected):
    """quant_min = -2^(n-1) and quant_max = 2^(n-1) - 1."""
    assert quant_range(bits) == expected


def test_eq_18_to_the_letter_by_hand():
    """For theta in [-1, 2] and n = 3, round(7 (theta + 1)/3 - 4) is -4, round(-1.67), round(-0.27), round(0.67), 3."""
    assert quantize_linear(THETA, 3).tolist() == [-4, -2, 0, 1, 3]


def test_real_zero_point_by_hand():
    """scale = 3/7 and zero_point = -4 + 7/3: the ends -1 and 2 are represented exactly, 0 is not."""
    scale, zero_point = qparams(THETA.min(), THETA.max(), 3, zero_point="real")
    close(scale, 3 / 7)
    close(zero_point, -5 / 3)
    close(fake_quantize(THETA, scale, zero_point, 3), [-1, -1 / 7, 5 / 7, 8 / 7, 2])


def test_rounded_zero_point_by_hand():
    """round(-7/3) = -2 gives zero_point = -2: codes -4, -2, -1, 0, 3, which stand for -6/7, 0, 3/7, 6/7 and 15/7."""
    scale, zero_point = qparams(THETA.min(), THETA.max(), 3)
    close(zero_point, -2)
    assert codes(THETA, scale, zero_point, 3).tolist() == [-4, -2, -1, 0, 3]
    close(fake_quantize(THETA, scale, zero_point, 3), [-6 / 7, 0, 3 / 7, 6 / 7, 15 / 7])


def test_ties_go_to_the_even_code():
    """With scale 1 and zero_point 0, the values 0.5, 1.5, 2.5 and -0.5, -1.5 have codes 0, 2, 2 and 0, -2."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert codes(x, torch.tensor(1.0), torch.tensor(0.0), 4).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("bits", BITS)
def test_constant_tensor_gets_the_lowest_code(bits):
    """Where max = min, Eq. (18) is 0/0: every code is quant_min, and nothing is NaN."""
    theta = torch.full((5,), 0.7)
    assert set(quantize_linear(theta, bits).tolist()) == {quant_range(bits)[0]}
    zero = torch.zeros(5)
    close(fake_quantize(zero, *qparams(zero.min(), zero.max(), bits), bits), zero)


def test_eq_18_of_a_narrow_range_far_from_zero_by_hand():
    """For theta = 2^20 + (0, 1/4, 1) in float32 and n = 8: -128, round(255/4 - 128) = -64 and 127, as for (0, 1/4, 1)."""
    theta = torch.tensor([0.0, 0.25, 1.0])
    assert quantize_linear(2**20 + theta, 8).tolist() == quantize_linear(theta, 8).tolist() == [-128, -64, 127]


@pytest.mark.parametrize("size", [1e-38, 1e-12, 1.0, 1.5e38])
def test_eq_18_of_a_range_of_any_width_by_hand(size):
    """(-1, 0, 1) and its multiples are -4, round(3.5 - 4) = 0 and 3 at three bits, also where max - min overflows float32."""
    assert quantize_linear(torch.tensor([-size, 0.0, size]), 3).tolist() == [-4, 0, 3]


def test_eq_18_of_what_has_no_range():
    """No numbers have no codes; infinite and NaN are an error, not a code outside the grid."""
    assert quantize_linear(torch.empty(0, 3), 3).shape == (0, 3)
    for wrong in (math.inf, math.nan):
        with pytest.raises(ValueError, match="theta has infinite or NaN entries"):
            quantize_linear(torch.tensor([0.0, wrong]), 3)


def test_an_empty_batch_moves_no_range():
    """No images in, no numbers out; the range is as before."""
    quantizer = QuantActivation(3)
    assert quantizer(torch.empty(0, 4)).shape == (0, 4) and not quantizer.range.batches
    quantizer(torch.tensor([1.0, 2.0]))
    quantizer(torch.empty(0, 4))
    assert float(quantizer.range.high) == pytest.approx(2) and int(quantizer.range.batches) == 1


@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-4, 4)), st.sampled_from(BITS))
def test_eq_18_is_its_formula_in_plain_python(theta, bits):
    """quantize_linear(theta) = round((2^n - 1)(theta - min)/(max - min) - 2^(n-1)), except within rounding of a tie."""
    low, high = theta.min(), theta.max()
    if high - low < 1e-6:
        return
    for value, code in zip(theta, quantize_linear(torch.from_numpy(theta), bits).tolist(), strict=True):
        exact = (2**bits - 1) * (value - low) / (high - low) - 2 ** (bits - 1)
        assert code == round(exact) or abs(exact - math.floor(exact) - 0.5) < 1e-6
        assert quant_range(bits)[0] <= code <= quant_range(bits)[1]


def test_bit_widths_are_read_and_written_alike():
    """parse(str(b)) = b for all 49 pairs from 2 to 8."""
    pairs = [BitWidths(w, a) for w in BITS for a in BITS]
    assert [BitWidths.parse(str(pair)) for pair in pairs] == pairs
    assert str(pairs[0]) == "2w2a"


@pytest.mark.parametrize(
    "text", ["", "3w3x", "3w", "w3a3", "1w3a", "3w9a", "3w3a ", "3w3a\n", "33w3a", "3W3A", "three", "٣w٣a"]
)
def test_what_is_not_a_bit_width_is_refused_in_one_line(text):
    """Anything but two digits from 2 to 8 in the form 3w3a is a UserError that shows the form."""
    with pytest.raises(UserError, match=r"write weights and activations as in 3w3a, 2 to 8 bits each$"):
        BitWidths.parse(text)


# Against torch's operators


@pytest.mark.parametrize("zero_point", ["rounded", "real"])
@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_is_torchs_operator_per_channel(bits, zero_point, generator):
    """fake_quantize equals torch.fake_quantize_per_channel_affine with a float zero point, ties aside."""
    weight = torch.randn(32, 16, 3, 3, generator=generator)
    scale, zero = weight_qparams(weight, bits, zero_point=zero_point)
    ours = fake_quantize(weight, scale, zero, bits)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale.flatten(), zero.flatten(), 0, *quant_range(bits))
    equal_up_to_ties(ours, theirs, weight.double() / scale.double() + zero.double(), scale, most=2)


@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_is_torchs_operator_per_tensor(bits, generator):
    """fake_quantize on [0, 1.3] equals torch.fake_quantize_per_tensor_affine, values beyond the range included, ties aside."""
    x = torch.randn(20_000, generator=generator)
    scale, zero = qparams(torch.tensor(0.0), torch.tensor(1.3), bits)
    ours = fake_quantize(x, scale, zero, bits)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), *quant_range(bits))
    equal_up_to_ties(ours, theirs, x.double() / scale.double() + zero.double(), scale, most=10)


@pytest.mark.parametrize("bits", BITS)
def test_zero_point_of_a_weight_is_itself_a_code(bits, generator):
    """Also for channels that do not straddle 0, zero_point is an integer in [quant_min, quant_max]: torch takes it as int32."""
    weight = torch.randn(8, 50, generator=generator)
    weight[0] += 10
    weight[1] -= 10
    weight[2] = 0
    scale, zero = weight_qparams(weight, bits)
    integers = zero.flatten().to(torch.int32)
    assert (integers == zero.flatten()).all()
    theirs = torch.fake_quantize_per_channel_affine(weight, scale.flatten(), integers, 0, *quant_range(bits))
    equal_up_to_ties(fake_quantize(weight, scale, zero, bits), theirs, weight.double() / scale.double(), scale, most=2)


@pytest.mark.parametrize("bits", BITS)
def test_clipped_gradient_is_torchs(bits, generator):
    """With ste="clipped", the gradient of x is that of torch's operator: 1 on the grid's reach and 0 beyond."""
    x = (3 * torch.randn(5_000, generator=generator)).requires_grad_()
    scale, zero = qparams(torch.tensor(-1.0), torch.tensor(2.0), bits)
    upstream = torch.randn(5_000, generator=generator)
    (ours,) = torch.autograd.grad(fake_quantize(x, scale, zero, bits, ste="clipped"), x, upstream)
    reference = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), *quant_range(bits))
    (theirs,) = torch.autograd.grad(reference, x, upstream)
    assert torch.equal(ours, theirs)


# Properties of any tensor

TENSORS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32, allow_subnormal=False)).map(
    torch.from_numpy
)


def grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return qparams(x.min().clamp(max=0), x.max().clamp(min=0), bits)


@given(TENSORS, st.sampled_from(BITS))
def test_k_bits_make_at_most_two_to_the_k_values_and_zero_is_one_of_them(x, bits):
    """|{x_hat}| <= 2^k, and 0 maps to 0 exactly."""
    x = torch.cat((x, torch.zeros(1)))
    out = fake_quantize(x, *grid(x, bits), bits)
    assert len(out.unique()) <= 2**bits
    assert (out[x == 0] == 0).all()


@given(TENSORS, st.sampled_from(BITS))
def test_codes_are_integers_of_k_bits_and_stand_for_the_fake_quantised_values(x, bits):
    """codes are int32 in [quant_min, quant_max], and dequantize(codes(x)) is fake_quantize(x) bit for bit."""
    scale, zero_point = grid(x, bits)
    q = codes(x, scale, zero_point, bits)
    low, high = quant_range(bits)
    assert q.dtype == torch.int32
    assert low <= int(q.min()) <= int(q.max()) <= high
    assert torch.equal(dequantize(q, scale, zero_point), fake_quantize(x, scale, zero_point, bits))


@given(TENSORS, st.sampled_from(BITS))
def test_fake_quantize_is_idempotent(x, bits):
    """fq(fq(x)) = fq(x) bit for bit: what lies on the grid stays."""
    scale, zero_point = grid(x, bits)
    once = fake_quantize(x, scale, zero_point, bits)
    assert torch.equal(fake_quantize(once, scale, zero_point, bits), once)


@given(TENSORS, st.sampled_from(BITS), st.sampled_from(["rounded", "real"]))
def test_fake_quantize_is_monotone(x, bits, zero_point):
    """x <= y implies fq(x) <= fq(y)."""
    out = fake_quantize(x.sort().values, *qparams(x.min(), x.max(), bits, zero_point=zero_point), bits)
    assert (out.diff() >= 0).all()


@given(TENSORS, st.sampled_from(BITS))
def test_error_inside_the_range_is_at_most_half_a_step(x, bits):
    """|x - fq(x)| <= scale/2 for every x in [low, high], also where rounding the offset has moved the ends of the grid."""
    scale, zero_point = grid(x, bits)
    assert ((x - fake_quantize(x, scale, zero_point, bits)).abs() <= scale * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("bits", BITS)
def test_a_broad_tensor_uses_every_code(bits, generator):
    """k bits are 2^k values, not fewer: a uniform channel takes all of them (8 for three bits)."""
    weight = torch.rand(3, 20_000, generator=generator) - 0.4
    for channel in fake_quantize(weight, *weight_qparams(weight, bits), bits):
        assert len(channel.unique()) == 2**bits


# The straight-through gradient


def test_straight_through_gradients_by_hand():
    """On the grid {-2..1}, x = (-3, -2.4, 0.3, 1.4, 1.6) gets upstream (1, 2, 3, 4, 5) whole, or (0, 2, 3, 4, 0) clipped."""
    x = torch.tensor([-3.0, -2.4, 0.3, 1.4, 1.6], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    zero_point = torch.tensor(0.0, requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    for ste, expected in (("identity", [1, 2, 3, 4, 5]), ("clipped", [0, 2, 3, 4, 0])):
        out = fake_quantize(x, scale, zero_point, 2, ste=ste)
        close(out, [-2, -2, 0, 1, 1])
        gradients = torch.autograd.grad(out, (x, scale, zero_point), upstream, allow_unused=True)
        close(gradients[0], expected)
        assert gradients[1] is None
        assert gradients[2] is None


# Observed ranges


def observe(rule: str, values: list[float]) -> list[float]:
    """The `high` of a Range after each of `values`."""
    found, seen = Range(rule), []
    for value in values:
        found.update(torch.tensor(-value), torch.tensor(value))
        assert float(found.low) == -float(found.high)
        seen.append(float(found.high))
    return seen


def test_corrected_average_of_ones_is_one():
    """u_t / (1 - 0.9^t) = 1 for every t: the bias of the start is gone from the first batch on."""
    assert observe("ema", [1.0] * 200) == pytest.approx([1.0] * 200, rel=1e-5)


def test_corrected_average_is_its_weighted_mean(generator):
    """After t batches the range is sum_i 0.9^(t-i) m_i / sum_i 0.9^(t-i)."""
    values = (torch.rand(30, generator=generator, dtype=torch.float64) + 0.5).tolist()
    for t, high in enumerate(observe("ema", values), start=1):
        weights = [0.9 ** (t - i) for i in range(1, t + 1)]
        assert high == pytest.approx(sum(w * m for w, m in zip(weights, values, strict=False)) / sum(weights), rel=1e-5)


def test_released_average_of_ones_blows_up_and_settles():
    """r <- (0.9 r + 0.1)/(1 - 0.9^t) goes 1, 5.263, 17.848, 47.000, 103.538, peaks near 3945 at t = 21, is 1 again by 175."""
    seen = [math.nan, *observe("ema_gdfq", [1.0] * 200)]
    assert seen[1:6] == pytest.approx([1, 5.263, 17.848, 47.000, 103.538], rel=1e-4)
    assert max(seen[1:]) == seen[21] == pytest.approx(3945, abs=1)
    for below, first in ((10, 89), (2, 110), (1.1, 132), (1.01, 153), (1.001, 175)):
        assert min(t for t in range(22, 201) if seen[t] < below) == first


def test_minmax_is_the_smallest_and_largest_ever():
    """After batches with ranges [1, 2], [-3, 0], [0, 5]: [1, 2], [-3, 2], [-3, 5]."""
    found = Range("minmax")
    for batch, expected in (((1.0, 2.0), (1, 2)), ((-3.0, 0.0), (-3, 2)), ((0.0, 5.0), (-3, 5))):
        found.update(*(torch.tensor(v) for v in batch))
        assert (float(found.low), float(found.high)) == expected


@pytest.mark.parametrize("rule", ["ema", "ema_gdfq", "minmax"])
def test_a_range_that_was_reset_is_as_new(rule):
    """reset() forgets: what follows equals what a new Range gives."""
    old, new = Range(rule), Range(rule)
    for _ in range(3):
        old.update(torch.tensor(-7.0), torch.tensor(9.0))
    old.reset()
    for found in (old, new):
        found.update(torch.tensor(-1.0), torch.tensor(2.0))
        found.update(torch.tensor(-2.0), torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(old.buffers(), new.buffers(), strict=True))


@pytest.mark.parametrize("rule", ["ema", "ema_gdfq", "minmax"])
def test_a_range_continues_from_its_state(rule):
    """A Range loaded from another's state dict goes on exactly as that one does."""
    one, other = Range(rule), Range(rule)
    one.update(torch.tensor(-7.0), torch.tensor(9.0))
    other.load_state_dict(one.state_dict())
    for found in (one, other):
        found.update(torch.tensor(-1.0), torch.tensor(2.0))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


# Activations

RELU = {"relu": torch.relu, "relu6": torch.nn.functional.relu6}


def fixed(relu: str, bits: int, high: float, ste: str = "identity", low: float = 0.0) -> QuantActivation:
    """A quantiser that observes no more, over [low, high]."""
    quantizer = QuantActivation(bits, relu, ste=ste)
    quantizer.range.low.fill_(low)
    quantizer.range.high.fill_(high)
    quantizer.observing = False
    return quantizer


@pytest.mark.parametrize("high", [1.3, 6.0, 8.5])
@pytest.mark.parametrize("relu", RELU)
@pytest.mark.parametrize("bits", BITS)
def test_relu_quantiser_is_relu_then_fake_quantize(bits, relu, high, generator):
    """In one function or two: the same values, ties aside, also where the range ends before or after the ReLU6 does."""
    x = 4 * torch.randn(20_000, generator=generator)
    scale, zero_point = qparams(torch.tensor(0.0), torch.tensor(high), bits)
    theirs = fake_quantize(RELU[relu](x), scale, zero_point, bits)
    equal_up_to_ties(fixed(relu, bits, high)(x), theirs, x.double() / scale.double(), scale, most=4)


@pytest.mark.parametrize("ste", ["identity", "clipped"])
@pytest.mark.parametrize("relu", RELU)
def test_relu_quantiser_has_the_gradient_of_relu(relu, ste, generator):
    """The gradient is that of the ReLU, times that of the straight-through estimator at the ReLU's output."""
    x = (4 * torch.randn(5_000, generator=generator)).requires_grad_()
    upstream = torch.randn(5_000, generator=generator)
    scale, zero_point = qparams(torch.tensor(0.0), torch.tensor(3.0), 3)
    (ours,) = torch.autograd.grad(fixed(relu, 3, 3.0, ste)(x), x, upstream)
    (theirs,) = torch.autograd.grad(fake_quantize(RELU[relu](x), scale, zero_point, 3, ste=ste), x, upstream)
    assert torch.equal(ours, theirs)


def test_relu_quantiser_gradient_by_hand():
    """x = (-1, 0, 1, 5, 7): a ReLU passes (0, 0, 1, 1, 1), a ReLU6 (0, 0, 1, 1, 0), clipped at {0..3} (0, 0, 1, 0, 0)."""
    for relu, ste, expected in (
        ("relu", "identity", [0, 0, 1, 1, 1]),
        ("relu6", "identity", [0, 0, 1, 1, 0]),
        ("relu", "clipped", [0, 0, 1, 0, 0]),
    ):
        x = torch.tensor([-1.0, 0.0, 1.0, 5.0, 7.0], requires_grad=True)
        out = fixed(relu, 2, 3.0, ste)(x)
        close(out, [0, 0, 1, 3, 3])
        close(torch.autograd.grad(out.sum(), x)[0], expected)


def test_quantiser_without_relu_keeps_the_sign(generator):
    """Over [-2, 1] with two bits the step is 1, the zero point -2 - (-2) = 0, and values go to -2, -1, 0, 1."""
    quantizer = fixed("none", 2, 1.0, low=-2.0)
    close(quantizer(torch.tensor([-9.0, -1.2, 0.2, 0.7, 9.0])), [-2, -1, 0, 1, 1])


def test_observing_quantiser_takes_the_range_of_the_batch_first():
    """The first batch is quantised on its own range: maximum 3, three bits, steps of 3/7. The second counts 0.1/0.19."""
    quantizer = QuantActivation(3)
    out = quantizer(torch.tensor([-5.0, 1.0, 3.0]))
    close(out, [0, 6 / 7, 3], rtol=1e-6)
    quantizer(torch.tensor([-1.0, 1.0]))
    close(quantizer.range.high, (0.09 * 3 + 0.1 * 1) / 0.19, rtol=1e-6)
    assert float(quantizer.range.low) == 0


def test_range_of_a_relu6_ends_at_six():
    """What a ReLU6 lets through is what is observed: [0, 6] for an input up to 50."""
    quantizer = QuantActivation(8, "relu6")
    quantizer(torch.tensor([-50.0, 50.0]))
    assert float(quantizer.range.high) == pytest.approx(6)


@pytest.mark.parametrize("relu", ["none", "relu", "relu6"])
def test_a_quantiser_that_does_not_observe_does_not_change(relu, generator):
    """With observing off, no input moves the range."""
    quantizer = QuantActivation(3, relu)
    quantizer(torch.randn(50, generator=generator))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.observing = False
    quantizer(100 * torch.randn(50, generator=generator))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("relu", ["none", "relu", "relu6"])
def test_quantiser_never_waits_for_the_device(relu):
    """Observing, forward and backward run on the meta device, where reading a value is an error."""
    quantizer = QuantActivation(3, relu, ste="clipped").to("meta")
    x = torch.empty(4, 3, device="meta", requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (4, 3)


def test_layout_is_kept(generator):
    """Channels-last in, channels-last out, for every quantiser: no convolution after it has to reorder."""
    x = torch.randn(2, 4, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    for relu in ("none", "relu", "relu6"):
        assert QuantActivation(3, relu)(x).is_contiguous(memory_format=torch.channels_last)
