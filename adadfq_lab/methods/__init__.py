"""Data-free quantization methods, each a small record of functions over the equations and the players."""

import re
from collections.abc import Callable
from typing import Any

from adadfq_lab.errors import UserError
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adadfq_lsq import adadfq_lsq
from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.arc_ait import arc_ait
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.intraq import intraq
from adadfq_lab.methods.method import Method, Rates, Round, Terms
from adadfq_lab.methods.qimera import qimera
from adadfq_lab.methods.real import real
from adadfq_lab.methods.zaq import zaq

METHODS: dict[str, Callable[..., Method]] = {
    "zaq": zaq,
    "intraq": intraq,
    "arc_ait": arc_ait,
    "gdfq": gdfq,
    "arc": arc,
    "qimera": qimera,
    "adasg": adasg,
    "adadfq": adadfq,
}
"""How to make each method, by name in lower case, in the order of the paper's Table 2; add your own with `register`."""
BEYOND: dict[str, Callable[..., Method]] = {"adadfq+": adadfq_plus, "adadfq+lsq": adadfq_lsq}
"""What goes beyond the paper, on the same quantizer; in tables a row apart."""
REFERENCES: dict[str, Callable[..., Method]] = {"real": real}
"""What methods are measured against, by name: runs like a method, but is none."""


def every_method() -> dict[str, Callable[..., Method]]:
    """METHODS, BEYOND and REFERENCES: what `make_method` knows."""
    return METHODS | BEYOND | REFERENCES


def _key(name: str) -> str:
    """The paper's ARC+AIT is arc_ait."""
    return re.sub(r"\+(?=\w)", "_", name.lower())


def register(name: str, make: Callable[..., Method]) -> None:
    """Makes `make` available as `name`, on the command line and to checkpoints as well."""
    METHODS[_key(name)] = make


def make_method(name: str, **settings: Any) -> Method:
    """The method called `name`, with `settings` in place of its defaults; raises UserError for an unknown name or setting."""
    known = every_method()
    key = name.lower() if name.lower() in known else _key(name)
    if key not in known:
        raise UserError(f"no method is called {name!r}; choose from {', '.join(known)}")
    try:
        return known[key](**settings)
    except TypeError as error:
        raise UserError(f"{name} does not take these settings: {error}") from None


__all__ = [
    "BEYOND",
    "METHODS",
    "REFERENCES",
    "Method",
    "Rates",
    "Round",
    "Terms",
    "adadfq",
    "adadfq_lsq",
    "adadfq_plus",
    "adasg",
    "arc",
    "arc_ait",
    "every_method",
    "gdfq",
    "intraq",
    "make_method",
    "qimera",
    "real",
    "register",
    "zaq",
]
