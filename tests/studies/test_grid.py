"""Many runs: nothing played twice, nothing lost, a killed worker continued."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.tiny_games import tiny_run

from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.run import run
from adadfq_lab.studies import grid as grids
from adadfq_lab.studies.engines import Resources, Task, make_engine
from adadfq_lab.studies.grid import config_hash, folder_name, play_grid, prepare
from adadfq_lab.studies.grid_run import busy, main, play_one, rounds_done, state
from adadfq_lab.studies.sweeps import as_json, combinations, counts, status, status_text


@pytest.fixture
def config(tmp_path, monkeypatch) -> RunConfig:
    """A run of six rounds on a tiny teacher, measured on images that every process finds."""
    schedule = Schedule(batch=4, warmup=2, observe=3)
    return tiny_run(tmp_path, monkeypatch, rounds=6, schedule=schedule, evaluate_every=0, save_every=2, gains_every=0)


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
    """Two workers, three runs: each equals the same run played alone; asked for again, nothing is written."""
    configs = [dataclasses.replace(config, seed=seed) for seed in range(3)]
    folders = play_grid(configs, tmp_path / "grid", workers=2, quiet=True, poll_seconds=0.05)
    assert [folder.name for folder in folders] == [folder_name(c) for c in configs]
    assert [state(folder) for folder in folders] == ["done"] * 3 and [rounds_done(folder) for folder in folders] == [6] * 3
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


def test_a_run_that_goes_back_to_its_checkpoint_does_not_play_backwards(config, tmp_path, monkeypatch, capsys):
    """31 of 60 rounds were logged and 30 saved: pace and time left count from 30, and are not negative."""
    played = iter([31, 30])
    monkeypatch.setattr(grids, "_played", lambda folder, rounds: next(played))
    play_grid([dataclasses.replace(config, rounds=60)], tmp_path / "grid", engine=make_engine("inprocess", 1, tmp_path))
    bar = capsys.readouterr().err
    assert " 30/60 [" in bar and "-" not in re.sub(r"; now \S+", "", bar)


def test_a_run_that_fails_is_named_and_the_others_go_on(config, tmp_path):
    """A teacher that is not there fails once, not three times, and says why; asked for again it is tried again."""
    lost = dataclasses.replace(config, teacher=str(tmp_path / "nobody.safetensors"))
    with pytest.raises(UserError, match=r"1 of 2 runs failed; the first is .*: .*\w"):
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
    assert state(folder) == "damaged"
    play_one(folder, quiet=True)
    assert state(folder) == "done"


def test_a_run_is_played_by_one_at_a_time(config, tmp_path):
    """While somebody holds a folder its state is "running" and play_one leaves it alone; afterwards it plays, once."""
    (folder,) = prepare([config], tmp_path / "grid")
    assert state(folder) == "waiting"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert busy(folder) and state(folder) == "running" and play_one(folder, quiet=True) is False
    holder.kill()
    holder.communicate()
    assert not busy(folder) and play_one(folder, quiet=True) and play_one(folder, quiet=True)
    (session,) = [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]
    assert session["pid"] == os.getpid() and session["round"] == 0


HOLD = """
import fcntl, sys
lock = open(sys.argv[1] + "/.worker", "ab")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["inprocess", "submitit"])
def test_engines_play_the_same_runs(config, tmp_path, name):
    """Whatever plays them, a run that fails does not stop the others, and each is what it is when played alone."""
    if name == "submitit":
        pytest.importorskip("submitit")
    lost = dataclasses.replace(config, teacher=str(tmp_path / "nobody.safetensors"))
    engine = make_engine(name, 2, tmp_path / "grid")
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        play_grid(
            [lost, config, dataclasses.replace(config, seed=1)], tmp_path / "grid", engine=engine, quiet=True, poll_seconds=0.05
        )
    failed, fine = (tmp_path / "grid" / folder_name(c) for c in (lost, config))
    assert "nobody" in (failed / "failed.txt").read_text() and "nobody" in (failed / "log.txt").read_text()
    run(config, tmp_path / "alone", quiet=True, report=False)
    assert weights(fine) == weights(tmp_path / "alone") and state(tmp_path / "grid" / failed) == "failed"


