"""The course: copies are what their masters say, pairs agree, rules are kept, and each rule notices when it is broken."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jupytext
import nbformat
import pytest

import adadfq_lab
from adadfq_lab.authoring import build as course
from adadfq_lab.authoring import minutes as course_minutes
from adadfq_lab.authoring import rules as course_check
from adadfq_lab.authoring.build import FOLDER, Cell, copy_cells, parse, to_notebook, to_script
from adadfq_lab.course.quizzes import quiz
from adadfq_lab.errors import UserError
from adadfq_lab.machine import environment

NAME = "01_disagreement"
TITLE = """# 01 · Test
**Objectives.** a **Prerequisites.** b **Minutes.** c

| symbol | in code |
|---|---|"""
EXERCISE = [
    Cell("markdown", "### Exercise 1 ●○○ (3 minutes): the difference"),
    Cell("code", 'def p_ds(z_p, z_q):\n    d = ...\n    raise NotImplementedError("d")', ("stub",)),
    Cell("code", "def p_ds(z_p, z_q):\n    return (z_p - z_q).softmax(-1)", ("solution",)),
    Cell("code", "lab.check.p_ds(p_ds)"),
]
ENDING = [Cell("code", 'lab.quiz("01")'), Cell("markdown", "## What you can now do\n- this")]


def small_master(*extra: Cell) -> list[Cell]:
    """The cells of a master that keeps every rule, with `extra` ones in the middle."""
    head = [Cell("markdown", TITLE, ("title",)), Cell("code", "", ("setup",)), *EXERCISE]
    middle = [*extra, *(Cell("markdown", f"filler {i}") for i in range(30 - len(extra)))]
    return [*head, *middle, *ENDING]


def master_text(cells: list[Cell]) -> str:
    """A py:percent master of `cells`, as a person would write it."""
    parts = []
    for cell in cells:
        tags = f" tags={json.dumps(list(cell.tags))}" if cell.tags else ""
        mark = "# %% [markdown]" if cell.kind == "markdown" else "# %%"
        body = "\n".join(f"# {line}".rstrip() for line in cell.text.split("\n")) if cell.kind == "markdown" else cell.text
        parts.append(f"{mark}{tags}\n{body}")
    return "\n\n".join(parts) + "\n"


def small_course(folder: Path, cells: list[Cell]) -> Path:
    (folder / "masters").mkdir(parents=True)
    (folder / "masters" / f"{NAME}.py").write_text(master_text(cells))
    (folder / "masters" / "colab_target").write_text("OWNER/REPO@main\n")
    course.build(folder=folder)
    return folder


# The course as committed


def test_course_has_no_problems():
    """Every rule holds for every notebook: copies current, pairs equal, no outputs, sizes, words after figures, no leaks."""
    assert course_check.problems() == []


def test_building_is_byte_stable():
    """The same masters give the same bytes twice, and they are those that are committed."""
    first, second = course.render(), course.render()
    assert first == second
    assert all(path.read_bytes() == text.encode() for path, text in first.items())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[0-9]*.ipynb")) + sorted(FOLDER.glob("solutions/*.ipynb")), ids=str)
def test_notebook_is_valid_and_its_ids_are_unique(path):
    """Each notebook satisfies the notebook format's schema, and no two cells share an id."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


def test_index_names_all_eleven_and_links_what_exists():
    """index.md has a row for each of the eleven notebooks; links lead to files, and what exists is linked."""
    text = (FOLDER / "index.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d\d \|", line)]
    assert [row[2:4] for row in rows] == [f"{i:02d}" for i in range(11)]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all((FOLDER / link).exists() for link in links)
    assert {link for link in links if "/" not in link and link.endswith(".ipynb")} == {
        f"{path.stem}.ipynb" for path in course.masters()
    }


