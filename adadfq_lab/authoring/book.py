"""The book: the solution notebooks, executed, with the guides and the API, as pages that need no kernel and no network.

`make book` writes build/book/html. Notebooks are executed with ADADFQ_LAB_WAIT=1, so that live runs play to their end and
controls show films. `--fast` executes them in fast mode, `--only 06` some of them, `--execute no` none: the others show what an
earlier build left in build/book/executed, or no outputs.

Of each output the book keeps what a page can show: plotly figures become a call of plotly's script, which lies beside the
pages, and widgets become the picture or film that they leave for pages without a kernel.
"""

import argparse
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import adadfq_lab
from adadfq_lab.authoring.build import Notebook, read, sources
from adadfq_lab.authoring.pages import FOLDER, PAGES
from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.views.axes import INDEXED

ROOT = FOLDER.parent
INSTALL = 'install it: pip install ".[notebooks,book]"'
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
GUIDES = (
    "install", "bring_your_own_model", "supported_networks", "full_training", "many_machines", "add_a_method",
    "paper_and_code", "results", "what_limits_the_student", "architecture", "api", "glossary", "troubleshooting", "log",
)  # fmt: skip
ROOMS = {
    "equations": "The equations", "theory": "The theory", "fidelity": "Where paper and code differ", "data": "Data",
    "teacher": "The teacher P", "student": "The student Q", "methods": "Methods", "game": "The game", "integers": "Integers",
    "views": "Figures and widgets", "runs": "Runs", "studies": "Tables", "course": "Exercises", "machine": "The machine",
    "errors": "Errors",
}  # fmt: skip
_LINK = re.compile(r"\[([^\]]+)\]\(((?!https?:|#)[^)#\s]+)(#[^)]*)?\)")
_AS_IT_IS = re.compile(r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|<[^>]*>)", re.DOTALL)
"""Code, mathematics, addresses and tags in Markdown."""


# Notebooks


def executed(path: Path, kept: Path, *, fast: bool, execute: bool) -> Notebook:
    """The notebook at `path` with outputs: from `kept` if it was executed with the same cells, else executed now."""
    notebook = read(path)
    cells = json.dumps([fast, [cell.source for cell in notebook.cells if cell.cell_type == "code"]])
    name = f"{path.stem}-{hashlib.sha256(cells.encode()).hexdigest()[:12]}.ipynb"
    if (kept / name).exists():
        return read(kept / name)
    if not execute:
        return notebook
    print(f"executing {path.stem}", flush=True)
    os.environ |= {"ADADFQ_LAB_WAIT": "1", "ADADFQ_LAB_FAST": "1" if fast else "", "PLOTLY_RENDERER": "plotly_mimetype"}
    place = kept / "run"
    place.mkdir(parents=True, exist_ok=True)  # my_answers.json is written here
    client = import_extra("nbclient", INSTALL).NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    write_atomically(kept / name, import_module("nbformat").writes(notebook).encode())
    return notebook


