"""What every notebook of the course must be, checked: `adadfq course check`.

The limits come from comparing courses: 35 to 50 cells, at most 250 lines of code, 25 a cell, four graded exercises, one live
figure, 200 kB. The other rules prevent drift: generated copies follow from their source, no output is stored, notebooks use
public names that exist, no solution line is in a student's copy, and text follows every figure.
"""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module, resources
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import adadfq_lab
from adadfq_lab.authoring.build import NOTE, TAGS, Cell, Notebook, outdated, read, sources, students_copy, tags
from adadfq_lab.authoring.pages import FOLDER, GENERATED
from adadfq_lab.machine.environment import hiding

MIN_CELLS, MAX_CELLS = 35, 50
MAX_CODE, MAX_CELL, MAX_BYTES = 250, 25, 200_000
MAX_EXERCISES, MAX_LIVE, QUESTIONS = 4, 1, 3
TITLE_PARTS = ("**Objectives", "**Prerequisites", "**Minutes", "| symbol |")
ENDING = "## What you can now do"
EXERCISE = re.compile(r"^### Exercise \d [●○]{3} \(\d+ minutes?\): \S", re.MULTILINE)


def problems(folder: Path = FOLDER) -> tuple[list[str], list[str]]:
    """What is wrong with the course, and which copies a person changed or ran: a sentence each. A copy in use is no fault."""
    stale, used = outdated(folder)
    found = [f"{path.relative_to(folder)} does not follow from its source; run adadfq course build" for path in stale]
    notes = [f"{path.relative_to(folder)} was changed or run; adadfq course build leaves it as it is" for path in used]
    found += [f"{path.relative_to(folder.resolve())} hides the module {path.stem}; rename it" for path in hiding(folder)]
    known = {path.stem for path in sources(folder)}
    strays = {path.relative_to(folder) for path in folder.glob("**/[0-9][0-9]_*.*") if path.parent.name != "backup"}
    found += [f"{path} has no source" for path in sorted(strays) if path.suffix in (".ipynb", ".py") and path.stem not in known]
    if (guide := folder / "instructor_guide.md").exists():
        found += [f"{guide.name}: {what}" for what in of_guide(guide.read_text(encoding="utf-8"), folder)]
    setups: set[str] = set()
    for path in sources(folder):
        source, name = read(path), path.stem
        found += [f"{name}: {what}" for what in of_source(source, name)]
        setups.update(re.sub(r"(?m)^NEEDS = .*$", "", cell.source) for cell in source.cells if "setup" in tags(cell))
        student = students_copy(source, name).cells
        for copy, cells in (("solution", source.cells), ("student", student)):
            found += [f"{name} ({copy}): {what}" for what in of_copy(cells)]
        found += [f"{name} (student): contains the solution's line {line!r}" for line in leaks(source.cells, student)]
        if (notebook := path.with_suffix(".ipynb")).exists() and notebook.stat().st_size > MAX_BYTES:
            found.append(f"{name}: is {notebook.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    if len(setups) > 1:
        found.append("the setup cells differ in more than NEEDS; adadfq course badges writes the same SOURCE into all of them")
    return found, notes


def of_guide(text: str, folder: Path) -> Iterator[str]:
    """What the instructor's guide lacks: a mark around a generated part, talking points of a notebook, a file it links to."""
    yield from (f"lacks the mark {mark}" for pair in GENERATED for mark in pair if text.count(mark) != 1)
    points = text.partition("## Talking points")[2].partition("\n## ")[0]
    yield from (f"has no talking points for {path.stem}" for path in sources(folder) if f"\n**{path.stem[:2]} " not in points)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    yield from (f"links to {link}, which is not there" for link in links if not (folder / link).exists())


def of_source(source: Notebook, name: str) -> Iterator[str]:
    """What is wrong with the structure of a source: tags, title, exercises, quiz, ending."""
    cells = source.cells
    unknown = sorted({tag for cell in cells for tag in tags(cell)} - TAGS)
    if unknown:
        yield f"has unknown tags ({', '.join(unknown)}); the course's tags are {', '.join(sorted(TAGS))}"
    if not cells or tags(cells[0]) != ["title"] or [tags(cell) for cell in cells].count(["setup"]) != 1:
        yield "must begin with a title cell and have one setup cell"
        return
    texts = [cell.source for cell in cells]
    if not texts[0].startswith(f"# {name[:2]} · ") or texts[0].count(f"\n\n{NOTE}") != 1:
        yield f"its title must begin '# {name[:2]} · ', followed by a line {NOTE!r}"
    yield from (f"its title cell lacks {part!r}" for part in TITLE_PARTS if part not in texts[0])
    if not (cells[-1].cell_type == "markdown" and texts[-1].startswith(ENDING)):
        yield f"its last cell must be {ENDING!r}"
    if sum(text.strip() == f'lab.quiz("{name[:2]}")' for text in texts) != 1:
        yield f'must have one cell lab.quiz("{name[:2]}")'
    questions = resources.files("adadfq_lab") / "course" / "quiz_questions" / f"{name[:2]}.json"
    if not questions.is_file() or len(json.loads(questions.read_text(encoding="utf-8"))) != QUESTIONS:
        yield f"its quiz needs {QUESTIONS} questions"
    yield from _of_exercises(cells)


def _of_exercises(cells: Sequence[Cell]) -> Iterator[str]:
    stubs = [i for i, cell in enumerate(cells) if "stub" in tags(cell)]
    if sum("solution" in tags(cell) for cell in cells) != len(stubs):
        yield "every stub needs one solution, and every solution a stub"
        return
    if len(stubs) > MAX_EXERCISES:
        yield f"has {len(stubs)} exercises, more than {MAX_EXERCISES}"
    for i in stubs:
        heading, stub, following = cells[i - 1].source, cells[i].source, [cell.source for cell in cells[i + 1 : i + 3]]
        name = next((node.name for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef)), "")
        if not EXERCISE.search(heading):
            yield f"the cell before the stub of {name!r} lacks a heading such as '### Exercise 1 ●○○ (3 minutes): ...'"
        if "raise NotImplementedError(" not in stub or "..." not in stub:
            yield f"the stub of {name!r} must have a ... and raise NotImplementedError"
        if following and not (following[0].startswith("# @title Solution\n") and cells[i + 1].metadata.get("jupyter")):
            yield f"the solution of {name!r} must begin with '# @title Solution' and be folded, as the others are"
        if "solution" not in tags(cells[i + 1]) or len(following) < 2 or not following[1].endswith(f"lab.check.{name}({name})"):
            yield f"the stub of {name!r} must be followed by its solution and a cell that ends in lab.check.{name}({name})"


