"""What test_distributed.py starts by torchrun, on each of several processes.

torchrun --nproc-per-node 2 tests/helpers/play_distributed.py compare|fail|hang FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_games import double, state, tiny_game, tiny_teacher
from safetensors.torch import save_file
from torch import Tensor, nn

from adadfq_lab.game.game import Game
from adadfq_lab.machine.distributed import joined
from adadfq_lab.methods.registry import BEYOND, METHODS, make_method
from adadfq_lab.teacher.teacher import Teacher

BATCH, WARMUP, OBSERVE, ROUNDS = 16, 3, 5, 9
"""Rounds of warm-up, of observation on into the play, and of play with fixed ranges."""


def shifted_teacher() -> Teacher:
    """A tiny teacher whose batch norms shift.

    Where one does not, a channel that is constant over a batch sits on the kink of the ReLU after it, once Q normalises by the
    batch, as ZAQ has it: which of its gradients the ReLU passes is then up to rounding.
    """
    teacher = tiny_teacher()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in teacher.network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.bias.add_(torch.empty_like(norm.bias).uniform_(0.1, 0.3, generator=random))
    return teacher


def games(dtype: torch.dtype) -> dict[str, Game]:
    """A game of each method, and of AdaDFQ under each other fidelity."""
    options: dict[str, Any] = {"batch": BATCH, "warmup": WARMUP, "observe": OBSERVE, "gains_every": 2, "student_lr": None}
    made = {name: tiny_game(make_method(name), teacher=shifted_teacher(), **options) for name in METHODS | BEYOND}
    for fidelity in ("paper", "released"):
        made[f"adadfq {fidelity}"] = tiny_game(teacher=shifted_teacher(), fidelity=fidelity, **options)
    return {name: double(game) if dtype == torch.float64 else game for name, game in made.items()}


def outcome(game: Game, rounds: int = ROUNDS) -> dict[str, Tensor]:
    """Every number of every record, and everything the next round would depend on."""
    found: dict[str, Tensor] = {}
    for record in game.play(rounds):
        named = dict(record.terms) | {"entropy": record.entropy, "h_prime": record.h_prime, "agreement": record.agreement}
        named |= {k: v for k, v in (("gain_g", record.gain_g), ("gain_q", record.gain_q)) if v is not None}
        found |= {f"round {record.index}: {name}": value for name, value in named.items()}
    return found | {f"after: {name}": value for name, value in state(game).items()}


def play_all(dtype: torch.dtype) -> dict[str, Tensor]:
    """The outcome of every game, by "method: what"."""
    found: dict[str, Tensor] = {}
    for name, game in games(dtype).items():
        found |= {f"{name}: {key}": value.contiguous().clone() for key, value in outcome(game).items()}
    return found


def compare(folder: Path, rank: int) -> None:
    """Writes every outcome in both precisions."""
    for name in ("float64", "float32"):
        save_file(play_all(getattr(torch, name)), folder / f"{name}_{rank}.safetensors")


def stumble(folder: Path, rank: int, hang: bool) -> None:
    """After its second round the process of rank 1 fails, or stops answering."""
    for record in tiny_game(batch=BATCH).play(10**6):
        if rank == 1 and record.index == 1:
            (folder / "stumbled").touch()
            if hang:
                time.sleep(600)
            raise RuntimeError("the second process fails")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    with joined("cpu") as rank:
        if what == "compare":
            compare(where, rank)
        else:
            stumble(where, rank, what == "hang")
