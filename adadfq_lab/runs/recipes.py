"""Recipes: the published schedules, by name, at the papers' scale.

    config = recipe("imagenet-resnet18-3w3a").config()          # a RunConfig: what `run` and `adadfq train` take
    config = override(config, "seed=1", "alpha_ds=0.3")         # what --set does

A recipe is a method on a cell of Table 2: AdaDFQ's go by the cell's name, another method's by `gdfq-cifar10-resnet20-4w4a`.
What its authors ran is listed once, in ROWS, in epochs as they counted them (200 rounds in most trainers); later rows refine
earlier ones. Rows of methods that are not registered are left out.

Milestones act in the round that begins their epoch, counted from 0, on both players. Where paper and released configurations
differ, the configuration is used here, since the published numbers came from it; `fidelity` decides the losses.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.fields import read
from adadfq_lab.methods.registry import METHODS, make_method
from adadfq_lab.runs.config import RunConfig, read_config

TEACHERS = {
    "cifar10-resnet20": "pytorchcv:resnet20_cifar10",
    "cifar100-resnet20": "pytorchcv:resnet20_cifar100",
    "imagenet-resnet18": "pytorchcv:resnet18",
    "imagenet-mobilenetv2": "pytorchcv:mobilenetv2_w1",
    "imagenet-resnet50": "pytorchcv:resnet50",
}
"""The teachers of Table 2, by data set and network; `adadfq_lab.teacher.zoo` pins them."""

BITS = ("3w3a", "4w4a", "5w5a")


@dataclass(frozen=True)
class PublishedTraining:
    """A published training, in its authors' epochs.

    epoch:      rounds an epoch
    batch:      images a round, N
    epochs:     in all, the warm-up included
    warmup:     epochs in which only G learns
    observe:    epochs, from the first, in which activation ranges are observed
    milestones: epochs that begin with a tenth of the learning rates before them
    settings:   of the method, if they differ from its own
    """

    epoch: int = 200
    batch: int = 200
    epochs: int = 400
    warmup: int = 4
    observe: int = 4
    generator_lr: float = 1e-3
    student_lr: float = 1e-4
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (100, 200, 300)
    settings: tuple[tuple[str, Any], ...] = ()


def _set(**settings: Any) -> dict[str, Any]:
    return {"settings": tuple(settings.items())}


# Method, cells, what differs from the rows above. Settings add up.
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # AdaDFQ, released configurations and the comments in them: 16 images a round, T = 5 on ImageNet.
    ("adadfq", "*", {"batch": 16}),
    ("adadfq", "imagenet-*", {"warmup": 50} | _set(temperature=5.0)),
    ("adadfq", "imagenet-resnet18-*", {"student_lr": 1e-5, "milestones": (350, 400)}),
    ("adadfq", "imagenet-resnet18-[45]*", _set(lower=0.3)),
    ("adadfq", "imagenet-resnet18-5*", _set(alpha_ds=0.3)),
    ("adadfq", "imagenet-mobilenetv2-*", {"student_lr": 1e-5, "milestones": (350, 400)}),
    ("adadfq", "imagenet-mobilenetv2-4*", _set(alpha_ds=0.3)),
    ("adadfq", "imagenet-resnet50-3*", {"warmup": 100, "milestones": (150, 300, 400)} | _set(lower=0.4)),
    ("adadfq", "imagenet-resnet50-4*", {"milestones": (200, 300, 400)} | _set(lower=0.3, alpha_ds=0.1)),
    ("adadfq", "imagenet-resnet50-5*", {"milestones": (350, 400)} | _set(lower=0.3)),
    # AdaSG: the same trainer, with the constants of its code, which depend on neither model nor bits.
    ("adasg", "*", {"batch": 16}),
    ("adasg", "imagenet-*", {"warmup": 50} | _set(temperature=5.0)),
    ("adasg", "imagenet-resnet18-*", {"student_lr": 1e-5, "milestones": (350, 400)}),
    ("adasg", "imagenet-mobilenetv2-*", {"student_lr": 1e-5, "milestones": (350, 400)}),
    ("adasg", "imagenet-resnet50-*", {"milestones": (200, 300, 400)}),
    ("adasg", "imagenet-resnet50-3*", {"warmup": 100}),
    # GDFQ and those that took over its trainer.
    ("gdfq", "*", {}),
    ("gdfq", "imagenet-*", {"batch": 16, "warmup": 50, "student_lr": 1e-6}),
    ("arc", "*", {}),
    ("arc", "imagenet-*", {"batch": 16, "warmup": 50, "student_lr": 1e-6}),
    # The share is the default of the code's ARC folder; no script sets another, whatever its batch.
    ("arc_ait", "*", {"weight_decay": 0.0} | _set(share=1e-3)),
    ("arc_ait", "imagenet-*", {"batch": 16, "warmup": 50}),
    ("qimera", "*", {}),
    ("qimera", "imagenet-*", {"batch": 16, "warmup": 50, "student_lr": 1e-6}),
    # Its scripts' K, p and embeddings, of 4 and 5 bits; at 3 bits, which it did not publish, as at 4.
    ("qimera", "cifar10-*", _set(K=2, p=0.4, extracted=False)),
    ("qimera", "cifar100-*", _set(K=10, p=0.4, extracted=True)),
    ("qimera", "cifar100-*-5*", _set(K=50)),
    ("qimera", "imagenet-*", _set(K=100, p=0.4, extracted=False)),
    ("qimera", "imagenet-resnet*-[34]*", _set(K=500)),
    ("qimera", "imagenet-resnet50-*", _set(p=0.7, extracted=True)),
    # ZAQ, CIFAR only: 300 epochs of 60 x (5 steps of Q, then 1 of G); every step of Q is a round here. No warm-up, and ranges
    # that are never frozen.
    (
        "zaq",
        "cifar*",
        {"epoch": 300, "batch": 256, "epochs": 300, "warmup": 0, "observe": 300, "student_lr": 0.1, "weight_decay": 5e-4}
        | {"milestones": (100, 200)},
    ),
    # IntraQ on CIFAR: 20 batches of 256 images, 1,000 iterations each; then 29,400 steps of Q, whose decays are counted from 4
    # epochs before the first. (On ImageNet it has another batch for Q than for its images.)
    (
        "intraq",
        "cifar*",
        {"batch": 256, "epochs": 247, "warmup": 100, "generator_lr": 0.5, "milestones": (116, 136, 156)}
        | _set(iterations=1000),
    ),
    ("intraq", "cifar10-*", _set(easiest=0.95, lower=0.05, upper=0.8)),
    ("intraq", "cifar100-*", _set(easiest=0.6, lower=0.02, upper=1.0)),
)
BANDED = ("adadfq", "adasg")
"""Methods whose `lower` and `upper` are the band of H', which a run has fields for; IntraQ's are cosine distances."""


@dataclass(frozen=True)
class Recipe:
    """One published training: `method` on `cell` of Table 2."""

    name: str
    method: str
    cell: str
    plan: PublishedTraining

    @property
    def bits(self) -> str:
        return self.cell.rsplit("-", 1)[1]

    @property
    def teacher(self) -> str:
        return TEACHERS[self.cell.rsplit("-", 1)[0]]

    @property
    def student_updates(self) -> int:
        """Steps of Q."""
        return self.plan.epoch * (self.plan.epochs - self.plan.warmup)

    @property
    def images(self) -> int:
        """Images that G draws in all."""
        return self.plan.epoch * self.plan.epochs * self.plan.batch

    def config(self) -> RunConfig:
        """The run, in rounds. Q is measured and the game saved ten epochs apart (ImageNet: fifty), not after every epoch."""
        p, e = self.plan, self.plan.epoch
        large = self.cell.startswith("imagenet")
        settings = dict(p.settings)
        band = {name: settings.pop(name, None) for name in ("lower", "upper")} if self.method in BANDED else {}
        return RunConfig(
            teacher=self.teacher,
            data=self.cell.split("-")[0],
            method=self.method,
            settings=settings,
            bits=self.bits,
            lower=band.get("lower"),
            upper=band.get("upper"),
            rounds=e * p.epochs,
            schedule=Schedule(
                batch=p.batch,
                warmup=e * p.warmup,
                observe=e * p.observe,
                generator_lr=p.generator_lr,
                student_lr=p.student_lr,
                weight_decay=p.weight_decay,
                milestones=tuple(e * m for m in p.milestones),
            ),
            evaluate_every=e * (50 if large else 10),
            save_every=e * 10,
            gains_every=e,
        )


def _plan(method: str, cell: str) -> PublishedTraining | None:
    found = [changes for name, cells, changes in ROWS if name == method and fnmatch(cell, cells)]
    if not found:
        return None
    plan, settings = PublishedTraining(), dict[str, Any]()
    for changes in found:
        settings |= dict(changes.get("settings", ()))
        plan = dataclasses.replace(plan, **changes)
    return dataclasses.replace(plan, settings=tuple(settings.items()))


def recipes(method: str = "") -> Iterator[Recipe]:
    """The recipes of `method`, or of all methods that are registered, AdaDFQ's first."""
    known = dict.fromkeys(name for name, _, _ in ROWS if name in METHODS and method in ("", name))
    for name, network, bits in product(known, TEACHERS, BITS):
        cell = f"{network}-{bits}"
        if (plan := _plan(name, cell)) is not None:
            yield Recipe(cell if name == "adadfq" else f"{name}-{cell}", name, cell, plan)


