"""`adadfq train-teacher`: the one place where training images are used, to make the P that forgets them.

SGD with Nesterov momentum and a cosine schedule; flips and shifted crops; the first part of the epochs at 3/4 of the image
size, which costs half as much; bfloat16 autocast on processors that compute in it. No choice is made on test images: the
number of epochs is fixed beforehand and the last one counts. A checkpoint after every epoch makes a long run resumable.
"""

import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.machine.devices import computes_bfloat16
from adadfq_lab.machine.fields import check_rates, check_whole
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.teacher.networks import NETWORKS
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo, normalize
from adadfq_lab.teacher.teacher_files import load_teacher, save_teacher


@dataclass(frozen=True)
class TeacherConfig:
    """How to train a teacher.

    Attributes:
        data: fashion_mnist, cifar10, cifar100, or NAME for NAME_train.npz and NAME_test.npz in the folder ADADFQ_DATA.
        network: resnet20 (the paper's) or resnet8.
        epochs: Passes over the training images.
        small_epochs: How many of them, the first ones, see images at 3/4 size.
        batch: Images a step.
        lr: Largest learning rate, reached after a tenth of the steps.
        weight_decay: On every parameter.
        seed: Of the initial weights, the order of images and their augmentation.
        threads: Processor threads; 0 leaves torch's own choice.
        start: A teacher of the same network and classes whose weights to begin with, as in a warm restart; "" begins at random.
    """

    data: str = "fashion_mnist"
    network: str = "resnet20"
    epochs: int = 20
    small_epochs: int = 10
    batch: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    seed: int = 0
    threads: int = 0
    start: str = ""

    def __post_init__(self) -> None:
        check_whole(self, epochs=1, small_epochs=0, batch=1, seed=0, threads=0)
        check_rates(self, "lr", "weight_decay")


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips half of the uint8 `images` `(N, C, H, W)` and shifts each by up to an eighth of its width; zeros move in.

    One gather does both, and its result is laid out channels last.
    """
    n, _, height, width = images.shape
    pad = width // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.where(flip, torch.arange(width - 1, -1, -1), torch.arange(width))
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear to `peak` over the first tenth of `steps`, then half a cosine down to 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train_teacher(config: TeacherConfig, output: Path) -> Teacher:
    """Trains P and writes it to `output` (safetensors); continues from `output`.resume where a run was cut off.

    Raises UserError, before any training, where the training images are not at hand, `output` cannot be written, the options
    make no sense or the interrupted run had other ones.
    """
    if config.network not in NETWORKS:
        raise UserError(f"no network is called {config.network!r}; choose from {', '.join(NETWORKS)}")
    if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise UserError(f"cannot write {output}: {output.parent} is not a folder that can be written to")
    if config.threads:
        torch.set_num_threads(config.threads)
    train, test = load_data(config.data, "train"), load_data(config.data, "test")
    if config.batch > len(train):
        raise UserError(f"batch must be at most the {len(train):,} training images, not {config.batch}")
    pixels = train.images.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1)
    del pixels
    torch.manual_seed(config.seed)
    channels, height = train.images.shape[1], train.images.shape[2]
    network = NETWORKS[config.network](classes=len(train.classes), channels=channels)
    if config.start:
        try:
            network.load_state_dict(load_teacher(config.start).network.state_dict())
        except RuntimeError:
            raise UserError(
                f"{config.start} is no {config.network} for the {len(train.classes)} classes of {config.data}"
            ) from None
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=True)
    resume = output.with_suffix(".resume")
    first = _resume(resume, config, network, optimizer) if resume.exists() else 0
    for epoch in range(first, config.epochs):
        size = height * 3 // 16 * 4 if epoch < config.small_epochs else height
        loss = _epoch(config, epoch, size, train, network, optimizer, mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1))
        state = {f"network.{k}": v for k, v in network.state_dict().items()}
        state |= {f"momentum.{i}": optimizer.state[p]["momentum_buffer"] for i, p in enumerate(network.parameters())}
        save_tensors(resume, state, {"kind": "teacher run", "config": asdict(config), "epoch": epoch + 1, "loss": loss})
    info = TeacherInfo(
        name=output.stem,
        network=config.network,
        data=config.data,
        classes=train.classes,
        input_shape=(channels, height, train.images.shape[3]),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        evaluated_on=test.source,
        seed=config.seed,
        recipe=" ".join(f"--{k.replace('_', '-')} {v}" for k, v in asdict(config).items() if k != "threads" and v != ""),
    )
    teacher = Teacher(network, info)
    top1 = accuracy(teacher, test, teacher.normalize).top1
    teacher = Teacher(network, TeacherInfo(**(asdict(info) | {"top1": round(top1, 2)})))
    save_teacher(teacher, output)
    resume.unlink(missing_ok=True)
    return teacher


def _resume(path: Path, config: TeacherConfig, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state, meta, _ = load_tensors(path)
    if meta.get("config", {}) | {"threads": 0} != asdict(config) | {"threads": 0}:
        raise UserError(f"{path} belongs to a run with another configuration; give the same options, or remove it")
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    for i, parameter in enumerate(network.parameters()):
        optimizer.state[parameter]["momentum_buffer"] = state[f"momentum.{i}"].clone()
    return int(meta["epoch"])


def _epoch(
    config: TeacherConfig,
    epoch: int,
    size: int,
    train: ImageSet,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: Tensor,
    std: Tensor,
) -> float:
    """One pass over the training images; returns the mean loss in nats."""
    generator = torch.Generator().manual_seed(1000 * config.seed + epoch)
    order = torch.randperm(len(train), generator=generator)
    steps = len(train) // config.batch
    network.train()
    total, started = torch.zeros(()), time.perf_counter()
    progress = tqdm(range(steps), desc=f"epoch {epoch + 1}/{config.epochs}", leave=False, file=sys.stderr, mininterval=5)
    for step in progress:
        index = order[step * config.batch : (step + 1) * config.batch]
        x = normalize(augment(train.images[index], generator), mean, std)
        if size != x.shape[2]:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16()):
            loss = F.cross_entropy(network(x).float(), train.labels[index])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * steps + step, config.epochs * steps, config.lr)
        optimizer.step()
        total += loss.detach()
    mean_loss = float(total) / steps
    tqdm.write(
        f"epoch {epoch + 1}/{config.epochs}: loss {mean_loss:.4f}, {time.perf_counter() - started:.0f} s", file=sys.stderr
    )
    return mean_loss
