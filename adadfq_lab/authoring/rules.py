"""What every notebook of the course must be, checked: `adadfq course check`.

Limits come from comparing courses: 35 to 50 cells, at most 250 lines of code, 25 a cell, four graded exercises, one live
figure, 200 kB. The rest guards against drift: copies are what their masters say, a pair says the same twice, no output is
stored, notebooks use public names that exist, no solution leaks into a student's copy, nothing is shown without words.
"""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module, resources
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import adadfq_lab
from adadfq_lab.authoring.build import COPIES, FOLDER, GENERATED, Cell, build, copy_cells, masters, parse, read_target

MIN_CELLS, MAX_CELLS = 35, 50
MAX_CODE, MAX_CELL, MAX_BYTES = 250, 25, 200_000
MAX_EXERCISES, MAX_LIVE, QUESTIONS = 4, 1, 3
TITLE_PARTS = ("**Objectives", "**Prerequisites", "**Minutes", "| symbol |")
ENDING = "## What you can now do"
EXERCISE = re.compile(r"^### Exercise \d [●○]{3} \(\d+ minutes?\): \S", re.MULTILINE)


def problems(folder: Path = FOLDER) -> list[str]:
    """Everything that is wrong with the course, a sentence each; empty if nothing is."""
    found = [f"{path.name} is not what its master gives; run adadfq course build" for path in build(check=True, folder=folder)]
    known = {path.stem for path in masters(folder)}
    for copy in COPIES:
        place = folder / "solutions" if copy == "solution" else folder
        strays = {path.stem for kind in ("ipynb", "py") for path in place.glob(f"[0-9][0-9]_*.{kind}")} - known
        found += [f"{copy} {name}: has no master" for name in sorted(strays)]
    if (guide := folder / "instructor_guide.md").exists():
        found += [f"{guide.name}: {what}" for what in of_guide(guide.read_text(encoding="utf-8"), folder)]
    for path in masters(folder):
        master = parse(path.read_text(encoding="utf-8"))
        found += [f"{path.stem}: {what}" for what in of_master(master, path.stem)]
        for copy in COPIES:
            cells = copy_cells(master, path.stem, copy, read_target(folder))
            found += [f"{path.stem} ({copy}): {what}" for what in of_copy(cells)]
            place = folder / "solutions" if copy == "solution" else folder
            if (notebook := place / f"{path.stem}.ipynb").exists():
                found += [f"{path.stem} ({copy}): {what}" for what in of_file(notebook)]
        leaked = leaks(master, copy_cells(master, path.stem, "student", read_target(folder)))
        found += [f"{path.stem} (student): contains the solution's line {line!r}" for line in leaked]
    return found


def of_guide(text: str, folder: Path) -> Iterator[str]:
    """What the instructor's guide lacks: a mark around a generated part, talking points of a notebook, a file it links to."""
    yield from (f"lacks the mark {mark}" for pair in GENERATED for mark in pair if text.count(mark) != 1)
    points = text.partition("## Talking points")[2].partition("\n## ")[0]
    yield from (f"has no talking points for {path.stem}" for path in masters(folder) if f"\n**{path.stem[:2]} " not in points)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    yield from (f"links to {link}, which is not there" for link in links if not (folder / link).exists())


def of_master(master: Sequence[Cell], name: str) -> Iterator[str]:
    """What is wrong with a master's structure: title, exercises, quiz, ending."""
    texts = [cell.text for cell in master]
    if not master or master[0].tags != ("title",) or [cell.tags for cell in master].count(("setup",)) != 1:
        yield "must begin with a title cell and have one setup cell"
        return
    if not texts[0].startswith(f"# {name[:2]} · "):
        yield f"its title must begin '# {name[:2]} · '"
    yield from (f"its title cell lacks {part!r}" for part in TITLE_PARTS if part not in texts[0])
    if not (master[-1].kind == "markdown" and texts[-1].startswith(ENDING)):
        yield f"its last cell must be {ENDING!r}"
    if sum(text.strip() == f'lab.quiz("{name[:2]}")' for text in texts) != 1:
        yield f'must have one cell lab.quiz("{name[:2]}")'
    questions = resources.files("adadfq_lab") / "course" / "quiz_questions" / f"{name[:2]}.json"
    if not questions.is_file() or len(json.loads(questions.read_text(encoding="utf-8"))) != QUESTIONS:
        yield f"its quiz needs {QUESTIONS} questions"
    yield from _of_exercises(master)


def _of_exercises(master: Sequence[Cell]) -> Iterator[str]:
    stubs = [i for i, cell in enumerate(master) if "stub" in cell.tags]
    if sum("solution" in cell.tags for cell in master) != len(stubs):
        yield "every stub needs one solution, and every solution a stub"
        return
    if len(stubs) > MAX_EXERCISES:
        yield f"has {len(stubs)} exercises, more than {MAX_EXERCISES}"
    for i in stubs:
        heading, stub, following = master[i - 1].text, master[i].text, [cell.text for cell in master[i + 1 : i + 3]]
        name = next((node.name for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef)), "")
        if not EXERCISE.search(heading):
            yield f"the cell before the stub of {name!r} lacks a heading such as '### Exercise 1 ●○○ (3 minutes): ...'"
        if "raise NotImplementedError(" not in stub or "..." not in stub:
            yield f"the stub of {name!r} must have a ... and raise NotImplementedError"
        if "solution" not in master[i + 1].tags or len(following) < 2 or not following[1].endswith(f"lab.check.{name}({name})"):
            yield f"the stub of {name!r} must be followed by its solution and a cell that ends in lab.check.{name}({name})"


