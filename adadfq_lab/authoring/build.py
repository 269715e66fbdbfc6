"""The course: one hand-written master a notebook, from which the students' and the solution copies are built.

    notebooks/masters/01_disagreement.py        written by hand; the only place to edit
    notebooks/01_disagreement.ipynb, .py        the student's pair: exercises are stubs
    notebooks/solutions/01_disagreement.ipynb, .py    the solution pair: each stub is followed by its solution, folded
    notebooks/masters/colab_target              OWNER/REPO@TAG that badges and install cells point to
    notebooks/index.md                          table of contents, built too
    notebooks/instructor_guide.md               written by hand, but for two tables that are built into it

A master is a plain py:percent file. A cell begins with `# %%` (code) or `# %% [markdown]` (text, every line behind `# `), and
may carry tags: `# %% tags=["stub"]`. These tags mean something here:

    title      the first cell, markdown: `# 01 · Disagreement`, objectives, prerequisites, minutes per section, symbols
    setup      where the generated cell goes that installs the package on Colab and calls `lab.check_env()`: an empty code
               cell right after the title
    stub       an exercise to fill in: `...` where something is missing, and `raise NotImplementedError("what to do")`
    solution   directly after its stub: the same definitions, working. Only in the solution copy, folded
    live       the cell that makes the notebook's one live figure (at most one a notebook)
    figure     a cell that shows a figure by other means than `lab.show(...)`; the next cell must be markdown that reads it

A heading of an exercise reads `### Exercise 2 ●●○ (5 minutes): ...`; the cell after stub and solution ends in
`lab.check.<name>(<name>)`. The quiz is a cell `lab.quiz("01")`; its questions are in adadfq_lab/course/quiz_questions/01.json.
The last cell is markdown with the heading `## What you can now do`. No magics: every copy is a Python script as well.

What a built pair must be (35 to 50 cells, no long cell, no stored output, ...) is checked by `adadfq_lab.authoring.rules`.
Building is byte-stable: the same master gives the same four files on every machine.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adadfq_lab.authoring.marks import renewed
from adadfq_lab.errors import UserError

FOLDER = Path(__file__).parents[2] / "notebooks"
Copy = Literal["student", "solution"]
COPIES: tuple[Copy, ...] = ("student", "solution")
TAGS = {"title", "setup", "stub", "solution", "live", "figure"}

# (file name, title, what the student does); built or not, all are in the table of contents. GPU: asks Colab for one.
PAGES = (
    ("00_welcome", "Welcome", "check the environment, see the story in one picture, play the whole game for three minutes"),
    ("01_disagreement", "Disagreement", "drag logits; write p_ds, H, H' and the adaptability by hand (Eq. 1-3)"),
    ("02_quantization", "Quantization", "Eq. 18: staircase, ranges, straight-through gradient; accuracy falls off a cliff"),
    ("03_imagining_data", "Imagining data", "the generator, Eq. 11, GDFQ; see what P's batch norms remember"),
    ("04_zero_sum_game", "The zero-sum game", "Eq. 4, 5, 13: moves and gains of both players, live; AdaSG"),
    ("05_two_kinds_of_sample", "Two kinds of sample", "Eq. 6-9: disagreement and agreement samples pull H' apart"),
    ("06_the_band", "The band", "Eq. 10, 12: move λ_l and λ_u during training; Fig. 4 replayed"),
    ("07_why_it_generalises", "Why it generalises", "Eq. 14-17 as an interactive bound; Fig. 1 measured"),
    ("08_eight_methods", "Eight methods, one protocol", "add a ninth method in forty lines; how published numbers mislead"),
    ("09_full_training", "Full training on CUDA", "estimate memory, train, watch, stop, resume"),
    ("10_is_it_integer", "Is it really integer?", "codes, scales, integer inference, ONNX; bring your own model"),
)
GPU = {"09_full_training"}
GENERATED = tuple((f"<!-- {part}: generated -->", f"<!-- {part}: end -->") for part in ("wrong answers", "minutes"))
"""Marks around the generated parts of the instructor's guide."""
MEASURED = ("seconds", "processor", "first_plot", "fast", "megabytes", "libraries", "load")
"""What `minutes.json` says of a notebook: columns of the guide's table."""

