"""The course: copies follow from their sources, answers are never lost, rules are kept, and each rule notices a violation."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from copy import deepcopy
from importlib import resources
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat import v4

import adadfq_lab
from adadfq_lab.authoring import build as course
from adadfq_lab.authoring import minutes as course_minutes
from adadfq_lab.authoring import pages, rules
from adadfq_lab.authoring.pages import FOLDER
from adadfq_lab.course.quizzes import quiz
from adadfq_lab.errors import UserError
from adadfq_lab.machine import environment

NAME = "01_disagreement"
TITLE = """# 01 · Test

*Solution copy.*

**Objectives.** a **Prerequisites.** b **Minutes.** c

| symbol | in code |
|---|---|"""
SETUP = next(cell.source for cell in course.read(course.sources()[0]).cells if "setup" in course.tags(cell))


def markdown(text: str, *tags: str) -> nbformat.NotebookNode:
    return v4.new_markdown_cell(text, metadata={"tags": list(tags)} if tags else {})


def code(text: str, *tags: str) -> nbformat.NotebookNode:
    metadata: dict = {"tags": list(tags)} if tags else {}
    if "solution" in tags:
        metadata["jupyter"] = {"source_hidden": True}
    return v4.new_code_cell(text, metadata=metadata)


EXERCISE = [
    markdown("### Exercise 1 ●○○ (3 minutes): the difference"),
    code('def p_ds(z_p, z_q):\n    d = ...\n    raise NotImplementedError("d")', "stub"),
    code("# @title Solution\ndef p_ds(z_p, z_q):\n    return (z_p - z_q).softmax(-1)", "solution"),
    code("lab.check.p_ds(p_ds)"),
]
ENDING = [code('lab.quiz("01")'), markdown("## What you can now do\n- this")]


def small_source(*extra: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A source that keeps every rule, with `extra` cells in the middle."""
    head = [markdown(TITLE, "title"), code(SETUP, "setup"), *EXERCISE]
    middle = [*extra, *(markdown(f"filler {i}") for i in range(30 - len(extra)))]
    cells = [deepcopy(cell) for cell in (*head, *middle, *ENDING)]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    return v4.new_notebook(cells=cells)


def small_course(folder: Path, *extra: nbformat.NotebookNode) -> Path:
    """A course of one notebook, built."""
    (folder / "solutions").mkdir(parents=True)
    (folder / "solutions" / f"{NAME}.py").write_text(jupytext.writes(small_source(*extra), fmt="py:percent"))
    course.build(folder)
    return folder


# The course as committed


def test_course_has_no_problems():
    """Every rule holds for every notebook, and no committed copy was changed or run."""
    assert rules.problems() == ([], [])


def test_building_is_byte_stable():
    """The same sources give the same bytes twice, and they are those that are committed."""
    first, second = course.render(), course.render()
    assert first == second
    assert all(path.read_bytes() == text.encode() for path, text in first.items())


def test_only_the_sources_are_paired():
    """jupytext pairs each solution script with its notebook; a student's notebook and its export are not paired."""
    for path in course.sources():
        assert course.read(path).metadata["jupytext"]["formats"] == "ipynb,py:percent"
        for copy in (FOLDER / path.name, (FOLDER / path.name).with_suffix(".ipynb")):
            assert "formats" not in course.read(copy).metadata.get("jupytext", {})


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
        f"{path.stem}.ipynb" for path in course.sources()
    }


def test_handout_index_links_nothing_that_students_do_not_get():
    """The workshop's index names all eleven and links notebooks beside it only: no solutions, no guide."""
    text = pages.index([path.stem for path in course.sources()], handout=True)
    assert len(re.findall(r"^\| \d\d \|", text, re.MULTILINE)) == 11
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {f"{path.stem}.ipynb" for path in course.sources()}
    assert "solution" not in text


# Copies


def test_script_and_notebook_say_the_same(tmp_path):
    """jupytext reads the same cells from both files of a copy, and the student's are the source's without the solutions."""
    extra = [
        code("import math\n\n\ndef f(x):\n    return x"),
        markdown("text"),
        code("class A:\n    pass"),
        code("x = (\n    1\n)"),
    ]
    folder = small_course(tmp_path / "notebooks", *extra)
    script, notebook = (course.read(folder / f"{NAME}.{kind}") for kind in ("py", "ipynb"))
    source, solution = (course.read(folder / "solutions" / f"{NAME}.{kind}") for kind in ("py", "ipynb"))
    assert course.content(script) == course.content(notebook)
    assert course.content(source) == course.content(solution)
    assert course.content(notebook)[1:] == [
        one for one in course.content(source)[1:] if "solution" not in one[2].get("tags", [])
    ]
    assert not any("Solution copy" in cell.source for cell in notebook.cells)


