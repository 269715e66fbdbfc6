"""Runs: what a folder holds afterwards, how an interrupted run goes on, and what is refused before anything is written."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_games import OBSERVE, SCHEDULE, SHAPE, WARMUP, images_for, with_term

from adadfq_lab.data.accuracy import Accuracy, accuracy
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Terms
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.machine.interrupts import interrupts_wait
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.registry import METHODS
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.folder import last_checkpoint
from adadfq_lab.runs.log import read_records
from adadfq_lab.runs.players import build_student, observe_noise
from adadfq_lab.runs.run import Result, run
from adadfq_lab.student.student_files import load_student
from adadfq_lab.teacher.teacher_files import load_teacher

pytestmark = pytest.mark.usefixtures("images")

ROUNDS, IMAGES = OBSERVE + 2, 150
KEYS = {"teacher", "plain", "calibrated", "student", "images", "rounds", "seconds", "seed", "run"}


@pytest.fixture
def config(place):
    return a_config(place)


def a_config(place: Path, **options: Any) -> RunConfig:
    measured = {"evaluate_every": 1, "save_every": 2, "gains_every": 2, "device": "cpu", "seed": 1}
    return RunConfig(str(place / "teacher.safetensors"), rounds=ROUNDS, schedule=SCHEDULE, **(measured | options))


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A run from beginning to end: its configuration, folder, result and records."""
    folder, records = tmp_path_factory.mktemp("runs") / "deep" / "whole", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADADFQ_DATA", str(place))
        config = a_config(place)
        return config, folder, run(config, folder, on_record=records.append, quiet=True), records


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_records(folder / "records.jsonl")]


