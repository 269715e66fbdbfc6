"""What commands there are, and a line about each, read without importing any of them."""

import ast
from pathlib import Path

DESCRIPTION = "Adaptive data-free quantization: a teacher, a generator, a student, and the game they play."
COMMANDS = {
    "demo": "runs.demo",
    "quantize": "own.quantize",
    "train": "runs.train",
    "recipes": "runs.recipes",
    "report": "runs.report",
    "watch": "runs.watch",
    "evaluate": "runs.evaluate",
    "train-teacher": "runs.train_teacher",
    "export": "integers.export",
    "verify": "integers.verify",
    "table": "studies.table",
    "grid": "studies.grid",
    "evidence": "studies.evidence",
    "methods": "studies.methods",
    "fidelity": "studies.fidelity",
    "bench": "studies.bench",
    "drop-curve": "studies.drop_curve",
    "course": "course.course",
}
"""Each command: the module of this folder and the function that it calls."""


def summary(function: str) -> str:
    """The first line of a command's docstring, read without importing its module."""
    module, _, name = function.partition(".")
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(found) or "").split("\n")[0]
