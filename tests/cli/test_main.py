"""The command line: figures on standard output, JSON last, and a mistake is one line that leaves nothing behind."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_games import OBSERVE, WARMUP, images_for, saved_teacher

from adadfq_lab.cli import main as cli
from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Terms
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import CHOICES
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.registry import METHODS, every_method
from adadfq_lab.runs.log import read_records
from adadfq_lab.teacher.teacher_files import load_teacher

ROUNDS = OBSERVE + 1
SMALL = ["--rounds", str(ROUNDS), "--batch", "4", "--warmup", str(WARMUP), "--observe", str(OBSERVE), "--device", "cpu"]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """A folder that stands for data_stubs and for ADADFQ_DATA: tiny images, and tiny teachers of ten classes."""
    folder = tmp_path_factory.mktemp("stubs")
    for name, classes, shape in (("cifar10", 10, (2, 8, 8)), ("cifar100", 100, (2, 8, 8)), ("fashion_mnist", 10, (1, 8, 8))):
        images_for(folder, name, classes=classes, shape=shape)
    saved_teacher(folder / "teacher.safetensors", classes=10)
    saved_teacher(folder / "fashion_mnist_resnet20.safetensors", classes=10, shape=(1, 8, 8), data="fashion_mnist")
    content = (folder / "teacher.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "altered.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return folder


@contextlib.contextmanager
def place(stubs: Path, folder: Path) -> Any:
    """Commands run in `folder`; what they are shipped with is `stubs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ADADFQ_DATA", str(stubs))
        for module in ("data.loading", "teacher.teacher_files"):
            patch.setattr(f"adadfq_lab.{module}.stub_path", lambda name: stubs / name)
        yield


@pytest.fixture
def here(stubs, tmp_path):
    with place(stubs, tmp_path):
        yield tmp_path


def say(*arguments: object) -> tuple[str, str]:
    """What `adadfq ARGUMENTS` prints to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        cli.main([str(argument) for argument in arguments])
    return out.getvalue(), err.getvalue()


def last_line(out: str) -> Any:
    return json.loads(out.rstrip("\n").split("\n")[-1])


@pytest.fixture(scope="module")
def trained(stubs, tmp_path_factory):
    """What `adadfq train --json` printed, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("trained")
    with place(stubs, folder):
        out, err = say("train", "--teacher", stubs / "teacher.safetensors", "--name", "one", "--seed", 3, *SMALL, "--json")
    return folder, out, err


# What commands print


def test_train_prints_a_table_and_then_json(trained):
    """The table for people, one JSON object as the last line for machines, progress on standard error only."""
    folder, out, err = trained
    found = last_line(out)
    keys = {"teacher", "plain", "calibrated", "student", "images", "rounds", "seconds", "seed", "run"}
    assert found.keys() >= keys
    assert (found["images"], found["rounds"], found["seed"], found["run"]) == (30, ROUNDS, 3, "runs/one")
    assert all(0 <= found[key] <= 100 for key in ("teacher", "plain", "calibrated", "student"))
    assert json.loads((folder / "runs" / "one" / "result.json").read_text()) == found
    assert "student Q, last round" in out
    assert "report: runs/one/report.html" in out
    assert "round" in err and "H'" in err
    assert "round/s" not in out


def test_runs_of_train_make_a_table(trained, stubs, tmp_path):
    """With their teacher's data set, their own number of updates, teacher and images; a folder of no run is refused."""
    folder, out, _ = trained
    with place(stubs, folder):
        shown, _ = say("table", "--runs", "runs/one", "--json")
        with pytest.raises(SystemExit) as refused:
            say("table", "--runs", tmp_path)
    (row,) = last_line(shown)
    assert row["last"] == last_line(out)["student"] and (row["dataset"], row["seed"]) == ("cifar10", 3)
    assert row["budget"] == f"{row['updates']} updates" and f"### cifar10, {row['updates']} updates, teacher" in shown
    assert refused.value.code == 2


def test_evaluate_measures_a_run_a_student_or_a_teacher(trained, stubs):
    """The same figure as the run's own table, with its interval; a teacher as counted here."""
    folder, out, _ = trained
    with place(stubs, folder):
        found = [last_line(say("evaluate", path, "--json")[0]) for path in ("runs/one", "runs/one/student.safetensors")]
        of_teacher = last_line(say("evaluate", stubs / "teacher.safetensors", "--data", "cifar10", "--json")[0])
        expected = accuracy(*(t := load_teacher(str(stubs / "teacher.safetensors")), load_data("cifar10")), t.normalize)
    assert found[0] == found[1]
    assert found[0].keys() == {"top1", "low", "high", "images"}
    assert found[0]["top1"] == last_line(out)["student"]
    assert of_teacher == dataclasses.asdict(expected)


def test_demo_prints_what_machines_read(here):
    """Two games on the shipped teacher and images, each in a folder; one that ends in the warm-up calibrated nothing."""
    out, _ = say("demo", "--rounds", 2, "--name", "d", "--seed", 1, "--json")
    found = last_line(out)
    for method, result in (("adadfq", found), ("adadfq+", found["adadfq+"])):
        run = here / "runs" / "d" / method
        assert result["calibrated"] is None
        assert (result["rounds"], result["seed"], result["run"], result["images"]) == (2, 1, f"runs/d/{method}", 30)
        assert (run / "report.html").exists() and f"report: runs/d/{method}/report.html" in out
        config = json.loads((run / "config.json").read_text())
        assert (config["method"], config["stub"], config["bits"], config["seed"]) == (method, True, "2w2a", 1)
    rows = {line[:26].strip(): line[26:].split() for line in out.splitlines()}
    assert rows["top-1 [95 % interval]"] == ["AdaDFQ", "AdaDFQ+"]
    assert [rows["student Q, last round"][i] for i in (0, 3)] == [
        f"{found['student']:.2f}",
        f"{found['adadfq+']['student']:.2f}",
    ]


def test_bench_prints_what_machines_read(here, stubs):
    """Milliseconds, ratios, megabytes, and how far the two rounds are apart."""
    out, _ = say("bench", "--teacher", stubs / "teacher.safetensors", "--batch", 2, "--rounds", 1, "--json")
    found = last_line(out)
    keys = {"round_ms", "textbook_ms", "careful_ms", "textbook_ratio", "careful_ratio", "floor_ratio", "peak_mb"}
    assert found.keys() >= keys
    assert found["max_relative_difference"] < 1e-4
    assert "textbook round" in out


def test_methods_and_fidelity_list_what_there_is(here):
    """Each method with its idea, each choice with its three answers."""
    out, _ = say("methods", "--json")
    assert last_line(out).keys() == every_method().keys()
    assert "generate samples on which teacher and student disagree just enough" in out
    out, _ = say("fidelity", "--json")
    assert last_line(out).keys() == {choice.name for choice in CHOICES}
    assert re.search(r"^bns_reduction: .*\?\n  paper sum, released mean, corrected sum\n", out, re.MULTILINE)


def test_without_json_there_is_none(here):
    """The last line is for people then."""
    with pytest.raises(json.JSONDecodeError):
        last_line(say("methods")[0])


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_is_worth_reading(capsys):
    """Every command with what it does; `demo --help` says what the seed is of, `train --help` what every option means."""
    text = help_of(capsys)
    assert all(command in text for command in cli.COMMANDS)
    text = help_of(capsys, "demo")
    assert "--seed INT" in text
    assert "generator's first weights and of every draw" in text
    text = help_of(capsys, "train")
    for option in ("--teacher", "--bits", "--lower", "--upper", "--warmup", "--student-lr", "--fidelity", "--precision"):
        assert option in text
    assert "{corrected,paper,released}" in text


def test_a_run_of_warm_up_alone_says_that_q_took_no_step(here, stubs):
    """Its student is the calibrated one, which a newcomer who shortens a run should know."""
    for rounds, said in ((WARMUP, True), (WARMUP + 1, False)):
        train = ["train", "--teacher", stubs / "teacher.safetensors", "--name", rounds, *SMALL, "--rounds", rounds]
        assert ("Q took no step" in say(*train)[0]) is said


# Interrupted


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests themselves run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_the_run_and_resume_ends_it(ctrl_c, here, stubs, monkeypatch):
    """Exit status 130 and one line that names --resume; the same command with it plays the rest."""
    method = adadfq()

    def generator_loss(r: Round) -> Terms:
        if r.index == 1 and not Path("struck").exists():
            Path("struck").touch()
            signal.raise_signal(signal.SIGINT)
        return method.generator_loss(r)

    monkeypatch.setitem(METHODS, "adadfq", lambda **_: dataclasses.replace(method, generator_loss=generator_loss))
    command = ["train", "--teacher", stubs / "teacher.safetensors", "--name", "c", *SMALL]
    err = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(err):
        cli.main([str(argument) for argument in command])
    assert caught.value.code == 130
    assert err.getvalue().rstrip().split("\n")[-1].startswith("adadfq: interrupted")
    assert "adadfq train --resume runs/c" in err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert last_line(say(*command, "--resume", "--json")[0])["rounds"] == ROUNDS
    assert [line["round"] for line in read_records(Path("runs/c/records.jsonl"))] == list(range(ROUNDS))


# Mistakes


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error; the command ended with status 2, printed nothing else and wrote nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("adadfq: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("train --bits 3w9a", "3w9a is not a bit width; write weights and activations as in 3w3a, 2 to 8 bits each"),
        ("train --bits 1w3a", "1w3a is not a bit width"),
        ("train --bits 33", "33 is not a bit width"),
        ("demo --bits 3x3", "3x3 is not a bit width"),
        ("train --lower 0.8 --upper 0.1", "0 <= lower < upper <= 1, not 0.8 and 0.1"),
        ("train --lower 0.5 --upper 0.5", "0 <= lower < upper <= 1, not 0.5 and 0.5"),
        ("train --lower 0.9", "0 <= lower < upper <= 1, not 0.9 and 0.8"),
        ("train --upper nan", "0 <= lower < upper <= 1, not 0.1 and nan"),
        (
            "train --method genie",
            "no method is called 'genie'; choose from zaq, intraq, arc_ait, gdfq, arc, qimera, adasg, adadfq",
        ),
        ("train --teacher nobody", "no teacher 'nobody'; shipped are fashion_mnist_resnet20, cifar10_resnet20"),
        ("train --data mnist", "no data set is called 'mnist'; choose from fashion_mnist, cifar10, cifar100"),
        ("train --data cifar100", "of 10 classes; cifar100 has (2, 8, 8) of 100"),
        ("train --rounds 0", "rounds must be at least 1, not 0"),
        ("demo --rounds -5", "rounds must be at least 1, not -5"),
        (
            "train --rounds many",
            "Error parsing --rounds: invalid literal for int() with base 10: 'many'; see adadfq train --help",
        ),
        ("train --batch 0", "adadfq: batch must be at least 1, not 0; see adadfq train --help"),
        (
            "demo --warmup 20",
            "options: --warmup 20; Perhaps you meant: --warmup INT of adadfq grid or adadfq train; see",
        ),
        ("train --batchh 3", "Unrecognized options: --batchh, 3; Perhaps you meant: --batch INT; see adadfq train --help"),
        ("trian", "Unrecognized options: trian; Available subcommands: demo, quantize, train, recipes"),
        ("verify", "PATH What `adadfq export` wrote. (required); see adadfq verify --help"),
        ("train --seed -1", "seed must be at least 0 and less than 2^63, not -1"),
        ("train --set seed=99999999999999999999", "seed must be at least 0 and less than 2^63"),
        ("train --save-every -1", "save_every must not be negative, as -1 is"),
        ("train --student-lr nan", "student_lr must be a number from 0 on, not nan"),
        ("train --weight-decay -1", "weight_decay must be a number from 0 on, not -1"),
        ("train --decay 1e300", "decay must lie between 0 and 1"),
        ("train --milestones -5", "milestones must not be negative"),
        ("train --set alpha_ds=NaN", "alpha_ds does not take nan; it takes float"),
        ("train --set temperature=0", "temperature must be a positive number, not 0.0"),
        ("train --set alpha_d=1", "its own are lower, upper, alpha_ds, alpha_as, beta, gamma, temperature"),
        ("train --method qimera --set K=1.5", "0 <= p <= 1 and a whole number K >= 1"),
        ("train --resume", "runs/teacher-adadfq-3w3a-seed0 holds no run to resume"),
        ("train --device abacus", "'abacus' is not a device; use auto, cpu or cuda"),
        ("train --resume --name nothing", "runs/nothing holds no run to resume"),
        ("train --teacher STUBS/cut.safetensors", "cut.safetensors is damaged"),
        ("train --teacher STUBS/altered.safetensors", "altered.safetensors is damaged (sha256 differs)"),
        ("train --teacher STUBS", "is a folder; give a file"),
        ("train --teacher STUBS/cifar10_test.npz", "cifar10_test.npz is damaged or not a safetensors file"),
        ("evaluate nobody", "no teacher 'nobody'"),
        ("evaluate STUBS", "there is no file"),
        ("evaluate STUBS/cut.safetensors", "cut.safetensors is damaged"),
        ("evaluate STUBS/altered.safetensors", "altered.safetensors is damaged (sha256 differs)"),
        ("evaluate STUBS/teacher.safetensors --data mnist", "no data set is called 'mnist'"),
        ("evaluate STUBS/teacher.safetensors --data cifar100", "of 10 classes; cifar100 has (2, 8, 8) of 100"),
        ("evaluate STUBS/teacher.safetensors --data fashion_mnist", "takes (2, 8, 8) images of 10 classes; fashion_mnist has"),
        ("bench --teacher nobody", "no teacher 'nobody'"),
        ("bench --teacher STUBS/teacher.safetensors --rounds 0", "rounds must be at least 1"),
        ("bench --teacher STUBS/teacher.safetensors --bits 9w9a", "9w9a is not a bit width"),
        ("bench --teacher STUBS/teacher.safetensors --batch 0", "batch must be at least 1"),
        ("train-teacher --output t.pt", "t.pt must end in .safetensors"),
        ("train-teacher --output no/where.safetensors", "lie in a folder that exists"),
        ("train-teacher --output t.safetensors --threads -1", "threads must be at least 0"),
        ("train-teacher --output t.safetensors --lr inf", "lr must be a number from 0 on, not inf"),
        ("table --results STUBS", "is a folder; give a file"),
        ("table --play --methods gdfq --bits 9w9a", "9w9a is not a bit width"),
        ("recipes --method genie", "there is no recipe of a method 'genie'; there are of adadfq, adasg, gdfq"),
        ("watch runs/x --every -1", "every must be a positive number of seconds, not -1.0"),
        ("train-teacher --output t.safetensors --network alexnet", "no network is called 'alexnet'"),
        ("train-teacher --output t.safetensors --data mnist", "no data set is called 'mnist'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, what, here, stubs, capsys):
    """What is wrong and what to do, exit status 2, no traceback, no folder, no file."""
    words = arguments.replace("STUBS", str(stubs)).split()
    if words[0] == "train" and "--teacher" not in words:
        words += ["--teacher", str(stubs / "teacher.safetensors")]
    assert what in mistake(capsys, *words)


@pytest.mark.parametrize(
    ("options", "warmup", "rounds"),
    [
        ("", 200, 2000),
        ("--method gdfq --rounds 500", 200, 500),
        ("--method intraq", 1600, 3400),
        ("--method zaq", 0, 1800),
        ("--method intraq --warmup 300 --rounds 700", 300, 700),
        ("cifar10-resnet20-3w3a --rounds 10", 800, 10),
    ],
)
def test_train_takes_the_warm_up_that_serves_the_method(options, warmup, rounds, monkeypatch):
    """Where no option names one; what is left for play stays 1,800 rounds. A recipe has its own."""
    seen = []

    def play(config, *_, **__):
        seen.append(config)
        raise UserError("seen enough")

    monkeypatch.setattr("adadfq_lab.runs.run.run", play)
    with pytest.raises(SystemExit):
        cli.main(["train", *options.split()])
    assert [(c.schedule.warmup, c.rounds) for c in seen] == [(warmup, rounds)]


def test_grid_takes_the_warm_up_that_serves_the_method(tmp_path, monkeypatch):
    """As `adadfq train` does."""
    seen = []
    monkeypatch.setattr("adadfq_lab.studies.grid.play_grid", lambda configs, *_, **__: seen.extend(configs))
    for options in ("--method intraq", "--method intraq --warmup 300 --rounds 700"):
        with pytest.raises(SystemExit):  # nothing was played, so there is no status
            cli.main(["grid", "play", str(tmp_path), "--vary", "seed=0", *options.split()])
    assert [(c.schedule.warmup, c.rounds) for c in seen] == [(1600, 3400), (300, 700)]


def test_a_full_disk_is_one_line(trained, capsys, monkeypatch):
    """Whatever file was to be written: here watch's page."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(trained[0])
    monkeypatch.setattr(os, "fsync", full)
    assert "cannot write: No space left on device" in mistake(capsys, "watch", "runs/one", "--once", "--html", "x.html")


def test_a_reader_who_has_seen_enough_ends_it_quietly():
    """As `head` is: no traceback, and the exit status of a program that a closed pipe ends."""
    command = [sys.executable, "-m", "adadfq_lab", "methods"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")


def test_a_run_folder_that_cannot_be_is_one_line(here, stubs, capsys):
    """A file is in the way of the folder, or of `runs` itself."""
    command = ["train", "--teacher", stubs / "teacher.safetensors", *SMALL, "--name"]
    Path("taken").write_text("mine")
    assert "cannot write to the run folder taken: File exists; choose another" in mistake(capsys, *command, "./taken")
    Path("runs").write_text("mine")
    assert "cannot write to the run folder runs/x: Not a directory" in mistake(capsys, *command, "x")


def test_a_run_of_another_configuration_is_one_line(trained, stubs, capsys, monkeypatch):
    """Neither written over nor resumed as something else."""
    monkeypatch.chdir(trained[0])
    monkeypatch.setenv("ADADFQ_DATA", str(stubs))
    command = ["train", "--teacher", stubs / "teacher.safetensors", "--name", "one", *SMALL]
    assert "runs/one already holds a run; continue it with --resume" in mistake(capsys, *command, "--seed", 3)
    assert "runs/one holds a run of another configuration" in mistake(capsys, *command, "--seed", 4, "--resume")


def test_a_card_that_is_not_there_is_one_line(here, stubs, capsys, monkeypatch):
    """It says how to do without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["train", "--teacher", stubs / "teacher.safetensors", "--device", "cuda"]
    assert "no CUDA device that torch can use; leave out --device" in mistake(capsys, *command)


def test_a_fault_of_ours_keeps_its_traceback(here, monkeypatch):
    """Only a user's mistake is one line: anything else comes through as it is."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("adadfq_lab.cli.studies.load_teacher", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["bench"])
