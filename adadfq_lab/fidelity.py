"""Which truth to follow where paper, released code and good sense differ.

Each such place is one row of CHOICES, and only there: the three presets are the columns of that table, so what it says is
what runs. `fidelity("corrected")` is the default of everything in this package; to study one choice alone,
`dataclasses.replace(fidelity("corrected"), observer="ema_gdfq")`.
"""

from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adadfq_lab.equations import BnsReduction, Floor, KdReduction
from adadfq_lab.errors import UserError


@dataclass(frozen=True)
class Fidelity:
    """One answer to each question of CHOICES. Raises UserError for an answer that is not among a field's values."""

    bns_reduction: BnsReduction
    kd_reduction: KdReduction
    student_objective: Literal["eq13", "entropy"]
    entropy_floor: Floor
    observer: Literal["ema", "ema_gdfq", "minmax"]
    zero_point: Literal["rounded", "real"]
    ste: Literal["identity", "clipped"]
    adam_beta1: float
    generator_bn_eps: float
    cbn_mix: Literal["sum", "mean"]
    embedding_norm: Literal["per-sample", "per-slot"]
    use_dm: bool
    gi_cap: float | None
    intra_calibration: Literal["own", "generator"]
    zaq_feature_loss: Literal["crm", "scrm"]

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Fidelity).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise UserError(f"{name} must be {' or '.join(get_args(kind))}, not {value!r}")
        if not 0 <= self.adam_beta1 < 1:
            raise UserError(f"adam_beta1 must satisfy 0 <= adam_beta1 < 1, not {self.adam_beta1}")
        if not self.generator_bn_eps > 0:
            raise UserError(f"generator_bn_eps must be above 0, not {self.generator_bn_eps}")
        if self.gi_cap is not None and not self.gi_cap >= 1:
            raise UserError(f"gi_cap must be at least 1, or None for no cap, not {self.gi_cap}")


