"""`RunConfig`: everything a run depends on, built by hand in a notebook or by flags on the command line."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Fixed, SuppressFixed

from adadfq_lab.errors import UserError
from adadfq_lab.game.compiling import Compile
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.devices import Precision
from adadfq_lab.machine.fields import build, check_whole
from adadfq_lab.machine.reading import read_bytes
from adadfq_lab.student.quantizer import BitWidths


@dataclass(frozen=True)
class RunConfig:
    """What to run.

    Attributes:
        teacher: fashion_mnist_resnet20 or cifar10_resnet20, which are shipped; a file that train-teacher wrote; or a published
            network such as torchvision:resnet18 or pytorchcv:resnet20_cifar10.
        data: Images to measure on: fashion_mnist, cifar10, cifar100, imagenet, a folder of images, or NAME for NAME_test.npz in
            the folder ADADFQ_DATA; what the teacher was trained on if empty.
        stub: Measure on the shipped images only (the first 2,000 Fashion-MNIST test images).
        method: One of the eight of Table 2, or another; `adadfq methods` lists them all.
        bits: Of weights and activations, 2 to 8 each.
        rounds: Rounds in all, the warm-up included.
        lower: The lower bound of H', lambda_l; the method's own if not given.
        upper: The upper bound of H', lambda_u; the method's own if not given.
        seed: Of the generator's first weights and of every draw.
        schedule: When what happens, and how fast.
        settings: Of the method, by name, if they differ from its own; `--set alpha_ds=0.3` on the command line.
        fidelity: Which truth to follow where paper, released code and good sense differ.
        bns_reduction: How L_BNS adds up: sum, mean, or normalized (by the running variances); as `fidelity` says if not given.
        every_input: Also quantise layer inputs that no ReLU precedes.
        precision: float32, tf32 (CUDA) or bf16 (autocast).
        compile: off; default has torch.compile make kernels for the networks, which takes minutes at the start and does not
            pay on a CPU; graphs records CUDA graphs of them too, on a GPU only.
        device: auto takes a GPU if there is one.
        evaluate_every: Rounds between measurements of the student's accuracy; 0 measures only when the table needs it.
        save_every: Rounds between checkpoints; 0 saves only the last.
        gains_every: Rounds between measurements of the players' gains; 0 for never.
    """

    teacher: str = "fashion_mnist_resnet20"
    data: str = ""
    stub: bool = False
    method: str = "adadfq"
    bits: str = "3w3a"
    rounds: int = 2000
    lower: float | None = None
    upper: float | None = None
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    settings: Annotated[dict[str, Any], Fixed, SuppressFixed] = field(default_factory=dict)
    fidelity: Literal["corrected", "paper", "released"] = "corrected"
    bns_reduction: Literal["", "sum", "mean", "normalized"] = ""
    every_input: bool = False
    precision: Precision = "float32"
    compile: Compile = "off"
    device: str = "auto"
    evaluate_every: int = 200
    save_every: int = 200
    gains_every: int = 25

    def __post_init__(self) -> None:
        BitWidths.parse(self.bits)
        if self.rounds < 1:
            raise UserError(f"rounds must be at least 1, not {self.rounds}")
        check_whole(self, seed=0)
        for name in ("evaluate_every", "save_every", "gains_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, as {getattr(self, name)} is; 0 is for never")

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "RunConfig":
        """The configuration that `as_json` returned; raises UserError for anything else."""
        if not {"teacher", "schedule"} <= plain.keys():
            raise UserError("no teacher or no schedule in it")
        return build(cls, plain)


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's config.json; raises UserError if it is not one."""
    content = read_bytes(path)
    try:
        return RunConfig.from_json(json.loads(content))
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or of another version of adadfq; choose another --name") from None


LEAST_BATCH = 4  # images a round below which batch statistics, and so L_BNS and H', say little


def smaller(config: "RunConfig") -> "RunConfig | None":
    """The next smaller setting: on a GPU bf16, then half the images a round, down to 4; None if there is none."""
    if config.device.startswith(("cuda", "auto")) and torch.cuda.is_available() and config.precision != "bf16":
        return dataclasses.replace(config, precision="bf16")
    batch = config.schedule.batch // 2
    if batch < LEAST_BATCH:
        return None
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, batch=batch))


def offer(config: "RunConfig") -> str:
    """What to try if there was too little memory for `config`, in a sentence."""
    said = f"there is too little memory for {config.schedule.batch} images a round in {config.precision}"
    less = smaller(config)
    if less is None:
        return f"{said}; this takes a machine with more"
    return f"{said}; start again with --set batch={less.schedule.batch} --set precision={less.precision}"
