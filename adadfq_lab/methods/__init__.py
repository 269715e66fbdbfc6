"""Data-free quantization methods, each a small record of functions over the equations and the players."""

from collections.abc import Callable
from typing import Any

from adadfq_lab.errors import UserError
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.intraq import intraq
from adadfq_lab.methods.method import Method, Rates, Round, Terms
from adadfq_lab.methods.zaq import zaq

METHODS: dict[str, Callable[..., Method]] = {"gdfq": gdfq, "adasg": adasg, "adadfq": adadfq, "zaq": zaq, "intraq": intraq}
"""How to make each method, by name in lower case; add your own with `register`."""


def register(name: str, make: Callable[..., Method]) -> None:
    """Makes `make` available as `name`, on the command line and to checkpoints as well."""
    METHODS[name.lower()] = make


def make_method(name: str, **settings: Any) -> Method:
    """The method called `name`, with `settings` in place of its defaults; raises UserError for an unknown name or setting."""
    if name.lower() not in METHODS:
        raise UserError(f"no method is called {name!r}; choose from {', '.join(METHODS)}")
    try:
        return METHODS[name.lower()](**settings)
    except TypeError as error:
        raise UserError(f"{name} does not take these settings: {error}") from None


__all__ = [
    "METHODS",
    "Method",
    "Rates",
    "Round",
    "Terms",
    "adadfq",
    "adasg",
    "gdfq",
    "intraq",
    "make_method",
    "register",
    "zaq",
]
