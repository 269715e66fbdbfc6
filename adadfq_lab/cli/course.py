"""`adadfq course`: copy, build, check and badge the notebooks, mark what learners hand in; each action with a help page."""

import importlib.util
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from adadfq_lab.authoring.build import Built, set_badges, sources
from adadfq_lab.authoring.build import build as build_copies
from adadfq_lab.authoring.pages import FOLDER
from adadfq_lab.authoring.rules import problems
from adadfq_lab.authoring.workshop import copy_course
from adadfq_lab.cli.output import Json, say
from adadfq_lab.course import marking
from adadfq_lab.errors import UserError, printable
from adadfq_lab.machine.files import write_atomically


def _report(built: Built) -> None:
    """Print which files were written, saved, and left alone."""
    lines = [f"wrote {path.relative_to(FOLDER.parent)}" for path in built.written]
    lines += [f"the old file is {path.relative_to(FOLDER.parent)}" for path in built.saved]
    lines += [f"left {path.relative_to(FOLDER.parent)}, which was changed or run; --force replaces it" for path in built.left]
    print("\n".join(lines) or "nothing to do: all copies are current")


def copy(folder: tyro.conf.Positional[Path]) -> None:
    """Copy the course's notebooks, without solutions, into a folder of yours.

    A file that is there already, such as a notebook with answers, is left as it is.

    Args:
        folder: Folder for the notebooks; made if it does not exist.
    """
    written, left = copy_course(folder)
    lines = [f"files written to {folder}: {len(written)}"]
    if left:
        names = ", ".join(path.name for path in left)
        lines.append(f"left as they are, because yours differ: {names}; for fresh copies name another folder")
    start = shlex.quote(str(folder / "00_welcome.ipynb"))
    if importlib.util.find_spec("jupyterlab") is None:
        lines.append("the notebooks need JupyterLab and more: install adadfq-lab with the extra [notebooks]; then")
    print(printable("\n".join([*lines, f"start with: jupyter lab {start}"]), lines=True))


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


def mark(
    folder: tyro.conf.Positional[Path],
    csv: Path | None = None,
    out: Path | None = None,
    seconds: float = 10.0,
    megabytes: int = 1024,
    json: Json = False,
) -> None:
    """Mark what learners handed in: run every function again and print one table.

    Learners write a file with lab.hand_in("name"). Collect the files in a folder (subfolders are searched too), then:
    adadfq course mark handed_in --csv marks.csv

    This runs other people's code. Each function runs in a process of its own with limits of time and memory; it cannot write
    files, start programs or use the network (on Linux the kernel sees to that, elsewhere Python's audit hook), and the verdict
    is made outside it. It does run as you and can read what you can read; code of people you do not trust needs a container.

    Args:
        folder: Folder with the handed-in JSON files.
        csv: Also write a table for a spreadsheet: 1 or 0 for each exercise.
        out: Also write everything as JSON to this file, the words of each check included.
        seconds: Time limit for each function.
        megabytes: Memory limit for each function, beyond what the process begins with.
    """
    if not seconds > 0 or megabytes < 16:
        raise UserError("seconds must be above 0 and megabytes at least 16")
    print(marking.warning(), file=sys.stderr)
    everybody = marking.mark(folder, seconds=seconds, megabytes=megabytes, say=_progress)
    if csv is not None:
        write_atomically(csv, marking.as_csv(everybody).encode("utf-8-sig"))
    if out is not None:
        write_atomically(out, marking.as_json_text(everybody).encode())
    say(marking.as_json(everybody), marking.table(everybody), json)


def _progress(line: str) -> None:
    print(line, file=sys.stderr)


COMMANDS: dict[str, Callable[..., Any]] = {
    "copy": copy,
    "build": build,
    "check": check,
    "badges": badges,
    "mark": mark,
}


def course() -> None:
    """Copy the notebooks, make them, check them, link them to Colab, or mark what learners hand in."""
