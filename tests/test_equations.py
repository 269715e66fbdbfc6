"""Eq. (1) to (4) and (6) to (13): hand-worked values, sums written out in plain Python, gradients, edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from adadfq_lab.equations import (
    BatchStatistics,
    Bounds,
    adaptability,
    disagreement_entropy,
    distillation,
    entropy,
    game_value,
    generator_objective,
    hinge,
    hinge_lower,
    hinge_upper,
    loss_as,
    loss_balance,
    loss_bns,
    loss_ds,
    normalized_entropy,
    p_as,
    p_ds,
    student_entropy_loss,
    student_objective,
)
from adadfq_lab.errors import UserError

LOG2, LOG3 = math.log(2), math.log(3)
# d = z_p - z_q = (log 3, 0), so p_ds = (3/4, 1/4); z_p + z_q = (log 12, log 9), so p_as = (4/7, 3/7).
Z_P = torch.tensor([[math.log(6), LOG3]], dtype=torch.float64)
Z_Q = torch.tensor([[LOG2, LOG3]], dtype=torch.float64)
H_QUARTER = 2 * LOG2 - 0.75 * LOG3  # entropy of (3/4, 1/4)


def logits(n: int, c: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, c, generator=generator, dtype=torch.float64)


def close(actual: Tensor, expected: object, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


# Values, worked by hand


def test_disagreement_and_agreement_of_two_classes_by_hand():
    """d = (log 3, 0) gives p_ds = (3/4, 1/4) and H = 2 log 2 - 3/4 log 3; the sum (log 12, log 9) gives p_as = (4/7, 3/7)."""
    close(p_ds(Z_P, Z_Q), [[3 / 4, 1 / 4]])
    close(p_as(Z_P, Z_Q), [[4 / 7, 3 / 7]])
    close(entropy(p_ds(Z_P, Z_Q)), [H_QUARTER])
    close(disagreement_entropy(Z_P, Z_Q), [H_QUARTER])
    close(disagreement_entropy(2 * Z_P, 2 * Z_Q, T=2), [H_QUARTER])


def test_balance_of_two_classes_by_hand():
    """For y = 0: L_ds = log 4/3 and L_as = log 7/4; for y = 1: log 4 and log 7/3; a batch of both has their mean."""
    y = torch.tensor([0])
    close(loss_ds(Z_P, Z_Q, y), math.log(4 / 3))
    close(loss_as(Z_P, Z_Q, y), math.log(7 / 4))
    close(loss_balance(Z_P, Z_Q, y), 0.2 * math.log(4 / 3) + 0.1 * math.log(7 / 4))
    both = Z_P.expand(2, 2), Z_Q.expand(2, 2), torch.tensor([0, 1])
    close(loss_ds(*both), (math.log(4 / 3) + math.log(4)) / 2)
    close(loss_balance(*both, alpha_ds=0, alpha_as=2), math.log(7 / 4) + math.log(7 / 3))


@pytest.mark.parametrize(
    ("floor", "expected"), [("batch", [0, 1 / 2, 1]), ("batch_grad", [0, 1 / 2, 1]), ("zero", [1 / 2, 3 / 4, 1])]
)
def test_normalized_entropy_by_hand(floor, expected):
    """Entropies log 2, 3/2 log 2 and 2 log 2 of C = 4 lie at 0, 1/2, 1 above the batch's least, at 1/2, 3/4, 1 above zero."""
    h_prime = normalized_entropy(torch.tensor([LOG2, 1.5 * LOG2, 2 * LOG2], dtype=torch.float64), 4, floor=floor)
    close(h_prime, expected)
    close(adaptability(h_prime), [1 - h for h in expected])
    close(game_value(h_prime), 1 - sum(expected) / 3)
    close(student_objective(h_prime), 1 - sum(expected) / 3)