def test_handout_index_links_nothing_that_students_do_not_get():
    """The workshop's index names all eleven and links notebooks beside it only: no solutions, no guide."""
    text = course.index([path.stem for path in course.masters()], handout=True)
    assert len(re.findall(r"^\| \d\d \|", text, re.MULTILINE)) == 11
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {f"{path.stem}.ipynb" for path in course.masters()}
    assert "solution" not in text


# Reading and writing


def test_script_and_notebook_say_the_same_to_jupytext():
    """jupytext reads the same kinds, sources and metadata from both files that the course writes of the same cells."""
    cells = [
        Cell("markdown", "# Title\n\ntext with `code`", ("title",)),
        Cell("code", "import math\n\n\ndef f(x):\n    return x"),
        Cell("markdown", "after a function"),
        Cell("code", "# @title Solution\ndef g(x):\n    return x", ("solution",)),
        Cell("code", "f(1)", ("live",)),
        Cell("code", "class A:\n    pass"),
        Cell("code", "x = (\n    1\n)"),
    ]
    script = jupytext.reads(to_script(cells), fmt="py:percent")
    notebook = nbformat.reads(to_notebook(cells, NAME, "solution"), as_version=4)
    assert course_check.content(script) == course_check.content(notebook)
    assert len(script["cells"]) == len(cells)


def test_parse_reads_what_was_written():
    """parse undoes writing, tags and empty lines included."""
    cells = small_master(Cell("code", "x = 1\n\ny = 2"), Cell("markdown", "a\n\n- b"))
    assert parse(master_text(cells)) == cells


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('# %% tags=["solutions"]\nx', "no cell marker"),
        ("# %% [md]\nx", "no cell marker"),
        ("# %% [markdown]\nforgot the hash", "does not begin with"),
    ],
)
def test_parse_names_the_line_it_cannot_read(text, says):
    """A tag, a marker or a markdown line that the format does not know is a UserError that says where."""
    with pytest.raises(UserError, match=says):
        parse(text)


def test_student_copy_has_the_stub_and_solution_copy_has_both():
    """Of an exercise the student gets the stub only; the solution copy has the solution right after it, folded."""
    student, solution = (copy_cells(small_master(), NAME, copy, "o/r@t") for copy in course.COPIES)
    assert [cell.tags for cell in student].count(("solution",)) == 0
    assert len(solution) == len(student) + 1
    i = [cell.tags for cell in solution].index(("stub",))
    assert solution[i + 1].text.startswith("# @title Solution\n")
    written = json.loads(to_notebook(solution, NAME, "solution"))["cells"][i + 1]
    assert written["metadata"] == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["solution"]}


# Badges


def test_badges_change_nothing_but_links_and_the_install_cell(tmp_path):
    """After set_badges every Colab link and install line names the fork; all other lines are as before."""
    folder = small_course(tmp_path / "notebooks", small_master())
    before = (folder / f"{NAME}.py").read_text().splitlines()
    course.set_badges("octocat/fork@v1.2", folder)
    after = (folder / f"{NAME}.py").read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2
    assert "github/octocat/fork/blob/v1.2/notebooks/01_disagreement.ipynb" in changed[0]
    assert "git+https://github.com/octocat/fork.git@v1.2" in changed[1]
    assert "solutions/01_disagreement.ipynb" in (folder / "solutions" / f"{NAME}.py").read_text()
    assert course.build(check=True, folder=folder) == []


@pytest.mark.parametrize("target", ["octocat", "octocat/fork", "octocat/fork@", "https://github.com/a/b@c", "a/b@c d"])
def test_badges_refuse_what_is_no_repository_at_a_tag(target, tmp_path):
    """Anything but OWNER/REPO@TAG is refused in one line, and nothing is written."""
    with pytest.raises(UserError, match="OWNER/REPO@TAG"):
        course.set_badges(target, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("colab", "installed", "calls"), [(False, False, 0), (True, True, 0), (True, False, 1)])
