"""Build the course: the students' copies of the notebooks follow from the solution copies.

    notebooks/solutions/01_disagreement.py      the source, py:percent; the one place to edit
    notebooks/solutions/01_disagreement.ipynb   the same cells as a notebook; jupytext keeps the two paired in JupyterLab
    notebooks/01_disagreement.ipynb, .py        the student's copy: without solutions; the .py is an export, not paired
    notebooks/index.md                          table of contents, generated too
    notebooks/instructor_guide.md               written by hand, except for two generated tables

jupytext reads and writes all of them. Some cell tags have a meaning here (`# %% tags=["stub"]`):

    title      the first cell, markdown: `# 01 · Disagreement`, `*Solution copy.*`, objectives, prerequisites, minutes, symbols
    setup      installs the package on Colab and calls `lab.check_env()`; the same text in all notebooks, `NEEDS` aside
    stub       an exercise to fill in: `...` in place of what is missing, and `raise NotImplementedError("what to do")`
    solution   directly after its stub: the same definitions, working; begins with `# @title Solution` and is folded. Cells with
               this tag are left out of the student's copy
    live       the cell that makes the notebook's one live figure (at most one a notebook)
    figure     a cell that shows a figure without `lab.show(...)`; the next cell must be markdown that reads it

A heading of an exercise reads `### Exercise 2 ●●○ (5 minutes): ...`; the cell after stub and solution ends in
`lab.check.<name>(<name>)`. The quiz is a cell `lab.quiz("01")`; its questions are in adadfq_lab/course/quiz_questions/01.json.
The last cell is markdown with the heading `## What you can now do`. No magics: every copy is a Python script as well. The
limits (35 to 50 cells, no long cell, no stored output, ...) are checked by `adadfq_lab.authoring.rules`.

Building gives the same bytes on every machine. A copy that a person has changed or run is never overwritten without `force`,
and with it only after a backup: each generated copy carries a digest of its cells, by which such a copy is recognised.
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adadfq_lab.authoring.pages import FOLDER, PAGES, fill_guide, index
from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import NOTEBOOKS, import_extra
from adadfq_lab.machine.files import write_atomically

TAGS = {"title", "setup", "stub", "solution", "live", "figure"}

NOTE = "*Solution copy.*"
KEPT = ("tags", "cellView", "jupyter", "editable")
"""Metadata of a cell that the course uses; editors add more."""

_TARGET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<tag>[\w./-]+)")
_SOURCE = re.compile(r'^SOURCE = ".*?"', re.MULTILINE)
_LINK = re.compile(r"^# \*Solution copy\.\*.*$", re.MULTILINE)

Cell = Any
"""A cell of a notebook as nbformat has it: `cell_type`, `source`, `metadata`."""
Notebook = Any
"""A notebook as nbformat has it: `cells`, `metadata`."""


@dataclass(frozen=True)
class Built:
    """What `build` did: files it wrote, copies it left alone because a person changed or ran them, and backups it made."""

    written: Sequence[Path]
    left: Sequence[Path]
    saved: Sequence[Path] = ()


# Read and write, by jupytext


def _jupytext() -> Any:
    return import_extra("jupytext", NOTEBOOKS)


def read(path: Path) -> Notebook:
    """The notebook in a .py or .ipynb file. Raises UserError if it cannot be read."""
    try:
        return _jupytext().reads(path.read_text(encoding="utf-8"), fmt="ipynb" if path.suffix == ".ipynb" else "py:percent")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a notebook: {type(error).__name__}") from None


def tags(cell: Cell) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def content(notebook: Notebook) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, source, metadata) of each cell, without what editors add."""
    return [(cell.cell_type, cell.source, _kept(cell)) for cell in notebook.cells]


def _kept(cell: Cell) -> dict[str, Any]:
    return {key: cell.metadata[key] for key in KEPT if key in cell.metadata}


def digest(notebook: Notebook) -> str:
    """A digest of the kinds and sources of all cells."""
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def to_notebook(source: Notebook, name: str) -> str:
    """The text of an .ipynb file without outputs; cell ids are hashes of `name` and the cell's position."""
    version = import_extra("nbformat.v4", NOTEBOOKS)
    notebook = version.new_notebook(metadata={**source.metadata, "language_info": {"name": "python"}})
    for position, cell in enumerate(source.cells):
        new = version.new_markdown_cell if cell.cell_type == "markdown" else version.new_code_cell
        identity = hashlib.sha256(f"{name}/{position}".encode()).hexdigest()[:8]
        notebook.cells.append(new(cell.source, metadata=_kept(cell), id=identity))
    return str(version.writes(notebook)) + "\n"


def to_script(source: Notebook) -> str:
    """The text of a py:percent script that is not paired with a notebook."""
    only = {"notebook_metadata_filter": "adadfq_lab,kernelspec,-all", "cell_metadata_filter": ",".join(KEPT) + ",-all"}
    configuration = import_extra("jupytext.config", NOTEBOOKS).JupytextConfiguration(**only)
    return str(_jupytext().writes(source, fmt="py:percent", config=configuration))


# From the source to the copies


