"""A game on disk: everything the next round depends on, so that a resumed run continues bit for bit.

Tensors: both players' weights and buffers, both optimizers' state, the state of the random generator. JSON: what must agree
(teacher's sha256, method and its settings, schedule, fidelity, quantization) and what does not fit a tensor.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError, first_line
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.game.compiling import Compile
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.devices import Precision
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import digest, load_tensors, snapshot
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method
from adadfq_lab.methods.registry import make_method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.student.student_files import quantization_from_json, quantization_json
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items() if value is not None}


def _load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(prefix, tensors).items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        # Fused steps walk parameter and state side by side in memory, so the layout must be the parameter's.
        state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _sha256(teacher: Teacher) -> str:
    """The hash of the teacher's file, or of its weights if it has no file."""
    return teacher.info.sha256 or digest({k: v.cpu() for k, v in teacher.network.state_dict().items()}, "")


class Playable(Protocol):
    """The attributes of a `Game` that a checkpoint reads, and that loading sets in a new one."""

    teacher: Teacher
    student: Student
    generator: Generator
    method: Method
    schedule: Schedule
    fidelity: Fidelity
    precision: Precision
    seed: int
    gains_every: int
    index: int
    bounds: Bounds
    random: torch.Generator
    last_checkpoint: Path | None

    @property
    def generator_optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def student_optimizer(self) -> torch.optim.Optimizer: ...


G = TypeVar("G", bound=Playable)


@dataclass(frozen=True)
class _Meta:
    """The JSON of a checkpoint."""

    kind: str
    index: int
    bounds: Bounds
    seed: int
    teacher: str
    teacher_sha256: str
    method: str
    settings: dict[str, Any]
    schedule: Schedule
    fidelity: Fidelity
    quantization: dict[str, Any]
    precision: Precision
    gains_every: int


def snapshot_of(game: Playable) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The content of a checkpoint of `game`: copies of its tensors, and a JSON object. See `resume_game`."""
    tensors = {f"student.{k}": v for k, v in game.student.state_dict().items()}
    tensors |= {f"generator.{k}": v for k, v in game.generator.state_dict().items()}
    tensors |= _optimizer_tensors("adam", game.generator_optimizer) | _optimizer_tensors("sgd", game.student_optimizer)
    tensors["random"] = game.random.get_state()
    moving = {"index": game.index, "bounds": dataclasses.asdict(game.bounds)}
    return snapshot(tensors), {"kind": "game"} | _description(game) | moving


def _description(game: Playable) -> dict[str, Any]:
    """What is the same in every round of a game, as JSON."""
    return {
        "seed": game.seed,
        "teacher": game.teacher.info.name,
        "teacher_sha256": _sha256(game.teacher),
        "method": game.method.name,
        "settings": game.method.settings,
        "schedule": dataclasses.asdict(game.schedule),
        "fidelity": dataclasses.asdict(game.fidelity),
        "quantization": quantization_json(game.student),
        "precision": game.precision,
        "gains_every": game.gains_every,
    }


def same_run(a: Playable, b: Playable) -> bool:
    """Whether two games differ at most in their current round and bounds."""
    return _description(a) == _description(b)


def resume_game(
    make: Callable[..., G],
    path: Path,
    *,
    teacher: Teacher | None = None,
    method: Method | None = None,
    device: str | torch.device = "cpu",
    compile: Compile = "off",
) -> G:
    """The game that `Game.save` wrote to `path`: its next round is the round the saved game would have played next.

    make:    `Game`, or a function with the same arguments
    teacher: needed unless it is a shipped one; must have the weights that the game was played with
    method:  needed only for a method that is not in METHODS
    compile: as in Game; need not be what the saved game had

    Raises UserError if the file is damaged or belongs to another teacher or method.
    """
    tensors, plain, _ = load_tensors(path)
    if plain.get("kind") != "game":
        raise UserError(f"{path} holds no game")
    try:
        meta = build(_Meta, plain)
        how = quantization_from_json(meta.quantization)
    except UserError as error:
        raise UserError(f"{path} was written by another version of adadfq: {error}") from None
    teacher = teacher or load_teacher(meta.teacher)
    if _sha256(teacher) != meta.teacher_sha256:
        raise UserError(f"{path} was played with another teacher than {teacher.info.name} (sha256 differs)")
    method = method or make_method(meta.method, **meta.settings)
    if method.name != meta.method:
        raise UserError(f"{path} was played with {meta.method}, not {method.name}")
    try:
        game = make(
            teacher,
            quantize(teacher, **how),
            method,
            seed=meta.seed,
            schedule=meta.schedule,
            fidelity=meta.fidelity,
            gains_every=meta.gains_every,
            precision=meta.precision,
            compile=compile,
            device=device,
        )
        game.student.load_state_dict(_part("student", tensors))
        game.generator.load_state_dict(_part("generator", tensors))
        _load_optimizer("adam", game.generator_optimizer, tensors)
        _load_optimizer("sgd", game.student_optimizer, tensors)
        game.random.set_state(tensors["random"])
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} does not fit its own description: {first_line(error)}") from None
    game.index, game.bounds, game.last_checkpoint = meta.index, meta.bounds, path
    return game
