"""Plays many runs, each in a folder and a process of its own, for tables and grids.

A grid is a list of configurations. Each gets the folder `root/<method>-<bits>-s<seed>-<hash>`, where the hash is of the
configuration: the same configuration is the same folder, so a grid that was interrupted, or asked for again with more in it,
plays only what is missing. `play_one(folder)` is the unit of work, and starts, continues or does nothing; `play_grid` hands
folders to an engine (see `adadfq_lab.studies.engines`), and any other scheduler can do the same with
`python -m adadfq_lab.studies.grid FOLDER`.

    wanted.json      the configuration, before anything has run
    sessions.jsonl   a line for each time a process began to play here: on which machine, from which round
    log.txt          what the run printed
    failed.txt       why it ended without a result
    .worker          locked while a process plays here; for the rest see `adadfq_lab.runs.run`
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import read_bytes
from adadfq_lab.methods.registry import FILES, known_elsewhere
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.studies.engines import Engine, InProcess, Local, Task
from adadfq_lab.studies.grid_run import ATTEMPTS, busy, failure, main, rounds_done, set_aside, state


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that name a configuration. Defaults do not count, so a new option renames nothing."""
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
            for name in ("log.txt", "sessions.jsonl"):
                if os.path.lexists(folder / name) and not (folder / name).is_file():
                    set_aside(folder / name)
            if not _wants(folder, config):
                write_atomically(folder / "wanted.json", json.dumps(config.as_json(), indent=1).encode())
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
        folders.append(folder)
    return folders


def _wants(folder: Path, config: RunConfig) -> bool:
    """Whether the folder's wanted.json says `config`; a damaged one is set aside."""
    path = folder / "wanted.json"
    if not os.path.lexists(path):
        return False
    try:
        return read_config(path) == config
    except UserError:
        set_aside(path)
        return False


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

    engine: plays the runs; by default up to `workers` processes of this machine at a time

    A run that is killed is started again, from its last checkpoint, up to ATTEMPTS times in all. A run that another process is
    playing is waited for, and taken over if that process dies. On Ctrl-C the engine stops its tasks or leaves them running,
    then the KeyboardInterrupt is raised again. Raises UserError at the end if a run failed.
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
        return True  # by another process, which came first
    if now in ("done", "failed"):
        return False
    attempts[folder] += 1
    if attempts[folder] < ATTEMPTS:
        return True
    try:
        last = read_bytes(folder / "log.txt").decode(errors="replace").strip().splitlines()[-1:]
    except UserError:
        last = []
    write_atomically(folder / "failed.txt", f"killed {ATTEMPTS} times; its last line: {''.join(last)}\n".encode())
    return False


if __name__ == "__main__":
    main()