def of_copy(cells: Sequence[Cell]) -> Iterator[str]:
    """What is wrong with the cells of one copy: their number and size, words after figures, names that do not exist."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    if not MIN_CELLS <= len(cells) <= MAX_CELLS:
        yield f"has {len(cells)} cells, not {MIN_CELLS} to {MAX_CELLS}"
    lines = sum(len(_code_lines(cell.source)) for cell in code)
    if lines > MAX_CODE:
        yield f"has {lines} lines of code, more than {MAX_CODE}"
    if (
        sum("live" in tags(cell) for cell in code) > MAX_LIVE
        or sum(cell.source.count("FigureWidget(") for cell in code) > MAX_LIVE
    ):
        yield "has more than one live figure"
    for i, cell in enumerate(cells):
        where = f"cell {i + 1} ({cell.source.strip().splitlines()[0][:40]!r})" if cell.source.strip() else f"cell {i + 1}"
        if not cell.source.strip():
            yield f"{where} is empty"
        elif cell.cell_type == "markdown":
            if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"]+\")", cell.source):
                yield f"{where} has an image without alt text"
        else:
            if len(cell.source.splitlines()) > MAX_CELL:
                yield f"{where} has {len(cell.source.splitlines())} lines, more than {MAX_CELL}"
            shows = "lab.show(" in cell.source or {"figure", "live"} & set(tags(cell))
            if shows and (i + 1 == len(cells) or cells[i + 1].cell_type != "markdown"):
                yield f"{where} shows a figure that no sentence reads"
            yield from (f"{where}: {what}" for what in wrong_names(cell.source))


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


def leaks(cells: Sequence[Cell], student: Sequence[Cell]) -> list[str]:
    """Lines of solutions, other than those that their stubs have too, that a student's copy contains anywhere."""
    given = {line.strip() for cell in student for line in cell.source.splitlines()}
    secret = []
    for stub, solution in pairwise(cells):
        if "solution" in tags(solution):
            known = {line.strip() for line in stub.source.splitlines()}
            secret += [line.strip() for line in _code_lines(solution.source) if line.strip() not in known]
    return [line for line in secret if line in given and re.search(r"\w", line)]
