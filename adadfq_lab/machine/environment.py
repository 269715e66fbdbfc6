"""Where a notebook runs: versions, device, how live figures are drawn, and whether everything is to take seconds.

Three environment variables:

    ADADFQ_LAB_FAST=1                 fewer rounds, images and steps: for tests and for a first glance
    ADADFQ_LAB_WAIT=1                 live runs play to their end before the next cell: for notebooks executed without a page
    ADADFQ_LAB_LIVE=svg|widget|none   how a live figure is drawn; without it, see `live_backend`
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
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


def check_env() -> None:
    """Prints what runs here, in a few lines: versions, device, free GPU memory, live figures, fast mode."""
    import torch

    versions = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
    print(f"adadfq_lab {_version('adadfq-lab')} on Python {platform.python_version()}, {versions}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"device: {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    else:
        print(f"device: CPU, {torch.get_num_threads()} threads; every notebook is made for it, no GPU is needed")
    figures = {"svg": "redrawn images", "widget": "plotly figures", "none": "not drawn, only recorded"}[live_backend()]
    print(f"live runs: {figures}" + ("; fast mode: everything is cut short" if fast() else ""))


INSTALL = 'pip install "adadfq-lab[export]"'


def import_extra(name: str, install: str = INSTALL) -> ModuleType:
    """A package that this package does not need to be installed, but what was asked for does."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is missing; {install}") from None
