"""Many runs, each in a folder and a process of its own: what tables and grids are played with.

A grid is a list of configurations. Each gets the folder `root/<method>-<bits>-s<seed>-<hash>`, where the hash is of the
configuration: the same configuration is the same folder, so a grid that was interrupted, or asked for again with more in it,
plays only what is missing. `play_one(folder)` is the unit of work, and starts, continues or does nothing; `play_grid` hands
folders to an engine (see `adadfq_lab.engines`), and any other scheduler can do the same with
`python -m adadfq_lab.grids FOLDER`.

    wanted.json      the configuration, before anything has run
    sessions.jsonl   a line for each time somebody began to play here: where, from which round
    log.txt          what the run printed
    failed.txt       why it ended without a result
    .worker          locked while somebody plays here; the rest is as `adadfq_lab.runs.run` says
"""

import fcntl
import hashlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from adadfq_lab.engines import Engine, InProcess, Local, Task
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.registry import FILES, known_elsewhere
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.runs.folder import checkpoints, last_checkpoint, round_of
from adadfq_lab.runs.run import run

State = Literal["done", "running", "failed", "stopped", "waiting"]
ATTEMPTS = 3
"""How often a run is started whose process was killed; one that ends in an error of its own is not tried again."""


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that name a configuration. What has its default does not count, so a new option renames nothing."""
    plain, usual = config.as_json(), RunConfig().as_json()
    told = {name: value for name, value in plain.items() if value != usual[name]}
    told["schedule"] = {k: v for k, v in plain["schedule"].items() if v != usual["schedule"][k]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def folder_name(config: RunConfig) -> str:
    """The folder of `config` under a grid's root."""
    return f"{config.method}-{config.bits}-s{config.seed}-{config_hash(config)}"


def prepare(configs: Sequence[RunConfig], root: Path) -> list[Path]:
    """Makes each configuration's folder under `root`, its wanted.json in it; returns the folders, in the same order."""
    folders = []
    for config in configs:
        folder = root / folder_name(config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "wanted.json").exists():
                write_atomically(folder / "wanted.json", json.dumps(config.as_json(), indent=1).encode())
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
        folders.append(folder)
    return folders


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


# All of them


def play_grid(
    configs: Sequence[RunConfig],
    root: Path,
    *,
    engine: Engine | None = None,
    workers: int = 1,
    quiet: bool = False,
    poll_seconds: float | None = None,
) -> list[Path]:
    """Plays every configuration that is not done yet and returns all folders.

    engine: where; by default up to `workers` processes of this machine at a time

    A run that is killed is started again, from its last checkpoint, up to ATTEMPTS times in all. A run that somebody else is
    playing is waited for, and taken over if its player dies. On Ctrl-C the engine's tasks are stopped or left, as it sees fit,
    then the KeyboardInterrupt goes on. Raises UserError, when all else is done, if a run failed.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    engine = engine or Local(workers)
    alone = [config.method for config in configs if not known_elsewhere(config.method)]
    if alone and not isinstance(engine, InProcess):
        raise UserError(
            f"the processes that play would not know the method {alone[0]!r}, which this one registered: name its file in the "
            f"environment variable {FILES}, or use --engine inprocess"
        )
    folders = prepare(configs, root)
    rounds = {folder: config.rounds for folder, config in zip(folders, configs, strict=True)}
    waiting = [folder for folder in rounds if state(folder) != "done"]
    attempts = dict.fromkeys(waiting, 0)
    running: list[Task] = []
    with tqdm(
        total=sum(rounds.values()), unit="round", file=sys.stderr, disable=quiet, smoothing=0.01, mininterval=1
    ) as progress:
        progress.n = progress.initial = sum(_played(folder, rounds) for folder in rounds)
        try:
            while waiting or running:
                waiting = [folder for folder in waiting if state(folder) != "done"]
                free = [folder for folder in waiting if not busy(folder)][: engine.capacity - len(running)]
                if free:
                    waiting = [folder for folder in waiting if folder not in free]
                    running += engine.submit(free)
                time.sleep(engine.poll_seconds if poll_seconds is None else poll_seconds)
                over = engine.ended(running)
                running = [task for task in running if task not in over]
                waiting += [task.folder for task in over if _again(task.folder, attempts)]
                played = sum(_played(folder, rounds) for folder in rounds)
                if played < progress.n:  # a run went back to its last checkpoint: pace and time left count from here
                    progress.initial = 0
                    progress.reset()
                    progress.initial = progress.n = progress.last_print_n = played
                progress.update(played - progress.n)
                names = ", ".join(task.folder.name for task in running[:3])
                progress.set_postfix_str(f"{len(waiting)} waiting; now {names}" if names else "", refresh=False)
        except BaseException as error:
            said = engine.stop(running)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(said) from None
            raise
    failed = [folder for folder in folders if state(folder) != "done"]
    if failed:
        why = failure(failed[0]).partition("\n")[0] or "see log.txt there"
        raise UserError(f"{len(failed)} of {len(folders)} runs failed; the first is {failed[0]}: {why}")
    return folders


def _played(folder: Path, rounds: dict[Path, int]) -> int:
    return rounds[folder] if state(folder) == "done" else min(rounds_done(folder), rounds[folder])


def _again(folder: Path, attempts: dict[Path, int]) -> bool:
    """Whether the run in `folder`, whose task ended, is to be tried again."""
    now = state(folder)
    if now == "running":
        return True  # by somebody else, who came first
    if now in ("done", "failed"):
        return False
    attempts[folder] += 1
    if attempts[folder] < ATTEMPTS:
        return True
    path = folder / "log.txt"
    last = path.read_text(errors="replace").strip().splitlines()[-1:] if path.exists() else []
    write_atomically(folder / "failed.txt", f"killed {ATTEMPTS} times; its last line: {''.join(last)}\n".encode())
    return False


def main(arguments: list[str] | None = None) -> None:
    """`python -m adadfq_lab.grids FOLDER`: play the run that FOLDER waits for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) != 1:
            raise UserError("give one folder of a grid: python -m adadfq_lab.grids FOLDER")
        play_one(Path(arguments[0]))
    except UserError as error:
        print(f"adadfq: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
