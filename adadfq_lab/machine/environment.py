"""Where a notebook runs: versions, device, how live figures are drawn, and whether it is cut short to take seconds.

Three environment variables:

    ADADFQ_LAB_FAST=1                 fewer rounds, images and steps: for tests and for a first glance
    ADADFQ_LAB_WAIT=1                 live runs play to their end before the next cell: for notebooks executed without a page
    ADADFQ_LAB_LIVE=svg|widget|none   how a live figure is drawn; without it, see `live_backend`
"""

import os
import platform
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

from adadfq_lab.errors import UserError

Backend = Literal["widget", "svg", "none"]


BACKENDS: tuple[Backend, ...] = ("svg", "widget", "none")


SHOWN = ("torch", "plotly", "ipywidgets", "ipykernel")


def fast() -> bool:
    """Whether ADADFQ_LAB_FAST asks for seconds instead of minutes; "", "0" and "false" do not."""
    return _asked("ADADFQ_LAB_FAST")


def waits() -> bool:
    """Whether ADADFQ_LAB_WAIT asks live runs to play to their end before the next cell runs."""
    return _asked("ADADFQ_LAB_WAIT")


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false")


def in_kernel() -> bool:
    """Whether a Jupyter kernel runs this code: then there is, or may be, a front end that draws widgets."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def live_backend() -> Backend:
    """How a live figure is drawn: ADADFQ_LAB_LIVE if set; else "svg" in a kernel and "none" without one.

    Raises UserError if ADADFQ_LAB_LIVE is not one of the three.
    """
    wanted = os.environ.get("ADADFQ_LAB_LIVE", "")
    if wanted and wanted not in BACKENDS:
        raise UserError(f"ADADFQ_LAB_LIVE is {wanted!r}; set it to {', '.join(BACKENDS)}, or unset it")
    for known in BACKENDS:
        if wanted == known:
            return known
    return "svg" if in_kernel() else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hiding(folder: Path) -> list[Path]:
    """Files and packages in `folder` that hide a module of the standard library or of an installed package."""
    folder = folder.resolve()
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() != folder]
    found = []
    for path in sorted([*folder.glob("*.py"), *(one.parent for one in folder.glob("*/__init__.py"))]):
        spec = PathFinder.find_spec(path.stem, elsewhere)
        installed = spec is not None and spec.loader is not None and path.stem != "adadfq_lab"
        if path.stem in sys.stdlib_module_names or installed:
            found.append(path)
    return found


def check_env() -> None:
    """Print what runs here, in a few lines: versions, device, free GPU memory, live figures, fast mode.

    Also has the process keep freed memory for the next round, see `memory.keep_freed_memory`.

    Raises UserError if this kernel lacks torch or plotly, or if a file beside the notebook hides a module, such as `torch.py`.
    """
    if {"", os.getcwd()} & set(sys.path) and (hidden := hiding(Path.cwd())):
        raise UserError(f"{hidden[0]} hides the module {hidden[0].stem}; rename it and restart the kernel")
    if absent := [name for name in ("torch", "plotly") if find_spec(name) is None]:
        raise UserError(f"{sys.executable} lacks {' and '.join(absent)}; choose the kernel that has adadfq_lab's packages")
    import torch  # not at the top: a `torch.py` beside the notebook would be imported before it is named

    from adadfq_lab.machine.memory import keep_freed_memory  # imports torch, which this module's other functions do without

    keep_freed_memory()

    versions = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
    print(f"adadfq_lab {_version('adadfq-lab')} on Python {platform.python_version()}, {versions}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"device: {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    else:
        print(f"device: CPU, {torch.get_num_threads()} threads; every notebook is made for it, no GPU is needed")
    figures = {"svg": "redrawn images", "widget": "plotly figures", "none": "not drawn, only recorded"}[live_backend()]
    print(f"live runs: {figures}" + ("; fast mode: everything is cut short" if fast() else ""))


INSTALL = 'pip install ".[export]"'
NOTEBOOKS = 'pip install ".[notebooks]"'


def import_extra(name: str, install: str = INSTALL) -> ModuleType:
    """An optional package. Raises UserError with the command that installs it if it is missing."""
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is missing; {install}") from None
