"""Runs that are killed, run out of disk, meet damaged files or each other: what is left is whole, and goes on bit for bit."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_games import OBSERVE, SCHEDULE, WARMUP, with_term

from adadfq_lab.cli import main as cli
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Record
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.registry import METHODS
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.folder import checkpoint_path, last_checkpoint
from adadfq_lab.runs.log import read_records
from adadfq_lab.runs.run import run

pytestmark = pytest.mark.usefixtures("images")


def a_config(place: Path, **options: Any) -> RunConfig:
    usual = {"rounds": 9, "evaluate_every": 4, "save_every": 2, "gains_every": 3, "device": "cpu", "seed": 1}
    return RunConfig(str(place / "teacher.safetensors"), schedule=SCHEDULE, **(usual | options))


def same_end(a: Path, b: Path) -> None:
    """Two finished runs with the same student, game and records to the bit; seconds aside. Nothing temporary is left."""
    for name in ("student.safetensors", last_checkpoint(a).name):
        tensors = [load_tensors(folder / name)[0] for folder in (a, b)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    lines = [[line | {"seconds": 0} for line in read_records(folder / "records.jsonl")] for folder in (a, b)]
    assert lines[0] == lines[1]
    results = [json.loads((folder / "result.json").read_text()) | {"seconds": 0, "run": ""} for folder in (a, b)]
    assert results[0] == results[1]
    assert {path.name for path in a.iterdir()} == {path.name for path in b.iterdir()}


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The short run, from beginning to end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADADFQ_DATA", str(place))
        run(a_config(place), folder, quiet=True)
    return folder


class KilledError(BaseException):
    """Stands for a kill: nothing of the run's own code catches it."""


def broken_off(config: RunConfig, folder: Path, at: int) -> None:
    """Plays `config` in `folder` until round `at` is over, and leaves it there unsaved."""

    def strike(record: Record) -> None:
        if record.index == at:
            raise KilledError

    with pytest.raises(KilledError):
        run(config, folder, on_record=strike, quiet=True)


# Damaged checkpoints


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def rename(path: Path, _: Path) -> None:
    """The checkpoint of an earlier round of the same run under the name of the newest."""
    shutil.copy(checkpoint_path(path.parent, 4), path)


def swap(path: Path, other: Path) -> None:
    """The checkpoint of the same round of a run with another seed."""
    shutil.copy(other / path.name, path)


@pytest.fixture(scope="module")
def other(place, tmp_path_factory):
    """The same run with another seed, broken off after the same round."""
    folder = tmp_path_factory.mktemp("other") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADADFQ_DATA", str(place))
        broken_off(a_config(place, seed=2), folder, 6)
    return folder


@pytest.mark.parametrize("damage", [truncate, flip, empty, rename, swap])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(damage, place, whole, other, tmp_path, capsys):
    """One line with the command that goes on from round 4; that command ends as a run that nothing happened to."""
    folder = tmp_path / "run"
    broken_off(a_config(place), folder, 6)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["round_000004.ckpt", "round_000006.ckpt"]
    damage(checkpoint_path(folder, 6), other)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--resume", str(folder)])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1
    offer = f"; round_000004.ckpt is intact: adadfq train --resume {folder} --from 4\n"
    assert err.startswith("adadfq: ") and "round_000006.ckpt" in err and err.endswith(offer)
    with contextlib.redirect_stderr(io.StringIO()):
        cli.main(err.rsplit(": adadfq ", 1)[1].split())
    same_end(folder, whole)


def test_where_no_checkpoint_is_intact_it_says_so(place, tmp_path):
    """Both damaged: there is nothing to offer, and nothing is removed."""
    folder = tmp_path / "run"
    broken_off(a_config(place), folder, 6)
    for path in folder.glob("*.ckpt"):
        flip(path, path)
    with pytest.raises(UserError, match=r"round_000006.* no other checkpoint of .* is intact") as caught:
        run(a_config(place), folder, resume=True, quiet=True)
    assert "\n" not in str(caught.value)
    assert len(list(folder.glob("*.ckpt"))) == 2


def test_from_goes_back_to_an_intact_checkpoint_too(place, whole, tmp_path):
    """Rounds after it are played again; a round that has no checkpoint is answered with those there are."""
    folder = tmp_path / "run"
    broken_off(a_config(place), folder, 6)
    with pytest.raises(UserError, match="has no checkpoint of round 5; give --from one of those it has: 4 and 6"):
        run(a_config(place), folder, from_round=5, quiet=True)
    run(a_config(place), folder, from_round=4, quiet=True)
    same_end(folder, whole)


