"""docs/add_a_method.md runs as printed: the method, the commands, the comparison, and its runs in a table."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import adadfq_lab as lab
from adadfq_lab.cli import main as cli
from adadfq_lab.errors import UserError
from adadfq_lab.methods import registry as methods
from adadfq_lab.methods.method import Method
from adadfq_lab.methods.registry import FILES, METHODS
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.studies import grid as grids
from adadfq_lab.studies import tables
from adadfq_lab.studies.engines import InProcess, Local
from adadfq_lab.studies.tables import Budget

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def methods_as_they_were(monkeypatch):
    before = dict(METHODS)
    monkeypatch.setattr(methods, "_read", set())
    monkeypatch.setattr(methods, "_only_here", set())
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture
def folder(methods_as_they_were, tmp_path, monkeypatch) -> Path:
    """The reader's folder, with border.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "border.py").write_text(BLOCKS[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "border", raising=False)
    return tmp_path


def run_block(number: int) -> dict[str, Any]:
    """What a block defines that is run by itself."""
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[number], "add_a_method.md", "exec"), names)
    return names


@pytest.fixture
def page(folder) -> dict[str, Any]:
    """What the comparison of the page defines."""
    return run_block(1)


def test_the_method_is_short():
    """What a method takes is under forty lines, empty ones and the program's included."""
    assert len(BLOCKS[0].splitlines()) < 40


def test_the_page_runs_and_the_method_is_what_it_says(page):
    """Its margin is the mean of the largest logit less the second, by hand; it asks P and the labels, and Q learns from P."""
    assert set(page["record"].terms) == {"generator.label", "generator.bns", "generator.margin", "student.kd"}
    look = page["sides"]["border"]
    with torch.no_grad():
        z_p = page["P"](page["game"].generate(page["labels"]))
    gaps = [row.max() - sorted(row.tolist())[-2] for row in z_p]
    assert look.generator["margin"].value == pytest.approx(0.1 * float(sum(gaps)) / len(gaps), rel=1e-4)
    assert look.generator_sees == {"labels", "P's logits", "P's batch norms"}
    assert look.student_sees == {"P's logits", "Q's logits"}
    assert lab.make_method("border", weight=0.3).settings == {"weight": 0.3, "T": 20.0}


def test_every_argument_and_command_named_exists():
    """The table's arguments are fields of Method, the round's are there, and the commands are adadfq's."""
    named = set(re.findall(r"`(\w+)=", PAGE.partition("| argument")[2].partition("\n## ")[0]))
    assert named and named <= {field.name for field in fields(Method)}
    assert set(re.findall(r"`r\.(\w+)`", PAGE)) <= set(dir(lab.Round)) | {field.name for field in fields(lab.Round)}
    assert set(re.findall(r"python border.py ([a-z-]+)", PAGE)) == {"methods", "train"} <= set(cli.COMMANDS)
    assert set(re.findall(r"adadfq (table|grid)", PAGE)) == {"table", "grid"} and FILES in PAGE


