"""What a class costs: seconds and memory of every solution notebook, executed in a kernel of its own, one after the other.

`python -m adadfq_lab.course_minutes` executes all of them, in full and in fast mode, and writes `notebooks/minutes.json`, from
which the table in the instructor's guide is built. On a quiet machine: it measures wall-clock time.
"""

import json
import os
import platform
import re
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adadfq_lab.course import FOLDER, masters
from adadfq_lab.files import write_atomically

PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def execute(path: Path, *, fast: bool) -> tuple[float, float]:
    """(seconds, peak resident memory of the kernel in MB) of one notebook; raises what it raises. Memory is NaN off Linux."""
    notebook = import_module("nbformat").read(path, as_version=4)
    os.environ["ADADFQ_LAB_FAST"] = "1" if fast else ""
    client = import_module("nbclient").NotebookClient(notebook, timeout=600, kernel_name="python3")
    start = time.monotonic()
    with client.setup_kernel():
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        seconds = time.monotonic() - start
        status = Path(f"/proc/{client.km.provisioner.pid}/status")
        found = PEAK.search(status.read_text()) if status.exists() else None
    return seconds, int(found[1]) / 1000 if found else float("nan")


def measure() -> dict[str, Any]:
    """Seconds, seconds in fast mode and MB of every solution notebook, and where they were measured."""
    rows = {}
    for master in masters():
        path = FOLDER / "solutions" / f"{master.stem}.ipynb"
        quick, _ = execute(path, fast=True)
        seconds, memory = execute(path, fast=False)
        rows[master.stem] = {"seconds": round(seconds), "fast": round(quick), "megabytes": round(memory)}
        print(f"{master.stem}: {seconds:.0f} s, in fast mode {quick:.0f} s, {memory:.0f} MB", flush=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    return {"machine": machine, "notebooks": rows}


if __name__ == "__main__":
    write_atomically(FOLDER / "minutes.json", (json.dumps(measure(), indent=1) + "\n").encode())