def of_copy(cells: Sequence[Cell]) -> Iterator[str]:
    """What is wrong with the cells of one copy: their number and size, words after figures, names that do not exist."""
    code = [cell for cell in cells if cell.kind == "code"]
    if not MIN_CELLS <= len(cells) <= MAX_CELLS:
        yield f"has {len(cells)} cells, not {MIN_CELLS} to {MAX_CELLS}"
    lines = sum(len(_code_lines(cell.text)) for cell in code)
    if lines > MAX_CODE:
        yield f"has {lines} lines of code, more than {MAX_CODE}"
    if (
        sum("live" in cell.tags for cell in code) > MAX_LIVE
        or sum(cell.text.count("FigureWidget(") for cell in code) > MAX_LIVE
    ):
        yield "has more than one live figure"
    for i, cell in enumerate(cells):
        where = f"cell {i + 1} ({cell.text.strip().splitlines()[0][:40]!r})" if cell.text.strip() else f"cell {i + 1}"
        if not cell.text.strip():
            yield f"{where} is empty"
        elif cell.kind == "markdown":
            if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"]+\")", cell.text):
                yield f"{where} has an image without alt text"
        else:
            if len(cell.text.splitlines()) > MAX_CELL:
                yield f"{where} has {len(cell.text.splitlines())} lines, more than {MAX_CELL}"
            shows = "lab.show(" in cell.text or {"figure", "live"} & set(cell.tags)
            if shows and (i + 1 == len(cells) or cells[i + 1].kind != "markdown"):
                yield f"{where} shows a figure that no sentence reads"
            yield from (f"{where}: {what}" for what in wrong_names(cell.text))


def _code_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def wrong_names(source: str) -> Iterator[str]:
    """Names of adadfq_lab in `source` that are private or do not exist; code that is no Python (a magic) is wrong too."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"is not Python: {error.msg}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("adadfq_lab") and (alias.name, alias.asname) != ("adadfq_lab", "lab"):
                    yield f"imports {alias.name}; notebooks say import adadfq_lab as lab"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adadfq_lab"):
            yield f"imports from {node.module}; notebooks say import adadfq_lab as lab"
        elif isinstance(node, ast.Attribute) and (path := _dotted(node))[:1] == ["lab"]:
            yield from _unknown(path[1:])


def _dotted(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    return [*_dotted(node.value), node.attr] if isinstance(node, ast.Attribute) and _dotted(node.value) else []


def _unknown(path: Sequence[str]) -> Iterator[str]:
    """The first name on the way lab.a.b that is no public name; beyond modules nothing is looked at."""
    if path[0] not in dir(adadfq_lab):
        yield f"lab.{path[0]} is no public name of adadfq_lab"
    elif len(path) > 1:
        value = getattr(adadfq_lab, path[0])
        if isinstance(value, ModuleType) and (path[1].startswith("_") or not _defines(value, path[1])):
            yield f"lab.{path[0]}.{path[1]} does not exist or is private"


def _defines(module: ModuleType, name: str) -> bool:
    return hasattr(import_module(module.__name__), name)


def of_file(path: Path) -> Iterator[str]:
    """What is wrong with a notebook file: its size, stored outputs, and whether its twin, read by jupytext, says the same."""
    import jupytext  # type: ignore[import-untyped]

    if path.stat().st_size > MAX_BYTES:
        yield f"is {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if "widgets" in notebook["metadata"]:
        yield "stores widget state"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if any(cell["outputs"] or cell["execution_count"] for cell in code):
        yield "stores outputs"
    twin = path.with_suffix(".py")
    if not twin.exists() or content(jupytext.read(path)) != content(jupytext.read(twin)):
        yield f"and {twin.name} differ"


def content(notebook: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, source, metadata) of each cell of a notebook as jupytext reads it: what a pair must share."""
    kept = ("tags", "jupyter", "cellView")  # jupytext adds how many blank lines the script had; that is no content
    return [
        (cell["cell_type"], cell["source"], {key: cell["metadata"][key] for key in kept if key in cell["metadata"]})
        for cell in notebook["cells"]
    ]


def leaks(master: Sequence[Cell], student: Sequence[Cell]) -> list[str]:
    """Lines of solutions, other than those that their stubs have too, that a student's copy contains anywhere."""
    given = {line.strip() for cell in student for line in cell.text.splitlines()}
    secret = []
    for stub, solution in pairwise(master):
        if "solution" in solution.tags:
            known = {line.strip() for line in stub.text.splitlines()}
            secret += [line.strip() for line in _code_lines(solution.text) if line.strip() not in known]
    return [line for line in secret if line in given and re.search(r"\w", line)]