def test_a_run_that_is_killed_again_and_again_is_given_up(config, tmp_path):
    """After three deaths without a result the run counts as failed, with the number and its last line."""
    (folder,) = prepare([config], tmp_path / "grid")
    (folder / "log.txt").write_text("loading\nout of memory soon\n")

    class Deadly:
        capacity, poll_seconds = 1, 0.0

        def __init__(self) -> None:
            self.given = 0

        def submit(self, folders):
            self.given += len(folders)
            return [Task(folder, None) for folder in folders]

        def ended(self, tasks):
            return list(tasks)

        def stop(self, tasks):
            return ""

    engine = Deadly()
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        play_grid([config], tmp_path / "grid", engine=engine, quiet=True)
    assert engine.given == 3 and (folder / "failed.txt").read_text() == "killed 3 times; its last line: out of memory soon\n"


def test_an_engine_says_what_it_lacks(tmp_path, monkeypatch):
    """No worker, or no Slurm, is a line that says what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Slurm here"):
        make_engine("slurm", 1, tmp_path)
    with pytest.raises(UserError, match="workers must be at least 1"):
        make_engine("local", 0, tmp_path)
    with pytest.raises(UserError, match="write it as name=value"):
        Resources(options=("account",)).named()
    assert Resources(options=("account=vision", "qos=a=b")).named() == {"account": "vision", "qos": "a=b"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "submitit"])
def test_a_grid_of_36_survives_two_killed_workers(config, tmp_path, name):
    """lambda_l x lambda_u, 6 x 6, two at a time, two SIGKILLs in the middle: complete, nothing twice, nothing lost.

    Each run was begun once, the two killed ones once more, from a checkpoint; every log holds every round once; and the killed
    ones' weights are those of runs that nobody killed.
    """
    config = dataclasses.replace(config, rounds=24)
    values = "lower=0,0.05,0.1,0.15,0.2,0.25", "upper=0.5,0.6,0.7,0.8,0.9,1"
    configs, root = combinations(config, values), tmp_path / "grid"
    assert len(configs) == 36
    killed: dict[Path, int] = {}

    def kill() -> None:
        while len(killed) < 2:
            for folder in root.glob("*-s0-*"):
                sessions = folder / "sessions.jsonl"
                if folder not in killed and 6 <= rounds_done(folder) < 20 and len(killed) < 2 and sessions.exists():
                    killed[folder] = rounds_done(folder)
                    os.kill(json.loads(sessions.read_text().splitlines()[-1])["pid"], signal.SIGKILL)
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    folders = play_grid(configs, root, engine=make_engine(name, 2, root), quiet=True, poll_seconds=0.05)
    rows = status(root)
    assert (
        counts(rows) == {"done": 36, "running": 0, "failed": 0, "damaged": 0, "stopped": 0, "waiting": 0}
        and len(set(folders)) == 36
    )
    assert len(killed) == 2 and {row.folder: row.starts for row in rows} == {f: 1 + (f in killed) for f in folders}
    for folder in folders:
        assert [json.loads(line)["round"] for line in (folder / "records.jsonl").read_text().splitlines()] == list(range(24))
    for folder in killed:
        again = json.loads((folder / "sessions.jsonl").read_text().splitlines()[-1])["round"]
        assert 2 <= again <= killed[folder] + 2
        run(configs[folders.index(folder)], tmp_path / f"alone-{folder.name}", quiet=True, report=False)
        assert weights(folder) == weights(tmp_path / f"alone-{folder.name}")


def test_rounds_done_reads_whole_lines_only(tmp_path):
    """The last complete line counts; one that is being written does not; no file is no round."""
    assert rounds_done(tmp_path) == 0
    log = tmp_path / "records.jsonl"
    log.write_text("".join(json.dumps({"round": i, "h_prime": [0.5] * 2000}) + "\n" for i in range(30)) + '{"round": 30, "h')
    assert rounds_done(tmp_path) == 30


def test_a_folder_that_is_none_of_a_grid_is_left_alone(tmp_path, capsys):
    """`python -m adadfq_lab.studies.grid` takes one folder that waits for a run; a run's own folder keeps its config.json."""
    (tmp_path / "config.json").write_text("{}")
    for arguments, what in (
        ([], "give one folder of a grid"),
        ([str(tmp_path), "more"], "give one folder of a grid"),
        ([str(tmp_path / "nowhere")], "nowhere waits for no run"),
        ([str(tmp_path)], "waits for no run"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and what in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_finishes_while_one_looks_is_done(tmp_path, monkeypatch):
    """Its player writes the result and lets go between two looks at the folder."""
    (tmp_path / "config.json").write_text(json.dumps(RunConfig().as_json()))
    monkeypatch.setattr(
        "adadfq_lab.studies.grid_run.busy", lambda folder: (folder / "result.json").write_text(RESULT) and False
    )
    assert state(tmp_path) == "done"


def test_a_failed_run_that_is_begun_again_while_one_looks_has_a_status(config, tmp_path, monkeypatch):
    """failed.txt is gone by the time it is to be read."""
    (folder,) = prepare([config], tmp_path / "grid")
    monkeypatch.setattr("adadfq_lab.studies.sweeps.state", lambda folder: "failed")
    assert [(row.folder, row.state, row.note) for row in status(tmp_path / "grid")] == [(folder, "failed", "")]


RESULT = json.dumps({"student": 50.0, "teacher": 90.0, "intervals": {"student": [40.0, 60.0]}})
ODD = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe\x00",
    b"null",
    b'{"student": NaN}',
    b'{"student": 5, "teacher": 1e999}',
    "folder",
    "fifo",
    "nowhere",
]


def put(path: Path, content: bytes | str) -> None:
    """Something odd in the place of a file."""
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        {"folder": Path.mkdir, "fifo": os.mkfifo, "nowhere": lambda p: p.symlink_to("nowhere at all")}[content](path)


@pytest.mark.parametrize("content", ODD, ids=str)
@pytest.mark.parametrize("name", ["wanted.json", "result.json", "config.json", "records.jsonl", "sessions.jsonl", "failed.txt"])
def test_one_damaged_file_makes_one_damaged_row(config, tmp_path, name, content):
    """Its row says so, or is as if that file were not there; the other rows are what they are, and a result stays a result."""
    root = tmp_path / "grid"
    whole, broken = prepare([config, dataclasses.replace(config, seed=1)], root)
    for folder in (whole, broken):
        (folder / "config.json").write_bytes((folder / "wanted.json").read_bytes())
    (whole / "result.json").write_text(RESULT)
    if name not in ("config.json", "records.jsonl"):
        (broken / "result.json").write_text(RESULT)
    put(broken / name, content)
    rows = {row.folder: row for row in status(root)}
    assert (rows[whole].state, rows[whole].student) == ("done", 50.0)
    if name in ("wanted.json", "result.json", "config.json"):
        assert rows[broken].state == "damaged" and name in rows[broken].note and "\n" not in rows[broken].note
    elif name == "records.jsonl":
        assert rows[broken].state == ("stopped" if isinstance(content, bytes) else "damaged") and rows[broken].rounds == 0
    else:
        assert rows[broken].state == "done"
    assert "damaged" in status_text(list(rows.values())) and json.dumps(as_json(list(rows.values())))


def test_damaged_runs_are_played_again(config, tmp_path):
    """Whatever was damaged is set aside; a run continues from its newest intact checkpoint, and ends as if nothing had been."""
    configs = [config]
    root, engine = tmp_path / "grid", make_engine("inprocess", 1, tmp_path)
    folders = play_grid(configs, root, engine=engine, quiet=True)
    expected = weights(folders[0])
    one = folders[0]
    for damages in (
        {"result.json": b"{"},
        {"result.json": b"", "config.json": b"[]", "records.jsonl": "fifo"},
        {"wanted.json": "folder", "result.json": "fifo", "sessions.jsonl": "folder", "log.txt": "folder"},
        {"result.json": b"", sorted(path.name for path in one.glob("round_*"))[-1]: b"damaged"},
        {"result.json": b"", **{path.name: b"damaged" for path in one.glob("round_*")}},
    ):
        for name, content in damages.items():
            put(one / name, content)
        play_grid(configs, root, engine=engine, quiet=True)
        assert state(one) == "done" and weights(one) == expected
