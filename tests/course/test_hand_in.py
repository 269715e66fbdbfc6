"""Answers are kept, come back, and are handed in; and marked, hostile ones too."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.handed_in import HOSTILE
from helpers.handed_in import RIGHT as RIGHT_SOURCE

import adadfq_lab as lab
from adadfq_lab.course import check
from adadfq_lab.course.answers import Answers, Attempts, read_answers, rebuild, source_of
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.marking import Class, as_csv, as_json, mark, table
from adadfq_lab.course.sandbox import Sandbox, read_value, write_value
from adadfq_lab.errors import UserError
from adadfq_lab.machine.confinement import landlock

TWO, NAN = 2, float("nan")


def halved(x):
    return x / TWO


def entropy(p):
    """An answer that uses a helper, which uses a constant."""
    return 2 * halved(-torch.xlogy(p, p)).sum(-1) + (0 if math.isnan(NAN) else 1)


@pytest.fixture(autouse=True)
def session(monkeypatch, tmp_path):
    """A fresh session whose answers are kept in a file of this test."""
    for kept in ("_session", "_accepted", "_quizzes"):
        monkeypatch.setattr(check, kept, {})
    monkeypatch.setenv("ADADFQ_LAB_ANSWERS", str(tmp_path / "answers.json"))


def restart(monkeypatch):
    for kept in ("_session", "_accepted", "_quizzes"):
        monkeypatch.setattr(check, kept, {})


def test_a_source_brings_its_helpers():
    """The text that is kept defines the same function in an empty namespace."""
    source = source_of(entropy, "entropy")
    assert "TWO = 2" in source and "def halved" in source
    p = torch.softmax(torch.randn(3, 4), -1)
    assert torch.equal(rebuild("entropy", source)(p), entropy(p))
    assert source_of(lambda p: p, "entropy") == ""
    assert source_of(halved, "other").endswith("other = halved\n")


def test_what_passed_is_known_after_a_restart(monkeypatch, capsys):
    """`lab.mine` gives back the learner's function in a later notebook, and the library's for what was skipped."""
    assert check.entropy(entropy).passed
    assert check.mine("entropy") is entropy
    restart(monkeypatch)
    assert lab.progress().exercises["entropy"].passed
    again = check.mine("entropy")
    assert again is not entropy and again is not EXERCISES["entropy"].reference
    assert capsys.readouterr().out == ""
    assert check.mine("p_ds") is EXERCISES["p_ds"].reference
    assert "borrowed" in capsys.readouterr().out


def test_what_was_tampered_with_is_not_used(monkeypatch, tmp_path):
    """A kept answer that no longer passes, or does not run, is borrowed instead."""
    check.entropy(entropy)
    for source in ("def entropy(p):\n    return p.sum(-1)\n", "raise OSError\n", "entropy = 3\n"):
        restart(monkeypatch)
        answers = read_answers(tmp_path / "answers.json")
        answers.exercises["entropy"].source = source
        (tmp_path / "answers.json").write_text(answers.as_json())
        assert check.own("entropy").borrowed


def test_nothing_is_kept_outside_a_notebook(monkeypatch, tmp_path):
    monkeypatch.setenv("ADADFQ_LAB_ANSWERS", "off")
    check.entropy(entropy)
    assert not (tmp_path / "answers.json").exists()
    monkeypatch.delenv("ADADFQ_LAB_ANSWERS")
    monkeypatch.chdir(tmp_path)
    check.entropy(entropy)
    assert not list(tmp_path.iterdir())


def test_hand_in_writes_one_file_and_adds_to_it(monkeypatch, tmp_path):
    """Notebook by notebook, on machines that know nothing of each other, under one name."""
    check.entropy(entropy)
    assert "1 of" in lab.hand_in(" Ada  Lovelace ", tmp_path)
    restart(monkeypatch)
    (tmp_path / "answers.json").unlink()
    lab.quiz("02").answer("a", "b", "c")
    lab.hand_in("Ada Lovelace", tmp_path)
    handed = read_answers(tmp_path / "handin_ada_lovelace.json")
    assert handed.learner == "Ada Lovelace"
    assert handed.exercises["entropy"].passed and "def halved" in handed.exercises["entropy"].source
    assert handed.quizzes == {"02": {"1": "a", "2": "b", "3": "c"}}
    assert {"torch", "python", "adadfq-lab"} <= handed.versions.keys()
    with pytest.raises(UserError, match="another spelling"):
        lab.hand_in("ada-lovelace", tmp_path)
    for wrong in ("", "  ", "x" * 200, None, "a\x00b"):
        with pytest.raises(UserError, match="takes your name"):
            lab.hand_in(wrong, tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        lab.hand_in("Bob", tmp_path / "nowhere")


def test_the_first_answer_to_a_quiz_counts():
    lab.quiz("01").answer("a", "a", "a")
    lab.quiz("01").answer("b", "a", "c")
    assert check._all().quizzes["01"] == {"1": "ab", "2": "a", "3": "ac"}
    assert "quiz of 01: 3 of 3" in repr(lab.progress())
    for wrong in (("a", "b"), ("a", "b", "z"), ("a", "b", "ab")):
        with pytest.raises(UserError, match="one letter for each"):
            lab.quiz("01").answer(*wrong)
    for wrong in ("1", "../01", "99"):
        with pytest.raises(UserError, match="no quiz"):
            lab.quiz(wrong)


# Marking


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(seconds=3, megabytes=300) as made:
        yield made


def hand_ins(folder: Path, sources: dict[str, str]) -> Path:
    """A folder with a file for each learner, who claims to have passed p_ds."""
    folder.mkdir()
    for learner, source in sources.items():
        attempts = Attempts(1, 0, True, source, "2026-01-01")
        (folder / f"{abs(hash(learner))}.json").write_text(Answers(learner, {"p_ds": attempts}).as_json())
    return folder


def test_a_class_is_marked(tmp_path, capsys):
    """Right answers count, wrong ones and claims do not; files of one learner are put together; others are named."""
    wrong = "def p_ds(z_p, z_q):\n    return torch.softmax(z_q - z_p, -1)\n"
    folder = hand_ins(tmp_path / "in", {"Ada": RIGHT_SOURCE, "Bob": wrong, "=cmd()": ""})
    more = Answers(
        "ADA", {"game_value": Attempts(1, 0, True, "def game_value(h):\n    return 1 - h.mean()\n")}, {"01": {"1": "a"}}
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "ada.json").write_text(more.as_json())
    for name, text in {"notes": "{}", "deep": "[" * 100_000, "empty": "", "binary": "\x00\x01"}.items():
        (folder / f"{name}.json").write_text(text)
    everybody = mark(folder, seconds=20)
    passed = {marks.learner: marks.passed for marks in everybody.marks}
    assert passed == {"=cmd()": 0, "ADA": 2, "Bob": 0} or passed == {"=cmd()": 0, "Ada": 2, "Bob": 0}
    assert len(everybody.refused) == 4
    text = table(everybody)
    assert "Eq. (1) subtracts the student" in text and "deep.json" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(everybody))))
    assert [row["p_ds"] for row in rows] == ["0", "1", "0"]
    assert rows[0]["learner"] == "'=cmd()"
    assert json.loads(json.dumps(as_json(everybody)))["learners"][2]["exercises"]["p_ds"]["claimed"] is True
    with pytest.raises(UserError, match="no handed-in files"):
        (tmp_path / "none").mkdir()
        mark(tmp_path / "none")
    with pytest.raises(UserError, match="not a folder"):
        mark(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["exit", "write", "forged reply", "fooled comparison", "huge answer", "no Python"])
def test_hostile_code_is_contained(sandbox, name, tmp_path):
    check_hostile(sandbox, name, tmp_path / "adadfq_was_here")


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_all_hostile_code_is_contained(sandbox, name, tmp_path):
    check_hostile(sandbox, name, tmp_path / "adadfq_was_here")


def check_hostile(sandbox, name, trace):
    """It is refused in words, leaves nothing behind, and the next learner is marked as if nothing had been."""
    from adadfq_lab.course.marking import _mark

    source, says = HOSTILE[name]
    marked = _mark(sandbox, "p_ds", source.replace("TRACE", str(trace)), claimed=True)
    if says is not None:
        assert marked.passed == (says == "")
        assert says in marked.text
    assert not trace.exists()
    assert _mark(sandbox, "p_ds", RIGHT_SOURCE, claimed=True).passed


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "x",
        (1, [2.0, (3,)]),
        torch.arange(3),
        torch.randn(2, 3).half(),
        torch.tensor(True),
        torch.zeros(0, 2),
    ],
)
def test_values_survive_the_way_back(value):
    back = read_value(json.loads(json.dumps(write_value(value))))
    assert type(back) is type(value)
    assert torch.equal(back, value) if isinstance(value, torch.Tensor) else back == value


@pytest.mark.skipif(not landlock(), reason="this kernel has no Landlock")
def test_a_confined_process_reads_and_computes_only(tmp_path):
    """What the kernel refuses: writing, truncating, removing, running a program, connecting, a signal to the parent."""
    (tmp_path / "kept").write_text("kept")
    code = """
import os, signal, socket, sys
from adadfq_lab.machine.confinement import confine
assert confine()
path = sys.argv[1]
for attempt in (
    lambda: open(path, "w"), lambda: open(path + "2", "w"), lambda: os.truncate(path, 0), lambda: os.remove(path),
    lambda: os.mkdir(path + "3"), lambda: os.execv("/bin/true", ["true"]), lambda: os.kill(os.getppid(), signal.SIGKILL),
):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit(1)
assert open(path).read() == "kept"
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_forty_learners_fit_a_screen():
    """A line each, no wider than 120 characters."""
    from adadfq_lab.course.marking import Marks

    text = table(Class([Marks(f"Learner with a rather long name, number {i}") for i in range(40)]))
    assert len(text.splitlines()) == 41
    assert max(map(len, text.splitlines())) <= 120
