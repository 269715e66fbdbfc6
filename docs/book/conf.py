"""Sphinx configuration of the book: everything it shows is in the pages, nothing is fetched by the build or by the reader."""

import re

project = "adadfq_lab"
author = "adadfq_lab authors"
project_copyright = "adadfq_lab authors, MIT"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
html_theme = "furo"
html_title = "AdaDFQ, interactively"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sourcelink = False
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # authoring/book.py executes them
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "text/html", 0)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
maximum_signature_line_length = 88
add_module_names = False

FIELD = re.compile(r"([\w.<>*]+(?:, [\w.<>*]+)*):\s+(\S.*)")


def as_rst(lines: list[str]) -> list[str]:
    """A plain docstring as reStructuredText: indented lines stay, `name:  words` become fields."""
    made: list[str] = []
    fields = False
    for line in lines:
        found = FIELD.fullmatch(line)
        if not line.strip():
            made.append("")
            fields = False
        elif line.startswith(" ") and not fields:
            made.append("| ``" + line.strip().replace("`", "'") + "``")
        elif line.startswith(" "):
            made.append("    " + escaped(line.strip()))
        elif found:
            made += [] if fields or not made or not made[-1] else [""]
            made.append(f":{found[1].replace('*', '')}: {escaped(found[2])}")
            fields = True
        else:
            made += [""] if fields else []
            made.append(escaped(line))
            fields = False
    return made


def escaped(text: str) -> str:
    """`text` with single backquotes as code and nothing else that reStructuredText reads as markup."""
    parts = re.split(r"`([^`]+)`", text.replace("``", "`"))
    return "".join(f"``{part.strip()}``\\ " if i % 2 else re.sub(r"([*_|\\`])", r"\\\1", part) for i, part in enumerate(parts))


def setup(app):
    def docstring(app, what, name, obj, options, lines):
        lines[:] = [] if lines[:1] and lines[0].startswith("Alias for field number") else as_rst(lines)

    app.connect("autodoc-process-docstring", docstring)