@pytest.mark.parametrize("kind", ["ipynb", "py"])
def test_answers_are_not_overwritten(kind, tmp_path):
    """A student's copy with an answer in it stays, however the source changes; with force it is renewed and kept in backup/."""
    folder = small_course(tmp_path / "notebooks")
    copy = folder / f"{NAME}.{kind}"
    copy.write_text(copy.read_text().replace("raise NotImplementedError", "return z_p - z_q  # raise NotImplementedError"))
    answered = copy.read_text()
    source = folder / "solutions" / f"{NAME}.py"
    source.write_text(source.read_text().replace("filler 7", "filler seven"))
    assert rules.problems(folder)[1] == [f"{copy.name} was changed or run; adadfq course build leaves it as it is"]
    built = course.build(folder)
    assert list(built.left) == [copy] and len(built.written) == 2
    assert rules.problems(folder)[0] == []
    assert copy.read_text() == answered
    built = course.build(folder, force=True)
    assert [path.read_text() for path in built.saved] == [answered]
    assert built.saved[0].parent.name == "backup"
    assert "filler seven" in copy.read_text() and "# raise" not in copy.read_text()
    assert rules.problems(folder) == ([], [])


def test_a_copy_that_was_run_is_left_alone(tmp_path):
    """A copy with outputs stays as it is; one that an editor only saved again, with its own metadata, is renewed."""
    folder = small_course(tmp_path / "notebooks")
    copy = folder / f"{NAME}.ipynb"
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata["editor"] = {"version": 1}
    nbformat.write(notebook, copy)
    assert list(course.build(folder).written) == [copy]
    notebook.cells[1].execution_count = 1
    nbformat.write(notebook, copy)
    assert list(course.build(folder).left) == [copy]


def test_a_damaged_copy_is_left_alone(tmp_path):
    """A copy that is not a notebook any more is not touched without force."""
    folder = small_course(tmp_path / "notebooks")
    (folder / f"{NAME}.ipynb").write_text("{ half a file")
    assert list(course.build(folder).left) == [folder / f"{NAME}.ipynb"]


# Badges


def test_badges_change_nothing_but_links_and_the_install_cell(tmp_path):
    """After set_badges every Colab link and setup cell names the repository; "none" restores what was there before."""
    folder = small_course(tmp_path / "notebooks")
    before = [(folder / name).read_text() for name in (f"{NAME}.py", f"solutions/{NAME}.py")]
    assert not any("colab.research" in text for text in before)
    for _ in range(2):
        course.set_badges("octocat/fork@v1.2", folder)
        student, solution = ((folder / name).read_text() for name in (f"{NAME}.py", f"solutions/{NAME}.py"))
        new = sorted(set(solution.splitlines()) - set(before[1].splitlines()))
        assert len(new) == 2
        assert new[0].endswith(
            "(https://colab.research.google.com/github/octocat/fork/blob/v1.2/notebooks/solutions/01_disagreement.ipynb)"
        )
        assert new[1].startswith('SOURCE = "git+https://github.com/octocat/fork.git@v1.2"')
        assert "github/octocat/fork/blob/v1.2/notebooks/01_disagreement.ipynb)" in student and "Solution copy" not in student
        assert rules.problems(folder) == ([], [])
    course.set_badges("none", folder)
    assert before == [(folder / name).read_text() for name in (f"{NAME}.py", f"solutions/{NAME}.py")]


@pytest.mark.parametrize("target", ["octocat", "octocat/fork", "octocat/fork@", "https://github.com/a/b@c", "a/b@c d"])
def test_badges_refuse_what_is_no_repository_at_a_tag(target, tmp_path):
    """Anything but OWNER/REPO@TAG is refused in one line, and nothing is written."""
    with pytest.raises(UserError, match="OWNER/REPO@TAG"):
        course.set_badges(target, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("colab", "installed", "calls"), [(False, True, 0), (True, True, 0), (True, False, 1)])
def test_setup_cell_installs_once_and_only_on_colab(monkeypatch, colab, installed, calls):
    """Outside Colab, and where the package is there already, the cell installs nothing; on a new Colab it says --no-deps."""
    ran: list[list[str]] = []
    hidden = set() if installed else {"adadfq_lab"}
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else real(name, *a))

    def install(command, check):
        ran.append(command)
        hidden.clear()

    monkeypatch.setattr(subprocess, "run", install)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(SETUP.replace('SOURCE = ""', 'SOURCE = "git+https://github.com/o/r.git@t"'), {})
    assert len(ran) == calls
    assert all("--no-deps" in command and command[-1] == "adadfq-lab @ git+https://github.com/o/r.git@t" for command in ran)


