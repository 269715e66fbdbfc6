"""Every method by name: the eight of Table 2, two that go beyond it, the baselines, and those that a user registers."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adadfq_lsq import adadfq_lsq
from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.arc_ait import arc_ait
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.intraq import intraq
from adadfq_lab.methods.method import Method
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
"""The eight methods by name in lower case, in the order of the paper's Table 2; `register` adds one."""
BEYOND: dict[str, Callable[..., Method]] = {"adadfq+": adadfq_plus, "adadfq+lsq": adadfq_lsq}
"""Methods that are not in the paper, on the same quantizer."""
REFERENCES: dict[str, Callable[..., Method]] = {"real": real}
"""Baselines. They run like a method but are not one."""

FILES = "ADADFQ_METHODS"
"""Environment variable: Python files that call `register`, separated as in PATH. Each process that makes a method reads them,
including the processes that a table or a grid starts."""
_read: set[str] = set()
_only_here: set[str] = set()


def every_method() -> dict[str, Callable[..., Method]]:
    """All methods that `make_method` knows: METHODS, with those of FILES, BEYOND and REFERENCES."""
    for name in filter(None, os.environ.get(FILES, "").split(os.pathsep)):
        if name not in _read:
            _read.add(name)  # before it is run, because the file may make a method itself
            try:
                _read_file(Path(name))
            except UserError:
                _read.discard(name)
                raise
    return METHODS | BEYOND | REFERENCES


def _read_file(path: Path) -> None:
    """Runs the file `path`, which registers methods, as a module."""
    name = f"adadfq_methods.{path.stem}"
    before = set(_only_here)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError("it is not a Python file")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"{path}, which {FILES} names, cannot be loaded: {first_line(error)}") from error
    _only_here.intersection_update(before)


def known_elsewhere(name: str) -> bool:
    """Whether other processes can make the method `name`: it is shipped, or registered by a file that FILES names."""
    return _key(name) not in _only_here


def _key(name: str) -> str:
    """The key of a method: lower case, and "ARC+AIT" becomes "arc_ait"."""
    return re.sub(r"\+(?=\w)", "_", name.lower())


def register(name: str, make: Callable[..., Method]) -> None:
    """Adds the method `name` to this process, its command line and its checkpoints. For other processes see FILES."""
    METHODS[_key(name)] = make
    _only_here.add(_key(name))


def make_method(name: str, **settings: Any) -> Method:
    """Returns the method `name`, its defaults replaced by `settings`. Raises UserError for an unknown name or setting."""
    known = every_method()
    key = name.lower() if name.lower() in known else _key(name)
    if key not in known:
        raise UserError(f"no method is called {name!r}; choose from {', '.join(known)}")
    try:
        return known[key](**settings)
    except TypeError as error:
        own = known[key]().settings
        unknown = [setting for setting in settings if setting not in own]
        what = f"has no setting {unknown[0]!r}" if unknown else f"does not take these settings: {error}"
        raise UserError(f"{name} {what}; its own are {', '.join(own) or 'none'}") from None


def description(make: Callable[..., Method]) -> str:
    """What a method does, in one line: the first of its module's docstring or, if there is none, of its function's."""
    while isinstance(make, partial):
        make = make.func
    module = sys.modules.get(make.__module__)
    told = module.__doc__ if hasattr(module, "__file__") else ""  # a notebook is a module that IPython describes
    return (told or make.__doc__ or "no description").strip().split("\n")[0]
