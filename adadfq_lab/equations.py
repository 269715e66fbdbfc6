"""Eq. (1) to (4) and (6) to (13) of "Adaptive Data-Free Quantization" (CVPR 2023), as pure functions on tensors.

    Eq.   what                                   here
    1     disagreement p_ds                      p_ds
    2     its entropy H_info                     entropy, disagreement_entropy
    3     H' and adaptability H_nor = 1 - H'     normalized_entropy, adaptability
    4     the game's value                       game_value
    6-9   L_ds, p_as, L_as, L_bal                loss_ds, p_as, loss_as, loss_balance
    10    lambda_l < H' < lambda_u               Bounds
    11    L_BNS                                  BatchStatistics, loss_bns
    12    what G minimises                       hinge, generator_objective
    13    what Q minimises                       student_objective; as released: student_entropy_loss

Eq. (5), the equilibrium, and Eq. (14) to (17), the bounds on Q's error, are in `adadfq_lab.theory`; Eq. (18), the quantizer,
in `adadfq_lab.student.quantizer`.

z_p and z_q are the logits of teacher P and student Q on the same images, shape (N, C) or, for one image, (C,); y the class
asked of the generator G, (N,) int64. Entropies are in nats. Nothing is detached here: code that moves one player detaches the
other's logits. Half precision is computed in float32; results otherwise have the logits' dtype and device.

Functions of z_p and z_q raise ValueError if shapes disagree and, on the CPU, where an entry is infinite or NaN. On an
accelerator looking at values would make the host wait in every call, so there NaN goes through and `Game` checks the loss
terms afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab.errors import UserError

Floor = Literal["batch", "batch_grad", "zero"]
BnsReduction = Literal["sum", "mean", "normalized"]
KdReduction = Literal["batchmean", "mean"]
Terms = dict[str, Tensor]
"""A loss as its summands, by name: `total` adds them up, the log keeps each."""


class NonFiniteLogitsError(ValueError):
    """Logits hold an infinite or NaN entry; the message names the player and counts them."""


def _check_shapes(z_p: Tensor, z_q: Tensor) -> None:
    for name, z in (("z_p", z_p), ("z_q", z_q)):
        if z.ndim not in (1, 2) or 0 in z.shape:
            raise ValueError(f"{name} must be logits of shape (N, C) or (C,), not {tuple(z.shape)}")
    if z_p.shape[-1] != z_q.shape[-1]:
        raise ValueError(f"z_p has {z_p.shape[-1]} classes and z_q {z_q.shape[-1]}: P and Q must know the same classes")
    if z_p.shape != z_q.shape:
        raise ValueError(f"z_p is {tuple(z_p.shape)} and z_q {tuple(z_q.shape)}: both must come from the same images")


def _check_finite(name: str, z: Tensor) -> None:
    finite = z.detach().isfinite()
    if not finite.all():
        nan = int(z.detach().isnan().sum())
        infinite = int((~finite).sum()) - nan
        raise NonFiniteLogitsError(
            f"{name} has {nan} NaN and {infinite} infinite among its {z.numel()} entries; logits must be finite"
        )


def _looked_at(name: str, z: Tensor) -> Tensor:
    """z in at least float32; its values are checked if that costs one pass over a few numbers and no waiting."""
    if z.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_finite(name, z)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _pair(z_p: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(z_p, z_q)
    return _looked_at("z_p", z_p), _looked_at("z_q", z_q)


def _wide(z: Tensor) -> Tensor:
    """z in float64, or float32 on MPS, which has no float64.

    Where P and Q nearly agree at T = 20, a divergence is a ten-millionth of the logarithms whose difference it is, and that is
    where float32 ends; N x C numbers in float64 cost nothing.
    """
    return z.float() if z.device.type == "mps" else z.double()


def _check_temperature(T: float) -> None:
    if not 0 < T < math.inf:
        raise ValueError(f"T must be a positive temperature, not {T}")


# Measuring adaptability: Eq. (1) to (4)


def p_ds(z_p: Tensor, z_q: Tensor) -> Tensor:
    """softmax(z_p - z_q), shape (N, C): where P sees a class and Q does not. Eq. (1). With C = 1 it is all ones."""
    z_p, z_q = _pair(z_p, z_q)
    return torch.softmax(z_p - z_q, dim=-1)


def entropy(p: Tensor) -> Tensor:
    """H_info(p) = sum_c p(c) log 1/p(c) of probability vectors (N, C), in nats, shape (N,). Eq. (2).

    0 log 0 is 0, and so is its gradient, whose true limit is infinite. A negative entry, no probability, gives NaN.
    """
    return -(p * torch.where(p == 0, 1, p).log()).sum(dim=-1)


def disagreement_entropy(z_p: Tensor, z_q: Tensor, *, T: float = 1.0) -> Tensor:
    """H_info(softmax((z_p - z_q) / T)) in nats, shape (N,): Eq. (2) of Eq. (1), straight from logits.

    log C where P and Q agree, less the more they disagree. Agreement here is z_p = z_q up to one constant a sample; the
    paper says z_p = z_q, but the softmax cannot see a constant.

    T: temperature; 1 in the paper's H_info, 20 or 5 in the released objective of Q (see `student_entropy_loss`)
    """
    _check_temperature(T)
    z_p, z_q = _pair(z_p, z_q)
    d = z_p - z_q
    log_p = torch.log_softmax(_wide(d) / T, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).to(d.dtype)


def normalized_entropy(entropy: Tensor, num_classes: int, *, floor: Floor = "batch") -> Tensor:
    r"""Disagreement entropy on the scale [0, 1]: H' of Eq. (3), shape (N,).

        H' = (H - H_min) / (log C - H_min)

    H' -> 1 where P and Q agree, H' -> 0 where they disagree most; *adaptability* is 1 - H'.

    entropy:     H_info of each sample, in nats, shape (N,)
    num_classes: C; its logarithm is the largest entropy there is
    floor:       what H_min is: the smallest entropy of this batch, held constant ("batch", corrected), the same with its
                 gradient ("batch_grad", as released), or 0 ("zero", comparable between batches)

    Raises ValueError for C < 2. A batch on which P = Q exactly (H = log C everywhere) gives ones, not 0/0, and the
    gradient zero. So does one where log C - H_min is within 16 machine epsilons of log C: that is what rounding alone
    leaves of P = Q (9.3 epsilons measured, of p_ds in float32 at C = 1,000), and dividing by it would make H' noise.

    With a floor from the batch, H' says where a sample stands among these N, not how much P and Q disagree on it: the
    smallest entropy always has H' = 0, so a batch of one has H' = 0 (unless P = Q). Hence adaptability is 1 somewhere in
    every batch, though Eq. (3) prints its range as [0, 1). In "batch_grad" that sample's own H' has no gradient, and whoever
    raises the others' H' pushes it, through H_min, towards more disagreement:

        dH'_i / dH_min = -(log C - H_i) / (log C - H_min)^2
    """
    if num_classes < 2:
        raise ValueError(f"H' needs at least 2 classes, not {num_classes}: with one class P and Q cannot disagree")
    if entropy.ndim != 1 or len(entropy) == 0:
        raise ValueError(f"entropy must be one number a sample, shape (N,) with N >= 1, not {tuple(entropy.shape)}")
    match floor:
        case "batch":
            low = entropy.detach().amin()
        case "batch_grad":
            low = entropy.amin()
        case "zero":
            low = entropy.new_zeros(())
        case _:
            raise ValueError(f"floor must be batch, batch_grad or zero, not {floor!r}")
    highest = math.log(num_classes)
    span = highest - low
    agreed = span <= 16 * torch.finfo(entropy.dtype).eps * highest
    # The inner where keeps 0/0 out of the graph: the outer alone would still send NaN backwards.
    ratio = (entropy - low) / torch.where(agreed, 1, span)
    # Rounding may leave H an ulp above log C. Not clamp(0, 1): it stops the gradient of the sample at H' = 0.
    return torch.where(agreed | (ratio > 1), 1, ratio)


def adaptability(h_prime: Tensor) -> Tensor:
    """H_nor = 1 - H', shape (N,): how much a sample has to teach Q. Eq. (3)."""
    return 1 - h_prime