def test_hinge_by_hand():
    """Below 0.1 the hinge is 0.1 - H', above 0.8 it is H' - 0.8, between and on the bounds 0; the bounds themselves are out."""
    h_prime = torch.tensor([0, 0.05, 0.1, 0.5, 0.8, 0.9, 1], dtype=torch.float64)
    bounds = Bounds()
    close(hinge_lower(h_prime, bounds), [0.1, 0.05, 0, 0, 0, 0, 0])
    close(hinge_upper(h_prime, bounds), [0, 0, 0, 0, 0, 0.1, 0.2])
    close(hinge(h_prime, bounds), [0.1, 0.05, 0, 0, 0, 0.1, 0.2])
    assert bounds.contains(h_prime).tolist() == [False, False, False, True, False, False, False]
    objective = generator_objective(h_prime, torch.tensor(3.0), torch.tensor(5.0), bounds, beta=0.5, gamma=0.25)
    close(objective, 0.45 / 7 + 0.5 * 3 + 0.25 * 5)
    close(generator_objective(h_prime, torch.tensor(3.0), torch.tensor(5.0), bounds), 0.45 / 7 + 3 + 5)


def test_bns_by_hand():
    """Layers that miss by ((1, 2); (0, 3)) and by ((2); (1)): 5 + 9 + 4 + 1 as a sum, ((5 + 9)/2 + 4 + 1) / 2 as a mean."""
    first = BatchStatistics(*(torch.tensor(v) for v in ([1.0, 2.0], [1.0, 4.0], [0.0, 0.0], [1.0, 1.0])))
    second = BatchStatistics(*(torch.tensor(v) for v in ([0.0], [2.0], [2.0], [1.0])))
    assert loss_bns([first, second], reduction="sum") == 19
    assert loss_bns([first, second], reduction="mean") == 6
    assert loss_bns([first, second]) == 19


