"""ZAQ: search for the images on which teacher and student differ most, and learn from them.

An unconditional generator raises the distance of P's and Q's logits, that of how their channels relate to each other after each
stage, and the strength of P's last features; Q, five steps for each of the generator's, lowers both distances, while its batch
norms follow the images. Neither labels nor batch-norm statistics of P are used, which is why ZAQ has little to tell a class by.

Liu et al., Zero-shot Adversarial Quantization, CVPR 2021. `fidelity` decides whether channel relation maps are compared, as the
paper has it, or what two self-attentions make of the features, as the code does.
"""

from torch.nn.functional import l1_loss

from adadfq_lab.equations import Terms
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.generators import Generator, LatentGenerator
from adadfq_lab.methods.method import Method, Rates, Round, plain_momentum
from adadfq_lab.teacher.features import attention_gap, relation_gap
from adadfq_lab.teacher.teacher import Teacher


def generator_of(teacher: Teacher, fidelity: Fidelity) -> Generator:
    return LatentGenerator(teacher.info.input_shape)


def zaq(alpha: float = 1.0, beta: float = 0.1) -> Method:
    """ZAQ with the weights of its released code; no warm-up, and its rate for batches of 256, scaled to 16."""

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
