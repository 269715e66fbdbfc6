"""One run of a grid, in a process of its own: claimed by a lock, played, and its state readable from outside."""

import json
import os
import shutil
import socket
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import load_tensors, write_atomically
from adadfq_lab.machine.locks import claimed, held
from adadfq_lab.machine.reading import check_regular, open_regular, read_bytes, read_json
from adadfq_lab.runs.config import read_config
from adadfq_lab.runs.folder import checkpoints, round_of
from adadfq_lab.runs.log import record_of
from adadfq_lab.runs.run import run

State = Literal["done", "running", "failed", "damaged", "stopped", "waiting"]
ATTEMPTS = 3
"""How often a run is started whose process was killed; one that ends in an error of its own is not tried again."""


# The state of a run


def state(folder: Path) -> State:
    """Whether the run in `folder` is done, is being played, has failed, is damaged, was stopped on the way, or waits."""
    played = busy(folder)  # asked first: a player that has let go has written its result
    if played and not _there(folder / "result.json"):
        return "running"
    if damage(folder):
        return "running" if played else "damaged"
    if _there(folder / "result.json"):
        return "done"
    if _there(folder / "failed.txt"):
        return "failed"
    return "stopped" if _there(folder / "config.json") else "waiting"


def damage(folder: Path) -> str:
    """What is wrong with the small files of a run, in one line; empty if nothing is."""
    try:
        if _there(folder / "wanted.json"):
            read_config(folder / "wanted.json")
        if _there(folder / "result.json"):
            read_result(folder)
        elif _there(folder / "config.json"):
            read_config(folder / "config.json")
        if _there(folder / "records.jsonl"):
            check_regular(folder / "records.jsonl")
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot look into {folder}: {error.strerror}"
    return ""


def read_result(folder: Path) -> dict[str, Any]:
    """A run's result.json; raises UserError if it is not one.

    The student's and the teacher's accuracy are numbers in it, or None in a run without labelled images, which has agreements.
    """
    found = read_json(folder / "result.json", limit=2**20)
    with suppress(KeyError, TypeError, ValueError):
        if found["student"] is None and 0 <= found["agreement"]["generated"]["student"] <= 100:
            return dict(found)
    try:
        low, high = found["intervals"]["student"]
        numbers = [found["student"], found["teacher"], low, high]
    except (KeyError, TypeError, ValueError):
        numbers = [None]
    if not all(type(number) in (int, float) and 0 <= number <= 100 for number in numbers):
        raise UserError(f"{folder / 'result.json'} is damaged: it holds no result of a run")
    return dict(found)


def _there(path: Path) -> bool:
    """Whether the path exists; a broken link counts."""
    return os.path.lexists(path)


def failure(folder: Path) -> str:
    """Why the run in `folder` failed; empty if it did not, or if it is played again."""
    if not _there(folder / "failed.txt"):
        return ""
    try:
        return read_bytes(folder / "failed.txt").decode(errors="replace").strip()
    except UserError as error:
        return str(error) if _there(folder / "failed.txt") else ""


def rounds_done(folder: Path) -> int:
    """Rounds in the log of `folder`; looks at the end of the file only. 0 if there is no readable log."""
    path = folder / "records.jsonl"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            for length in (2**16, 2**22, 2**26):  # a line of many samples is long
                file.seek(max(0, size - length))
                lines = file.read(length).split(b"\n")[:-1]
                for line in lines[:-4:-1]:
                    if (record := record_of(line)) is not None:
                        return int(record["round"]) + 1
                if length >= size:
                    return 0
    except (UserError, OSError):
        return 0
    return 0


def busy(folder: Path) -> bool:
    """Whether a process plays in `folder`, on this machine or on another that shares it."""
    return held(folder / ".worker")


# One run


def play_one(folder: Path, *, quiet: bool = False) -> bool:
    """Starts the run that `folder` waits for, continues it, or does nothing if it is done or another process plays it.

    Returns whether it is done. Raises UserError as `run` does, and for a folder without wanted.json, which is left as it is;
    any error of a run is written to failed.txt.
    """
    if not _there(folder / "wanted.json"):
        raise UserError(f"{folder} waits for no run (no wanted.json in it); give a folder of a grid")
    with claimed(folder / ".worker", patience=0.5) as ours:
        if not ours or _has_result(folder):
            return _has_result(folder)
        begun = _make_playable(folder)
        (folder / "failed.txt").unlink(missing_ok=True)
        session = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm": _slurm_job(),
            "round": begun or 0,
            "time": time.time(),
        }
        with (folder / "sessions.jsonl").open("a") as sessions:
            sessions.write(json.dumps(session) + "\n")
        try:
            run(read_config(folder / "wanted.json"), folder, from_round=begun, quiet=quiet, report=False)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception_only(error)).strip()
            write_atomically(folder / "failed.txt", f"{reason}\n".encode())
            raise
        return True


def _has_result(folder: Path) -> bool:
    """Whether the run has a result that can be read."""
    try:
        return bool(read_result(folder))
    except UserError:
        return False


def _make_playable(folder: Path) -> int | None:
    """Sets aside what is damaged in a run's folder; returns the round that an intact checkpoint continues at, if there is one.

    What is set aside keeps its content as NAME.damaged. Without an intact checkpoint the run starts again.
    """
    for name in ("result.json", "config.json", "records.jsonl", "failed.txt", "sessions.jsonl"):
        path = folder / name
        try:
            if _there(path):
                check_regular(path)
                if name == "result.json":
                    read_result(folder)
                if name == "config.json":
                    read_config(path)
        except UserError:
            set_aside(path)
            if name == "config.json" and checkpoints(folder):  # it says what wanted.json says
                config = read_config(folder / "wanted.json")
                write_atomically(path, json.dumps(config.as_json(), indent=1).encode())
    for path in reversed(checkpoints(folder)):
        try:
            load_tensors(path)
        except UserError:
            continue
        return round_of(path)
    for path in (*checkpoints(folder), folder / "config.json"):  # nothing to continue
        path.unlink(missing_ok=True)
    return None


def set_aside(path: Path) -> None:
    """Renames a damaged file to NAME.damaged."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    os.replace(path, aside)


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