_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?$")
_TARGET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<tag>[\w./-]+)")


@dataclass(frozen=True)
class Cell:
    """One cell: "code" or "markdown", its text without a final newline, its tags."""

    kind: Literal["code", "markdown"]
    text: str
    tags: tuple[str, ...] = ()


# Reading and writing py:percent


def parse(text: str) -> list[Cell]:
    """The cells of a py:percent file; what stands before the first `# %%` is no cell.

    Raises UserError for a marker or a tag that the course does not know, and for a markdown line without `# `.
    """
    cells: list[Cell] = []
    lines: list[str] | None = None
    head: Cell | None = None
    for number, raw in enumerate([*text.splitlines(), "# %%"], 1):
        if not raw.startswith("# %%"):
            if lines is not None:
                lines.append(raw)
            continue
        match = _CELL.match(raw)
        tags = tuple(json.loads(match["tags"])) if match and match["tags"] else ()
        if match is None or not TAGS.issuperset(tags):
            raise UserError(f"line {number}: {raw!r} is no cell marker of the course; its tags are {', '.join(sorted(TAGS))}")
        if head is not None and lines is not None:
            cells.append(replace(head, text=_body(head, lines, number)))
        head, lines = Cell("markdown" if match["markdown"] else "code", "", tags), []
    return cells


def _body(head: Cell, lines: list[str], number: int) -> str:
    text = "\n".join(lines).strip("\n")
    if head.kind == "code":
        return text
    if any(line and line != "#" and not line.startswith("# ") for line in text.splitlines()):
        raise UserError(f"a line of the markdown cell that ends before line {number} does not begin with '# '")
    return "\n".join(line[2:] for line in text.splitlines())


def _metadata(cell: Cell) -> dict[str, Any]:
    """Cell metadata of a notebook: tags, and what folds the cell in JupyterLab (solutions) and on Colab."""
    data: dict[str, Any] = {"tags": list(cell.tags)} if cell.tags else {}
    if {"setup", "solution"} & set(cell.tags):
        data["cellView"] = "form"
    if "solution" in cell.tags:
        data["jupyter"] = {"source_hidden": True}
    return data


def to_script(cells: Sequence[Cell]) -> str:
    """The cells as a py:percent script, as jupytext writes and reads it."""
    header = ["jupyter:", "  jupytext:", "    formats: ipynb,py:percent", "  kernelspec:"]
    header += ["    display_name: Python 3 (ipykernel)", "    language: python", "    name: python3"]
    script = "\n".join(f"# {line}" for line in ("---", *header, "---")) + "\n"
    before = Cell("markdown", "")
    for cell in cells:
        gap = "\n\n" if _defines(before, last=True) or _defines(cell, last=False) else "\n"  # as ruff format has it
        options = "".join(f" {key}={json.dumps(value)}" for key, value in _metadata(cell).items())
        if cell.kind == "markdown":
            body = "\n".join(f"# {line}".rstrip() for line in cell.text.split("\n"))
            script += f"{gap}# %% [markdown]{options}\n{body}\n"
        else:
            script += f"{gap}# %%{options}\n{cell.text}\n"
        before = cell
    return script


def _defines(cell: Cell, *, last: bool) -> bool:
    """Whether the last (first) statement of a code cell is a function or a class."""
    statements = [line for line in cell.text.splitlines() if line[:1] not in ("", " ", "#", ")", "]", "}")]
    edge = statements[-1 if last else 0] if statements else ""
    return cell.kind == "code" and edge.startswith(("def ", "class ", "@"))