def recipe(name: str) -> Recipe:
    """The recipe called `name`; raises UserError if there is none."""
    found = [r for r in recipes() if r.name == name]
    if not found:
        raise UserError(f"no recipe is called {name!r}; adadfq recipes lists them, as in {next(recipes()).name}")
    return found[0]


def usual_run(method: str, base: RunConfig = RunConfig()) -> RunConfig:  # noqa: B008 (frozen)
    """`base` (the default configuration if None) with `method`, its usual warm-up and as many rounds of play as before.

    A warm-up of `base` that is not the usual one of its method was chosen by the user and stays.
    """
    before, warmup = make_method(base.method).warmup, make_method(method).warmup
    named = dataclasses.replace(base, method=method)
    if base.schedule.warmup != before:
        return named
    return dataclasses.replace(
        named, rounds=base.rounds - before + warmup, schedule=dataclasses.replace(base.schedule, warmup=warmup)
    )


def resolve(name: str) -> RunConfig:
    """The configuration of the recipe `name`, or of a run folder or its config.json if `name` is a path."""
    path = Path(name)
    if path.is_dir() or path.suffix == ".json":
        path = path / "config.json" if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no configuration {path}; adadfq recipes lists what there is by name")
        return read_config(path)
    if "/" in name:
        raise UserError(f"there is no run folder {name}")
    return recipe(name).config()


