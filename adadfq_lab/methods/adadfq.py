"""AdaDFQ: generate samples on which teacher and student disagree just enough.

G keeps the normalised disagreement entropy H' of its samples between lambda_l and lambda_u, balances samples that only P gets
right against samples that both get right, and matches P's batch-norm statistics; Q is pulled towards P on them.

Qian et al., Adaptive Data-Free Quantization, CVPR 2023. `fidelity` decides what Q minimises (Eq. 13 as printed, or the tempered
entropy of the released code), whether the batch minimum in H' carries gradient, and how L_BNS is averaged.
"""

import math

from adadfq_lab.equations import (
    Bounds,
    Terms,
    balance_terms,
    generator_terms,
    loss_bns,
    margin,
    student_entropy_loss,
    student_objective,
)
from adadfq_lab.errors import UserError
from adadfq_lab.methods.method import Method, Round


def adadfq(
    lower: float = 0.1,
    upper: float = 0.8,
    *,
    alpha_ds: float = 0.2,
    alpha_as: float = 0.1,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 20.0,
    name: str = "AdaDFQ",
) -> Method:
    """AdaDFQ with the constants of the paper's section 3.1; a weight of 0 drops its term, as in Table 3.

    temperature: T of the student's tempered entropy; the released code has 20 for CIFAR and 5 for ImageNet
    """

    if not 0 < temperature < math.inf:
        raise UserError(f"temperature must be a positive number, not {temperature}")

    dropped = {name for name, weight in (("ds", beta * alpha_ds), ("as", beta * alpha_as), ("bns", gamma)) if not weight}

    def generator_loss(r: Round) -> Terms:
        band = margin(r.h_prime, r.bounds)
        balance = balance_terms(r.teacher_logits, r.student_logits, r.labels, alpha_ds=alpha_ds, alpha_as=alpha_as)
        bns = loss_bns(r.statistics, reduction=r.fidelity.bns_reduction)
        terms = generator_terms(band, balance, bns, beta=beta, gamma=gamma)
        return {name: term for name, term in terms.items() if name not in dropped}

    def student_loss(r: Round) -> Terms:
        if r.fidelity.student_objective == "eq13":
            return {"adaptability": student_objective(r.h_prime)}
        return {"entropy": student_entropy_loss(r.teacher_logits, r.student_logits, T=temperature)}

    settings = {"lower": lower, "upper": upper, "alpha_ds": alpha_ds, "alpha_as": alpha_as, "beta": beta, "gamma": gamma}
    settings["temperature"] = temperature
    return Method(name, generator_loss, student_loss, uses_student=True, bounds=Bounds(lower, upper), settings=settings)
