"""One run of a grid, in a process of its own: claimed by a lock, played, and its state readable from outside."""

import fcntl
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Literal

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.runs.config import read_config
from adadfq_lab.runs.folder import checkpoints, last_checkpoint, round_of
from adadfq_lab.runs.run import run

State = Literal["done", "running", "failed", "stopped", "waiting"]
ATTEMPTS = 3
"""How often a run is started whose process was killed; one that ends in an error of its own is not tried again."""


# What became of a run


def state(folder: Path) -> State:
    """Whether the run in `folder` is done, is being played, has failed, was stopped on the way, or waits."""
    played = busy(folder)  # asked first: a player that has let go has written its result
    if (folder / "result.json").exists():
        return "done"
    if played:
        return "running"
    if (folder / "failed.txt").exists():
        return "failed"
    return "stopped" if (folder / "config.json").exists() else "waiting"


def failure(folder: Path) -> str:
    """Why the run in `folder` failed; nothing where it has not, or where somebody has begun to play it again."""
    try:
        return (folder / "failed.txt").read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def rounds_done(folder: Path) -> int:
    """Rounds in the log of `folder`; looks at the end of the file only."""
    path = folder / "records.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2**16))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines[-3:] if line.startswith(b"{") and line.endswith(b"}\n")]
    return int(json.loads(whole[-1])["round"]) + 1 if whole else 0


def busy(folder: Path) -> bool:
    """Whether somebody plays in `folder`, on this machine or on another that shares it."""
    try:
        with (folder / ".worker").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether the run in `folder` is ours to play for as long as this lasts; the lock ends with the process that holds it."""
    with (folder / ".worker").open("ab") as lock:
        for _ in range(10):  # `busy` may hold it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.05)
            else:
                yield True
                return
        yield False


# One run


def play_one(folder: Path, *, quiet: bool = False) -> bool:
    """Starts the run that `folder` waits for, continues it, or does nothing where it is done or somebody else plays it.

    Returns whether it is done. Raises UserError as `run` does, and for a folder that waits for no run, which is left as it is;
    whatever a run raises is noted in failed.txt.
    """
    if not (folder / "wanted.json").exists():
        raise UserError(f"{folder} waits for no run (no wanted.json in it); give a folder of a grid")
    with _claimed(folder) as ours:
        if not ours or (folder / "result.json").exists():
            return (folder / "result.json").exists()
        (folder / "failed.txt").unlink(missing_ok=True)
        resume = bool(checkpoints(folder))
        if not resume:
            (folder / "config.json").unlink(missing_ok=True)  # killed before its first checkpoint: nothing to continue
        begun = round_of(last_checkpoint(folder)) if resume else 0
        session = {"host": socket.gethostname(), "pid": os.getpid(), "slurm": _slurm_job(), "round": begun, "time": time.time()}
        with (folder / "sessions.jsonl").open("a") as sessions:
            sessions.write(json.dumps(session) + "\n")
        try:
            run(read_config(folder / "wanted.json"), folder, resume=resume, quiet=quiet, report=False)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception_only(error)).strip()
            write_atomically(folder / "failed.txt", f"{reason}\n".encode())
            raise
        return True


def _slurm_job() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def work(folder: Path) -> bool:
    """`play_one`, printing to log.txt in the folder."""
    with (folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            return play_one(folder)
        except UserError as error:
            print(f"adadfq: {error}", file=log)
            raise
        except Exception:
            traceback.print_exc(file=log)
            raise


def main(arguments: list[str] | None = None) -> None:
    """`python -m adadfq_lab.studies.grid FOLDER`: play the run that FOLDER waits for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) != 1:
            raise UserError("give one folder of a grid: python -m adadfq_lab.studies.grid FOLDER")
        play_one(Path(arguments[0]))
    except UserError as error:
        print(f"adadfq: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