def summary(name: str, config: RunConfig) -> tuple[dict[str, Any], str]:
    """`config` in full, as JSON and as text, with the images drawn and the student updates."""
    s, method = config.schedule, make_method(config.method, **config.settings)
    rates, observed = s.rates(method), s.observed(method)
    plain: dict[str, Any] = {"recipe": name, "config": config.as_json(), "rates": dataclasses.asdict(rates)}
    plain |= {"images": s.batch * config.rounds, "student_updates": max(0, config.rounds - s.warmup)}
    bounds = {name: bound for name in ("lower", "upper") if (bound := getattr(config, name)) is not None}
    settings = method.settings | bounds
    own = ", ".join(f"{key} {value:g}" for key, value in settings.items() if isinstance(value, int | float))
    decays = " and ".join(f"{m:,}" for m in s.milestones if m < config.rounds) or "none"
    text = [
        f"{name}: {config.method} on {config.teacher}, {config.bits}, fidelity {config.fidelity}",
        f"rounds           {config.rounds:,} of {s.batch} images: {plain['images']:,} drawn",
        f"warm-up          {s.warmup:,} rounds, ranges observed in rounds {observed.start:,} to {observed.stop - 1:,}",
        f"student updates  {plain['student_updates']:,}",
        f"learning rates   G {rates.generator_lr:g}, Q {rates.student_lr:g}, times {s.decay:g} at rounds: {decays}",
        f"weight decay     {rates.weight_decay:g}",
        f"settings         {own or 'none'}",
        f"measured         every {config.evaluate_every:,} rounds, saved every {config.save_every:,}",
    ]
    return plain, "\n".join(text)


def shortened(config: RunConfig, rounds: int) -> RunConfig:
    """`config` played in `rounds` rounds: warm-up, observation, milestones and what is due every so often keep their shares."""
    s, share = config.schedule, rounds / config.rounds

    def part(count: int, least: int = 1) -> int:
        return max(least, round(count * share)) if count else 0

    schedule = dataclasses.replace(
        s, warmup=part(s.warmup), observe=s.observe and part(s.observe), milestones=tuple(part(m) for m in s.milestones)
    )
    every: dict[str, Any] = {name: part(getattr(config, name)) for name in ("evaluate_every", "save_every", "gains_every")}
    return dataclasses.replace(config, rounds=rounds, schedule=schedule, **every)


def override(config: RunConfig, *changes: str) -> RunConfig:
    """`config` with changes such as "seed=1", "batch=8", "alpha_ds=0.3": of its fields, its schedule's, its method's settings.

    Values are JSON or, failing that, text. Raises UserError for an unknown key and for a value that does not fit.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, not {change!r}")
        run, schedule = get_type_hints(RunConfig), get_type_hints(Schedule)
        key = key.removeprefix("schedule.")
        if key in run and key not in ("schedule", "settings"):
            config = dataclasses.replace(config, **{key: read(key, run[key], text)})
        elif key in schedule:
            new = dataclasses.replace(config.schedule, **{key: read(key, schedule[key], text)})
            config = dataclasses.replace(config, schedule=new)
        else:
            key = key.removeprefix("settings.")
            usual = make_method(config.method).settings.get(key)
            kind = Any if usual is None else type(usual)
            config = dataclasses.replace(config, settings=config.settings | {key: read(key, kind, text)})
    make_method(config.method, **config.settings)
    return config
