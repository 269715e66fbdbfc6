"""Where a grid's runs are played: each engine starts the same function, `grid_run.work(folder)`, and reports when it ended.

    inprocess   one after the other, in this process
    local       processes of this machine, some at a time
    submitit    the same by submitit's executor for one machine: what a cluster would run, to try it out
    slurm       a job array on a Slurm cluster, through submitit; a task that is preempted or out of time is queued again

The result of a run is in its folder only, so an engine knows nothing of results, and two engines, or one that
was started twice, may share a grid.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.studies.grid_run import work

EngineName = Literal["local", "inprocess", "submitit", "slurm"]


@dataclass(frozen=True)
class Resources:
    """What one run of a grid gets from a cluster.

    Attributes:
        cpus: Cores of each run.
        gpus: GPUs of each run.
        memory_gb: Memory of each run.
        minutes: Time of each run; one that needs longer is queued again and continues from its last checkpoint.
        partition: Of the cluster; its default if empty.
        options: More options of sbatch, as account=NAME.
    """

    cpus: int = 1
    gpus: int = 0
    memory_gb: float = 4
    minutes: int = 240
    partition: str = ""
    options: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """`options` as a dictionary; raises UserError for one without a name."""
        pairs = [option.partition("=") for option in self.options]
        if bad := [option for option, (name, sign, _) in zip(self.options, pairs, strict=True) if not (name and sign)]:
            raise UserError(f"{bad[0]!r} is not an option of sbatch; write it as name=value, as in account=vision")
        return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Task:
    """A run that an engine was given, and the engine's handle of it."""

    folder: Path
    handle: Any


class Engine(Protocol):
    """A place to play runs."""

    capacity: int
    """Number of tasks that it takes at a time."""
    poll_seconds: float
    """Seconds between two polls."""

    def submit(self, folders: Sequence[Path]) -> list[Task]:
        """Starts or queues the runs in `folders`."""

    def ended(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of `tasks` that have ended, with or without success."""

    def stop(self, tasks: Sequence[Task]) -> str:
        """Called on Ctrl-C: makes unfinished tasks save and end, or leaves them running; returns a line that says which."""


# This machine


class InProcess:
    """One run after the other, here."""

    capacity, poll_seconds = 1, 0.0

    def submit(self, folders: Sequence[Path]) -> list[Task]:
        for folder in folders:
            with suppress(UserError):  # it is noted in the folder, and the others go on
                work(folder)
        return [Task(folder, None) for folder in folders]

    def ended(self, tasks: Sequence[Task]) -> list[Task]:
        return list(tasks)

    def stop(self, tasks: Sequence[Task]) -> str:
        return "the run that was played is saved; the same command continues"


class Local:
    """Up to `workers` processes of this machine. Ctrl-C in a terminal reaches them too."""

    def __init__(self, workers: int, poll_seconds: float = 0.5) -> None:
        self.capacity, self.poll_seconds = workers, poll_seconds

    def submit(self, folders: Sequence[Path]) -> list[Task]:
        return [Task(folder, self._start(folder)) for folder in folders]

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        with (folder / "log.txt").open("a") as log:
            command = [sys.executable, "-m", "adadfq_lab.studies.grid", str(folder)]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ended(self, tasks: Sequence[Task]) -> list[Task]:
        return [task for task in tasks if task.handle.poll() is not None]

    def stop(self, tasks: Sequence[Task]) -> str:
        for task in tasks:
            task.handle.wait()
        return "every run that was being played is saved; the same command continues"


# submitit


class Play:
    """What a submitit job runs: it plays one folder, and, when it is preempted or out of time, asks to be queued again."""

    def __call__(self, folder: str) -> None:
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            torch.set_num_threads(int(cpus))
        work(Path(folder))

    def checkpoint(self, folder: str) -> Any:
        """Called by submitit on its signal; the run itself goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission  # likewise

        return DelayedSubmission(self, folder)


class SubmititLocal:
    """Up to `workers` of submitit's local jobs; its own logs go to `logs`."""

    def __init__(self, workers: int, logs: Path, resources: Resources, poll_seconds: float = 0.5) -> None:
        self.capacity, self.poll_seconds = workers, poll_seconds
        self.executor = _submitit().LocalExecutor(logs)
        self.executor.update_parameters(timeout_min=resources.minutes)

    def submit(self, folders: Sequence[Path]) -> list[Task]:
        return [Task(folder, self.executor.submit(Play(), str(folder))) for folder in folders]

    def ended(self, tasks: Sequence[Task]) -> list[Task]:
        return [task for task in tasks if task.handle.done()]

    def stop(self, tasks: Sequence[Task]) -> str:
        for task in tasks:
            task.handle.cancel()
        return "the jobs were told to save and end; the same command continues"


class Slurm:
    """A job array of which up to `workers` tasks run at a time.

    `squeue` tells which jobs are alive: it answers at once, and, unlike `sacct`, on clusters without accounting.
    """

    poll_seconds = 5.0

    def __init__(self, workers: int, logs: Path, resources: Resources) -> None:
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise UserError("there is no Slurm here (no sbatch, no squeue); run this on a login node, or use --engine local")
        self.capacity = 10**6  # Slurm holds the queue
        self.executor = _submitit().SlurmExecutor(logs, max_num_timeout=1000)
        options: dict[str, Any] = {"cpus_per_task": resources.cpus, "mem": f"{round(1024 * resources.memory_gb)}M"}
        options |= {"gpus_per_node": resources.gpus} if resources.gpus else {}
        options |= {"partition": resources.partition} if resources.partition else {}
        more = {"requeue": True} | resources.named()
        self.executor.update_parameters(
            job_name="adadfq", time=resources.minutes, array_parallelism=workers, additional_parameters=more, **options
        )

    def submit(self, folders: Sequence[Path]) -> list[Task]:
        try:
            jobs = self.executor.map_array(Play(), [str(folder) for folder in folders])
        except Exception as error:  # submitit's errors for sbatch's refusal have no common type
            raise UserError(f"Slurm took no job: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}") from None
        return [Task(folder, job.job_id) for folder, job in zip(folders, jobs, strict=True)]

    def ended(self, tasks: Sequence[Task]) -> list[Task]:
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]  # lists what waits or runs, as 12_3 in an array
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            return []  # without an answer, nothing is known about the jobs
        alive = set(answer.stdout.split())
        return [task for task in tasks if task.handle not in alive]

    def stop(self, tasks: Sequence[Task]) -> str:
        return "the jobs go on in Slurm; ask for the same grid again to watch them, or end them with scancel --name adadfq"


def _submitit() -> Any:
    return import_extra("submitit", "pip install '.[cluster]', or use --engine local")


def make_engine(name: EngineName, workers: int, root: Path, resources: Resources | None = None) -> Engine:
    """The engine called `name`; raises UserError if this machine lacks what it needs."""
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    match name:
        case "inprocess":
            return InProcess()
        case "local":
            return Local(workers)
        case "submitit":
            return SubmititLocal(workers, root / "submitit", resources or Resources())
        case "slurm":
            return Slurm(workers, root / "submitit", resources or Resources())