def portable(notebook: Notebook) -> Notebook:
    """`notebook` with outputs that a page shows by itself."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("jupytext", None)
    number = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("*Solution copy.*\n\n", "").replace("](index.md)", "](../index.md)")
            continue
        tags = cell.metadata.get("tags", [])
        if {"setup", "solution"} & set(tags):
            cell.metadata["tags"] = [*tags, "hide-input"]
        outputs = []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if PLOTLY in data:
                number += 1
                data["text/html"] = plotly_html(data.pop(PLOTLY), number)
            if WIDGET in data:
                del data[WIDGET]
                if "text/html" not in data:
                    continue
            outputs.append(output)
        cell["outputs"] = outputs
    return notebook


def plotly_html(figure: dict[str, Any], number: int) -> str:
    """A plotly figure as HTML, drawn by the script that lies beside the pages."""
    layout = figure["layout"]
    height = layout.get("height", 400)
    layout = {key: value for key, value in layout.items() if key != "width"}
    content = json.dumps([figure["data"], layout]).replace("</", "<\\/")
    words = layout.get("meta", {}).get("alt", "") if isinstance(layout.get("meta"), dict) else ""
    script = '<script src="../_static/plotly.min.js"></script>' if number == 1 else ""
    label = json.dumps(words).replace("<", "&lt;").replace("'", "&#39;")
    return (
        f"{script}<div id='figure-{number}' role='img' aria-label={label} style='height:{height}px'></div>"
        f"<script>(([d, l]) => Plotly.newPlot('figure-{number}', d, l, {{responsive: true, displayModeBar: false}}))"
        f"({content});</script>"
    )


# Pages


def printed(text: str, folder: Path, pages: set[str]) -> str:
    """Markdown as the book has it: λ_l with its index low, and links to files that the book does not have as plain words.

    folder: where its page lies, from the top
    """

    def replaced(found: re.Match[str]) -> str:
        target = os.path.normpath(folder / found[2])
        return found[0] if target in pages else found[1]

    parts = _AS_IT_IS.split(_LINK.sub(replaced, text))
    return "".join(part if i % 2 else INDEXED.sub(r"\1<sub>\2</sub>", part) for i, part in enumerate(parts))


def api_pages() -> dict[str, str]:
    """A page for each room of the package, with its public names from `__init__.pyi`."""
    names: dict[str, list[str]] = {room: [] for room in ROOMS}
    text = (Path(adadfq_lab.__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
    found = re.findall(r"^from (adadfq_lab[\w.]*) import (\w+) as \w+$", text, re.MULTILINE)
    modules = {f"{module}.{name}" for module, name in found}
    for module, name in found:
        if module in modules:
            continue  # its module has a place of its own, with all its members
        room = (module.split(".")[1:] or [name])[0]
        value = getattr(import_module(module), name, None) or import_module(f"{module}.{name}")
        kind = "automodule" if inspect.ismodule(value) else "autoclass" if inspect.isclass(value) else "autofunction"
        if kind == "autofunction" and not callable(value):
            kind = "autodata"
        members = "\n   :members:" if kind in ("automodule", "autoclass") and name != "check" else ""
        names[room].append(f".. {kind}:: {module}.{name}{members}\n")
    return {
        room: f"# {ROOMS[room]}\n\n```{{eval-rst}}\n" + "\n".join(entries) + "```\n"
        for room, entries in names.items()
        if entries
    }


def write_source(folder: Path, notebooks: dict[str, Notebook]) -> None:
    """Sphinx's source folder: notebooks, guides, API, and a first page that lists them."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("_static", "notebooks", "docs", "api"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "book" / "conf.py", folder)
    shutil.copy(ROOT / "docs" / "book" / "book.css", folder / "_static")
    write_atomically(folder / "_static" / "plotly.min.js", import_module("plotly.offline").get_plotlyjs().encode())
    guides = [name for name in GUIDES if (ROOT / "docs" / f"{name}.md").exists()]
    api = api_pages()
    pages = {f"docs/{name}.md" for name in guides} | {f"notebooks/{name}.ipynb" for name in notebooks}
    pages |= {"notebooks/instructor_guide.md", "index.md"}
    for name, notebook in notebooks.items():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = printed(cell.source, Path("notebooks"), pages)
        write_atomically(folder / "notebooks" / f"{name}.ipynb", import_module("nbformat").writes(notebook).encode())
    guide = (FOLDER / "instructor_guide.md").read_text(encoding="utf-8").replace("](index.md)", "](../index.md)")
    write_atomically(folder / "notebooks" / "instructor_guide.md", printed(guide, Path("notebooks"), pages).encode())
    for name in guides:
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        write_atomically(folder / "docs" / f"{name}.md", printed(text, Path("docs"), pages).encode())
    for room, text in api.items():
        write_atomically(folder / "api" / f"{room}.md", text.encode())
    write_atomically(folder / "index.md", printed(first_page(list(notebooks), guides, list(api)), Path(), pages).encode())


def first_page(notebooks: Sequence[str], guides: Sequence[str], api: Sequence[str]) -> str:
    """What the book is, and its contents."""

    def tree(caption: str, entries: Sequence[str]) -> str:
        return f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"

    rows = [f"| {name[:2]} | [{title}](notebooks/{name}.ipynb) | {what} |" for name, title, what in PAGES if name in notebooks]
    return (
        "# AdaDFQ, interactively\n\n"
        "Adaptive Data-Free Quantization (CVPR 2023), as a game between a teacher P, a generator G and a student Q, in eleven\n"
        "notebooks. These pages are the solution copies, executed. To drag λ_l and λ_u under a live game, and to have your\n"
        "own answers checked, run the notebooks: [installation](docs/install.md).\n\n"
        "| | notebook | what you do |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        + tree("The course", [*(f"notebooks/{name}" for name in notebooks), "notebooks/instructor_guide"])
        + tree("Guides", [f"docs/{name}" for name in guides])
        + tree("Reference", [f"api/{room}" for room in api])
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Executes what has to be, writes the source folder and runs Sphinx."""
    parser = argparse.ArgumentParser(
        prog="python -m adadfq_lab.authoring.book", description="Build the book into build/book/html."
    )
    parser.add_argument("--fast", action="store_true", help="execute in fast mode: pictures of short runs, in a minute or two")
    parser.add_argument("--only", nargs="*", default=[], help="numbers of the notebooks to execute; all if not given")
    parser.add_argument("--execute", choices=("yes", "no"), default="yes", help="no: execute nothing")
    chosen = parser.parse_args(arguments)
    for package in ("sphinx", "myst_nb", "furo"):
        import_extra(package, INSTALL)
    place = ROOT / "build" / "book"
    notebooks = {}
    for path in sources():
        execute = chosen.execute == "yes" and (not chosen.only or path.stem[:2] in chosen.only)
        notebooks[path.stem] = portable(executed(path, place / "executed", fast=chosen.fast, execute=execute))
    write_source(place / "source", notebooks)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(place / "source"), str(place / "html")]
    if subprocess.run(command).returncode:
        raise UserError("Sphinx could not build the book; its messages stand above")
    print(f"{place / 'html' / 'index.html'}; to read it: python -m http.server -d {place / 'html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