def test_student_losses_by_hand():
    """At d/T = (log 3, 0) both objectives of Q are T^2 (log 2 - H(3/4, 1/4)): uniform is what z_q = 0 predicts."""
    z_p, z_q = torch.tensor([[2 * LOG3, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    close(student_entropy_loss(z_p, z_q, T=2), 4 * (LOG2 - H_QUARTER))
    close(distillation(z_p, z_q, T=2), 4 * (LOG2 - H_QUARTER))
    close(distillation(z_p, z_q, T=2, reduction="mean"), 2 * (LOG2 - H_QUARTER))


def test_entropy_of_certain_and_uniform():
    """H(uniform) = log C, H(one-hot) = 0 with 0 log 0 = 0, and H(softmax(0)) = log C to the last bit of float32."""
    close(entropy(torch.tensor([[0.25] * 4, [0, 1, 0, 0]], dtype=torch.float64)), [2 * LOG2, 0])
    for c in (1, 2, 10, 100, 1000):
        z = torch.zeros(3, c)
        assert torch.equal(disagreement_entropy(z, z), torch.full((3,), math.log(c)))


# Values, by the printed sums in plain Python


def softmax_by_hand(z: list[float]) -> list[float]:
    """exp(z_c) / sum_j exp(z_j), with the sums of math.fsum."""
    total = math.fsum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


@pytest.mark.parametrize(("n", "c"), [(1, 2), (5, 3), (16, 10), (7, 100)])
def test_equations_are_the_printed_sums(n, c, generator):
    """Eq. (1) to (9) and (12), (13) equal their printed sums, term by term in Python floats, for any N and C."""
    z_p, z_q = logits(n, c, generator, 3), logits(n, c, generator, 3)
    y = torch.randint(c, (n,), generator=generator)
    rows = list(zip(z_p.tolist(), z_q.tolist(), y.tolist(), strict=True))
    ds = [softmax_by_hand([a - b for a, b in zip(p, q, strict=True)]) for p, q, _ in rows]
    agreement = [softmax_by_hand([a + b for a, b in zip(p, q, strict=True)]) for p, q, _ in rows]
    h = [math.fsum(v * math.log(1 / v) for v in p) for p in ds]
    close(p_ds(z_p, z_q), ds)
    close(p_as(z_p, z_q), agreement)
    close(entropy(p_ds(z_p, z_q)), h)
    close(disagreement_entropy(z_p, z_q), h)
    h_prime = [(v - min(h)) / (math.log(c) - min(h)) for v in h]
    close(normalized_entropy(torch.tensor(h, dtype=torch.float64), c), h_prime)
    l_ds = math.fsum(-math.log(p[k]) for p, (_, _, k) in zip(ds, rows, strict=True)) / n
    l_as = math.fsum(-math.log(p[k]) for p, (_, _, k) in zip(agreement, rows, strict=True)) / n
    close(loss_ds(z_p, z_q, y), l_ds)
    close(loss_as(z_p, z_q, y), l_as)
    close(loss_balance(z_p, z_q, y), 0.2 * l_ds + 0.1 * l_as)
    margin = math.fsum(max(0.3 - v, 0) + max(v - 0.6, 0) for v in h_prime) / n
    zero = torch.zeros((), dtype=torch.float64)
    close(generator_objective(torch.tensor(h_prime, dtype=torch.float64), zero, zero, Bounds(0.3, 0.6)), margin)
    close(student_objective(torch.tensor(h_prime, dtype=torch.float64)), 1 - math.fsum(h_prime) / n)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_student_losses_are_the_printed_sums(temperature, generator):
    """T^2 (log C - H) and T^2 KL equal their sums in Python floats; -T^2 H is the first less T^2 log C."""
    n, c = 6, 10
    z_p, z_q = logits(n, c, generator, 3), logits(n, c, generator, 3)
    pairs = list(zip(z_p.tolist(), z_q.tolist(), strict=True))
    tempered = [softmax_by_hand([(a - b) / temperature for a, b in zip(p, q, strict=True)]) for p, q in pairs]
    released = math.fsum(temperature**2 * v * math.log(v) for p in tempered for v in p) / n
    close(student_entropy_loss(z_p, z_q, T=temperature), released + temperature**2 * math.log(c), rtol=1e-10)
    kl = 0.0
    for p, q in pairs:
        t, s = softmax_by_hand([v / temperature for v in p]), softmax_by_hand([v / temperature for v in q])
        kl += math.fsum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
    close(distillation(z_p, z_q, T=temperature), temperature**2 * kl / n, rtol=1e-10)
    close(distillation(z_p, z_q, T=temperature, reduction="mean"), temperature**2 * kl / n / c, rtol=1e-10)


def test_one_image_needs_no_batch_dimension(generator):
    """Logits (C,) of one image give what the batch of that one image gives."""
    z_p, z_q = logits(2, 10, generator)
    for function in (p_ds, p_as, disagreement_entropy):
        torch.testing.assert_close(function(z_p, z_q), function(z_p[None], z_q[None])[0])
    for function in (student_entropy_loss, distillation):
        torch.testing.assert_close(function(z_p, z_q), function(z_p[None], z_q[None]))


# What is known of the equations


@pytest.mark.parametrize("c", [10, 100, 1000])
def test_at_high_temperature_every_student_loss_is_half_the_variance(c, generator):
    """At T = 20, T^2 KL(batchmean), T^2 (log C - H) and Var_c(d) / 2 agree within 1 %, and KL(mean) is KL(batchmean) / C."""
    z_p, z_q = logits(64, c, generator), logits(64, c, generator)
    half_variance = (z_p - z_q).var(dim=1, correction=0).mean() / 2
    batchmean = distillation(z_p, z_q, T=20)
    torch.testing.assert_close(batchmean, half_variance, rtol=0.01, atol=0)
    torch.testing.assert_close(student_entropy_loss(z_p, z_q, T=20), half_variance, rtol=0.01, atol=0)
    close(distillation(z_p, z_q, T=20, reduction="mean"), batchmean / c)


def test_student_losses_vanish_exactly_where_logits_differ_by_a_constant(generator):
    """z_q = z_p + a, one a per sample, is the minimum 0 of both losses of Q; H is log C and H' is 1 there; elsewhere not."""
    z_p = logits(5, 10, generator, 4).float()
    z_q = z_p + torch.tensor([[-8.0], [0], [1], [2], [64]])
    for loss in (student_entropy_loss, distillation):
        assert 0 <= loss(z_p, z_p) < 1e-12
        assert loss(z_p, z_q).abs() < 1e-9
        assert loss(z_p, z_p + torch.eye(5, 10)) > 1e-3
    torch.testing.assert_close(disagreement_entropy(z_p, z_q), torch.full((5,), math.log(10)))
    assert torch.equal(normalized_entropy(disagreement_entropy(z_p, z_q), 10), torch.ones(5))


@pytest.mark.parametrize("loss", [student_entropy_loss, distillation])
@pytest.mark.parametrize("gap", [1e-3, 1e-2, 1.0])
def test_student_losses_keep_float32_digits_at_high_temperature(loss, gap, generator):
    """In float32 at T = 20 the loss and its gradient agree with float64 within 1e-4, though log C - H is 1e-7 of log C."""
    z_p = logits(16, 10, generator, 3).float()
    z_q = z_p + gap * logits(16, 10, generator).float()
    results = []
    for kind in (torch.float32, torch.float64):
        student = z_q.to(kind).requires_grad_()
        value = loss(z_p.to(kind), student)
        assert value.dtype == kind
        (gradient,) = torch.autograd.grad(value, student)
        results.append((value.detach().double(), gradient.double()))
    (value, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 200])
def test_least_entropy_of_a_batch_costs_lambda_l(n, generator):
    """With a batch floor min H' = 0, so the mean hinge of any batch of any size N is at least lambda_l / N."""
    h_prime = normalized_entropy(disagreement_entropy(logits(n, 10, generator, 2), logits(n, 10, generator, 2)), 10)
    assert h_prime.min() == 0
    assert hinge(h_prime, Bounds(0.1, 0.8)).mean() >= 0.1 / n - 1e-15


def test_adaptability_reaches_one_in_every_batch(generator):
    """Eq. (3) prints H_nor in [0, 1), but the sample of least entropy has H_nor = 1."""
    h = disagreement_entropy(logits(16, 10, generator), logits(16, 10, generator))
    assert adaptability(normalized_entropy(h, 10)).max() == 1
    assert adaptability(normalized_entropy(h, 10, floor="zero")).max() < 1


# The batch minimum and its gradient


def gradient_of(loss, h: Tensor, floor: str) -> Tensor:
    h = h.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(normalized_entropy(h, 10, floor=floor)), h)
    return gradient


def test_batch_minimum_with_gradient_turns_the_student_objective_around(generator):
    """Eq. (13): held constant, the floor leaves -1 / (N (log C - m)) on every sample, which pulls Q to P on each. With its
    gradient, the sample of least entropy m gets sum_{i != ref} (log C - H_i) / (N (log C - m)^2) > 0: Q is pushed away."""
    h = disagreement_entropy(logits(16, 10, generator), logits(16, 10, generator))
    reference, m, top = int(h.argmin()), h.min(), math.log(10)
    constant = torch.full_like(h, 0) - 1 / (16 * (top - m))
    close(gradient_of(student_objective, h, "batch"), constant)
    expected = constant.clone()
    others = torch.arange(16) != reference
    expected[reference] = (top - h[others]).sum() / (16 * (top - m) ** 2)
    close(gradient_of(student_objective, h, "batch_grad"), expected)
    assert expected[reference] > 0 > constant[reference]


def test_batch_minimum_with_gradient_turns_the_hinge_around():
    """Eq. (12), samples with H' = 0, 0.04, 0.4 and lambda_l = 0.1: held constant, both low ones are asked for more entropy;
    with its gradient, the least one is asked for less, so as to lift the other. Left alone below, it gets no gradient."""

    def objective(h_prime: Tensor) -> Tensor:
        return hinge(h_prime, Bounds(0.1, 0.8)).mean()

    top = math.log(10)
    h = torch.tensor([1, 1 + 0.04 * (top - 1), 1 + 0.4 * (top - 1)], dtype=torch.float64)
    slope = 1 / (3 * (top - 1))
    close(gradient_of(objective, h, "batch"), [-slope, -slope, 0])
    close(gradient_of(objective, h, "batch_grad"), [0.96 * slope, -slope, 0])
    alone = torch.tensor([1, 1 + 0.4 * (top - 1)], dtype=torch.float64)
    close(gradient_of(objective, alone, "batch_grad"), [0, 0])
    assert gradient_of(objective, alone, "batch")[0] < 0


@pytest.mark.parametrize("floor", ["batch", "batch_grad", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [2, 10, 1000])
def test_perfect_agreement_gives_ones_and_no_gradient(floor, dtype, c, generator):
    """P = Q gives H' = 1 for every sample, not 0/0, and through H' a gradient that is finite, and zero for a batch's floor."""
    z_p = logits(16, c, generator, 5).to(dtype)
    z_q = z_p.clone().requires_grad_()
    h_prime = normalized_entropy(disagreement_entropy(z_p, z_q), c, floor=floor)
    torch.testing.assert_close(h_prime, torch.ones(16, dtype=dtype), rtol=0, atol=0 if floor != "zero" else 1e-15)
    (gradient,) = torch.autograd.grad(generator_objective(h_prime, z_q.sum() * 0, z_q.sum() * 0, Bounds()), z_q)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e-5 if floor == "zero" else not gradient.any()


@pytest.mark.parametrize("c", [2, 3, 10, 100, 1000])
def test_agreement_up_to_rounding_gives_ones(c, generator):
    """Logits that differ in their last bits only, and the entropy that float32 gives by either formula, count as P = Q."""
    z_p = logits(256, c, generator, 20).float()
    z_q = z_p * (1 + torch.finfo(torch.float32).eps * torch.randint(-2, 3, z_p.shape, generator=generator))
    for h in (disagreement_entropy(z_p, z_q), entropy(p_ds(z_p, z_q)), entropy(p_ds(z_p, z_p + 0.1))):
        assert torch.equal(normalized_entropy(h, c), torch.ones(256))


def test_small_true_disagreement_is_not_taken_for_rounding(generator):
    """Logit gaps of 0.01 in float32 still order the samples: H' from 0 to nearly 1, within a hundredth of float64's."""
    z_p = logits(16, 10, generator, 3).float()
    z_q = z_p + 0.01 * logits(16, 10, generator).float() * torch.linspace(0.1, 1, 16)[:, None]
    h_prime = normalized_entropy(disagreement_entropy(z_p, z_q), 10)
    expected = normalized_entropy(disagreement_entropy(z_p.double(), z_q.double()), 10)
    assert h_prime.min() == 0
    assert h_prime.max() > 0.9
    torch.testing.assert_close(h_prime.double(), expected, rtol=0, atol=0.01)


# Gradients against finite differences, in float64

LABELS = torch.tensor([0, 3, 3, 1, 2])


@pytest.mark.parametrize(
    "function",
    [
        p_ds,
        p_as,
        lambda p, q: entropy(p_ds(p, q)),
        disagreement_entropy,
        lambda p, q: disagreement_entropy(p, q, T=3.0),
        lambda p, q: normalized_entropy(disagreement_entropy(p, q), 4, floor="batch_grad"),
        lambda p, q: normalized_entropy(disagreement_entropy(p, q), 4, floor="zero"),
        lambda p, q: adaptability(normalized_entropy(disagreement_entropy(p, q), 4, floor="zero")),
        lambda p, q: game_value(normalized_entropy(disagreement_entropy(p, q), 4, floor="batch_grad")),
        lambda p, q: student_objective(normalized_entropy(disagreement_entropy(p, q), 4, floor="batch_grad")),
        lambda p, q: loss_ds(p, q, LABELS),
        lambda p, q: loss_as(p, q, LABELS),
        lambda p, q: loss_balance(p, q, LABELS, alpha_ds=0.7, alpha_as=0.3),
        lambda p, q: hinge(normalized_entropy(disagreement_entropy(p, q), 4, floor="zero"), Bounds(0.6, 0.7)),
        student_entropy_loss,
        lambda p, q: student_entropy_loss(p, q, T=1.0),
        distillation,
        lambda p, q: distillation(p, q, T=1.0, reduction="mean"),
    ],
)
def test_gradients_are_finite_differences(function, generator):
    """The gradient to z_p and to z_q is the central difference, in float64."""
    z_p, z_q = (logits(5, 4, generator, 2).requires_grad_() for _ in range(2))
    assert gradcheck(function, (z_p, z_q))


def test_gradient_with_a_constant_floor_is_a_finite_difference_around_it(generator):
    """floor="batch" differentiates (H - m) / (log C - m) with m the number that min H happens to be."""
    h = disagreement_entropy(logits(5, 4, generator), logits(5, 4, generator))
    m, step = float(h.min()), 1e-6
    weights = torch.arange(5, dtype=torch.float64)
    gradient = torch.autograd.grad((normalized_entropy(h.requires_grad_(), 4) * weights).sum(), h)[0]

    def held(i: int, shift: float) -> Tensor:
        moved = h.detach().clone()
        moved[i] += shift
        return ((moved - m) / (math.log(4) - m) * weights).sum()

    close(gradient, [(held(i, step) - held(i, -step)) / (2 * step) for i in range(5)], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_of_bns_and_the_generator_objective_are_finite_differences(reduction, generator):
    """The gradient of Eq. (11) to the batch's means and variances, and of Eq. (12) to its terms, is the central difference."""
    running = [(logits(1, c, generator)[0], logits(1, c, generator)[0].exp()) for c in (2, 3)]

    def bns(*batch: Tensor) -> Tensor:
        layers = [BatchStatistics(*batch[2 * m : 2 * m + 2], *running[m]) for m in range(2)]
        return loss_bns(layers, reduction=reduction)

    batch = [logits(1, c, generator)[0].requires_grad_() for c in (2, 2, 3, 3)]
    assert gradcheck(bns, batch)
    terms = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.02, 0.5, 0.95], 1.5, 2.5)]
    assert gradcheck(lambda h, balance, b: generator_objective(h, balance, b, Bounds(), beta=2, gamma=3), terms)