@dataclass(frozen=True)
class Choice:
    """One question on which a method's paper, its released code and this package may differ.

    Where the row names another method than AdaDFQ, its own paper and code are meant.
    """

    name: str  # of the field of Fidelity
    question: str
    paper: str | float | bool | None
    released: str | float | bool | None
    corrected: str | float | bool | None
    why: str  # what either does, and how it is known

    def __str__(self) -> str:
        answers = ", ".join(f"{name} {getattr(self, name)}" for name in FIDELITY)
        why = fill(self.why, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        return f"{self.name}: {self.question}\n  {answers}\n{why}"


CHOICES: tuple[Choice, ...] = (
    Choice(
        "bns_reduction",
        "How does L_BNS, Eq. (11), add up?",
        paper="sum",
        released="mean",
        corrected="sum",
        why="Eq. (11) sums over channels and layers; all code takes means over both. The sum weighs a channel of ResNet-20"
        " 336 to 1,344 times as much, at the same gamma = 1. CIFAR-10, 3w3a, AdaDFQ, 800 rounds, seed 0, on 2,000 training"
        " images: 86.6 % summed, 71.1 % averaged, 85.0 % averaged with gamma = 10. A third answer, `normalized`, divides by the"
        " running variance first, for teachers whose activations are so large that the sum drowns every other term.",
    ),
    Choice(
        "kd_reduction",
        "What divides the distillation term?",
        paper="batchmean",
        released="mean",
        corrected="batchmean",
        why="A divergence is a sum over classes, averaged over samples. GDFQ, Qimera and AIT take PyTorch's default, which"
        " divides by C too, and so weakens the term 10 to 1,000 times beside the cross-entropy.",
    ),
    Choice(
        "student_objective",
        "What does Q minimise in AdaDFQ and AdaSG?",
        paper="eq13",
        released="entropy",
        corrected="entropy",
        why="Eq. (13) says E[1 - H'], relative to the batch's smallest entropy. The code minimises -T^2 H at T = 20 (CIFAR) or"
        " 5 (ImageNet), unnormalised, which is nearly centred logit regression and looks at each sample alone.",
    ),
    Choice(
        "entropy_floor",
        "Has the batch minimum in H', Eq. (3), a gradient?",
        paper="batch_grad",
        released="batch_grad",
        corrected="batch",
        why="Read literally, Eq. (3) differentiates the minimum too. The sample that attains it is then pushed towards more"
        " disagreement to lift the others' H'; held constant, it is not.",
    ),
    Choice(
        "observer",
        "How do activation ranges follow the batches?",
        paper="minmax",
        released="ema_gdfq",
        corrected="ema",
        why="Eq. (18) names only the minimum and maximum. The code's moving average (0.9) stores the bias-corrected value back"
        " into its state: ranges are 3,945 times too wide at update 21, within 10 % only from update 132.",
    ),
    Choice(
        "zero_point",
        "Is the zero point of Eq. (18) an integer?",
        paper="real",
        released="rounded",
        corrected="rounded",
        why="Eq. (18) does not round the offset; the code does, so that zero is represented exactly and integer hardware can"
        " run it. Both are asymmetric, whatever the text calls them.",
    ),
    Choice(
        "ste",
        "Does the straight-through gradient pass clipped values?",
        paper="identity",
        released="identity",
        corrected="identity",
        why="The paper does not say. The code passes every gradient, clipped or not; `clipped` stops it outside the range.",
    ),
    Choice(
        "adam_beta1",
        "What is the momentum of G's Adam?",
        paper=0.9,
        released=0.5,
        corrected=0.5,
        why="The text says 0.9; every released configuration has betas (0.5, 0.999).",
    ),
    Choice(
        "generator_bn_eps",
        "What is eps in the generators' batch norms?",
        paper=1e-5,
        released=0.8,
        corrected=1e-5,
        why="The code passes 0.8 in the place of eps, probably meant as momentum (handed down from an ACGAN example). The paper"
        " does not mention it, hence the default.",
    ),
    Choice(
        "cbn_mix",
        "How does Qimera mix class-conditional batch norms?",
        paper="sum",
        released="mean",
        corrected="sum",
        why="The weights of a superposition already add up to one. The code's mean shrinks scale and shift by K at each of"
        " three layers: images at the start have deviation 3e-5 for K = 100 instead of 1.",
    ),
    Choice(
        "embedding_norm",
        "Over what does Qimera normalise class embeddings?",
        paper="per-sample",
        released="per-slot",
        corrected="per-sample",
        why="The code normalises a single label over its features but, through a transpose in three dimensions, a mixture over"
        " batch and features of each slot. The paper column is unverified.",
    ),
    Choice(
        "use_dm",
        "Does Qimera use its disentanglement mapping?",
        paper=True,
        released=False,
        corrected=True,
        why="One of the method's three parts; the released flag is inverted and no script passes it, so it is off.",
    ),
    Choice(
        "gi_cap",
        "How far may AIT's gradient inundation scale an update?",
        paper=None,
        released=None,
        corrected=100.0,
        why="The code caps the multiplier at about 100 in the first epoch after warm-up only; later a layer with gradients of"
        " 1e-9 got 1.4e8. The paper column is unverified.",
    ),
    Choice(
        "intra_calibration",
        "On what images does IntraQ set activation ranges?",
        paper="own",
        released="generator",
        corrected="own",
        why="A method of optimised images without a generator; the code calibrates on images of a GDFQ generator trained for"
        " four epochs.",
    ),
    Choice(
        "zaq_feature_loss",
        "Which relation of feature maps does ZAQ compare?",
        paper="crm",
        released="scrm",
        corrected="crm",
        why="The paper's channel relation map holds cosines between channel maps; the code computes two parameter-free"
        " self-attentions instead.",
    ),
)
"""Every place where paper and released code differ, or both could be better, and what each of the three does there."""


def _preset(column: str) -> Fidelity:
    answers: dict[str, Any] = {choice.name: getattr(choice, column) for choice in CHOICES}
    return Fidelity(**answers)


FIDELITY: dict[str, Fidelity] = {column: _preset(column) for column in ("paper", "released", "corrected")}


def fidelity(name: str) -> Fidelity:
    """The preset of that name: "paper", "released" or "corrected". Raises UserError for any other."""
    if name not in FIDELITY:
        raise UserError(f"fidelity must be {', '.join(list(FIDELITY)[:-1])} or {list(FIDELITY)[-1]}, not {name!r}")
    return FIDELITY[name]


def fidelity_table() -> str:
    """CHOICES as a Markdown table, one row a choice."""
    rows = [("switch", "question", *FIDELITY, "why"), ("---",) * 6]
    rows += [
        (f"`{c.name}`", c.question, f"`{c.paper}`", f"`{c.released}`", f"`{c.corrected}`", c.why.replace("|", "\\|"))
        for c in CHOICES
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