def test_install_cell_installs_once_and_only_on_colab(monkeypatch, colab, installed, calls):
    """Outside Colab, and where the package is there already, the cell installs nothing; on a new Colab it says --no-deps."""
    ran: list[list[str]] = []
    found = __import__("importlib.util").util.find_spec
    hidden = set() if installed else {"adadfq_lab"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name in hidden else found(name, *a))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(course.install_cell("o/r@t"), {})
    assert len(ran) == calls
    assert all("--no-deps" in command and command[-1].endswith("github.com/o/r.git@t") for command in ran)


# Each rule notices


def test_small_master_keeps_every_rule(tmp_path):
    """The course that the following tests spoil is in order."""
    assert course_check.problems(small_course(tmp_path / "notebooks", small_master())) == []


SPOILED = {
    "a long cell": ([Cell("code", "\n".join(["x = 1"] * 26))], "26 lines"),
    "much code": ([Cell("code", "\n".join(["x = 1"] * 24)) for _ in range(11)], "lines of code, more than 250"),
    "many cells": ([Cell("markdown", f"m{i}") for i in range(45)], "cells, not 35 to 50"),
    "an empty cell": ([Cell("code", "")], "is empty"),
    "a magic": ([Cell("code", "%pip install x")], "is not Python"),
    "an unknown name": ([Cell("code", "lab.no_such_function(1)")], "lab.no_such_function is no public name"),
    "an unknown exercise": ([Cell("code", "lab.check.no_such(1)")], "lab.check.no_such does not exist"),
    "a private name": ([Cell("code", "lab.figures._png(1)")], "does not exist or is private"),
    "a submodule": ([Cell("code", "from adadfq_lab.game.game import Game")], "notebooks say import adadfq_lab as lab"),
    "a private import": ([Cell("code", "import adadfq_lab.game.game")], "notebooks say import adadfq_lab as lab"),
    "an image without words": ([Cell("markdown", "![](a.png)")], "without alt text"),
    "an img without words": ([Cell("markdown", '<img src="a.png">')], "without alt text"),
    "a figure unread": ([Cell("code", "lab.show(lab.figures.story())"), Cell("code", "1")], "no sentence reads"),
    "two live figures": ([c for _ in "ab" for c in (Cell("code", "1", ("live",)), Cell("markdown", "m"))], "one live figure"),
    "a leak": ([Cell("markdown", "the answer:\nreturn (z_p - z_q).softmax(-1)")], "contains the solution's line"),
    "a second quiz": ([Cell("code", 'lab.quiz("01")')], "must have one cell lab.quiz"),
    "five exercises": (EXERCISE * 4, "5 exercises, more than 4"),
    "a stub that says nothing": ([Cell("markdown", "### Exercise 2 ●○○ (3 minutes): x"),
        Cell("code", "def p_ds(a, b):\n    return a", ("stub",)), *EXERCISE[2:]], "must have a ..."),
    "an exercise without minutes": ([Cell("markdown", "### Exercise 2"), *EXERCISE[1:]], "lacks a heading"),
    "an exercise unchecked": ([*EXERCISE[:3], Cell("code", "p_ds(1, 2)")], "a cell that ends in lab.check.p_ds(p_ds)"),
    "a stub without solution": (EXERCISE[:2], "every stub needs one solution"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_check_notices(case, tmp_path):
    """A master spoiled in one way is complained about in words that name the way."""
    extra, says = SPOILED[case]
    found = course_check.problems(small_course(tmp_path / "notebooks", small_master(*extra)))
    assert any(says in line for line in found), found


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda n: n["cells"][1].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "x"}]), "stores outputs"),
        (lambda n: n["cells"][1].update(execution_count=3), "stores outputs"),
        (lambda n: n["metadata"].update(widgets={"state": 1}), "stores widget state"),
        (lambda n: n["cells"][2].update(source="changed"), f"and {NAME}.py differ"),
        (lambda n: n["cells"][2].update(source="x" * 200_001), "more than 200,000"),
    ],
)
def test_check_notices_a_spoiled_file(spoil, says, tmp_path):
    """A notebook edited by hand, executed in place or bloated is found out, and named as not what its master gives."""
    folder = small_course(tmp_path / "notebooks", small_master())
    path = folder / f"{NAME}.ipynb"
    notebook = json.loads(path.read_text())
    spoil(notebook)
    path.write_text(json.dumps(notebook))
    found = course_check.problems(folder)
    assert any(says in line for line in found), found
    assert any("is not what its master gives" in line for line in found)


