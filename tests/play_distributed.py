"""Plays every method from a fixed state and writes what came out: by torchrun on several processes, or on one.

    torchrun --nproc-per-node 2 tests/play_distributed.py OUTPUT DTYPE
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_games import double, state, tiny_game, tiny_teacher
from torch import Tensor

from adadfq_lab.distributed import joined
from adadfq_lab.game import Game
from adadfq_lab.methods import METHODS, make_method

CLASSES, BATCH, WARMUP, OBSERVE, ROUNDS = 5, 16, 3, 5, 9
"""Warm-up, observation in the play, and play after it."""


def games(dtype: torch.dtype) -> dict[str, Game]:
    """A game of each method, and of AdaDFQ under each other fidelity, with bits at which rounding is coarse."""
    options: dict[str, Any] = {"batch": BATCH, "warmup": WARMUP, "observe": OBSERVE, "gains_every": 2}
    made = {name: tiny_game(make_method(name), teacher=tiny_teacher(CLASSES), **options) for name in METHODS}
    for fidelity in ("paper", "released"):
        made[f"adadfq {fidelity}"] = tiny_game(teacher=tiny_teacher(CLASSES), fidelity=fidelity, **options)
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
    found: dict[str, Tensor] = {}
    for name, game in games(dtype).items():
        found |= {f"{name}: {key}": value.contiguous().clone() for key, value in outcome(game).items()}
    return found


if __name__ == "__main__":
    with joined("cpu") as rank:
        for name in ("float64", "float32"):
            save_file(play_all(getattr(torch, name)), Path(sys.argv[1]) / f"{name}_{rank}.safetensors")
