"""Every place where AdaDFQ's text, its released code and this package differ, and the same for what other methods share here.

In four kinds: the paper against itself, code that does not run, arithmetic that differs, and housekeeping. `paper_and_code`
makes docs/paper_and_code.md of it, and measures the rows that are a switch of `fidelity`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["the paper against itself", "does not run", "differs in numbers", "housekeeping"]


@dataclass(frozen=True)
class Discrepancy:
    """One place.

    switch: the field of `Fidelity` that chooses here, if there is one
    effect: what it changes, and how that is known
    """

    kind: Kind
    place: str
    paper: str
    released: str
    here: str
    effect: str
    switch: str = ""


DISCREPANCIES: tuple[Discrepancy, ...] = (
    Discrepancy(
        "the paper against itself",
        "Eq. (4)",
        "min over G of max over Q; the text and Eqs. (5), (12), (13) need max over G of min over Q",
        "G raises, Q lowers",
        "max over G of min over Q",
        "The sign of the game: notebook 04 plays it.",
    ),
    Discrepancy(
        "the paper against itself",
        "range of H_nor, Eq. (3)",
        "[0, 1)",
        "the batch's minimum has H' = 0, so H_nor = 1 in every batch",
        "H' in [0, 1], said in the docstring",
        "One sample in every batch of 16 has H' = 0 whatever G does.",
    ),
    Discrepancy(
        "the paper against itself",
        "zero-sum",
        "a footnote calls the gains' sum close to 0",
        "Eqs. (12) and (13) minimise different things",
        "both gains measured, Δ_G and Δ_Q",
        "Notebook 04: over 120 measured rounds G's gains add up to +0.5 nats and Q's to -1.1, together -0.6 where their sizes"
        " add up to 9.8; with L_BNS averaged +7.9 and +0.6, which is not near 0.",
    ),
    Discrepancy(
        "the paper against itself",
        "Eq. (18)",
        "called symmetric; offset not rounded",
        "affine, offset rounded to an integer",
        "affine, rounded",
        "A real offset has no integer arithmetic: `adadfq export` needs the rounded one.",
        switch="zero_point",
    ),
    Discrepancy(
        "the paper against itself",
        "Adam's momentum",
        "0.9",
        "betas (0.5, 0.999) in every configuration",
        "0.5",
        "",
        switch="adam_beta1",
    ),
    Discrepancy(
        "the paper against itself",
        "one set of constants for all",
        "λ_l = 0.1, λ_u = 0.8, α_ds = 0.2 everywhere; Fig. 4 calls λ_l up to 0.2 optimal",
        "λ_l 0.3 for ResNet-18 at 4 and 5 bits, 0.3 or 0.4 for ResNet-50, α_ds 0.1 to 0.3 by network and bits, in comments",
        "per recipe",
        "`adadfq recipes show` prints what each cell of Table 2 was run with.",
    ),
    Discrepancy(
        "the paper against itself",
        "warm-up and ranges",
        "not mentioned",
        "G alone for 4, 50 or 100 epochs; ranges fixed after the fourth",
        "`Schedule.warmup`, `Schedule.observe`",
        "Without a warm-up the ranges of the first batches are those of noise.",
    ),
    Discrepancy(
        "the paper against itself",
        "ResNet-50's learning rate",
        "divided by 10 at epoch 350",
        "at 150, 300 and 400 (3 bits), 200, 300 and 400 (4 bits)",
        "per recipe, as released",
        "Not measured here: ImageNet.",
    ),
    Discrepancy(
        "the paper against itself",
        "Table 3",
        "in the text version at hand two rows carry the same check marks",
        "nothing",
        "read by the prose: 38.10 full, 32.13 without the bounds, 31.14 without L_as, 20.99 without L_BNS, 19.40 without L_ds, "
        "18.53 without both",
        "Notebook 05 measures the six rows in small.",
    ),
    Discrepancy(
        "the paper against itself",
        "Fig. 2",
        "which end of H' overfits can be read either way",
        "nothing",
        "H' near 1 is agreement, the overfitting side; near 0 disagreement, the underfitting side",
        "Words only.",
    ),
    Discrepancy(
        "does not run",
        "main.py",
        "",
        "a block is not indented: IndentationError, for CIFAR and for ImageNet",
        "`adadfq train`, tested",
        "The published program does not start.",
    ),
    Discrepancy(
        "does not run",
        "options.py",
        "",
        "GDFQ's: seven of AdaDFQ's settings are never read: AttributeError",
        "one dataclass, checked",
        "Nor would it start if it compiled.",
    ),
    Discrepancy(
        "does not run",
        "CIFAR-10",
        "Table 2 has it",
        "refused in three places",
        "shipped teacher, one command",
        "Its numbers come from other code.",
    ),
    Discrepancy(
        "does not run",
        "MobileNetV2",
        "Table 2 has it",
        "its forward does not take an argument the trainer passes: TypeError",
        "any network torch.fx can trace",
        "Its numbers come from other code.",
    ),
    Discrepancy(
        "does not run",
        "batch size",
        "16",
        "the hinge's zero has 16 elements: batches of 16 and of 1 run, any other fails",
        "any batch",
        "The property tests draw the batch size.",
    ),
    Discrepancy(
        "does not run",
        "ImageNet loader, requirements",
        "",
        "databases of training and validation images in a serialisation that no longer exists; packages missing, torch 1.2",
        "a folder of validation images; no training image is read",
        "The released loader wants the data that are said to be gone.",
    ),
    Discrepancy(
        "differs in numbers",
        "Q's loss",
        "Eq. (13): E[1 - H']",
        "-T² H of the tempered difference, T = 20 or 5, a literal",
        "the released one",
        "With the minimum's gradient, Eq. (13) pushes the sample that disagrees most the wrong way.",
        switch="student_objective",
    ),
    Discrepancy(
        "differs in numbers",
        "min over the batch in H'",
        "nothing is said",
        "in the graph",
        "held constant",
        "The hinge's gradient on the minimum sample changes its sign: +0.033 against -0.018 in a batch of 16.",
        switch="entropy_floor",
    ),
    Discrepancy(
        "differs in numbers",
        "the hinge's floor",
        "",
        "the minimum's sample always pays λ_l, so the mean is at least λ_l/16; H' = 0 there has no gradient",
        "it pays the same; with the floor held constant its H' has a gradient, and the hinge raises it",
        '`entropy_floor="zero"` removes the floor.',
    ),
    Discrepancy(
        "differs in numbers",
        "P = Q",
        "0/0",
        "0/rounding",
        "H' = 1",
        "The gradient of H' grows as 1/|z_p - z_q|: 17.6 at a gap of 1e-3, 0.03 at 1; at 0 it is defined here.",
    ),
    Discrepancy(
        "differs in numbers",
        "L_BNS, Eq. (11)",
        "sums over channels and layers, γ = 1",
        "means over both, γ = 1; on variances",
        "sums",
        "Averaged, the term is too small to affect training.",
        switch="bns_reduction",
    ),
    Discrepancy(
        "differs in numbers",
        "activation ranges",
        "minimum and maximum",
        "a moving average whose state is divided by its own bias correction: 3,945 times too wide at update 21",
        "a moving average with the correction on reading",
        "The released average is harmless after 150 updates, fatal in a short game; a maximum keeps what G's first noise was.",
        switch="observer",
    ),
    Discrepancy(
        "differs in numbers",
        "weight ranges",
        "minimum and maximum",
        "minimum and maximum of each output channel",
        "the same, extended to contain 0, under every fidelity",
        "A channel whose weights all have one sign gets a wider step: from 1.0 to 2.0 at 3 bits twice the released one. Zero"
        " is then a code, which padding and integer kernels need.",
    ),
    Discrepancy(
        "differs in numbers",
        "updates of the ranges",
        "",
        "two a round, since Q is run twice: 1,600 in four epochs",
        "one a round",
        "Nothing, once the average has settled.",
    ),
    Discrepancy(
        "differs in numbers",
        "which images Q learns from",
        "in turn; which images is not said",
        "G's before its step",
        "before, so that one forward of Q serves both players",
        "One of G's steps lies between them; not measured.",
    ),
    Discrepancy(
        "differs in numbers",
        "temperature of Q's loss",
        "none",
        "20 (CIFAR), 5 (ImageNet)",
        "20",
        "T² (log C - H) tends to half the variance of z_p - z_q over the classes: the closer P and Q, the less T matters.",
    ),
    Discrepancy(
        "differs in numbers",
        "straight-through gradient",
        "nothing is said",
        "passes clipped values too",
        "as released",
        "",
        switch="ste",
    ),
    Discrepancy(
        "differs in numbers",
        "eps of G's batch norms",
        "nothing is said",
        "0.8, where a momentum was meant",
        "1e-5",
        "",
        switch="generator_bn_eps",
    ),
    Discrepancy(
        "differs in numbers",
        "what is reported",
        "nothing is said",
        "the best epoch on the test images",
        "the last round; the best beside it, labelled",
        "Column `best` of `adadfq table`.",
    ),
    Discrepancy(
        "differs in numbers",
        "IntraQ: rates and labels of its images",
        "",
        "ReduceLROnPlateau with a patience of 50; labels drawn at random",
        "half a cosine a batch; image i is of class i mod C",
        "Classes are balanced. Not measured.",
    ),
    Discrepancy(
        "differs in numbers",
        "ZAQ: order of steps",
        "",
        "five steps of Q, each on images of its own, then one of G on new ones",
        "a step of Q in every round, one of G in every fifth, on the round's images",
        "The same numbers of steps. Not measured.",
    ),
    Discrepancy(
        "differs in numbers",
        "Qimera: one class drawn twice for an image",
        "",
        "two embeddings with two noises; the soft label adds their weights",
        "one slot with both weights",
        "One noise in place of two for such images. Not measured.",
    ),
    Discrepancy(
        "differs in numbers",
        "AIT: end of the search for a step's length",
        "",
        "the last midpoint, at which the share of changed codes may be missed",
        "the upper end, at which it is reached",
        "At most 4.4 % of the length.",
    ),
    Discrepancy(
        "housekeeping",
        "hooks and gradients",
        "",
        "lists of statistics grow with every forward; P and Q collect gradients nobody uses; exceptions are swallowed",
        "no hooks, no unused gradient, a non-finite loss stops the run and is named",
        "Memory stays flat; a run that broke down does not look finished.",
    ),
)
