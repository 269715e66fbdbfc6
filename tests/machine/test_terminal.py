"""The command line on every kind of standard output: narrow, closed, full, and with a reader that leaves early."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "adadfq_lab"]


def adadfq(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {shell}', "bash", *COMMAND, *arguments] if shell else [*COMMAND, *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120
    )


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}], ids=["ascii", "latin-1"]
)
def test_a_terminal_without_greek_letters_still_shows_help(environment):
    """Characters that the encoding lacks are replaced, and nothing fails."""
    done = adadfq("--help", **environment)
    assert done.returncode == 0 and "train-teacher" in done.stdout and done.stderr == ""


def test_whoever_reads_may_leave_and_whoever_closes_may_close():
    """`| head` ends the program quietly, with 141; a closed standard output or error changes nothing else."""
    head = adadfq("train", "--help", shell="| head -n 1; exit ${PIPESTATUS[0]}")
    assert (head.stdout.count("\n"), head.stderr, head.returncode) == (1, "", head.returncode) and head.returncode in (0, 141)
    closed = adadfq("methods", shell=">&- 2>&-")
    assert (closed.stdout, closed.stderr, closed.returncode) == ("", "", 0)
    full = adadfq("methods", shell="> /dev/full")
    assert (
        full.returncode == 2 and full.stderr.startswith("adadfq: cannot write: No space left") and full.stderr.count("\n") == 1
    )


def test_a_users_name_never_reaches_the_terminal_raw():
    """Escape sequences and line ends in a name are shown as escapes, on one line."""
    done = adadfq("watch", "no\x1b[31m\nrun")
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("adadfq: no\\x1b[31m\\nrun holds no run")
    )
