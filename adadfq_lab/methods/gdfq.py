"""GDFQ: generate what the teacher remembers.

A class-conditional generator is trained until the frozen teacher recognises each image as the class asked for and finds its own
batch-norm statistics in them; the student learns from these images by labels and by the teacher's logits. The student has no
say in what is generated: that is what AdaSG and AdaDFQ change.

Xu et al., Generative Low-bitwidth Data Free Quantization, ECCV 2020. `fidelity` decides how L_BNS and the distillation are
averaged.
"""

from torch.nn.functional import cross_entropy

from adadfq_lab.equations import Terms, distillation, loss_bns
from adadfq_lab.methods.method import Method, Round


def generator_loss(r: Round) -> Terms:
    bns = loss_bns(r.statistics, reduction=r.fidelity.bns_reduction)
    return {"label": cross_entropy(r.teacher_logits, r.labels), "bns": 0.1 * bns}


def student_loss(r: Round) -> Terms:
    kd = distillation(r.teacher_logits, r.student_logits, T=20, reduction=r.fidelity.kd_reduction)
    return {"label": cross_entropy(r.student_logits, r.labels), "kd": kd}


def gdfq() -> Method:
    """GDFQ with its own constants: CE + 0.1 L_BNS for G, CE + T^2 KL at T = 20 for Q."""
    return Method("GDFQ", generator_loss, student_loss)
