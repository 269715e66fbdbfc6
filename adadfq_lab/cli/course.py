"""`adadfq course`: build, check and badge the notebooks. Each action is a command with a help page of its own."""

from collections.abc import Callable
from typing import Any

import tyro

from adadfq_lab.authoring.build import Built, set_badges, sources
from adadfq_lab.authoring.build import build as build_copies
from adadfq_lab.authoring.pages import FOLDER
from adadfq_lab.authoring.rules import problems


def _report(built: Built) -> None:
    """Print which files were written, saved, and left alone."""
    lines = [f"wrote {path.relative_to(FOLDER.parent)}" for path in built.written]
    lines += [f"the old file is {path.relative_to(FOLDER.parent)}" for path in built.saved]
    lines += [f"left {path.relative_to(FOLDER.parent)}, which was changed or run; --force replaces it" for path in built.left]
    print("\n".join(lines) or "nothing to do: all copies are current")


def build(force: bool = False) -> None:
    """Make the notebooks again from notebooks/solutions/*.py and say which files changed.

    A copy that a person changed or ran, such as a notebook with answers, is left as it is.

    Args:
        force: Replace such copies too, after saving each one in a folder `backup` beside it.
    """
    _report(build_copies(force=force))


def check() -> None:
    """Check all notebooks against the rules of the course and print what is wrong, one line each.

    Exit status 1 if anything is wrong. A copy that a person changed or ran is mentioned and is not a fault.
    """
    found, notes = problems()
    print("\n".join([*notes, *found] or [f"{len(sources())} notebooks, no problems"]))
    if found:
        raise SystemExit(1)


def badges(target: tyro.conf.Positional[str]) -> None:
    """Write the links "Open this notebook in Colab", and what Colab installs, for a repository on GitHub; then build.

    For example: adadfq course badges octocat/adadfq_lab@v0.1.0

    Args:
        target: OWNER/REPO@TAG, or none to remove the links.
    """
    _report(set_badges(target))


COMMANDS: dict[str, Callable[..., Any]] = {"build": build, "check": check, "badges": badges}


def course() -> None:
    """Make the notebooks, check them, or link them to Colab: course build, course check, course badges."""
