"""The rows of a table: which runs make it, what each may spend, and the file that holds what they measured."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import load_tensors, write_atomically
from adadfq_lab.machine.reading import read_bytes, read_json
from adadfq_lab.methods.registry import every_method, make_method
from adadfq_lab.runs.config import RunConfig, read_config


@dataclass(frozen=True)
class Budget:
    """What every method of a table may spend.

    updates:    of the student
    batch:      images in each
    warmup:     rounds before them in which only the generator learns; None for what serves the method: 200 for most, none for
                ZAQ, whose paper has none, and for IntraQ, which optimises its images in the warm-up, as many as these take
    decay:      share of the updates after which the learning rates are multiplied by 0.1; 1 for never
    student_lr: of Q's weights, whatever the method; None for the rate that each method publishes
    """

    updates: int
    batch: int = 16
    warmup: int | None = None
    decay: float = 1.0
    student_lr: float | None = None

    def schedule(self, method: str) -> Schedule:
        """The schedule of `method`'s run within this budget."""
        of = make_method(method)
        fixed = self.warmup is None or of.generator_stops or not of.warmup
        warmup = of.warmup if fixed else self.warmup
        assert warmup is not None
        milestones = (warmup + round(self.decay * self.updates),) if self.decay < 1 else ()
        return Schedule(batch=self.batch, warmup=warmup, milestones=milestones, student_lr=self.student_lr)


BUDGETS = {"quick": Budget(180, warmup=20, student_lr=3e-4), "short": Budget(1500), "long": Budget(5000, decay=0.8)}
"""By name: a run takes about half a minute ("quick"), four minutes ("short") or fifteen ("long") on two quiet cores."""

SHIPPED_TEACHERS = {"fashion_mnist": "fashion_mnist_resnet20", "cifar10": "cifar10_resnet20"}
"""The shipped teacher of each data set."""

USUAL_IMAGES = {
    "fashion_mnist": "2,000 of 10,000 fashion_mnist test images",
    "cifar10": "9,979 of 10,000 cifar10 test images",
}
"""The images that the shipped rows were measured on, by data set."""