def files(folder: Path) -> set[str]:
    """Everything under `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def same_outcome(folder: Path, result: Result, finished: tuple[RunConfig, Path, Result, list[Record]]) -> None:
    """The same student to the bit, the same records and the same figures as the uninterrupted run; seconds and folder aside."""
    _, whole, expected, _ = finished
    for name in ("student.safetensors", f"round_{ROUNDS:06d}.ckpt"):
        tensors = [load_tensors(f / name)[0] for f in (whole, folder)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())
    assert without_seconds(folder) == without_seconds(whole)
    assert dataclasses.replace(result, seconds=0, run="") == dataclasses.replace(expected, seconds=0, run="")
    assert len({expected.plain.top1, expected.calibrated.top1, expected.student.top1}) == 3  # so that none passes for another
    assert files(folder) == files(whole)


# A whole run


def test_a_run_fills_its_folder(finished):
    """Configuration, records, the last two checkpoints, student, table and report; nothing temporary."""
    _, folder, _, _ = finished
    kept = {"config.json", "records.jsonl", "records.sums", "student.safetensors", "result.json", "report.html", ".lock"}
    assert files(folder) == kept | {f"round_{ROUNDS - 2:06d}.ckpt", f"round_{ROUNDS:06d}.ckpt"}


def test_the_configuration_of_a_run_starts_it_again(finished):
    """config.json holds every field, and reads back as what was asked for."""
    config, folder, _, _ = finished
    plain = json.loads((folder / "config.json").read_text())
    assert plain.keys() == {field.name for field in dataclasses.fields(RunConfig)}
    assert RunConfig.from_json(plain) == config
    odd = dataclasses.replace(config, schedule=Schedule(milestones=(3, 7)), lower=0.2)
    assert RunConfig.from_json(json.loads(json.dumps(odd.as_json()))) == odd


def test_records_are_one_line_a_round(finished):
    """What the callback saw, in order, and what was measured in its round."""
    _, folder, result, records = finished
    lines = read_records(folder / "records.jsonl")
    assert [line["round"] for line in lines] == [r.index for r in records] == list(range(ROUNDS))
    for line, record in zip(lines, records, strict=True):
        assert record.as_json().items() <= line.items()
        assert ("calibrated" in line) == (record.index == WARMUP - 1)
        assert ("accuracy" in line) == (record.index >= WARMUP)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert lines[-1]["accuracy"] == dataclasses.asdict(result.student)
    assert result.best.top1 == max(line["accuracy"]["top1"] for line in lines[WARMUP:])


def test_the_result_has_the_keys_that_machines_read(finished):
    """Top-1 in percent of the teacher, the plain, the calibrated and the trained student; result.json is the same object."""
    config, folder, result, _ = finished
    plain = result.as_json()
    assert plain.keys() >= KEYS
    assert json.loads((folder / "result.json").read_text()) == plain
    assert (plain["images"], plain["rounds"], plain["seed"], plain["run"]) == (IMAGES, ROUNDS, config.seed, str(folder))
    for name in ("teacher", "plain", "calibrated", "student"):
        low, high = plain["intervals"][name]
        assert 0 <= low <= plain[name] <= high <= 100


def test_the_result_is_what_counting_says(finished):
    """Each accuracy by hand, from the files: teacher, plain student (ranges from noise), student as saved."""
    config, folder, result, _ = finished
    data = load_data("cifar10")
    teacher, student = load_student(folder / "student.safetensors")

    def top1(network: torch.nn.Module) -> float:
        with torch.no_grad():
            right = [
                int(network(teacher.normalize(x[None])).argmax()) == int(y)
                for x, y in zip(data.images, data.labels, strict=True)
            ]
        return 100 * sum(right) / len(right)

    plain = build_student(teacher, config)
    observe_noise(plain, SHAPE, seed=config.seed)
    assert result.teacher.top1 == pytest.approx(top1(teacher))
    assert result.plain.top1 == pytest.approx(top1(plain))
    assert result.student.top1 == pytest.approx(top1(student))
    assert result.teacher.images == IMAGES


def test_the_table_says_how_much_was_won_back():
    """Of 40 points lost, 30 won back are 75 %; where nothing was lost, nothing is divided by it."""

    def acc(top1: float) -> Accuracy:
        return Accuracy(top1, top1 - 1, top1 + 1, 100)

    result = Result(acc(90), acc(50), None, acc(80), acc(81), 10, 2.0, 0, "some images", "runs/x")
    assert "75 % of the 40.0 points lost were won back" in result.table()
    assert "calibrated" not in result.table()
    assert result.as_json()["calibrated"] is None
    assert "nothing was lost" in dataclasses.replace(result, plain=acc(90)).table()


def test_noise_gives_a_student_ranges_and_stops(place, config):
    """The plain student: ranges of standard-normal images, the same for the same seed, fixed afterwards."""
    teacher = load_teacher(config.teacher)
    one, two, other = (build_student(teacher, config) for _ in range(3))
    observe_noise(one, SHAPE, seed=3)
    observe_noise(two, SHAPE, seed=3)
    observe_noise(other, SHAPE, seed=4)
    highs = [[float(a.range.high) for a in student.activations().values()] for student in (one, two, other)]
    assert highs[0] == highs[1] != highs[2]
    assert min(highs[0]) > 0
    assert not one.observing


@pytest.mark.parametrize("rounds", [1, WARMUP])
def test_a_run_that_ends_in_its_warm_up_is_whole(rounds, place, tmp_path):
    """No student was trained; it is measured all the same, and calibrated only where the warm-up was completed."""
    config = dataclasses.replace(a_config(place, evaluate_every=0, save_every=0, gains_every=0), rounds=rounds)
    result = run(config, tmp_path / "short", quiet=True)
    assert result.rounds == rounds
    assert (result.calibrated is not None) == (rounds == WARMUP)
    assert json.loads((tmp_path / "short" / "result.json").read_text()).keys() >= KEYS


# Interrupted and resumed


class BreakDownError(Exception):
    """Something that is no KeyboardInterrupt."""


def interrupting(at: int, error: type[BaseException]) -> Any:
    def on_record(record: Record) -> None:
        if record.index == at:
            raise error

    return on_record


@pytest.mark.parametrize("at", [0, WARMUP, ROUNDS - 1])
def test_an_interrupted_run_continues_as_if_it_had_not_been(at, config, finished, tmp_path):
    """Ctrl-C in the warm-up, between checkpoints and in the very last round: the game is saved, and resumed to the same end."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, on_record=interrupting(at, KeyboardInterrupt), quiet=True)
    assert last_checkpoint(folder).name == f"round_{at + 1:06d}.ckpt"
    assert not (folder / "result.json").exists()
    same_outcome(folder, run(config, folder, resume=True, quiet=True), finished)


