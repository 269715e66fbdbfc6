"""Every notebook runs from top to bottom, offline and in fast mode, as a script and in a kernel."""

import os
import runpy
import socket
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from adadfq_lab.authoring import build as course
from adadfq_lab.course import check
from adadfq_lab.methods.registry import METHODS

SOLUTIONS = course.sources()
STUDENTS = [course.FOLDER / path.name for path in course.sources()]


@pytest.fixture
def notebook_like(monkeypatch, tmp_path):
    """Fast mode, an empty folder to run in, a session of its own, torch and the methods as they were, and no network."""

    def refuse(*_):
        raise OSError("the course must not need a network")

    monkeypatch.setenv("ADADFQ_LAB_FAST", "1")
    monkeypatch.delenv("ADADFQ_LAB_LIVE", raising=False)
    monkeypatch.delenv("ADADFQ_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "_session", {})
    monkeypatch.setattr(socket.socket, "connect", refuse)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    methods = dict(METHODS)
    yield tmp_path
    METHODS.clear()
    METHODS.update(methods)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


def scripts(paths: list[Path]) -> list[Any]:
    """Each script as a parameter; notebook 09, which plays networks of ImageNet's size, takes minutes."""
    return [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem.startswith("09") else []) for p in paths]


@pytest.mark.parametrize("path", scripts(SOLUTIONS))
def test_solution_script_passes_its_own_checks(path, notebook_like):
    """The solution copy runs as a script without a kernel, a front end or a network; all of its exercises pass."""
    runpy.run_path(str(path))
    mine = dict(check._session)
    wanted = {name for name, exercise in check.EXERCISES.items() if exercise.notebook == path.stem[:2]}
    assert mine.keys() == wanted
    assert all(attempts.passed for attempts in mine.values())
    assert not list(notebook_like.iterdir()), "a notebook left files behind"


@pytest.mark.parametrize("path", scripts(STUDENTS))
def test_student_script_runs_with_empty_exercises(path, notebook_like):
    """The student's copy as handed out: nothing passes; it runs to the end or to the first NotImplementedError."""
    try:
        runpy.run_path(str(path))
    except NotImplementedError:
        return
    assert check._session
    assert not any(attempts.passed for attempts in check._session.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", SOLUTIONS + STUDENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_notebook_runs_in_a_kernel(path, monkeypatch):
    """nbclient executes the notebook as a front end would, in fast mode; student copies up to a NotImplementedError."""
    from nbclient import NotebookClient

    monkeypatch.setenv("ADADFQ_LAB_FAST", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    start = time.monotonic()
    allowed = [] if path in SOLUTIONS else ["NotImplementedError"]
    NotebookClient(notebook, timeout=300, kernel_name="python3", allow_error_names=allowed).execute()
    print(f"{path.stem}: {time.monotonic() - start:.0f} s")
    figures = [
        o for cell in notebook.cells for o in cell.get("outputs", []) if "application/vnd.plotly.v1+json" in o.get("data", {})
    ]
    assert figures, "no figure was displayed"
