"""Adaptive Data-Free Quantization, interactively: a teacher P, a generator G, a student Q, and the game they play.

    import adadfq_lab as lab

    P = lab.load_teacher("fashion_mnist_resnet20")
    Q = lab.quantize(P, "3w3a")
    for record in lab.Game(P, Q, lab.adadfq(), seed=0).play(100):
        print(record.index, record.h_prime.mean())

The public names are the imports of `__init__.pyi`, beside this file, which editors and type checkers read. Each is imported
when it is first used, so that `import adadfq_lab` is immediate.
"""

import ast
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adadfq_lab import _moved

_HOME = {
    alias.asname or alias.name: (node.module or "", alias.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""Public name: the module or package that has it, and its name there."""

_moved.install()

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("adadfq-lab")
    if name not in _HOME:
        raise AttributeError(f"adadfq_lab has no public name {name!r}")
    home, original = _HOME[name]
    owner = import_module(home) if home != __name__ else None
    value = getattr(owner, original) if hasattr(owner, original) else import_module(f"{home}.{original}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