def test_entropy_has_a_finite_gradient_at_zero():
    """0 log 0 takes no part in the gradient, so softmax outputs that underflow to 0 do not make it NaN."""
    z = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], requires_grad=True)
    h = entropy(torch.softmax(z, dim=1))
    torch.testing.assert_close(h, torch.tensor([0, LOG3]))
    (gradient,) = torch.autograd.grad(h.sum(), z)
    assert not gradient.abs().max() > 1e-6
    assert entropy(torch.tensor([1.1, -0.1])).isnan()


# Properties for any logits

CELLS = st.floats(-50, 50, allow_nan=False, width=32)
BATCHES = st.tuples(st.integers(1, 6), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(arrays("float64", shape, elements=CELLS), arrays("float64", shape, elements=CELLS))
)


@given(BATCHES, st.sampled_from(["batch", "batch_grad", "zero"]))
def test_entropies_stay_in_range(batch, floor):
    """0 <= H <= log C, 0 <= H' <= 1 in the order of H, and with a batch floor H' is 0 at the least or 1 throughout."""
    z_p, z_q = map(torch.from_numpy, batch)
    c = z_p.shape[1]
    h = disagreement_entropy(z_p, z_q)
    assert (h >= 0).all()
    assert (h <= math.log(c) * (1 + 1e-15)).all()
    h_prime = normalized_entropy(h, c, floor=floor)
    assert ((h_prime >= 0) & (h_prime <= 1)).all()
    assert (h_prime[h.argsort()].diff() >= 0).all()
    if floor != "zero":
        assert h_prime.min() == 0 or (h_prime == 1).all()