def test_setup_cell_names_a_kernel_without_the_package(monkeypatch):
    """In a kernel without adadfq_lab the cell says in one sentence which Python that is and what to do."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(ImportError, match=f"not installed for {re.escape(sys.executable)}: choose the kernel that has it"):
        exec(SETUP, {})


def test_setup_cells_install_what_colab_lacks():
    """Each dependency of the package is on Colab or installed by every setup cell; notebook 10 installs those of `export`."""
    on_colab = {"numpy", "pillow", "plotly", "torch", "torchvision", "tqdm", "filelock"}
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    needed, export = (
        {re.split(r"[<>=]", one)[0] for one in ones}
        for ones in (project["dependencies"], project["optional-dependencies"]["export"])
    )
    for path in course.sources():
        text = path.read_text()
        found = {re.split(">", name)[0] for name in re.findall(r'"([^"]+)"', re.search(r"^NEEDS = .*$", text, re.MULTILINE)[0])}
        assert found >= needed - on_colab, path.name
        assert path.stem[:2] != "10" or found >= export


# Each rule notices


def test_small_course_keeps_every_rule(tmp_path):
    """The course that the following tests spoil is in order."""
    assert rules.problems(small_course(tmp_path / "notebooks")) == ([], [])


SPOILED = {
    "a long cell": ([code("\n".join(["x = 1"] * 26))], "26 lines"),
    "much code": ([code("\n".join(["x = 1"] * 24)) for _ in range(11)], "lines of code, more than 250"),
    "many cells": ([markdown(f"m{i}") for i in range(45)], "cells, not 35 to 50"),
    "an empty cell": ([code("")], "is empty"),
    "a magic": ([code("%pip install x")], "is not Python"),
    "an unknown name": ([code("lab.no_such_function(1)")], "lab.no_such_function is no public name"),
    "an unknown exercise": ([code("lab.check.no_such(1)")], "lab.check.no_such does not exist"),
    "a private name": ([code("lab.figures._png(1)")], "does not exist or is private"),
    "a submodule": ([code("from adadfq_lab.game.game import Game")], "notebooks say import adadfq_lab as lab"),
    "a private import": ([code("import adadfq_lab.game.game")], "notebooks say import adadfq_lab as lab"),
    "an image without words": ([markdown("![](a.png)")], "without alt text"),
    "an img without words": ([markdown('<img src="a.png">')], "without alt text"),
    "a figure unread": ([code("lab.show(lab.figures.story())"), code("1")], "no sentence reads"),
    "two live figures": ([c for _ in "ab" for c in (code("1", "live"), markdown("m"))], "one live figure"),
    "a leak": ([markdown("the answer:\nreturn (z_p - z_q).softmax(-1)")], "contains the solution's line"),
    "a second quiz": ([code('lab.quiz("01")')], "must have one cell lab.quiz"),
    "five exercises": (EXERCISE * 4, "5 exercises, more than 4"),
    "a stub that says nothing": ([markdown("### Exercise 2 ●○○ (3 minutes): x"),
        code("def p_ds(a, b):\n    return a", "stub"), *EXERCISE[2:]], "must have a ..."),
    "an exercise without minutes": ([markdown("### Exercise 2"), *EXERCISE[1:]], "lacks a heading"),
    "an exercise unchecked": ([*EXERCISE[:3], code("p_ds(1, 2)")], "a cell that ends in lab.check.p_ds(p_ds)"),
    "a stub without solution": (EXERCISE[:2], "every stub needs one solution"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_check_notices(case, tmp_path):
    """A source spoiled in one way is reported in words that name the way."""
    extra, says = SPOILED[case]
    found, _ = rules.problems(small_course(tmp_path / "notebooks", *extra))
    assert any(says in line for line in found), found


def test_check_notices_a_notebook_without_source(tmp_path):
    """A numbered notebook without a source is named; a backup is not."""
    folder = small_course(tmp_path / "notebooks")
    (folder / "backup").mkdir()
    for name in ("09_full_training.py", "backup/09_full_training.py"):
        (folder / name).write_text("1\n")
    assert rules.problems(folder)[0] == ["09_full_training.py has no source"]


def test_check_notices_a_stale_copy(tmp_path):
    """A change of the source that was not built is named."""
    folder = small_course(tmp_path / "notebooks")
    source = folder / "solutions" / f"{NAME}.py"
    source.write_text(source.read_text().replace("filler 7", "filler seven"))
    found, notes = rules.problems(folder)
    assert found[0] == f"solutions/{NAME}.ipynb does not follow from its source; run adadfq course build"
    assert len(found) == 3 and not notes


def test_check_notices_a_setup_cell_of_its_own(tmp_path):
    """Setup cells differ in NEEDS only."""
    folder = small_course(tmp_path / "notebooks")
    text = (
        (folder / "solutions" / f"{NAME}.py").read_text().replace("01 · Test", "02 · Test").replace('quiz("01")', 'quiz("02")')
    )
    other = folder / "solutions" / "02_quantization.py"
    other.write_text(text.replace("NEEDS = [", 'NEEDS = ["more", '))
    course.build(folder)
    assert rules.problems(folder) == ([], [])
    other.write_text(text.replace("check_env()", "check_env() "))
    assert any("setup cells differ" in line for line in rules.problems(folder)[0])


GUIDE = "# Guide\n\n## Talking points\n\n**01 Test**\n- [index](index.md)\n\n## Tables\n\n" + "\n".join(
    mark for pair in pages.GENERATED for mark in pair
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<!-- minutes: end -->", "", "lacks the mark <!-- minutes: end -->"),
        ("**01 Test**", "**02 Test**", "no talking points for 01_disagreement"),
        ("(index.md)", "(nowhere.md)", "links to nowhere.md"),
        ("agrees", "disagrees", "instructor_guide.md does not follow from its source"),
    ],
)
def test_check_notices_a_spoiled_guide(old, new, says, tmp_path):
    """A guide in order passes; without a mark, without a notebook's talking points, with a dead link or a table edited, not."""
    folder = small_course(tmp_path / "notebooks")
    guide = folder / "instructor_guide.md"
    guide.write_text(GUIDE)
    course.build(folder)
    assert rules.problems(folder) == ([], [])
    text = guide.read_text()
    if old == "agrees":
        old = pages.wrong_answers().splitlines()[2]
    guide.write_text(text.replace(old, new, 1))
    found, _ = rules.problems(folder)
    assert any(says in line for line in found), found