def game_value(h_prime: Tensor) -> Tensor:
    """E[1 - H'], a scalar: what G raises and Q lowers. Eq. (4).

    Eq. (4) prints min over G of max over Q; its text, Eq. (5), (12) and (13) all mean max over G of min over Q, and so does
    this package.
    """
    return adaptability(h_prime).mean()


# Balancing disagreement and agreement: Eq. (6) to (9)


def loss_ds(z_p: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
    """E[CE(p_ds, y)], a scalar in nats: make P see class y and Q miss it. Eq. (6)."""
    z_p, z_q = _pair(z_p, z_q)
    return F.cross_entropy(z_p - z_q, y)


def p_as(z_p: Tensor, z_q: Tensor) -> Tensor:
    """softmax(z_p + z_q), shape (N, C): where P and Q see the same class. Eq. (7). With C = 1 it is all ones."""
    z_p, z_q = _pair(z_p, z_q)
    return torch.softmax(z_p + z_q, dim=-1)


def loss_as(z_p: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
    """E[CE(p_as, y)], a scalar in nats: make P and Q both see class y. Eq. (8)."""
    z_p, z_q = _pair(z_p, z_q)
    return F.cross_entropy(z_p + z_q, y)


def loss_balance(z_p: Tensor, z_q: Tensor, y: Tensor, *, alpha_ds: float = 0.2, alpha_as: float = 0.1) -> Tensor:
    """L_bal = alpha_ds L_ds + alpha_as L_as, a scalar. Eq. (9), with the paper's weights."""
    return total(balance_terms(z_p, z_q, y, alpha_ds=alpha_ds, alpha_as=alpha_as))


def balance_terms(z_p: Tensor, z_q: Tensor, y: Tensor, *, alpha_ds: float = 0.2, alpha_as: float = 0.1) -> Terms:
    """The two summands of L_bal, "ds" and "as". Eq. (9)."""
    return {"ds": alpha_ds * loss_ds(z_p, z_q, y), "as": alpha_as * loss_as(z_p, z_q, y)}


# The generator's side: Eq. (10) to (12)


@dataclass(frozen=True)
class Bounds:
    """The band that G keeps H' in: lambda_l < H' < lambda_u. Eq. (10).

    lower: lambda_l; a sample below it asks too much of Q (underfitting)
    upper: lambda_u; a sample above it has nothing to teach Q (overfitting)

    Raises UserError unless 0 <= lower < upper <= 1.
    """

    lower: float = 0.1
    upper: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper <= 1:
            raise UserError(f"bounds must satisfy 0 <= lower < upper <= 1, not {self.lower} and {self.upper}")

    def contains(self, h_prime: Tensor) -> Tensor:
        """Which samples lie strictly between the bounds, bool, shape (N,)."""
        return (self.lower < h_prime) & (h_prime < self.upper)


def hinge_lower(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """max(lambda_l - H', 0), shape (N,): by how much a sample is too hard for Q. First term of Eq. (12)."""
    return torch.relu(bounds.lower - h_prime)


def hinge_upper(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """max(H' - lambda_u, 0), shape (N,): by how much a sample is too easy for Q. Second term of Eq. (12)."""
    return torch.relu(h_prime - bounds.upper)


def hinge(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """The distance of H' from the band, shape (N,), any N; 0 within. The margin terms of Eq. (12).

    Its mean is never below lambda_l / N if H_min is the batch's (and P != Q): one sample then has H' = 0 by definition.
    """
    return hinge_lower(h_prime, bounds) + hinge_upper(h_prime, bounds)


class BatchStatistics(NamedTuple):
    """What one BatchNorm layer of P sees of a batch, and what it remembers of the training data; each of shape (c,)."""

    mean: Tensor
    var: Tensor  # biased: the batch's second central moment, divided by the count
    running_mean: Tensor
    running_var: Tensor


def loss_bns(statistics: Sequence[BatchStatistics], *, reduction: BnsReduction = "sum") -> Tensor:
    """How far the batch is from the training data as P's BatchNorm layers remember them, a scalar. Eq. (11).

        L_BNS = sum_m ||mu_m^g - mu_m||^2 + ||sigma_m^g - sigma_m||^2

    The paper writes sigma and calls it the variance; so does the released code, and so do we.

    reduction: "sum" over channels and layers, as printed, or "mean" over the channels of each layer and over layers, as
               released: smaller by the number of layers times each layer's width (for ResNet-20 by 336 to 1,344), or
               "normalized": the same mean of (mu^g - mu)^2 / v + (v^g - v)^2 / v^2 with v the running variance, so that it
               does not depend on the scale of the teacher's activations (v counts as 1e-5 where it is less)

    Raises ValueError without a layer or if a layer's four are not of one shape (c,).
    """
    if not statistics:
        raise ValueError("L_BNS needs the statistics of at least one BatchNorm layer; this teacher has none")
    if reduction not in ("sum", "mean", "normalized"):
        raise ValueError(f"reduction must be sum, mean or normalized, not {reduction!r}")
    for m, layer in enumerate(statistics):
        if len({tensor.shape for tensor in layer}) != 1 or layer.mean.ndim != 1:
            raise ValueError(f"BatchNorm layer {m} has statistics of shapes {[tuple(tensor.shape) for tensor in layer]}")
    # All layers at once: a teacher has dozens, and one operation on each would cost more than the arithmetic.
    seen = torch.cat([tensor for layer in statistics for tensor in (layer.mean, layer.var)])
    remembered = torch.cat([tensor for layer in statistics for tensor in (layer.running_mean, layer.running_var)])
    squares = (seen - remembered).square()
    if reduction == "sum":
        return squares.sum()
    if reduction == "normalized":
        floors = [layer.running_var.clamp(min=1e-5) for layer in statistics]
        squares = squares / torch.cat([tensor for v in floors for tensor in (v, v.square())])
    widths = [len(layer.mean) for layer in statistics]
    weights = torch.cat([remembered.new_full((2 * c,), 1 / (c * len(widths))) for c in widths])
    return (weights * squares).sum()


def generator_objective(
    h_prime: Tensor, balance: Tensor, bns: Tensor, bounds: Bounds, *, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """What G minimises, a scalar: Eq. (12) with its sign turned.

        E[max(lambda_l - H', 0)] + E[max(H' - lambda_u, 0)] + beta L_bal + gamma L_BNS

    h_prime: H' of each sample, shape (N,); balance: `loss_balance`; bns: `loss_bns`
    """
    return total(generator_terms(margin(h_prime, bounds), {"balance": balance}, bns, beta=beta, gamma=gamma))


def margin(h_prime: Tensor, bounds: Bounds) -> Tensor:
    """The mean of `hinge` over the batch, a scalar: the first two terms of Eq. (12)."""
    return hinge(h_prime, bounds).mean()


def generator_terms(band: Tensor, balance: Terms, bns: Tensor, *, beta: float = 1.0, gamma: float = 1.0) -> Terms:
    """The summands of `generator_objective`: "band", those of `balance` times beta, and "bns" times gamma. Eq. (12).

    band: `margin`; balance: `balance_terms`, or L_bal whole under one name; bns: `loss_bns`
    """
    return {"band": band, **{name: beta * term for name, term in balance.items()}, "bns": gamma * bns}


def total(terms: Terms) -> Tensor:
    """The sum of a loss's terms, a scalar."""
    return torch.stack(list(terms.values())).sum()


# The student's side: Eq. (13), and what is used for it


def student_objective(h_prime: Tensor) -> Tensor:
    """What Q minimises according to the paper, E[1 - H'], a scalar. Eq. (13).

    The value of the game, but G does not maximise it: Eq. (12) holds G to a band. The game as played is not zero-sum.
    """
    return game_value(h_prime)


def student_entropy_loss(z_p: Tensor, z_q: Tensor, *, T: float = 20.0) -> Tensor:
    """What Q minimises in the released code, up to a constant, a scalar.

        T^2 (log C - E[H_info(softmax((z_p - z_q) / T))]) = T^2 E[KL(softmax((z_p - z_q) / T) || uniform)]

    The released objective is -T^2 E[H_info]; T^2 log C is added so that the minimum is 0, reached where P and Q agree up to
    a constant a sample. No label, no normalization, no batch minimum. For T large against z_p - z_q it is half the
    variance over classes of z_p - z_q, whatever T: centred logit regression.
    """
    _check_temperature(T)
    z_p, z_q = _pair(z_p, z_q)
    d = z_p - z_q
    # With s = d/T - max(d/T): KL = sum p s - log mean exp s, in which nothing overflows and log C has cancelled by hand.
    s = _wide(d) / T
    s = s - s.amax(dim=-1, keepdim=True).detach()
    divergence = (torch.softmax(s, dim=-1) * s).sum(dim=-1) - s.expm1().mean(dim=-1).log1p()
    return (T**2 * divergence.mean()).to(d.dtype)


def distillation(z_p: Tensor, z_q: Tensor, *, T: float = 20.0, reduction: KdReduction = "batchmean") -> Tensor:
    """T^2 KL(softmax(z_p / T) || softmax(z_q / T)), a scalar: Q learns P's probabilities.

    reduction: "batchmean" divides by N, the divergence of an average sample; "mean" by N C, as the released code of GDFQ and
               its descendants does by way of a default of PyTorch that is announced to change: there C divides the weight
    """
    _check_temperature(T)
    if reduction not in ("batchmean", "mean"):
        raise ValueError(f"reduction must be batchmean or mean, not {reduction!r}")
    z_p, z_q = _pair(z_p, z_q)
    log_p, log_q = torch.log_softmax(_wide(z_p) / T, dim=-1), torch.log_softmax(_wide(z_q) / T, dim=-1)
    terms = log_p.exp() * (log_p - log_q)
    divergence = terms.sum(dim=-1).mean() if reduction == "batchmean" else terms.mean()
    return (T**2 * divergence).to(torch.promote_types(z_p.dtype, z_q.dtype))