def test_a_run_that_broke_down_continues_from_its_last_checkpoint(config, finished, tmp_path):
    """Records of rounds that no checkpoint knows are played again, and stand in the file once; so does a line cut in half."""
    folder = tmp_path / "run"
    with pytest.raises(BreakDownError):
        run(config, folder, on_record=interrupting(4, BreakDownError), quiet=True)
    assert last_checkpoint(folder).name == "round_000004.ckpt"
    assert len(read_records(folder / "records.jsonl")) == 5
    content = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(content[:-40])
    same_outcome(folder, run(config, folder, resume=True, quiet=True), finished)


def test_a_run_that_broke_down_at_once_continues_from_the_start(config, finished, tmp_path):
    """Before the first round there is a checkpoint already: --resume always has something to go on from."""
    folder = tmp_path / "run"
    with pytest.raises(BreakDownError):
        run(config, folder, on_record=interrupting(0, BreakDownError), quiet=True)
    same_outcome(folder, run(config, folder, resume=True, quiet=True), finished)


def test_a_finished_run_resumes_to_its_result(config, finished, tmp_path):
    """There is nothing left to play; the student that is reported is the trained one."""
    folder = tmp_path / "run"
    run(config, folder, quiet=True)
    same_outcome(folder, run(config, folder, resume=True, quiet=True), finished)


def test_a_run_that_lost_its_log_says_so_and_ends(config, tmp_path, monkeypatch, capsys):
    """One line before anything is played, the same in the result; a report that fails does not undo a finished run."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, on_record=interrupting(3, KeyboardInterrupt), quiet=True)
    (folder / "records.jsonl").unlink()
    monkeypatch.setattr("adadfq_lab.runs.report.write_report", lambda *_, **__: 1 / 0)
    capsys.readouterr()
    result = run(config, folder, resume=True, quiet=True)
    first, last = capsys.readouterr().err.splitlines()
    assert "records.jsonl is damaged (it is not there); rounds 0 to 3 are missing" in first
    assert last == "adadfq: the run is finished and saved, but its report was not written: division by zero"
    assert json.loads((folder / "result.json").read_text())["log"] == result.log == first.removeprefix("adadfq: ")
    assert result.log in result.table() and result.student.top1 >= 0


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests themselves run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_of_a_round_waits_for_its_end(ctrl_c, place, finished, tmp_path, monkeypatch):
    """What is saved is a whole round, so that the run continues bit for bit wherever the signal struck."""

    method = adadfq()

    def student_loss(r: Round) -> Terms:
        if r.index == 3 and not (tmp_path / "struck").exists():
            (tmp_path / "struck").touch()
            signal.raise_signal(signal.SIGINT)
        return method.student_loss(r)

    monkeypatch.setitem(METHODS, "adadfq", lambda **_: dataclasses.replace(method, student_loss=student_loss))
    config, folder = a_config(place), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, quiet=True)
    assert last_checkpoint(folder).name == "round_000004.ckpt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same_outcome(folder, run(config, folder, resume=True, quiet=True), finished)


def test_a_second_ctrl_c_does_not_wait(ctrl_c):
    """It ends the program with Ctrl-C's status, on the spot."""
    with pytest.raises(SystemExit) as caught, interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_whoever_handles_ctrl_c_keeps_it():
    """A process that ignores it goes on ignoring it; threads other than the main one have nothing to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_wait() as look:
            signal.raise_signal(signal.SIGINT)
            look()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    done: list[bool] = []

    def elsewhere() -> None:
        with interrupts_wait() as look:
            look()
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [True]


# Refused


def refused(config: RunConfig, folder: Path, what: str, change: dict[str, Any] | None = None, **options: Any) -> None:
    """One line that says `what`; the folder's parent is left as it was."""
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    with pytest.raises(UserError, match=what) as caught:
        run(dataclasses.replace(config, **(change or {})), folder, quiet=True, **options)
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"bits": "3w9a"}, "3w9a is not a bit width"),
        ({"bits": "w3a3"}, "w3a3 is not a bit width"),
        ({"lower": 0.8, "upper": 0.1}, "0 <= lower < upper <= 1, not 0.8 and 0.1"),
        ({"lower": 0.9}, "0 <= lower < upper <= 1, not 0.9 and 0.8"),
        ({"method": "genie"}, "no method is called 'genie'"),
        ({"data": "mnist"}, "no data set is called 'mnist'"),
        ({"teacher": "nobody"}, "no teacher 'nobody'"),
        ({"device": "abacus"}, "'abacus' is not a device"),
        ({"fidelity": "exact"}, "fidelity must be"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
    ],
)
def test_a_wrong_option_leaves_nothing_behind(wrong, what, config, tmp_path):
    """Neither a folder nor a file; so the corrected command runs under the same name."""
    refused(config, tmp_path / "run", what, wrong)
    assert files(tmp_path) == set()