@given(BATCHES, CELLS, CELLS, st.randoms(use_true_random=False))
def test_constants_and_order_do_not_matter(batch, a, b, random):
    """Adding a constant to a sample's logits changes nothing; permuting classes or samples permutes."""
    z_p, z_q = map(torch.from_numpy, batch)
    n, c = z_p.shape
    h = disagreement_entropy(z_p, z_q)
    close(disagreement_entropy(z_p + a, z_q + b), h, rtol=1e-9, atol=1e-9)
    close(p_as(z_p + a, z_q + b), p_as(z_p, z_q), rtol=1e-9)
    close(student_entropy_loss(z_p + a, z_q + b), student_entropy_loss(z_p, z_q), rtol=1e-9, atol=1e-9)
    close(distillation(z_p + a, z_q + b), distillation(z_p, z_q), rtol=1e-9, atol=1e-9)
    close(p_as(z_q, z_p), p_as(z_p, z_q))
    classes, samples = (torch.tensor(random.sample(range(k), k)) for k in (c, n))
    close(disagreement_entropy(z_p[:, classes], z_q[:, classes]), h)
    close(p_ds(z_p[:, classes], z_q[:, classes]), p_ds(z_p, z_q)[:, classes])
    moved = normalized_entropy(h[samples], c)
    close(moved, normalized_entropy(h, c)[samples])


