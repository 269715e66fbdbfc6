"""`make gpu-check`: what the package does on one CUDA card, in under eight minutes, as one JSON file.

    methods   the first rounds of every method on the card and on the CPU, from one seed: losses and entropies must agree
    tests     the tests that need a card and are skipped without one
    compile   milliseconds of a round with compile off, graphs and default
    cifar     the recipe cifar10-resnet20-3w3a at the paper's batch, for up to two minutes
    imagenet  ResNet-18 at 224 x 224, for up to two minutes

On a machine without a card, `--device cpu --quick` tries each part in seconds.
"""

import argparse
import contextlib
import dataclasses
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from adadfq_lab.errors import UserError, first_line, printable
from adadfq_lab.game.compiling import Compile
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.devices import pick_device
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.memory import forget_peak, peak
from adadfq_lab.machine.timing import finish
from adadfq_lab.methods.registry import METHODS, make_method
from adadfq_lab.runs.estimates import teacher_or_stand_in
from adadfq_lab.runs.players import build_game
from adadfq_lab.runs.recipes import resolve
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher_files import load_teacher

LIMIT = 460.0
"""Seconds that the whole check may take; the last two parts take what is left, two minutes each at most."""
TOLERANCE = (2e-3, 5e-2)
"""Largest relative difference from the CPU in the first round, and in the second, after a step of G."""
NEEDS_CARD = re.compile(
    r"^@pytest\.mark\.skipif\(not torch\.cuda\.is_available\(\).*?\ndef (test_\w+)", re.DOTALL | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Check:
    """How the check is run. `quick` takes a few rounds of everything, and no torch.compile on a CPU."""

    device: torch.device
    quick: bool
    until: float

    def seconds(self) -> float:
        """How long one of the last two parts may play: two minutes at most."""
        return 2.0 if self.quick else max(10.0, min(120.0, self.until - time.monotonic()))


def methods(check: Check) -> dict[str, Any]:
    """For each method the largest relative difference between card and CPU in the warm-up's round and in Q's first."""
    names = ("adadfq", "zaq") if check.quick else tuple(METHODS)
    found: dict[str, Any] = {}
    for name in names:
        host, card = (_records(name, device, 4 if check.quick else 16) for device in (torch.device("cpu"), check.device))
        differences = [_difference(a, b) for a, b in zip(host, card, strict=True)]
        ok = all(d <= most for d, most in zip(differences, TOLERANCE, strict=True))
        found[name] = {"relative_difference": differences, "ok": ok}
    return found | {"ok": all(one["ok"] for one in found.values())}


def _records(name: str, device: torch.device, batch: int) -> list[Record]:
    """One round of warm-up and one of play."""
    teacher = load_teacher("cifar10_resnet20")
    schedule = Schedule(batch=batch, warmup=1, observe=1)
    return list(Game(teacher, quantize(teacher, "4w4a"), make_method(name), schedule=schedule, device=device).play(2))


def _difference(a: Record, b: Record) -> float:
    """The largest relative difference between the losses, and between the entropies, of two records of one round."""
    pairs = [(value, b.terms[name]) for name, value in a.terms.items()] + [(a.entropy.mean(), b.entropy.mean())]
    return max(float((x.cpu() - y.cpu()).abs() / x.cpu().abs().clamp(min=1e-3)) for x, y in pairs)


def card_tests(tests: Path) -> list[str]:
    """The tests under `tests` that are skipped without a card, as pytest names them."""
    files = sorted(tests.rglob("test_*.py"))
    return [f"{path}::{name}" for path in files for name in NEEDS_CARD.findall(path.read_text(encoding="utf-8"))]


def tests(check: Check) -> dict[str, Any]:
    """Runs the tests that need a card; without one they are skipped, which counts as right."""
    root = Path(__file__).parents[2]
    chosen = card_tests(root / "tests")
    if not chosen:
        return {"ok": False, "said": "no tests are here: run it in a checkout"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(chosen[:1] if check.quick else chosen)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return {"ok": False, "said": "not over after 180 s", "tests": len(chosen)}
    return {"ok": done.returncode == 0, "said": (done.stdout.strip().splitlines() or [""])[-1], "tests": len(chosen)}


def compiled(check: Check) -> dict[str, Any]:
    """Milliseconds of a round in each way to compile, medians, and the seconds that the first rounds take."""
    found: dict[str, Any] = {}
    for how in sorted(get_args(Compile), key=("off", "graphs", "default").index):
        if check.device.type == "cpu" and how != "off":
            found[how] = "only on a card"
            continue
        begun = time.perf_counter()
        try:
            teacher = load_teacher("cifar10_resnet20")
            schedule = Schedule(batch=16, warmup=0, observe=3)
            student = quantize(teacher, "3w3a")
            game = Game(teacher, student, make_method("adadfq"), schedule=schedule, device=check.device, compile=how)
            _play(game, 6)
            first = time.perf_counter() - begun
            found[how] = {"round_ms": 1e3 * median(_play(game, 3 if check.quick else 50)), "first_rounds_s": first}
        except (RuntimeError, UserError) as error:
            found[how] = {"error": first_line(error)}
    return found | {"ok": not any("error" in one for one in found.values())}


def _play(game: Game, rounds: int) -> list[float]:
    """Seconds of each round, finished on its device."""
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in game.play(1):
            finish(game.device)
        spent.append(time.perf_counter() - begun)
    return spent


def cifar(check: Check) -> dict[str, Any]:
    """The recipe cifar10-resnet20-3w3a as it is."""
    return _recipe("cifar10-resnet20-3w3a", check)


def imagenet(check: Check) -> dict[str, Any]:
    """ResNet-18 on 224 x 224 images, as its recipe has it."""
    return _recipe("imagenet-resnet18-4w4a", check)


def _recipe(name: str, check: Check) -> dict[str, Any]:
    """Rounds of a recipe for some time: ten of warm-up, the others with Q's steps."""
    config = resolve(name)
    schedule = dataclasses.replace(config.schedule, warmup=10, observe=20, batch=4 if check.quick else config.schedule.batch)
    config = dataclasses.replace(config, device=str(check.device), schedule=schedule, gains_every=0)
    teacher, stand_in = teacher_or_stand_in(config.teacher)
    game = build_game(config, teacher)
    forget_peak()
    _play(game, 1 if check.quick else 30)
    spent: list[float] = []
    end = time.monotonic() + check.seconds()
    while not spent or time.monotonic() < end:
        spent += _play(game, 1)
    game.check()
    return {
        "ok": True,
        "batch": schedule.batch,
        "rounds": game.index,
        "round_ms": 1e3 * median(spent),
        "peak_mb": peak(game.device),
        "untrained_stand_in": stand_in,
    }


PARTS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "methods": methods,
    "tests": tests,
    "compile": compiled,
    "cifar": cifar,
    "imagenet": imagenet,
}


def run(check: Check, parts: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
    """Every part in turn; one that fails says why, and the others go on."""
    card = torch.cuda.get_device_name(check.device) if check.device.type == "cuda" else platform.processor() or "cpu"
    found: dict[str, Any] = {"device": card, "torch": torch.__version__, "quick": check.quick}
    begun = time.monotonic()
    for name in parts:
        # What is left is shared by the parts that play for some time.
        started = time.monotonic()
        left = dataclasses.replace(check, until=started + (check.until - started) / (1 if name == "imagenet" else 2))
        try:
            found[name] = PARTS[name](left)
        except Exception as error:
            found[name] = {"ok": False, "error": f"{type(error).__name__}: {first_line(error)}"}
        found[name]["seconds"] = round(time.monotonic() - started, 1)
        said = "ok" if found[name]["ok"] else "FAILED"
        print(f"{name:10}{said:8}{found[name]['seconds']:6.1f} s", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    found["seconds"] = round(time.monotonic() - begun, 1)
    return found | {"ok": all(found[name]["ok"] for name in parts)}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `make gpu-check`: exit status 0 if all is well, 1 if a part failed, 2 if there is no card."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__, formatter_class=plain)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the parts")
    parser.add_argument("--quick", action="store_true", help="a few rounds of everything")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where to write the JSON")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args(arguments)
    try:
        if asked.device.startswith("cuda") and not torch.cuda.is_available():
            tried = "make gpu-check ARGS='--device cpu --quick'"
            raise UserError(f"there is no CUDA device here that torch can use; to try the parts: {tried}")
        found = run(Check(pick_device(asked.device), asked.quick, time.monotonic() + LIMIT), tuple(asked.parts))
        write_atomically(asked.output, json.dumps(found, indent=1).encode())
    except UserError as error:
        print(f"gpu-check: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found))
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
