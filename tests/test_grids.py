"""Many runs: nothing played twice, nothing lost, a killed worker continued."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tiny_games import images_for, saved_teacher

from adadfq_lab.errors import UserError
from adadfq_lab.files import load_tensors
from adadfq_lab.game import Schedule
from adadfq_lab.grids import config_hash, folder_name, play_grid, play_one, prepare, rounds_done, state
from adadfq_lab.runs import RunConfig, run


@pytest.fixture
def config(tmp_path, monkeypatch) -> RunConfig:
    """A run of six rounds on a tiny teacher, measured on images that every process finds."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    path = tmp_path / "teacher.safetensors"
    saved_teacher(path, classes=10, data="cifar10")
    images_for(tmp_path, "cifar10")
    schedule = Schedule(batch=4, warmup=2, observe=3)
    return RunConfig(str(path), rounds=6, schedule=schedule, device="cpu", evaluate_every=0, save_every=2, gains_every=0)


def pid_of_worker(folder: Path) -> int:
    """The process that plays in `folder`."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in entry.read_bytes():
                return int(entry.parent.name)
        except OSError:
            pass  # it has just ended
    return 0


def test_a_hash_names_what_differs_from_the_defaults(config):
    """Equal configurations share one, any change makes another, and an option at its default leaves it as it was."""
    assert config_hash(config) == config_hash(dataclasses.replace(config))
    changed = [dataclasses.replace(config, **{name: value}) for name, value in (("seed", 1), ("bits", "4w4a"), ("rounds", 7))]
    changed += [dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, student_lr=1e-4))]
    assert len({config_hash(c) for c in (config, *changed)}) == 5
    assert config_hash(RunConfig()) == config_hash(RunConfig(method="adadfq", schedule=Schedule(warmup=200)))


def test_a_grid_ends_complete_and_is_not_played_twice(config, tmp_path):
    """Two workers, four runs: each equals the same run played alone; asked for again, nothing is written."""
    configs = [dataclasses.replace(config, seed=seed) for seed in range(4)]
    folders = play_grid(configs, tmp_path / "grid", workers=2, quiet=True, poll_seconds=0.05)
    assert [folder.name for folder in folders] == [folder_name(c) for c in configs]
    assert [state(folder) for folder in folders] == ["done"] * 4 and [rounds_done(folder) for folder in folders] == [6] * 4
    run(configs[2], tmp_path / "alone", quiet=True, report=False)
    assert weights(folders[2]) == weights(tmp_path / "alone") != weights(folders[1])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").rglob("*")}
    play_grid(configs, tmp_path / "grid", quiet=True, poll_seconds=0.05)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "grid").rglob("*")} == before


def weights(folder: Path) -> bytes:
    return b"".join(v.numpy().tobytes() for _, v in sorted(load_tensors(folder / "student.safetensors")[0].items()))


def test_a_killed_worker_is_started_again(config, tmp_path):
    """SIGKILL in the middle of a run: the grid ends complete, and the weights are those of a run that nobody killed."""
    config = dataclasses.replace(config, rounds=60)
    folder = tmp_path / "grid" / folder_name(config)
    killed = []

    def kill() -> None:
        while not killed:
            if rounds_done(folder) >= 10 and (pid := pid_of_worker(folder)):
                os.kill(pid, signal.SIGKILL)
                killed.append(rounds_done(folder))
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    play_grid([config], tmp_path / "grid", quiet=True, poll_seconds=0.05)
    assert killed and killed[0] < 60 and state(folder) == "done"
    lines = [json.loads(line)["round"] for line in (folder / "records.jsonl").read_text().splitlines()]
    assert lines == list(range(60))
    run(config, tmp_path / "alone", quiet=True, report=False)
    assert weights(folder) == weights(tmp_path / "alone")


def test_a_run_that_fails_is_named_and_the_others_go_on(config, tmp_path):
    """A teacher that is not there fails once, not three times, and says why; asked for again it is tried again."""
    lost = dataclasses.replace(config, teacher=str(tmp_path / "nobody.safetensors"))
    with pytest.raises(UserError, match="1 of 2 runs failed; the first is "):
        play_grid([lost, config], tmp_path / "grid", quiet=True, poll_seconds=0.05)
    failed, fine = (tmp_path / "grid" / folder_name(c) for c in (lost, config))
    assert (state(failed), state(fine)) == ("failed", "done")
    assert (
        "exit status 2: adadfq: no teacher" in (failed / "failed.txt").read_text()
        or "nobody" in (failed / "failed.txt").read_text()
    )
    assert (failed / "log.txt").read_text().count("adadfq:") == 1


def test_a_folder_that_began_without_a_checkpoint_starts_over(config, tmp_path):
    """Killed between its configuration and its first checkpoint, a run has nothing to continue and nothing to lose."""
    (folder,) = prepare([config], tmp_path / "grid")
    (folder / "config.json").write_text("{")
    assert state(folder) == "begun"
    play_one(folder, quiet=True)
    assert state(folder) == "done"


def test_rounds_done_reads_whole_lines_only(tmp_path):
    """The last complete line counts; one that is being written does not; no file is no round."""
    assert rounds_done(tmp_path) == 0
    log = tmp_path / "records.jsonl"
    log.write_text("".join(json.dumps({"round": i, "h_prime": [0.5] * 2000}) + "\n" for i in range(30)) + '{"round": 30, "h')
    assert rounds_done(tmp_path) == 30
