"""Where a notebook runs: versions, device, how live figures are drawn, and whether everything is to take seconds.

Two environment variables decide what is not obvious:

    ADADFQ_LAB_FAST=1                 fewer rounds, images and steps: for tests and for a first glance
    ADADFQ_LAB_LIVE=widget|svg|none   how a live figure is drawn; without it, see `live_backend`
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from adadfq_lab.errors import UserError

Backend = Literal["widget", "svg", "none"]


BACKENDS: tuple[Backend, ...] = ("widget", "svg", "none")


SHOWN = ("torch", "plotly", "ipywidgets", "ipykernel")


def fast() -> bool:
    """Whether ADADFQ_LAB_FAST asks for seconds instead of minutes; "", "0" and "false" do not."""
    return os.environ.get("ADADFQ_LAB_FAST", "").lower() not in ("", "0", "false")


def on_colab() -> bool:
    """Whether this is Google Colab, found out without importing anything of Colab's."""
    return "google.colab" in sys.modules or "COLAB_NOTEBOOK_ID" in os.environ


def in_kernel() -> bool:
    """Whether a Jupyter kernel runs this code: then there is, or may be, a front end that draws widgets."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def live_backend() -> Backend:
    """How a live figure is drawn: ADADFQ_LAB_LIVE if set; "svg" on Colab; "widget" in a kernel with anywidget; else "none".

    Raises UserError where ADADFQ_LAB_LIVE is none of the three.
    """
    wanted = os.environ.get("ADADFQ_LAB_LIVE", "")
    if wanted:
        if wanted not in BACKENDS:
            raise UserError(f"ADADFQ_LAB_LIVE is {wanted!r}; set it to {', '.join(BACKENDS)}, or unset it")
        return wanted
    if on_colab():
        return "svg"
    if not in_kernel():
        return "none"
    return "widget" if find_spec("ipywidgets") and find_spec("anywidget") else "svg"


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
    figures = {"widget": "interactive figures", "svg": "redrawn images", "none": "not drawn, only recorded"}[live_backend()]
    print(f"live runs: {figures}" + ("; fast mode: everything is cut short" if fast() else ""))


INSTALL = 'pip install "adadfq-lab[export]"'


def import_extra(name: str, install: str = INSTALL) -> ModuleType:
    """A package that this package does not need to be installed, but what was asked for does."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is missing; {install}") from None