def test_check_notices_a_notebook_without_master(tmp_path):
    """A numbered notebook that no master gives is named."""
    folder = small_course(tmp_path / "notebooks", small_master())
    shutil.copy(folder / f"{NAME}.py", folder / "09_full_training.py")
    assert any("09_full_training: has no master" in line for line in course_check.problems(folder))


GUIDE = "# Guide\n\n## Talking points\n\n**01 Test**\n- [index](index.md)\n\n## Tables\n\n" + "\n".join(
    mark for pair in course.GENERATED for mark in pair
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<!-- minutes: end -->", "", "lacks the mark <!-- minutes: end -->"),
        ("**01 Test**", "**02 Test**", "no talking points for 01_disagreement"),
        ("(index.md)", "(nowhere.md)", "links to nowhere.md"),
        ("agrees", "disagrees", "instructor_guide.md is not what its master gives"),
    ],
)
def test_check_notices_a_spoiled_guide(old, new, says, tmp_path):
    """A guide in order passes; without a mark, without a notebook's talking points, with a dead link or a table edited, not."""
    folder = small_course(tmp_path / "notebooks", small_master())
    guide = folder / "instructor_guide.md"
    guide.write_text(GUIDE)
    course.build(folder=folder)
    assert course_check.problems(folder) == []
    text = guide.read_text()
    if old == "agrees":
        old = course.wrong_answers().splitlines()[2]
    guide.write_text(text.replace(old, new, 1))
    found = course_check.problems(folder)
    assert any(says in line for line in found), found


def test_the_guide_is_there_and_linked():
    """The repository has an instructor's guide, which the table of contents links."""
    assert (FOLDER / "instructor_guide.md").exists()
    assert "](instructor_guide.md)" in (FOLDER / "index.md").read_text()
    assert "](notebooks/instructor_guide.md)" in (FOLDER.parent / "README.md").read_text()


def test_a_folder_without_masters_is_a_users_mistake(tmp_path):
    """Outside a checkout, as from a wheel, building says in one line that the course is built in a checkout."""
    (tmp_path / "masters").mkdir()
    (tmp_path / "masters" / "colab_target").write_text("a/b@c")
    with pytest.raises(UserError, match="checkout"):
        course.build(folder=tmp_path)


# What notebooks use


def test_every_public_name_exists():
    """Each name in adadfq_lab.__all__ can be had, and none is hidden by a module or folder of the same name."""
    modules = {path.stem for path in Path(adadfq_lab.__file__).parent.iterdir()}
    for name in adadfq_lab.__all__:
        assert getattr(adadfq_lab, name) is not None
        if name in modules:
            assert type(getattr(adadfq_lab, name)).__name__ == "module", f"lab.{name} may be a module or not, as imports fall"
    with pytest.raises(AttributeError, match="no public name"):
        adadfq_lab.no_such_name  # noqa: B018


def test_importing_the_package_imports_no_torch():
    """`import adadfq_lab` is immediate: torch and plotly are imported with the first name that needs them."""
    code = "import sys, adadfq_lab; sys.exit(any(name in sys.modules for name in ('torch', 'plotly', 'IPython')))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_fast_mode_is_asked_for(monkeypatch, value):
    """ADADFQ_LAB_FAST counts unless it is empty, 0 or false."""
    monkeypatch.setenv("ADADFQ_LAB_FAST", value)
    assert environment.fast()
    for off in ("", "0", "False"):
        monkeypatch.setenv("ADADFQ_LAB_FAST", off)
        assert not environment.fast()