# Numbers that are none


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("at", "player", "value"),
    [(at, "generator", NAN) for at in (0, 1, OBSERVE, 8)]
    + [(at, "student", NAN) for at in (WARMUP, 8)]
    + [(5, "student", INF)],
)
def test_a_nan_in_round_k_is_caught_in_round_k(at, player, value, place, tmp_path, monkeypatch):
    """It is said which term of which round; the last checkpoint is from before it, and of finite numbers only."""
    bad = with_term(adadfq(), player, lambda r: r.images.detach().sum() * 0 + (value if r.index == at else 0.0) + 0 * (
        r.student_logits.sum() + r.images.sum()))  # fmt: skip
    monkeypatch.setitem(METHODS, "adadfq", lambda **_: bad)
    with pytest.raises(UserError, match=rf"^round {at}: {player}\.extra is not finite; the last good checkpoint is"):
        run(a_config(place), tmp_path / "run", quiet=True)
    path = last_checkpoint(tmp_path / "run")
    assert int(re.findall(r"\d+", path.name)[0]) == at - at % 2
    assert all(bool(v.isfinite().all()) for v in load_tensors(path)[0].values() if v.is_floating_point())


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB; only root can mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", where], check=False).returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize(("at", "left"), [(3, 0), (4, 3000), (5, 1_000_000)])
def test_a_full_disk_ends_a_run_cleanly(at, left, small_disk, place, whole):
    """One line that says how to go on; with room made, the run ends as if nothing had happened.

    left: bytes that remain when the disk fills up: not even for a line of the log, for a line or two, for no checkpoint
    """
    folder, filler = small_disk / "run", small_disk / "filler"

    def fill(record: Record) -> None:
        if record.index == at:
            status = os.statvfs(small_disk)
            room = status.f_bavail * status.f_frsize - left
            filler.write_bytes(bytes(max(0, room)))

    with pytest.raises(UserError, match=rf"cannot write to {folder}: No space left on device; make room, then: ") as caught:
        run(a_config(place), folder, on_record=fill, quiet=True)
    assert str(caught.value).endswith(f"adadfq train --resume {folder}")
    assert not list(folder.glob(".*.ckpt.*"))
    filler.unlink()
    with contextlib.redirect_stderr(io.StringIO()):
        cli.main(["train", "--resume", str(folder)])
    same_end(folder, whole)


# Processes

COMMAND = [sys.executable, "-c", "from adadfq_lab.cli.main import main; main()", "train"]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`adadfq train ARGUMENTS` in a process of its own, in which Ctrl-C is what it is in a terminal."""

    def usual_signals() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [*COMMAND, *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=usual_signals, **options
    )


def finish(*arguments: object) -> None:
    """`adadfq train ARGUMENTS`, to its end."""
    process = start(*arguments)
    _, err = process.communicate()
    assert process.returncode == 0, err


def wait_for_rounds(folder: Path, process: subprocess.Popen[str], more: int = 1) -> None:
    """Returns once the process has played `more` rounds, or is over."""
    path, begun = folder / "records.jsonl", None
    inode = path.stat().st_ino if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_ino != inode:  # the log is written anew at the start, then grows
            lines = path.read_bytes().count(b"\n")
            begun = lines if begun is None else begun
            if lines >= begun + more:
                return
        time.sleep(0.002)


@pytest.mark.slow
def test_twenty_kills_change_nothing(place, tmp_path):
    """SIGKILL at random moments, also before the first round, while files are written and between runs; then to the end."""
    config = a_config(place, rounds=600, evaluate_every=100, save_every=5, gains_every=10)
    run(config, tmp_path / "whole", quiet=True)
    folder, draw, struck = tmp_path / "run", random.Random(0), []
    (tmp_path / "start.json").write_text(json.dumps(config.as_json()))
    for kill in range(20):
        begun = (folder / "config.json").exists()
        process = start("--resume", folder) if begun else start(tmp_path / "start.json", "--name", folder)
        if kill % 5 == 4:  # somewhere in its first seconds: imports, reading, first rounds
            time.sleep(draw.uniform(0, 4))
        else:
            wait_for_rounds(folder, process, draw.randint(1, 25))
            time.sleep(draw.uniform(0, 0.02))
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        struck.append(len(read_records(folder / "records.jsonl")) if (folder / "records.jsonl").exists() else 0)
    assert len(set(struck)) > 5 and max(struck) < config.rounds
    finish("--resume", folder)
    same_end(tmp_path / "whole", folder)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_run_is_turned_away(place, tmp_path):
    """While one process plays, another ends with status 2; the first is interrupted, ends with 130, and is resumed."""
    config = a_config(place, rounds=400, save_every=200, evaluate_every=0)
    run(config, tmp_path / "whole", quiet=True)
    (tmp_path / "start.json").write_text(json.dumps(config.as_json()))
    folder = tmp_path / "run"
    first = start(tmp_path / "start.json", "--name", folder)
    wait_for_rounds(folder, first)
    first.send_signal(signal.SIGSTOP)  # so that it is still playing when the other comes
    second = start("--resume", folder)
    _, err = second.communicate()
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGINT)
    assert second.returncode == 2
    assert err.splitlines()[-1] == f"adadfq: another run is using {folder}; choose another --name, or wait for it"
    _, err = first.communicate()
    assert first.returncode == 130
    assert err.rstrip().split("\n")[-1].startswith("adadfq: interrupted")
    saved = int(last_checkpoint(folder).stem.removeprefix("round_"))
    assert 0 < saved == len(read_records(folder / "records.jsonl")) < config.rounds
    finish("--resume", folder)
    same_end(tmp_path / "whole", folder)


def test_what_a_killed_process_left_behind_is_cleared_away(place, whole, tmp_path):
    """Files that were being written; a run that was killed before its first checkpoint begins with its first round."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = a_config(place)
    (folder / "config.json").write_text(json.dumps(config.as_json()))
    for name in (".round_000002.ckpt.ab12_x9z", ".records.jsonl.abcdefgh"):
        (folder / name).write_bytes(b"half")
    (folder / ".mine.abcdefgh").write_text("kept")
    run(dataclasses.replace(config), folder, resume=True, quiet=True)
    (folder / ".mine.abcdefgh").unlink()
    same_end(folder, whole)