def test_images_that_do_not_fit_the_teacher_are_refused(config, tmp_path, monkeypatch):
    """Other classes (cifar100), or another shape."""
    images_for(tmp_path, "cifar100", classes=100)
    images_for(tmp_path, "fashion_mnist", shape=(1, 28, 28))
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    (tmp_path / "runs").mkdir()
    for name, what in {"cifar100": "of 10 classes; cifar100 has", "fashion_mnist": r"fashion_mnist has \(1, 28, 28\)"}.items():
        refused(dataclasses.replace(config, data=name), tmp_path / "runs" / "x", what)


def test_a_damaged_teacher_is_refused(config, place, tmp_path):
    """Truncated, or one bit off."""
    content = (place / "teacher.safetensors").read_bytes()
    altered = bytearray(content)
    altered[-5] ^= 4
    for name, what in {"cut": content[:1000], "altered": bytes(altered)}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(what)
        refused(dataclasses.replace(config, teacher=str(path)), tmp_path / "run", f"{name}.safetensors is damaged")
        assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(config, tmp_path):
    """A file stands where the folder, or its parent, should be."""
    (tmp_path / "taken").write_text("mine")
    refused(config, tmp_path / "taken", "cannot write to the run folder .*taken: File exists; choose another with --name")
    refused(config, tmp_path / "taken" / "run", "cannot write to the run folder .*run: Not a directory")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_refused(config, tmp_path):
    tmp_path.chmod(0o500)
    refused(config, tmp_path / "run", "cannot write to the run folder .*run: Permission denied")


def test_a_folder_is_used_by_one_run_at_a_time(config, tmp_path):
    """A second run, resumed or not, is turned away while the first plays; the first notices nothing."""
    folder, seen = tmp_path / "run", []

    def intrude(record: Record) -> None:
        if record.index == 1:
            for resume in (False, True):
                with pytest.raises(UserError, match=f"another run is using {folder}; choose another --name, or wait"):
                    run(config, folder, resume=resume, quiet=True)
        seen.append(record.index)

    run(dataclasses.replace(config, evaluate_every=0), folder, on_record=intrude, quiet=True)
    assert seen == list(range(ROUNDS))


