"""The cost of a long log: a first look of `watch`, resuming, reading for the report, and a redraw of the live figure.

`adadfq bench --logs` writes synthetic logs of 80,000 rounds, the length of the published recipes, and measures each task in a
process of its own: processor time, and memory above that of the imports.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Record, Recorder
from adadfq_lab.machine.memory import forget_peak, peak
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.log import RecordLog, iterate_records
from adadfq_lab.runs.report import as_history
from adadfq_lab.runs.watch import Watch
from adadfq_lab.views.renderers import FigureView, SvgView

ROUNDS = 80_000
BATCHES = (16, 200)
_POOL = 50  # different lines of samples, repeated


@dataclass(frozen=True)
class LogCost:
    """Processor time in seconds and memory above the imports in MB of one task, on the log of one batch size."""

    task: str
    batch: int
    log_mb: float
    cpu_seconds: float
    memory_mb: float


def write_log(folder: Path, rounds: int, batch: int) -> Path:
    """Writes the config.json and a made-up records.jsonl of a run of `rounds` rounds."""
    config = RunConfig(rounds=rounds).as_json()
    config["schedule"] |= {"batch": batch}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    drawn = random.random((_POOL, batch)).round(5).tolist()
    pool = [f'"entropy": {json.dumps(row)}, "h_prime": {json.dumps(row)}' for row in drawn]
    path = folder / "records.jsonl"
    with path.open("w") as file:
        for i in range(rounds):
            warm = i < 200
            terms = {"generator.label": 1.5, "generator.bns": 0.25, "generator.band": 0.125}
            terms |= {} if warm else {"student.label": 2.0, "student.kd": 1.0 + i / rounds}
            head = {"round": i, "phase": "warm-up" if warm else "play", "observing": i < 400} | terms
            head |= {"agreement": 0.5, "lower": 0.1, "upper": 0.8}
            tail: dict[str, Any] = {"seconds": round(0.05 * (i + 1), 2)}
            if (i + 1) % 200 == 0:
                top1 = 80 - 40 / (1 + i / 1000)
                tail["calibrated" if i == 199 else "accuracy"] = {
                    "top1": top1,
                    "low": top1 - 1,
                    "high": top1 + 1,
                    "images": 9979,
                }
            if i % 25 == 0:
                tail |= {"gain_g": 0.01, "gain_q": -0.02}
            file.write(f"{json.dumps(head)[:-1]}, {pool[i % _POOL]}, {json.dumps(tail)[1:]}\n")
    return path


def _watch(folder: Path, rounds: int, batch: int) -> float:
    begun = time.process_time()
    Watch(folder).look()
    return time.process_time() - begun


def _resume(folder: Path, rounds: int, batch: int) -> float:
    """Every line is read and checked."""
    begun = time.process_time()
    RecordLog(folder / "records.jsonl", rounds, batch=batch).close()
    return time.process_time() - begun


def _report(folder: Path, rounds: int, batch: int) -> float:
    begun = time.process_time()
    as_history(iterate_records(folder / "records.jsonl"))
    return time.process_time() - begun


def _redraw(make_view: Callable[[], Any], folder: Path, rounds: int, batch: int) -> float:
    """Median of nine redraws, each after one more round."""
    view = make_view()
    recorder, one = Recorder(), torch.tensor(1.0)
    pool = torch.rand(_POOL, batch, generator=torch.Generator().manual_seed(0))
    terms = {"generator.label": one, "generator.bns": one, "student.kd": one}
    spent = []
    for i in range(rounds + 9):
        gain = one if i % 25 == 0 else None
        h = pool[i % _POOL]
        recorder.add(
            Record(i, "play", terms, h, h, one, Bounds(), False, gain, gain), {"test.accuracy": 50.0} if gain else None
        )
        if i >= rounds:
            recorder.history()
            begun = time.process_time()
            view.publish(recorder.drawn())
            spent.append(time.process_time() - begun)
    return median(spent)


TASKS: dict[str, Callable[[Path, int, int], float]] = {
    "first look of watch": _watch,
    "resume": _resume,
    "reading of the report": _report,
    "redraw, SVG": partial(_redraw, SvgView),
    "redraw, widget": partial(_redraw, FigureView),
}


def bench_logs(rounds: int = ROUNDS, batches: Sequence[int] = BATCHES) -> list[LogCost]:
    """Measures every task on a log of each batch size; takes some two minutes."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for batch in batches:
            folder = Path(temporary) / str(batch)
            folder.mkdir()
            size = write_log(folder, rounds, batch).stat().st_size / 2**20
            for task in TASKS:
                command = [sys.executable, "-m", __name__, task, str(folder), str(rounds), str(batch)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise UserError(f"measuring the {task} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
                found.append(LogCost(task, batch, size, *json.loads(done.stdout)))
    return found


def table(rows: Sequence[LogCost], rounds: int = ROUNDS) -> str:
    """The rows as text."""
    lines = [f"logs of {rounds:,} rounds", f"{'':24}{'batch':>6}{'log [MB]':>10}{'processor [s]':>15}{'memory [MB]':>13}"]
    lines += [f"{r.task:24}{r.batch:6}{r.log_mb:10.0f}{r.cpu_seconds:15.3f}{r.memory_mb:13.1f}" for r in rows]
    return "\n".join(lines)


def as_json(rows: Sequence[LogCost]) -> list[dict[str, Any]]:
    """The rows for `--json`."""
    return [asdict(row) for row in rows]


def _main(task: str, folder: str, rounds: str, batch: str) -> None:
    """Measures one task in this process, after one small round of it, whose imports do not count."""
    measure, cpu = TASKS[task], torch.device("cpu")
    with tempfile.TemporaryDirectory() as small:
        write_log(Path(small), 300, int(batch))
        measure(Path(small), 300, int(batch))
    forget_peak()
    before = peak(cpu)
    seconds = measure(Path(folder), int(rounds), int(batch))
    print(json.dumps([seconds, max(0.0, peak(cpu) - before)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
