"""A run's folder on disk: its last two checkpoints, its lock, and errors of a full disk."""

import dataclasses
import errno
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adadfq_lab.errors import UserError
from adadfq_lab.game.checkpoints import same_run
from adadfq_lab.game.game import Game
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.locks import claimed
from adadfq_lab.runs.config import RunConfig, read_config

_CHECKPOINT = re.compile(r"round_\d+\.ckpt")  # not a copy that the user made of one
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What writing to a full or failing disk raises an OSError with."""


def save_checkpoint(game: Game, folder: Path) -> None:
    """Saves the game and keeps the last two checkpoints."""
    game.save(checkpoint_path(folder, game.index))
    for old in checkpoints(folder)[:-2]:
        old.unlink()


def checkpoint_path(folder: Path, index: int) -> Path:
    """The checkpoint of a run before round `index`."""
    return folder / f"round_{index:06d}.ckpt"


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((path for path in folder.glob("round_*") if _CHECKPOINT.fullmatch(path.name)), key=round_of)


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run; raises UserError if there is none."""
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder} has no checkpoint to resume from; remove it, or choose another --name")
    return found[-1]


def resumed(folder: Path, game: Game, from_round: int | None) -> Game:
    """Loads the run's saved game, given `game` before its first round; newer checkpoints are removed after that.

    Raises UserError if the checkpoint is missing, damaged or of another run, and names an older one that is intact.
    """
    path = last_checkpoint(folder) if from_round is None else checkpoint_path(folder, from_round)
    there = checkpoints(folder)
    if path not in there:
        names = " and ".join(str(round_of(p)) for p in there)
        raise UserError(f"{folder} has no checkpoint of round {from_round}; give --from one of those it has: {names}")
    try:
        found = _read(path, game)
    except UserError as error:
        older = next((p for p in reversed(there) if p != path and _intact(p, game)), None)
        if older is None:
            raise UserError(f"{error}; no other checkpoint of {folder} is intact: start again under another --name") from None
        hint = f"{older.name} is intact: adadfq train --resume {folder} --from {round_of(older)}"
        raise UserError(f"{error}; {hint}") from None
    for newer in there[there.index(path) + 1 :]:
        newer.unlink()
    return found


def round_of(path: Path) -> int:
    """The round before which a checkpoint was saved."""
    return int(path.stem.removeprefix("round_"))


def _read(path: Path, game: Game) -> Game:
    resumed = Game.resume(path, teacher=game.teacher, device=str(game.device), compile=game.forwards.how)
    if not same_run(resumed, game) or resumed.bounds != game.bounds or resumed.index != round_of(path):
        raise UserError(f"checkpoint {path} is of another run or round than its folder's")
    return resumed


def _intact(path: Path, game: Game) -> bool:
    try:
        _read(path, game)
    except UserError:
        return False
    return True


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turns the errors of a full or failing disk into one line; files saved before stay intact."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; make room, then: adadfq train --resume {folder}"
        ) from None


@contextmanager
def _claimed(folder: Path, config: RunConfig, resume: bool) -> Iterator[None]:
    """Makes the folder and locks it against other runs; refuses one that holds another configuration."""
    path = folder / "config.json"
    if resume and not path.exists():
        raise UserError(f"{folder} holds no run to resume")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(claimed(folder / ".lock"))
        except OSError as error:
            raise UserError(f"cannot write to the run folder {folder}: {error.strerror}; choose another with --name") from None
        stack.enter_context(full_disk(folder))
        if not ours:
            raise UserError(f"another run is using {folder}; choose another --name, or wait for it")
        if path.exists() and not resume:
            raise UserError(f"{folder} already holds a run; continue it with --resume, or choose another --name")
        if resume and dataclasses.replace(read_config(path), compile=config.compile) != config:
            raise UserError(f"{folder} holds a run of another configuration; give the options in {path}")
        for left in folder.iterdir():  # by a process that was killed while it wrote
            if _TEMPORARY.fullmatch(left.name):
                left.unlink()
        write_atomically(path, json.dumps(config.as_json(), indent=1).encode())
        yield


_TEMPORARY = re.compile(
    r"\.(round_\d+\.ckpt|config\.json|records\.(?:jsonl|sums)|student\.safetensors|result\.json|report\.html)\.\w{8}"
)