def test_live_backend_follows_the_ladder(monkeypatch):
    """The variable wins; Colab redraws images; a kernel with anywidget has widgets; without a kernel nothing is drawn."""
    monkeypatch.delenv("ADADFQ_LAB_LIVE", raising=False)
    monkeypatch.delenv("COLAB_NOTEBOOK_ID", raising=False)
    monkeypatch.setattr(environment, "in_kernel", lambda: False)
    assert environment.live_backend() == "none"
    monkeypatch.setattr(environment, "in_kernel", lambda: True)
    assert environment.live_backend() == "widget"
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert environment.live_backend() == "svg"
    monkeypatch.setenv("COLAB_NOTEBOOK_ID", "x")
    assert environment.live_backend() == "svg"
    monkeypatch.setenv("ADADFQ_LAB_LIVE", "none")
    assert environment.live_backend() == "none"
    monkeypatch.setenv("ADADFQ_LAB_LIVE", "movie")
    with pytest.raises(UserError, match="widget, svg, none"):
        environment.live_backend()


def test_check_env_prints_versions_device_and_backend(capsys):
    """check_env says, in three lines, what runs, on which device, and how live runs are shown."""
    environment.check_env()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "torch" in lines[0] and lines[1].startswith("device: ") and lines[2].startswith("live runs: ")


# Quizzes


@pytest.mark.parametrize(
    "name", sorted(path.name[:2] for path in resources.files("adadfq_lab").joinpath("course", "quiz_questions").iterdir())
)
def test_quiz_has_one_right_answer_a_question_and_reasons_for_all(name):
    """Three questions, two to four answers each, exactly one right; every answer has a reason; all of it is in the HTML."""
    questions = quiz(name).questions
    assert len(questions) == 3
    for question in questions:
        assert 2 <= len(question.answers) <= 4
        assert sum(answer.right for answer in question.answers) == 1
        assert all(answer.reason.endswith(".") for answer in question.answers)
    html = quiz(name)._repr_html_()
    assert html.count("<details") == sum(len(question.answers) for question in questions)


def test_right_answers_are_not_always_in_the_same_place():
    """Over the course the right answer is at each of the first three places at least once."""
    names = [path.stem for path in (FOLDER.parent / "adadfq_lab" / "course" / "quiz_questions").glob("*.json")]
    places = {[a.right for a in q.answers].index(True) for name in names for q in quiz(name).questions}
    assert places >= {0, 1, 2}


def test_an_unknown_quiz_is_a_users_mistake():
    """Asking for a quiz that is not there says how quizzes are named."""
    with pytest.raises(UserError, match="two digits"):
        quiz("disagreement")


def test_the_table_of_minutes_shows_what_was_measured_and_no_more(tmp_path):
    """A row with everything, one of fast mode only, in the notebooks' order; a dash is not a zero."""
    full = {"seconds": 50, "processor": 30, "first_plot": 9, "fast": 12, "megabytes": 600, "libraries": 250, "load": 1.5}
    rows = {"06_the_band": {"fast": 14, "load": 9.0}, "01_disagreement": full}
    (tmp_path / "minutes.json").write_text(json.dumps({"machine": "2 cores", "notebooks": rows}), encoding="utf-8")
    table = [line for line in course.minutes(tmp_path).splitlines() if line.startswith("| 0")]
    assert table == [
        "| 01_disagreement | 50 | 30 | 9 | 12 | 600 | 250 | 1.5 |",
        "| 06_the_band | – | – | – | 14 | – | – | 9.0 |",
    ]
    assert course.minutes(tmp_path / "elsewhere").startswith("Not measured yet")


def test_seconds_of_a_core_are_read_from_stat():
    """Fields 14 and 15 of /proc/PID/stat, whatever the program is called."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(["S", *"0" * 10, str(3 * ticks), str(ticks), "0"])
    assert course_minutes._processor(f"7 (a ) name) {fields}") == 4.0
