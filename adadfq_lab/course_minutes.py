"""What a class costs: seconds and memory of every solution notebook, executed in a kernel of its own, one after the other.

`python -m adadfq_lab.course_minutes` executes all of them, in full and in fast mode, and writes `notebooks/minutes.json`, from
which the table in the instructor's guide is built. On a quiet machine: it measures wall-clock time. A live run counts to its
end, though its cell returns at once.
"""

import json
import os
import platform
import re
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adadfq_lab.course import FOLDER, masters
from adadfq_lab.files import write_atomically

WAIT = "if 'run' in globals():\n    run.wait()"
FIGURES = {"application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"}


@dataclass(frozen=True)
class Cost:
    """Of one notebook, from the kernel's start. Memory in MB, NaN off Linux.

    first_plot: seconds until the first figure was displayed, NaN without one
    peak:       most memory the kernel ever had resident
    libraries:  how much of it are files mapped into memory, which kernels on one machine share
    """

    seconds: float
    first_plot: float
    peak: float
    libraries: float


def execute(path: Path, *, fast: bool) -> Cost:
    """What the notebook at `path` costs; raises what it raises."""
    notebook = import_module("nbformat").read(path, as_version=4)
    notebook.cells.append(import_module("nbformat").v4.new_code_cell(WAIT))
    os.environ["ADADFQ_LAB_FAST"] = "1" if fast else ""
    client = import_module("nbclient").NotebookClient(notebook, timeout=600, kernel_name="python3")
    start, first = time.monotonic(), float("nan")
    with client.setup_kernel():
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
            if first != first and any(FIGURES & output.get("data", {}).keys() for output in cell.get("outputs", ())):
                first = time.monotonic() - start
        seconds = time.monotonic() - start
        status = Path(f"/proc/{client.km.provisioner.pid}/status")
        text = status.read_text() if status.exists() else ""
    return Cost(seconds, first, _megabytes("VmHWM", text), _megabytes("RssFile", text))


def _megabytes(name: str, status: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else float("nan")


def measure() -> dict[str, Any]:
    """Cost of every solution notebook, in full and in fast mode, and where it was measured."""
    load, rows = os.getloadavg()[0], {}
    for master in masters():
        path = FOLDER / "solutions" / f"{master.stem}.ipynb"
        quick, full = execute(path, fast=True), execute(path, fast=False)
        rows[master.stem] = {"seconds": round(full.seconds), "first_plot": round(full.first_plot), "fast": round(quick.seconds)}
        rows[master.stem] |= {"megabytes": round(full.peak), "libraries": round(full.libraries)}
        print(f"{master.stem}: {rows[master.stem]}", flush=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    return {"machine": f"{machine}, load {load:.1f} before it began", "notebooks": rows}


if __name__ == "__main__":
    write_atomically(FOLDER / "minutes.json", (json.dumps(measure(), indent=1) + "\n").encode())