@given(BATCHES)
def test_losses_of_the_student_are_not_negative(batch):
    """Both losses of Q are divergences: never below 0 by more than rounding."""
    z_p, z_q = map(torch.from_numpy, batch)
    assert student_entropy_loss(z_p, z_q) >= -1e-11
    assert distillation(z_p, z_q) >= -1e-11


# Edges


def test_one_class():
    """With C = 1 P and Q cannot disagree: p_ds = p_as = 1, H = 0, every loss 0, and H' is refused."""
    z_p, z_q, y = torch.tensor([[3.0], [5.0]]), torch.tensor([[-2.0], [7.0]]), torch.tensor([0, 0])
    assert torch.equal(p_ds(z_p, z_q), torch.ones(2, 1))
    assert torch.equal(p_as(z_p, z_q), torch.ones(2, 1))
    h = disagreement_entropy(z_p, z_q)
    assert not h.any()
    for loss in (loss_balance(z_p, z_q, y), student_entropy_loss(z_p, z_q), distillation(z_p, z_q)):
        assert loss == 0
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        normalized_entropy(h, 1)


@pytest.mark.parametrize("floor", ["batch", "batch_grad"])
def test_batch_of_one(floor, generator):
    """A single sample is its batch's least entropy: H' = 0, unless P = Q there, when H' = 1; against zero it is H / log C."""
    z_p, z_q = logits(1, 10, generator), logits(1, 10, generator)
    h = disagreement_entropy(z_p, z_q)
    assert normalized_entropy(h, 10, floor=floor) == 0
    assert normalized_entropy(disagreement_entropy(z_p, z_p), 10, floor=floor) == 1
    close(normalized_entropy(h, 10, floor="zero"), h / math.log(10))