def test_a_folder_that_holds_a_run_is_not_written_over(finished, place):
    """Neither by the same configuration without --resume, nor by another one with it."""
    config, folder, _, _ = finished
    refused(config, folder, "already holds a run; continue it with --resume, or choose another --name")
    for other in ({"seed": 2}, {"bits": "4w4a"}, {"rounds": ROUNDS + 1}, {"method": "gdfq"}, {"schedule": Schedule()}):
        refused(dataclasses.replace(config, **other), folder, "holds a run of another configuration", resume=True)


def test_there_must_be_something_to_resume(config, tmp_path):
    """No folder, a folder of something else, a configuration without checkpoints, a broken configuration."""
    refused(config, tmp_path / "nothing", "nothing holds no run to resume", resume=True)
    assert files(tmp_path) == set()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.as_json()))
    (folder / "records.jsonl").write_text('{"round": 0}\n')
    with pytest.raises(UserError, match="run has no checkpoint to resume from; remove it, or choose another --name"):
        run(config, folder, resume=True, quiet=True)
    for broken in ("{", "[]", "{}", '{"teacher": 1}', "null"):
        (folder / "config.json").write_text(broken)
        refused(config, folder, "config.json is damaged or of another version", resume=True)


def test_a_run_whose_checkpoint_is_damaged_is_not_resumed(config, tmp_path):
    """It says which; with that one removed, the run continues from the one before."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, on_record=interrupting(4, KeyboardInterrupt), quiet=True)
    path = last_checkpoint(folder)
    (folder / "round_000005 (copy).ckpt").write_bytes(path.read_bytes())  # somebody's own, which is let be
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"round_000005\.ckpt is damaged"):
        run(config, folder, resume=True, quiet=True)
    path.unlink()
    assert run(config, folder, resume=True, quiet=True).rounds == ROUNDS
    assert (folder / "round_000005 (copy).ckpt").exists()


def test_a_run_whose_loss_is_no_number_names_its_last_checkpoint(config, tmp_path, monkeypatch):
    """It stops with the round, the term and the file to go back to, and can be resumed there."""
    bad = with_term(adadfq(), "generator", lambda r: r.images.sum() * (float("nan") if r.index == 3 else 0.0))
    monkeypatch.setitem(METHODS, "adadfq", lambda **_: bad)
    with pytest.raises(UserError, match=r"^round 3: generator\.extra is not finite; .*round_000002\.ckpt") as caught:
        run(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert last_checkpoint(tmp_path / "run").name == "round_000002.ckpt"


def test_a_damaged_line_of_records_is_named(tmp_path):
    """Only the last line may be cut off; one in the middle was altered."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"round": 0}\n{"round": 1}\n{"rou')
    assert read_records(path) == [{"round": 0}, {"round": 1}]
    path.write_text('{"round": 0}\n{"rou\n{"round": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*records\.jsonl is damaged"):
        read_records(path)


@pytest.mark.slow
def test_what_a_run_adds_to_its_rounds_is_less_than_a_twentieth(tmp_path, monkeypatch):
    """Log, progress, checkpoints: processor time of two hundred rounds at the usual settings, less that of the rounds alone.

    Measurements of the accuracy are counted out: how often they happen is the user's choice.
    """
    spent = {"rounds": 0.0, "accuracy": 0.0, "loop": 0.0}

    def timed(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*args, **named)
            finally:
                spent[what] += time.process_time() - begun

        return wrapped

    def begins(record: Record) -> None:
        if record.index == 0:
            spent.update(rounds=0.0, accuracy=0.0, loop=-time.process_time())
        elif record.index == 200:
            spent["loop"] += time.process_time()

    monkeypatch.setattr(Game, "round", timed("rounds", Game.round))
    monkeypatch.setattr("adadfq_lab.runs.run.accuracy", timed("accuracy", accuracy))
    run(RunConfig(stub=True, rounds=201, device="cpu", evaluate_every=0), tmp_path / "run", on_record=begins, report=False)
    added = spent["loop"] - spent["accuracy"] - spent["rounds"]
    assert (tmp_path / "run" / "round_000200.ckpt").exists()
    assert 0 < added < 0.05 * spent["rounds"]
