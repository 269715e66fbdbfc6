"""Where the package looks for files: the ones it ships, and what it has downloaded."""

import os
from importlib import resources
from pathlib import Path


def stub_path(name: str) -> Path:
    """The shipped file `name` of `data_stubs/`, from a wheel, an editable install or a checkout."""
    return _shipped("data_stubs", name)


def notebooks_folder() -> Path:
    """The shipped folder `notebooks/`; in a wheel it holds the students' copies only."""
    return _shipped("notebooks")


def _shipped(*parts: str) -> Path:
    packaged = Path(str(resources.files("adadfq_lab"))).joinpath(*parts)
    return packaged if packaged.exists() else Path(__file__).parents[2].joinpath(*parts)


def cache_folder() -> Path:
    """Where downloads are kept: `adadfq_lab` in the folder that XDG_CACHE_HOME names, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adadfq_lab"