def test_extreme_logits_neither_overflow_nor_give_nan():
    """Logits of +-30,000 and certain predictions give finite values and gradients, at any temperature."""
    z_p = torch.tensor([[3e4, -3e4, 0.0], [0.0, 3e4, -3e4]])
    z_q = torch.tensor([[-3e4, 3e4, 0.0], [0.0, 3e4, -3e4]], requires_grad=True)
    y = torch.tensor([0, 1])
    for T in (1.0, 20.0, 1000.0):
        h_prime = normalized_entropy(disagreement_entropy(z_p, z_q, T=T), 3)
        total = hinge(h_prime, Bounds()).sum() + student_entropy_loss(z_p, z_q, T=T) + distillation(z_p, z_q, T=T)
        total = total + loss_balance(z_p, z_q, y) + entropy(p_ds(z_p, z_q)).sum()
        assert total.isfinite()
        assert torch.autograd.grad(total, z_q)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, generator):
    """Half-precision logits give exactly what the same numbers give in float32, in float32."""
    z_p, z_q = (logits(8, 10, generator, 5).to(dtype) for _ in range(2))
    for function in (p_ds, p_as, disagreement_entropy, student_entropy_loss, distillation):
        result = function(z_p, z_q)
        assert result.dtype == torch.float32
        assert torch.equal(result, function(z_p.float(), z_q.float()))


PAIRS = [
    p_ds,
    p_as,
    disagreement_entropy,
    lambda p, q: loss_ds(p, q, LABELS),
    lambda p, q: loss_as(p, q, LABELS),
    lambda p, q: loss_balance(p, q, LABELS),
    student_entropy_loss,
    distillation,
]


@pytest.mark.parametrize("function", PAIRS)
def test_infinite_and_nan_logits_are_named_and_counted(function, generator):
    """The message says which player's logits are at fault, and how many entries of which kind, out of how many."""
    z_p, z_q = logits(5, 4, generator), logits(5, 4, generator)
    broken = z_q.clone()
    broken[0, :2], broken[3, 1], broken[4, 0] = math.nan, math.inf, -math.inf
    with pytest.raises(ValueError, match=r"^z_q has 2 NaN and 2 infinite among its 20 entries"):
        function(z_p, broken)
    with pytest.raises(ValueError, match=r"^z_p has 2 NaN and 2 infinite"):
        function(broken, z_q)
    with pytest.raises(ValueError, match=r"^z_p has 0 NaN and 1 infinite"):
        function(z_p.index_fill(0, torch.tensor([1]), 0).index_put((torch.tensor(1), torch.tensor(1)), broken[3, 1]), z_q)


@pytest.mark.parametrize("function", PAIRS)
def test_shapes_that_disagree_are_explained(function):
    """Different class counts, different batches and tensors that are no logits are each refused in a sentence."""
    z = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="z_p has 4 classes and z_q 100"):
        function(z, torch.zeros(5, 100))
    with pytest.raises(ValueError, match="same images"):
        function(z, torch.zeros(1, 4))
    for shape in ((5, 4, 1, 1), (), (0, 4), (5, 0)):
        with pytest.raises(ValueError, match="z_q must be logits of shape"):
            function(z, torch.zeros(shape))


