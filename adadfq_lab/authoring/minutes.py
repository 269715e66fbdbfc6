"""What a class costs: seconds and memory of every solution notebook, executed in a kernel of its own, one after the other.

`python -m adadfq_lab.authoring.minutes` executes all of them, in full and in fast mode, and writes notebooks/minutes.json, from
which the table in the instructor's guide is built; with numbers of notebooks, only those: the others keep what they had; with
--fast, only in fast mode. On a quiet machine: it measures wall-clock time, and beside it how busy the machine was. A live run
counts to its end, though its cell returns at once.
"""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adadfq_lab.authoring.build import sources
from adadfq_lab.authoring.pages import FOLDER
from adadfq_lab.machine.environment import NOTEBOOKS, import_extra
from adadfq_lab.machine.files import write_atomically

WAIT = "if 'run' in globals():\n    run.wait()"
FIGURES = {"application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"}


@dataclass(frozen=True)
class Cost:
    """Of one notebook, from the kernel's start. Memory in MB, NaN off Linux.

    processor:  seconds of one core that the kernel used
    first_plot: seconds until the first figure was displayed, NaN without one
    load:       processes that ran or wanted to, averaged over the last minute
    peak:       most memory the kernel ever had resident
    libraries:  how much of it are files mapped into memory, which kernels on one machine share
    """

    seconds: float
    processor: float
    first_plot: float
    load: float
    peak: float
    libraries: float


def execute(path: Path, *, fast: bool) -> Cost:
    """What the notebook at `path` costs; raises what it raises."""
    notebook = import_extra("nbformat", NOTEBOOKS).read(path, as_version=4)
    notebook.cells.append(import_extra("nbformat", NOTEBOOKS).v4.new_code_cell(WAIT))
    os.environ["ADADFQ_LAB_FAST"] = "1" if fast else ""
    client = import_extra("nbclient", NOTEBOOKS).NotebookClient(notebook, timeout=600, kernel_name="python3")
    start, first = time.monotonic(), float("nan")
    with client.setup_kernel():
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
            if first != first and any(FIGURES & output.get("data", {}).keys() for output in cell.get("outputs", ())):
                first = time.monotonic() - start
        seconds = time.monotonic() - start
        process = Path(f"/proc/{client.km.provisioner.pid}")
        text, spent = ((process / name).read_text() if process.exists() else "" for name in ("status", "stat"))
    load = os.getloadavg()[0]
    return Cost(seconds, _processor(spent), first, load, _megabytes("VmHWM", text), _megabytes("RssFile", text))


def _processor(stat: str) -> float:
    """User and system time of a process, the 14th and 15th field of its /proc/PID/stat, in seconds."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else float("nan")


def _megabytes(name: str, status: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


def measure(numbers: Sequence[str] = (), *, fast_only: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and cost of every solution notebook, or of those whose `numbers` are given, as `minutes.json` holds them."""
    for source in sources():
        if numbers and source.stem[:2] not in numbers:
            continue
        path = source.with_suffix(".ipynb")
        quick = execute(path, fast=True)
        row: dict[str, Any] = {"fast": round(quick.seconds), "load": round(quick.load, 1)}
        if not fast_only:
            full = execute(path, fast=False)
            row |= {"seconds": full.seconds, "processor": full.processor, "first_plot": full.first_plot}
            row |= {"megabytes": full.peak, "libraries": full.libraries}
            row = {name: round(value) for name, value in row.items() if value == value} | {"load": round(full.load, 1)}
        yield source.stem, row


def main(arguments: Sequence[str]) -> None:
    """Measures and writes, notebook by notebook, so that nothing is lost where it is stopped."""
    path = FOLDER / "minutes.json"
    known = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.exists() else {}
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        machine += f", {threads} thread{'s' * (threads != '1')} a kernel"
    numbers = [word for word in arguments if word.isdigit()]
    for name, row in measure(numbers, fast_only="--fast" in arguments):
        known[name] = known.get(name, {}) | row
        print(f"{name}: {row}", flush=True)
        text = json.dumps({"machine": machine, "notebooks": dict(sorted(known.items()))}, indent=1)
        write_atomically(path, f"{text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