def sources(folder: Path = FOLDER) -> list[Path]:
    """The solution scripts, in order. Raises UserError outside a checkout: the wheel contains no notebooks."""
    found = sorted((folder / "solutions").glob("[0-9][0-9]_*.py"))
    if not found:
        raise UserError(f"no notebooks in {folder / 'solutions'}; the course is built in a checkout of the repository")
    if unknown := [path.stem for path in found if path.stem not in {name for name, _, _ in PAGES}]:
        raise UserError(f"{', '.join(unknown)} is missing from PAGES in adadfq_lab/authoring/pages.py")
    return found


def students_copy(source: Notebook, name: str) -> Notebook:
    """The student's copy: no solutions; its title says where to edit, and its Colab link leads to this copy."""
    copy = deepcopy(source)
    copy.cells = [cell for cell in copy.cells if "solution" not in tags(cell)]
    if copy.cells:
        title = copy.cells[0].source.replace(f"{NOTE}\n\n", "").replace(f"{NOTE} ", "")
        title = title.replace("/notebooks/solutions/", "/notebooks/")
        copy.cells[0].source = f"<!-- generated from solutions/{name}.py, edit there; then: adadfq course build -->\n{title}"
    copy.metadata.pop("jupytext", None)  # not paired: an answer in one of two paired files is lost when the other is newer
    copy.metadata["adadfq_lab"] = {"built": digest(copy)}
    return copy


def render(folder: Path = FOLDER) -> dict[Path, str]:
    """Every generated file and its text: three a source, the table of contents, the guide."""
    files: dict[Path, str] = {}
    for path in sources(folder):
        source, name = read(path), path.stem
        student = students_copy(source, name)
        source.metadata |= {"adadfq_lab": {"built": digest(source)}, "jupytext": {"formats": "ipynb,py:percent"}}
        files[path.with_suffix(".ipynb")] = to_notebook(source, f"solution/{name}")
        files[folder / f"{name}.ipynb"] = to_notebook(student, f"student/{name}")
        files[folder / f"{name}.py"] = to_script(student)
    files[folder / "index.md"] = index([path.stem for path in sources(folder)])
    if (guide := folder / "instructor_guide.md").exists():
        files[guide] = fill_guide(guide.read_text(encoding="utf-8"), folder)
    return files


def outdated(folder: Path = FOLDER) -> tuple[dict[Path, str], list[Path]]:
    """Generated files that are not as they should be, with the text they should have; and copies a person changed or ran."""
    differ = {path: text for path, text in render(folder).items() if _text(path) != text}
    used = [path for path, text in differ.items() if path.suffix != ".md" and path.exists() and in_use(path, text)]
    return {path: text for path, text in differ.items() if path not in used}, used


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def in_use(path: Path, text: str) -> bool:
    """Whether a person changed or ran the copy at `path`: it has outputs, or cells that neither a build nor `text` has."""
    try:
        found = read(path)
        ran = any(cell.get("outputs") or cell.get("execution_count") for cell in found.cells)
        written = found.metadata.get("adadfq_lab", {}).get("built")
        return ran or (digest(found) != written and content(found) != content(_parsed(path, text)))
    except (UserError, AttributeError):
        return True  # not a notebook any more: a person's in any case


def _parsed(path: Path, text: str) -> Notebook:
    return _jupytext().reads(text, fmt="ipynb" if path.suffix == ".ipynb" else "py:percent")


def build(folder: Path = FOLDER, *, force: bool = False) -> Built:
    """Write what differs from the sources, except copies that a person changed or ran.

    force: write those too, after copying them to `backup/` beside them
    """
    files, left = outdated(folder)
    saved = []
    if force:
        wanted = render(folder)
        for path in left:
            backup = path.parent / "backup" / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}"
            backup.parent.mkdir(exist_ok=True)
            write_atomically(backup, path.read_bytes())
            saved.append(backup)
            files[path] = wanted[path]
        left = []
    for path, text in files.items():
        write_atomically(path, text.encode())
    return Built(list(files), left, saved)


def set_badges(target: str, folder: Path = FOLDER) -> Built:
    """Point the Colab links and the setup cells to OWNER/REPO@TAG, or remove the links if `target` is "none"; then build.

    Raises UserError for a target of another form.
    """
    match = _TARGET.fullmatch(target)
    if match is None and target != "none":
        raise UserError(f"{target!r} is not of the form OWNER/REPO@TAG, as in octocat/adadfq_lab@v0.1.0, nor none")
    changed = []
    for path in sources(folder):
        link, place = f"# {NOTE}", ""
        if match:
            place = f"git+https://github.com/{match['repo']}.git@{match['tag']}"
            page = f"github/{match['repo']}/blob/{match['tag']}/notebooks/solutions/{path.stem}.ipynb"
            link += f" [Open this notebook in Colab](https://colab.research.google.com/{page})"
        old = path.read_text(encoding="utf-8")
        new = _SOURCE.sub(f'SOURCE = "{place}"', _LINK.sub(link, old, count=1), count=1)
        if new != old:
            write_atomically(path, new.encode())
            changed.append(path)
    built = build(folder)
    return Built([*changed, *built.written], built.left)