def test_senseless_arguments_are_refused():
    """Temperatures, switches, bounds and entropies outside their domain raise and say what is allowed."""
    z = torch.zeros(2, 3)
    for T in (0.0, -1.0, math.nan, math.inf):
        for function in (disagreement_entropy, student_entropy_loss, distillation):
            with pytest.raises(ValueError, match="positive temperature"):
                function(z, z, T=T)
    layer = BatchStatistics(z[0], z[0], z[0], z[0])
    with pytest.raises(ValueError, match="batchmean or mean"):
        distillation(z, z, reduction="sum")
    with pytest.raises(ValueError, match="sum, mean or normalized"):
        loss_bns([layer], reduction="batchmean")
    with pytest.raises(ValueError, match="at least one BatchNorm layer"):
        loss_bns([])
    with pytest.raises(ValueError, match="BatchNorm layer 1"):
        loss_bns([layer, layer._replace(running_var=torch.zeros(1))])
    with pytest.raises(ValueError, match="batch, batch_grad or zero"):
        normalized_entropy(torch.zeros(2), 3, floor="none")
    for entropies in (torch.zeros(2, 3), torch.zeros(0), torch.zeros(())):
        with pytest.raises(ValueError, match="one number a sample"):
            normalized_entropy(entropies, 3)


@pytest.mark.parametrize(
    ("lower", "upper"), [(0.8, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.1, 1.1), (math.nan, 0.5), (0.1, math.nan)]
)
def test_bounds_must_be_ordered_within_the_unit_interval(lower, upper):
    """0 <= lambda_l < lambda_u <= 1, in one line with both numbers."""
    with pytest.raises(UserError, match=f"^bounds must satisfy 0 <= lower < upper <= 1, not {lower} and {upper}$"):
        Bounds(lower, upper)


def test_bounds_may_be_the_whole_interval():
    """lambda_l = 0 and lambda_u = 1 switch the margin off: the hinge is 0 for every H'."""
    assert not hinge(torch.linspace(0, 1, 11), Bounds(0, 1)).any()


# Devices: nothing below looks at a value, so no host waits for an accelerator


def everything(z_p: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
    """One scalar from every function of Eq. (1) to (13)."""
    h = disagreement_entropy(z_p, z_q) + 0 * entropy(p_ds(z_p, z_q)) + 0 * entropy(p_as(z_p, z_q))
    bounds = Bounds()
    layer = BatchStatistics(z_q.mean(0), z_q.var(0, correction=0), z_p.mean(0), z_p.var(0, correction=0))
    total = student_entropy_loss(z_p, z_q)
    for floor in ("batch", "batch_grad", "zero"):
        h_prime = normalized_entropy(h, z_p.shape[1], floor=floor)
        total = total + student_objective(h_prime) + game_value(h_prime) + adaptability(h_prime).sum()
        total = total + torch.where(bounds.contains(h_prime), h_prime, 0).sum()
        for reduction in ("sum", "mean"):
            balance, bns = loss_balance(z_p, z_q, y), loss_bns([layer, layer], reduction=reduction)
            total = total + generator_objective(h_prime, balance, bns, bounds)
    return total + distillation(z_p, z_q) + distillation(z_p, z_q, reduction="mean")


def test_every_function_and_its_gradient_run_without_values():
    """On the meta device, which has shapes but no numbers, every function and its backward pass run: no host sync is hidden."""
    z_p, z_q = torch.zeros(16, 10, device="meta"), torch.zeros(16, 10, device="meta", requires_grad=True)
    total = everything(z_p, z_q, torch.zeros(16, dtype=torch.long, device="meta"))
    assert total.shape == ()
    assert total.device.type == "meta"
    (gradient,) = torch.autograd.grad(total, z_q)
    assert gradient.shape == z_q.shape


def test_every_function_stays_on_a_cuda_device():
    """With fake CUDA tensors no CPU tensor strays in and nothing asks for a value."""
    with FakeTensorMode():
        z_p, z_q = torch.zeros(16, 10, device="cuda"), torch.zeros(16, 10, device="cuda")
        total = everything(z_p, z_q, torch.zeros(16, dtype=torch.long, device="cuda"))
        assert total.device.type == "cuda"


def test_nan_goes_through_where_values_are_not_looked_at():
    """Terms that are already NaN stay NaN instead of turning into H' = 1 or a hinge of 0."""
    h = torch.tensor([1.0, math.nan, 0.5])
    assert normalized_entropy(h, 10).isnan().any()
    assert hinge(normalized_entropy(h, 10, floor="zero"), Bounds()).isnan().tolist() == [False, True, False]