def test_the_guide_is_there_and_linked():
    """The repository has an instructor's guide, which the table of contents links."""
    assert (FOLDER / "instructor_guide.md").exists()
    assert "](instructor_guide.md)" in (FOLDER / "index.md").read_text()
    assert "](notebooks/instructor_guide.md)" in (FOLDER.parent / "README.md").read_text()


def test_a_folder_without_notebooks_is_a_users_mistake(tmp_path):
    """Outside a checkout, as from a wheel, building says in one line that the course is built in a checkout."""
    with pytest.raises(UserError, match="checkout"):
        course.build(tmp_path)


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
    """The variable wins; a kernel has SVG, on Colab too; without a kernel nothing is drawn."""
    monkeypatch.delenv("ADADFQ_LAB_LIVE", raising=False)
    monkeypatch.delenv("COLAB_NOTEBOOK_ID", raising=False)
    monkeypatch.setattr(environment, "in_kernel", lambda: False)
    assert environment.live_backend() == "none"
    monkeypatch.setattr(environment, "in_kernel", lambda: True)
    assert environment.live_backend() == "svg"
    monkeypatch.setenv("COLAB_NOTEBOOK_ID", "x")
    assert environment.live_backend() == "svg"
    monkeypatch.setenv("ADADFQ_LAB_LIVE", "none")
    assert environment.live_backend() == "none"
    monkeypatch.setenv("ADADFQ_LAB_LIVE", "movie")
    with pytest.raises(UserError, match="svg, widget, none"):
        environment.live_backend()


@pytest.mark.parametrize("name", ["torch.py", "types.py", "numpy/__init__.py"])
def test_a_file_that_hides_a_module_is_named(name, tmp_path, monkeypatch):
    """A file beside the notebook that Python would import in place of a module is named, here and by course check."""
    folder = small_course(tmp_path / "notebooks")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    (folder / "my_helpers.py").write_text("")
    assert environment.hiding(folder) == []
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    module = name.split("/")[0].removesuffix(".py")
    with pytest.raises(UserError, match=rf"{re.escape(str(folder))}.{name.split('/')[0]} hides the module {module}; rename it"):
        environment.check_env()
    assert any(f"hides the module {module}" in line for line in rules.problems(folder)[0])


def test_a_kernel_without_torch_is_named(monkeypatch):
    """If the kernel's Python has no torch, its path is in the message."""
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{re.escape(sys.executable)} lacks torch and plotly"):
        environment.check_env()


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
    table = [line for line in pages.minutes(tmp_path).splitlines() if line.startswith("| 0")]
    assert table == [
        "| 01_disagreement | 50 | 30 | 9 | 12 | 600 | 250 | 1.5 |",
        "| 06_the_band | – | – | – | 14 | – | – | 9.0 |",
    ]
    assert pages.minutes(tmp_path / "elsewhere").startswith("Not measured yet")


def test_seconds_of_a_core_are_read_from_stat():
    """Fields 14 and 15 of /proc/PID/stat, whatever the program is called."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(["S", *"0" * 10, str(3 * ticks), str(ticks), "0"])
    assert course_minutes._processor(f"7 (a ) name) {fields}") == 4.0
