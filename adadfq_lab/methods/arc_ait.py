"""ARC+AIT: ARC, whose student learns from P's logits alone and moves its integers, not only its floats.

Labels and distillation pull Q apart on generated images, so Q keeps distillation; and since most steps are too small for a
weight to reach another integer, gradient inundation stretches each layer's step until a share of its integers changes.

Choi et al., It's All In the Teacher: Zero-Shot Quantization Brought Closer to the Teacher, CVPR 2022. `fidelity` decides how
far a step may be stretched (`gi_cap`), how distillation is averaged, and what it does for ARC.
"""

import dataclasses

import torch

from adadfq_lab.equations import Terms, distillation
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.inundation import GradientInundation
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.method import Method, Rates, Round
from adadfq_lab.student.student import Student


def student_loss(r: Round) -> Terms:
    return {"kd": distillation(r.teacher_logits, r.student_logits, T=20, reduction=r.fidelity.kd_reduction)}


def arc_ait(cells: str | None = None, *, share: float = 1e-3 * 16 / 200) -> Method:
    """ARC+AIT in which at least a `share` of each layer's integer weights changes in every step of Q.

    The share is the published one for batches of 200, scaled to 16, so that an image moves as many integers as there. A change
    is of one integer at least: in layers of up to 12,500 weights that is more than the share.
    """

    def inundation(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
        return GradientInundation(student, share=share, cap=fidelity.gi_cap, weight_decay=weight_decay)

    return dataclasses.replace(
        arc(cells),
        name="ARC+AIT",
        student_loss=student_loss,
        settings={"cells": cells, "share": share},
        rates=Rates(weight_decay=0.0),
        student_optimizer=inundation,
    )
