"""The book: what pages keep of notebooks and guides; Sphinx itself is not run."""

import re
from pathlib import Path

import nbformat.v4 as nb
import pytest
import yaml

import adadfq_lab
from adadfq_lab.authoring import book
from adadfq_lab.authoring.build import FOLDER

ROOT = FOLDER.parent


def test_a_page_shows_figures_and_films_by_itself():
    """A plotly figure becomes a call of the script beside the pages, with its description; a widget what it left as HTML."""
    figure = {"data": [{"y": ["</script>"]}], "layout": {"height": 300, "width": 820, "meta": {"alt": 'a "line"'}}}
    view = {"model_id": "1"}
    outputs = [
        nb.new_output("display_data", data={book.PLOTLY: figure}),
        nb.new_output("display_data", data={book.WIDGET: view, "text/html": "<p>film</p>", "text/plain": "a widget"}),
        nb.new_output("display_data", data={book.WIDGET: view, "text/plain": "a widget"}),
    ]
    cell = nb.new_code_cell("x", outputs=outputs)
    made = book.portable(nb.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}}))
    shown = [output["data"] for output in made.cells[0].outputs]
    assert len(shown) == 2 and shown[1] == {"text/html": "<p>film</p>", "text/plain": "a widget"}
    html = shown[0]["text/html"]
    assert 'src="../_static/plotly.min.js"' in html and "820" not in html and "widgets" not in made.metadata
    assert html.count("</script>") == 2 and "http" not in html


def test_text_is_printed_with_low_indices_and_without_dead_links():
    """Code, mathematics and addresses stay as they are; a link to a file that the book lacks becomes its words."""
    text = "λ_l and `λ_l` and $x_i$ [here](00_a.ipynb) [there](../README.md) [out](https://a.b/c_d)"
    said = book.printed(text, Path("notebooks"), {"notebooks/00_a.ipynb"})
    assert said == "λ<sub>l</sub> and `λ_l` and $x_i$ [here](00_a.ipynb) there [out](https://a.b/c_d)"


def test_every_public_name_and_every_guide_has_its_place():
    """Names of `__init__.pyi` stand in the reference, or their module does; every guide in docs/ is in the book."""
    text = "\n".join(book.api_pages().values())
    listed = set(re.findall(r":: ([\w.]+)", text))
    pairs = re.findall(r"^from ([\w.]+) import (\w+) as", (ROOT / "adadfq_lab/__init__.pyi").read_text(), re.MULTILINE)
    assert pairs and all(f"{module}.{name}" in listed or module in listed for module, name in pairs)
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == set(book.GUIDES)
    assert all(hasattr(adadfq_lab, name) for _, name in pairs)


@pytest.mark.parametrize("name", ["book.yml", "ci.yml"])
def test_workflows_are_yaml_and_run_what_there_is(name):
    """Each `make` target that a workflow calls exists."""
    text = (ROOT / ".github/workflows" / name).read_text()
    assert yaml.safe_load(text)["jobs"]
    targets = re.findall(r"run: make ([\w-]+)", text)
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