def test_a_method_of_this_process_alone_is_not_handed_to_others(page, tmp_path, monkeypatch):
    """One line, before a folder is made; in this process it is played; a file that is named is known everywhere."""
    config = RunConfig(method="border")
    with pytest.raises(UserError, match=f"would not know the method 'border'.*{FILES}, or use --engine inprocess"):
        grids.play_grid([config], tmp_path / "grid", engine=Local(1), quiet=True)
    assert not (tmp_path / "grid").exists()
    monkeypatch.setattr(grids, "prepare", lambda configs, root: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        grids.play_grid([config], tmp_path / "grid", engine=InProcess(), quiet=True)


def test_a_file_that_the_environment_names_registers_its_methods(methods_as_they_were, tmp_path, monkeypatch, capsys):
    """By name, with its settings, in the list; it is run once, and not as a program; one that fails is named in a line."""
    path = tmp_path / "border.py"
    more = "from functools import partial\n\nlab.register('weighted_border', partial(border, weight=0.2))\nprint('read')\n"
    path.write_text(f"{BLOCKS[0]}\n{more}")
    monkeypatch.setenv(FILES, str(path))
    assert lab.make_method("border", weight=0.3).settings == lab.make_method("Border", weight=0.3).settings
    assert methods.known_elsewhere("border")
    cli.main(["methods"])
    out = capsys.readouterr().out
    assert out.count("read\n") == 1
    for name in ("border", "weighted_border"):
        assert re.search(rf"^{name} +generate images between two classes", out, re.MULTILINE)
    path.write_text("import nothing_of_the_kind\n")
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "./border.py"):
        monkeypatch.setenv(FILES, name + os.pathsep + str(tmp_path / "other.py"))
        methods._read.clear()
        for _ in range(2):
            with pytest.raises(
                UserError, match=rf"border.py, which {FILES} names, cannot be loaded: No module named"
            ) as caught:
                lab.make_method("border")
            assert "\n" not in str(caught.value)


def test_the_file_of_fitted_methods_registers_them(methods_as_they_were, tmp_path, monkeypatch):
    """The block of docs/what_limits_the_student.md: the methods that its command names, nothing but their ranges changed."""
    page = (Path(__file__).parents[2] / "docs" / "what_limits_the_student.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (named,) = re.findall(r"--methods (.*_fitted)$", page, re.MULTILINE)
    (tmp_path / "fitted.py").write_text(block)
    monkeypatch.setenv(FILES, str(tmp_path / "fitted.py"))
    for name in named.split():
        method, plain = lab.make_method(name), lab.make_method(name.removesuffix("_fitted"))
        assert (method.ranges, plain.ranges) == ("fitted", "observed")
        assert (method.name, method.settings, method.rates) == (plain.name, plain.settings, plain.rates)


@pytest.mark.slow
def test_the_program_lists_and_trains_its_method(tmp_path):
    """border.py is adadfq with one method more, as a program of its own."""
    (tmp_path / "border.py").write_text(BLOCKS[0])
    here = os.environ | {"PYTHONPATH": str(Path(lab.__file__).parents[1])}
    for command in re.findall(r"^python (border.py .*)$", PAGE, re.MULTILINE):
        words = command.replace("--rounds 600", "--rounds 4 --warmup 2").split()
        ran = subprocess.run([sys.executable, *words], cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        if "methods" in words:
            assert "border     generate images between two classes" in ran.stdout
    assert (tmp_path / "runs" / "border" / "result.json").exists()


@pytest.mark.slow
def test_processes_of_a_grid_know_it(tmp_path):
    """The grid of the page, in short: a run for each weight, played by processes of their own."""
    (tmp_path / "border.py").write_text(BLOCKS[0])
    (command,) = re.findall(r"^adadfq (grid .*)$", PAGE, re.MULTILINE)
    words = command.replace("--rounds 600", "--rounds 3 --warmup 2").replace("0.03,0.1,0.3", "0.1,0.3").split()
    here = os.environ | {"PYTHONPATH": str(Path(lab.__file__).parents[1]), FILES: str(tmp_path / "border.py")}
    ran = subprocess.run(
        [sys.executable, "-m", "adadfq_lab", *words], cwd=tmp_path, env=here, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "2 done" in ran.stdout and len(list(tmp_path.glob("runs/weights/border-*/result.json"))) == 2


@pytest.mark.slow
def test_its_runs_make_a_table(folder, monkeypatch, capsys):
    """The last block, with a budget of two updates: a row for each method, two seeds in each."""
    monkeypatch.setitem(tables.BUDGETS, "short", Budget(2, batch=4, warmup=1))
    run_block(2)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    column = [cell.strip() for cell in lines[0]].index("seeds")
    assert {line[1].strip(): line[column].strip() for line in lines[1:]} == {"gdfq": "2", "border": "2"}