def to_notebook(cells: Sequence[Cell], name: str, copy: Copy) -> str:
    """The cells as a notebook (nbformat 4.5) without outputs; cell ids are hashes of copy, name and position."""
    made: list[dict[str, Any]] = []
    for position, cell in enumerate(cells):
        identity = hashlib.sha256(f"{copy}/{name}/{position}".encode()).hexdigest()[:8]
        one = {
            "cell_type": cell.kind,
            "id": identity,
            "metadata": _metadata(cell),
            "source": cell.text.splitlines(keepends=True),
        }
        made.append(one | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {}))
    metadata: dict[str, Any] = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if name in GPU:
        metadata |= {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
    notebook = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


# From master to copies


def copy_cells(master: Sequence[Cell], name: str, copy: Copy, target: str) -> list[Cell]:
    """The cells of one copy: badge and header under the title, the install cell filled in, solutions kept or dropped."""
    path = f"notebooks/{'solutions/' if copy == 'solution' else ''}{name}.ipynb"
    repo, _, tag = target.partition("@")
    badge = (
        f"[![Open this notebook in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{repo}/blob/{tag}/{path})"
    )
    header = f"<!-- generated from masters/{name}.py, edit there; then: adadfq course build -->"
    cells = []
    for cell in master:
        if "title" in cell.tags:
            title, _, rest = cell.text.partition("\n")
            made = "*Solution copy.* " if copy == "solution" else ""
            cell = replace(cell, text=f"{header}\n{title}\n\n{made}{badge}\n{rest}")
        elif "setup" in cell.tags:
            cell = replace(cell, text=install_cell(target))
        elif "solution" in cell.tags:
            if copy == "student":
                continue
            cell = replace(cell, text=f"# @title Solution\n{cell.text}")
        cells.append(cell)
    return cells


def install_cell(target: str) -> str:
    """Code that installs the package on Colab, once and without touching what is there, and then looks around."""
    repo, _, tag = target.partition("@")
    return f"""# @title Run this first (on Colab it installs adadfq_lab; elsewhere it only looks around)
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("adadfq_lab") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "adadfq-lab @ git+https://github.com/{repo}.git@{tag}"], check=True)
    absent = [name for name in ("tyro", "safetensors") if importlib.util.find_spec(name) is None]
    if absent:
        subprocess.run([*pip, *absent], check=True)

import adadfq_lab as lab

lab.check_env()"""


def read_target(folder: Path = FOLDER) -> str:
    """OWNER/REPO@TAG of badges and install cells. Raises UserError where the file holds anything else."""
    path = folder / "masters" / "colab_target"
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not _TARGET.fullmatch(text):
        raise UserError(f"{path} must hold OWNER/REPO@TAG, not {text!r}; adadfq course badges OWNER/REPO@TAG writes it")
    return text


def masters(folder: Path = FOLDER) -> list[Path]:
    """The masters there are, in order. Raises UserError outside a checkout: the wheel carries no notebooks."""
    found = sorted((folder / "masters").glob("[0-9][0-9]_*.py"))
    if not found:
        raise UserError(f"no masters in {folder / 'masters'}; the course is built in a checkout of the repository")
    unknown = [path.stem for path in found if path.stem not in {name for name, _, _ in PAGES}]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is not among PAGES of adadfq_lab/course.py")
    return found


def render(folder: Path = FOLDER) -> dict[Path, str]:
    """Every file that the masters determine, with its content: four a master, and the table of contents."""
    target = read_target(folder)
    files: dict[Path, str] = {}
    for path in masters(folder):
        try:
            master = parse(path.read_text(encoding="utf-8"))
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from None
        for copy in COPIES:
            cells = copy_cells(master, path.stem, copy, target)
            place = folder / "solutions" if copy == "solution" else folder
            files[place / f"{path.stem}.ipynb"] = to_notebook(cells, path.stem, copy)
            files[place / f"{path.stem}.py"] = to_script(cells)
    files[folder / "index.md"] = index([path.stem for path in masters(folder)])
    if (guide := folder / "instructor_guide.md").exists():
        files[guide] = fill_guide(guide.read_text(encoding="utf-8"), folder)
    return files


def fill_guide(text: str, folder: Path = FOLDER) -> str:
    """The instructor's guide with its two generated parts renewed: wrong answers by check, minutes by notebook."""
    for (begin, end), content in zip(GENERATED, (wrong_answers(), minutes(folder)), strict=True):
        if begin in text and end in text:
            text = renewed(text, begin, end, content)
    return text


def wrong_answers() -> str:
    """For each exercise its commonest wrong answers and its hint, in the words of the check."""
    from adadfq_lab.course.exercises.catalogue import EXERCISES

    parts = []
    for name, exercise in EXERCISES.items():
        lines = "\n".join(f"- {mistake.says}" for mistake in exercise.mistakes)
        parts.append(f"**{exercise.notebook} `check.{name}`**\n\n{lines}\n\nHint after the second failure: {exercise.hint}")
    return "\n\n".join(parts)


def minutes(folder: Path = FOLDER) -> str:
    """A table of `minutes.json`, or a line that says how to make that file."""
    path = folder / "minutes.json"
    if not path.exists():
        return "Not measured yet: `python -m adadfq_lab.authoring.minutes`."
    measured = json.loads(path.read_text(encoding="utf-8"))
    head = "all cells [s] | of a core [s] | first figure [s] | fast mode [s] | peak memory [MB] | libraries [MB] | load"
    rows = [f"| notebook | {head} |", "|---" * (1 + len(MEASURED)) + "|"]
    for name, row in sorted(measured["notebooks"].items()):
        rows.append("| " + " | ".join([name, *(str(row.get(key, "–")) for key in MEASURED)]) + " |")
    words = (
        "Seconds count from the start of the kernel, importing torch included. Where other programs ran too, as the load says\n"
        "(processes that wanted a core, this one included, on average), they are more than a quiet machine needs; the second\n"
        "column, seconds of one core that the kernel itself used, depends on that less. Memory is the kernel's, libraries the\n"
        "part of it that are files mapped into memory; kernels on one machine share them, and without CUDA's they are half as\n"
        "large. A dash: not measured."
    )
    return (
        f"Measured on {measured['machine']}, by `python -m adadfq_lab.authoring.minutes`:\n\n"
        + "\n".join(rows)
        + f"\n\n{words}"
    )


def index(existing: Sequence[str], *, handout: bool = False) -> str:
    """The table of contents: all eleven notebooks, of which those in `existing` are linked.

    handout: for students who get neither the solutions nor the guide
    """
    last = "" if handout else " solution |"
    rows = [f"| | notebook | what you do |{last}", "|---|---|---|" + "---|" * (not handout)]
    for name, title, what in PAGES:
        there = name in existing
        linked, solution = (f"[{title}]({name}.ipynb)", f"[solution](solutions/{name}.ipynb)") if there else (title, "")
        rows.append(f"| {name[:2]} | {linked} | {what} |" + ("" if handout else f" {solution} |"))
    intro = (
        "<!-- generated by adadfq course build -->\n# The course\n\n"
        "Eleven notebooks, in this order. Each `.ipynb` has a twin `.py` with the same cells. Those in this folder have\n"
        "exercises to fill in; those in `solutions/` have the answers, folded.\n\n"
    )
    outro = "\n\nFor whoever teaches it: [instructor's guide](instructor_guide.md).\n"
    if handout:
        intro, outro = intro.replace("; those in `solutions/` have the answers, folded", ""), "\n"
    return intro + "\n".join(rows) + outro


def build(*, check: bool = False, folder: Path = FOLDER) -> list[Path]:
    """Writes what differs from the masters, or with `check` nothing; returns the paths that differed."""
    changed = []
    for path, text in render(folder).items():
        if not path.exists() or path.read_bytes() != text.encode():
            changed.append(path)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(text.encode())
    return changed


def set_badges(target: str, folder: Path = FOLDER) -> list[Path]:
    """Points every badge and install cell to OWNER/REPO@TAG; returns what changed. Raises UserError for another form."""
    if not _TARGET.fullmatch(target):
        raise UserError(f"{target!r} is not of the form OWNER/REPO@TAG, as in octocat/adadfq_lab@v0.1.0")
    (folder / "masters" / "colab_target").write_text(target + "\n", encoding="utf-8")
    return build(folder=folder)
