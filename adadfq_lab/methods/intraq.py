"""IntraQ: optimise a fixed set of images that stay different within a class, then learn from them.

Pixels are fitted to P's batch-norm statistics, to a target probability of their class (half of the targets below 1), and to a
band of cosine distances around the class's mean features, cropped at random in half of the rounds so that parts of an image are
images too. Then the set stays, and Q learns from crops of it by labels and, above all, by P's logits.

Zhong et al., IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity, CVPR 2022. `fidelity` decides how L_BNS is
averaged; the released calibration on a second method's generator is not offered (intra_calibration). Its warm-up is long: an
image takes `iterations` rounds with its batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, softmax

from adadfq_lab.equations import Terms, distillation, loss_bns
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.image_bank import CROP, ImageBank
from adadfq_lab.methods.method import Method, Rates, Round
from adadfq_lab.teacher.features import pooled_features
from adadfq_lab.teacher.teacher import Teacher


def soft_inception(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """E[(p_y - t)^2] of P's probability p of the label and each image's target t `(N,)`; a scalar."""
    p = softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return (p - target).square().mean()


def marginal_distance(f: Tensor, centre: Tensor, seen: Tensor, lower: float, upper: float) -> Tensor:
    """How far 1 - cos(f, centre) is outside [lower, upper], the mean over the images whose class was `seen`; a scalar.

    f, centre: features and the class's mean, `(N, D)`; seen: `(N,)`. 0 where no class was seen.
    """
    distance = 1 - cosine_similarity(f, centre, dim=1)
    outside = (lower - distance).clamp(min=0) + (distance - upper).clamp(min=0)
    return (outside * seen).sum() / seen.sum().clamp(min=1)


def crops(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
    """z `(n, latent + CROP)` from N(0, 1), see `image_bank`, and y `(n,)`, each class as likely as any other."""
    return torch.randn(n, latent + CROP, generator=random), torch.randint(classes, (n,), generator=random)


def intraq(
    lower: float = 0.05,
    upper: float = 0.8,
    *,
    easiest: float = 0.95,
    alpha: float = 20.0,
    gamma: float = 1.0,
    iterations: int = 100,
) -> Method:
    """IntraQ with its constants for CIFAR-10, at a tenth of its 1,000 iterations a batch.

    Q's learning rate is the published one for batches of 256, scaled to 16: as it stands it ends in NaN at 3 bits, where alpha
    T^2 = 8,000 multiplies the divergence. gamma weighs L_BNS; summed as Eq. (11) has it, it outweighs the other terms.
    """

    def bank(teacher: Teacher, fidelity: Fidelity) -> ImageBank:
        if fidelity.intra_calibration == "generator":
            raise UserError("IntraQ's released calibration on a GDFQ generator is not offered; use fidelity corrected or paper")
        features, width = pooled_features(teacher)
        classes, shape = len(teacher.info.classes), teacher.info.input_shape
        return ImageBank(classes, shape, features, width, iterations=iterations, easiest=easiest)

    def generator_loss(r: Round) -> Terms:
        f, notes = r.teacher_features[-1].mean((2, 3)), r.notes
        return {
            "bns": gamma * loss_bns(r.statistics, reduction=r.fidelity.bns_reduction),
            "sil": soft_inception(r.teacher_logits, r.labels, notes["target"]),
            "mdc": marginal_distance(f, notes["centre"], notes["seen"], lower, upper),
        }

    def student_loss(r: Round) -> Terms:
        kd = distillation(r.teacher_logits, r.student_logits, T=20, reduction="batchmean")
        return {"label": cross_entropy(r.student_logits, r.labels), "kd": alpha * kd}

    return Method(
        "IntraQ",
        generator_loss,
        student_loss,
        settings={"lower": lower, "upper": upper, "easiest": easiest, "alpha": alpha, "gamma": gamma, "iterations": iterations},
        build_generator=bank,
        sample=crops,
        rates=Rates(generator_lr=0.5, student_lr=1e-4 * 16 / 256, adam_beta1=0.9),
        features=True,
        generator_stops=True,
        warmup=16 * iterations,
    )
