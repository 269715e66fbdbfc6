"""The grid on a real Slurm: `make test-slurm` starts one of a single node here, plays the lambda grid on it, and stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.slurm_here import missing, slurm
from helpers.tiny_games import images_for, saved_teacher

from adadfq_lab.studies.grid_run import rounds_done
from adadfq_lab.studies.sweeps import RunStatus, status

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=f"there is no {', '.join(missing())}")]

LOWER, UPPER, ROUNDS = (0, 0.1, 0.2), (0.6, 0.8, 1), 200


def until(what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 180) -> Any:
    """What `what` returns as soon as that is something; fails with what was printed once the process or the time has ended."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.1)
    return found


def sessions(folder: Path) -> list[dict[str, Any]]:
    path = folder / "sessions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_lambda_grid_on_slurm(tmp_path):
    """Nine runs as a job array, two at a time. One task is preempted and queued again by submitit, under its own number; one is
    killed and handed in again by the engine. The grid ends complete: nothing twice, nothing lost; asked again it does nothing.
    """
    pytest.importorskip("submitit")
    root, teacher = tmp_path / "grid", tmp_path / "teacher.safetensors"
    saved_teacher(teacher, classes=10, data="cifar10")
    images_for(tmp_path, "cifar10")
    vary = [f"{name}={','.join(map(str, values))}" for name, values in (("lower", LOWER), ("upper", UPPER))]
    options = {
        "teacher": teacher,
        "rounds": ROUNDS,
        "batch": 4,
        "warmup": 2,
        "observe": 3,
        "save_every": 20,
        "evaluate_every": 0,
    }
    command = [sys.executable, "-m", "adadfq_lab", "grid", "play", str(root), "--vary", *vary]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command += ["--engine=slurm", "--workers=2", "--memory-gb=1", "--json"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])

    with slurm(tmp_path / "slurm") as environment, ExitStack() as stack:
        environment |= {"ADADFQ_DATA": str(tmp_path), "PYTHONPATH": path}
        process = subprocess.Popen(command, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        stack.callback(process.kill)  # whatever happens, it must not hand in what Slurm is about to cancel

        def playing() -> list[Path]:
            found = [row for row in status(root) if row.state == "running"] if any(root.glob("*/wanted.json")) else []
            return [row.folder for row in found if 40 <= rounds_done(row.folder) < ROUNDS - 60]

        preempted, killed = until(lambda: len(found := playing()) == 2 and found, process)
        job = sessions(preempted)[0]["slurm"]
        assert "_" in job, "not a task of an array"
        os.kill(
            sessions(preempted)[0]["pid"], signal.SIGUSR2
        )  # what Slurm sends before it preempts, or ends what is out of time
        os.kill(sessions(killed)[0]["pid"], signal.SIGKILL)

        def restarts() -> bool:
            told = subprocess.run(
                ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True, check=False
            )
            return "Restarts=1" in told.stdout

        until(restarts, process, 60)
        text, _ = process.communicate(timeout=500)
        assert process.returncode == 0, text
        again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)

    for output in (text, again.stdout):
        assert json.loads(output.splitlines()[-1])["counts"]["done"] == len(LOWER) * len(UPPER)
    rows: list[RunStatus] = status(root)
    assert {(row.config.lower, row.config.upper) for row in rows} == {(a, b) for a in LOWER for b in UPPER}
    assert {row.folder: row.starts for row in rows} == {row.folder: 1 + (row.folder in (preempted, killed)) for row in rows}
    for row in rows:
        lines = (row.folder / "records.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(ROUNDS))
    assert sessions(preempted)[1]["slurm"] == job and sessions(killed)[1]["slurm"] != sessions(killed)[0]["slurm"]
    assert all(sessions(folder)[1]["round"] >= 20 for folder in (preempted, killed))
