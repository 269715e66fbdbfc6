"""Many runs, each in a folder and a process of its own: what tables and grids are played with.

A grid is a list of configurations. Each gets the folder `root/<method>-<bits>-s<seed>-<hash>`, where the hash is of the
configuration: the same configuration is the same folder, so a grid that was interrupted, or asked for again with more in it,
plays only what is missing. `play_one(folder)` is the unit of work, and starts, continues or does nothing; `play_grid` hands
folders to processes on this machine, and a cluster's scheduler can do the same with `python -m adadfq_lab.grids FOLDER`.

    wanted.json    the configuration, before anything has run
    log.txt        what the run printed; the rest is as `adadfq_lab.runs` says
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from adadfq_lab.errors import UserError
from adadfq_lab.files import write_atomically
from adadfq_lab.runs import RunConfig, read_config, run

State = Literal["done", "failed", "begun", "waiting"]
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
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --folder") from None
        folders.append(folder)
    return folders


def state(folder: Path) -> State:
    """Whether the run in `folder` is done, has failed, has begun (and may be running), or waits."""
    if (folder / "result.json").exists():
        return "done"
    if (folder / "failed.txt").exists():
        return "failed"
    return "begun" if (folder / "config.json").exists() else "waiting"


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


def play_one(folder: Path, *, quiet: bool = False) -> None:
    """Starts the run that `folder` waits for, continues it, or does nothing if it is done. Raises UserError as `run` does."""
    if state(folder) == "done":
        return
    (folder / "failed.txt").unlink(missing_ok=True)
    resume = any(folder.glob("round_*.ckpt"))
    if not resume:
        (folder / "config.json").unlink(missing_ok=True)  # killed before its first checkpoint: nothing to continue
    run(read_config(folder / "wanted.json"), folder, resume=resume, quiet=quiet, report=False)


@dataclass
class _Worker:
    folder: Path
    attempt: int = 1

    def __post_init__(self) -> None:
        with (self.folder / "log.txt").open("a") as log:
            command = [sys.executable, "-m", "adadfq_lab.grids", str(self.folder)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def play_grid(
    configs: Sequence[RunConfig], root: Path, *, workers: int = 1, quiet: bool = False, poll_seconds: float = 0.5
) -> list[Path]:
    """Plays every configuration that is not done yet, `workers` at a time, and returns all folders.

    A worker that is killed is started again, from its last checkpoint. Ctrl-C reaches the workers too: each saves its run,
    then the KeyboardInterrupt goes on. Raises UserError, when all else is done, if a run failed.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    folders = prepare(configs, root)
    rounds = {folder: config.rounds for folder, config in zip(folders, configs, strict=True)}
    waiting = [folder for folder in rounds if state(folder) != "done"]
    total = sum(rounds.values())
    running: list[_Worker] = []
    with tqdm(total=total, unit="round", file=sys.stderr, disable=quiet, smoothing=0.01, mininterval=1) as progress:
        progress.n = progress.initial = sum(_played(folder, rounds) for folder in rounds)
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(_Worker(waiting.pop(0)))
                time.sleep(poll_seconds)
                running = [again for worker in running if (again := _look_after(worker))]
                progress.update(sum(_played(folder, rounds) for folder in rounds) - progress.n)
                names = ", ".join(worker.folder.name.rsplit("-", 1)[0] for worker in running)
                progress.set_postfix_str(f"{len(waiting)} waiting; now {names}" if names else "", refresh=False)
        except BaseException:
            for worker in running:
                worker.process.wait()
            raise
    failed = [folder for folder in folders if state(folder) != "done"]
    if failed:
        raise UserError(f"{len(failed)} of {len(folders)} runs failed; the first is {failed[0]}, see log.txt there")
    return folders


def _played(folder: Path, rounds: dict[Path, int]) -> int:
    return rounds[folder] if state(folder) == "done" else min(rounds_done(folder), rounds[folder])


def _look_after(worker: _Worker) -> _Worker | None:
    """The worker that goes on in this one's place: itself, a second attempt, or nobody."""
    code = worker.process.poll()
    if code is None:
        return worker
    if state(worker.folder) == "done":
        return None
    if code < 0 and worker.attempt < ATTEMPTS:
        return _Worker(worker.folder, worker.attempt + 1)
    last = (worker.folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
    write_atomically(worker.folder / "failed.txt", f"exit status {code}: {''.join(last)}\n".encode())
    return None


def main(arguments: list[str] | None = None) -> None:
    """`python -m adadfq_lab.grids FOLDER`: play the run that FOLDER waits for."""
    folder = Path((arguments or sys.argv[1:])[0])
    try:
        play_one(folder)
    except UserError as error:
        print(f"adadfq: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