@dataclass(frozen=True)
class Row:
    """One run of a table. Accuracies are top-1 in percent on the same images.

    plain:      ranges observed on standard-normal images, nothing trained
    calibrated: ranges observed on the generator's images after the warm-up, nothing trained
    last:       after the last round; low and high are its 95 % interval over the images
    best:       the highest of the accuracies measured on the way: chosen on the test images, so not a result
    images:     drawn in all, the warm-up included
    source:     the images it was measured on, in words; empty in the rows of older files
    sha256:     the first twelve digits of the teacher's; empty in the rows of older files
    """

    method: str
    bits: str
    seed: int
    dataset: str
    budget: str
    fidelity: str
    teacher_name: str
    teacher: float
    plain: float
    calibrated: float | None
    last: float
    low: float
    high: float
    best: float
    updates: int
    images: int
    seconds: float
    source: str = ""
    sha256: str = ""

    @property
    def players(self) -> str:
        """Which teacher and which images, if they are not the usual ones of the data set; empty if they are."""
        usual = SHIPPED_TEACHERS.get(self.dataset) == self.teacher_name and self.source in ("", USUAL_IMAGES.get(self.dataset))
        told = [f"teacher {self.teacher_name}", self.sha256 and f"({self.sha256})", self.source and f"on {self.source}"]
        return "" if usual else " ".join(filter(None, told))

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the row it is."""
        return self.dataset, self.teacher_name, self.players, self.budget, self.fidelity, self.bits, self.method, self.seed


def configurations(
    methods: Sequence[str],
    bits: Sequence[str],
    seeds: Sequence[int],
    *,
    dataset: str,
    budget: str,
    teacher: str = "",
    fidelity: Literal["corrected", "paper", "released"] = "corrected",
    device: str = "auto",
) -> list[RunConfig]:
    """A run for each combination, seed by seed, so that a table is useful before it is full.

    Raises UserError for unknown names.
    """
    if budget not in BUDGETS:
        raise UserError(f"no budget is called {budget!r}; choose from {', '.join(BUDGETS)}")
    for method in methods:
        if method not in every_method():
            raise UserError(f"no method is called {method!r}; choose from {', '.join(every_method())}")
    if not teacher and dataset not in SHIPPED_TEACHERS:
        raise UserError(
            f"no teacher is shipped for {dataset!r}; name one with --teacher, or choose from {', '.join(SHIPPED_TEACHERS)}"
        )
    found = []
    for seed in seeds:
        for width in bits:
            for method in methods:
                schedule = BUDGETS[budget].schedule(method)
                config = RunConfig(
                    teacher=teacher or SHIPPED_TEACHERS[dataset],
                    data=dataset,
                    stub=dataset == "fashion_mnist",
                    method=method,
                    bits=width,
                    rounds=schedule.warmup + BUDGETS[budget].updates,
                    seed=seed,
                    schedule=schedule,
                    fidelity=fidelity,
                    device=device,
                    evaluate_every=500,
                    gains_every=0,
                )
                found.append(config)
    return found


def budget_of(config: RunConfig) -> str:
    """The name of the budget that `config` keeps to; its number of updates, in words, if it keeps to none."""
    updates = config.rounds - config.schedule.warmup
    for name, budget in BUDGETS.items():
        if (updates, config.schedule) == (budget.updates, budget.schedule(config.method)):
            return name
    return f"{updates:,} updates"


def rows_of(folders: Iterable[Path]) -> list[Row]:
    """The rows of finished runs, of `train` or of a grid. Raises UserError for a folder that holds none."""
    rows = []
    for folder in folders:
        if not (folder / "result.json").is_file():
            raise UserError(f"{folder} holds no finished run: there is no result.json in it")
        rows.append(row(folder, budget_of(read_config(folder / "config.json"))))
    return rows


def row(folder: Path, budget: str) -> Row:
    """The row of the finished run in `folder`."""
    config, result = read_config(folder / "config.json"), read_json(folder / "result.json")
    if result["student"] is None:
        raise UserError(f"{folder} was measured on {result['source']}, without labels: it has no accuracy for a table")
    low, high = result["intervals"]["student"]
    teacher = _teacher_facts(folder)
    return Row(
        config.method,
        config.bits,
        config.seed,
        config.data or str(teacher.get("data", "")),
        budget,
        ", ".join(filter(None, (config.fidelity, config.bns_reduction and f"L_BNS {config.bns_reduction}"))),
        Path(config.teacher).stem,
        result["teacher"],
        result["plain"],
        result["calibrated"],
        result["student"],
        low,
        high,
        result["best"],
        result["rounds"] - config.schedule.warmup,
        result["rounds"] * config.schedule.batch,
        result["seconds"],
        result.get("source", ""),
        str(teacher.get("sha256", ""))[:12],
    )


def _teacher_facts(folder: Path) -> dict[str, Any]:
    """The teacher that the run's student was made from, as the student's file says."""
    _, meta, _ = load_tensors(folder / "student.safetensors")
    return dict(meta.get("teacher", {}))


def shipped_results() -> Path:
    """Where the rows that come with the package are."""
    return stub_path("table.json")


def read_rows(path: Path) -> list[Row]:
    """The rows in a results file; none if there is no file. Raises UserError if it is damaged."""
    if not path.exists():
        return []
    content = read_bytes(path)
    try:
        return [build(Row, plain) for plain in json.loads(content)]
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged or of another version of adadfq; move it away") from None


def write_rows(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Adds `rows` to the results file at `path` in place of those with the same key; returns all rows of the file."""
    kept = {old.key: old for old in read_rows(path)} | {new.key: new for new in rows}
    ordered = [kept[key] for key in sorted(kept)]
    lines = ",\n".join(json.dumps(dataclasses.asdict(one)) for one in ordered)
    write_atomically(path, f"[\n{lines}\n]\n".encode())
    return ordered
