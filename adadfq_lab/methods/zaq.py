"""ZAQ: search for the images on which teacher and student differ most, and learn from them.

An unconditional generator raises the distance of P's and Q's logits, that of how their channels relate to each other after each
stage, and the strength of P's last features; Q, five steps for each of the generator's, lowers both distances, while its batch
norms follow the images. Neither labels nor batch-norm statistics of P are used, so nothing tells G one class from another.

Liu et al., Zero-shot Adversarial Quantization, CVPR 2021. `fidelity` decides whether channel relation maps are compared, as the
paper has it, or what two self-attentions make of the features, as the code does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import l1_loss

from adadfq_lab.equations import Terms
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.methods.generators import Generator, LatentGenerator
from adadfq_lab.methods.method import Method, Rates, Round, plain_momentum
from adadfq_lab.teacher.features import Maps
from adadfq_lab.teacher.teacher import Teacher


def unit(x: Tensor, dim: int) -> Tensor:
    """`x` divided by its Euclidean length along `dim`; a zero vector stays zero and passes its gradient unchanged.

    At three bits whole channels round to 0. Dividing them by a small eps would multiply their gradient by 1/eps, and one such
    step destroys Q.
    """
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length > 0, length, 1)


def relation_map(features: Tensor) -> Tensor:
    """The channel relation map of each sample: `(N, C, H, W)` to cosines `(N, C, C)` between channels. A dead channel has 0."""
    channels = unit(features.flatten(2), dim=2)
    return channels @ channels.transpose(1, 2)


def relation_gap(f_p: Maps, f_q: Maps) -> Tensor:
    """sum_l E|R_l(P) - R_l(Q)|, the mean over samples and pairs of channels; a scalar. ZAQ's paper, stages weighted alike."""
    return torch.stack([F.l1_loss(relation_map(q), relation_map(p)) for p, q in zip(f_p, f_q, strict=True)]).sum()


def attend(features: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions without parameters of `(N, C, H, W)`: over places and over channels, both `(N, C, HW)`.

    With X the features of unit length at each place: X + 0.1 X softmax(X^T X)^T, and X + 0.1 softmax(max - X X^T) X.
    """
    x = unit(features.flatten(2), dim=1)
    places = torch.softmax(x.transpose(1, 2) @ x, dim=2)
    likeness = x @ x.transpose(1, 2)
    channels = torch.softmax(likeness.amax(dim=2, keepdim=True) - likeness, dim=2)
    return x + 0.1 * x @ places.transpose(1, 2), x + 0.1 * channels @ x


def attention_gap(f_p: Maps, f_q: Maps) -> Tensor:
    """The mean |difference| of P's and Q's `attend`, summed over both attentions and the stages; ZAQ's code. (HW)^2 memory."""
    pairs = [pair for p, q in zip(f_p, f_q, strict=True) for pair in zip(attend(p), attend(q), strict=True)]
    return torch.stack([F.l1_loss(q, p) for p, q in pairs]).sum()


def generator_of(teacher: Teacher, fidelity: Fidelity) -> Generator:
    return LatentGenerator(teacher.info.input_shape)


def zaq(alpha: float = 1.0, beta: float = 0.1) -> Method:
    """ZAQ with the weights of its released code, no warm-up, and its learning rate for batches of 256 scaled to 16."""

    def gaps(r: Round) -> Terms:
        gap = relation_gap if r.fidelity.zaq_feature_loss == "crm" else attention_gap
        features = alpha * gap(r.teacher_features, r.student_features)
        return {"output": l1_loss(r.student_logits, r.teacher_logits), "features": features}

    def generator_loss(r: Round) -> Terms:
        return {name: -gap for name, gap in gaps(r).items()} | {"activation": -beta * r.teacher_features[-1].abs().mean()}

    return Method(
        "ZAQ",
        generator_loss,
        gaps,
        uses_student=True,
        settings={"alpha": alpha, "beta": beta},
        build_generator=generator_of,
        rates=Rates(student_lr=0.1 * 16 / 256, weight_decay=5e-4, adam_beta1=0.9),
        student_optimizer=plain_momentum,
        student_batch_norm="train",
        features=True,
        generator_every=5,
        warmup=0,
    )
