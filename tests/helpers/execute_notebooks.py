"""Executes the solution notebooks with the notebook stack of whichever Python runs this; exits with 1 if one fails.

.venv-floor/bin/python tests/helpers/execute_notebooks.py            every notebook, in fast mode
.venv-floor/bin/python tests/helpers/execute_notebooks.py 04 06      some of them
"""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[2] / "notebooks" / "solutions"
STACK = ("plotly", "ipywidgets", "ipykernel", "ipython", "torch")


def execute(path: Path) -> str:
    """What went wrong, or nothing."""
    try:
        NotebookClient(nbformat.read(path, as_version=4), timeout=300, kernel_name="python3").execute()
    except CellExecutionError as error:
        return str(error)
    return ""


def main(wanted: list[str]) -> int:
    os.environ.setdefault("ADADFQ_LAB_FAST", "1")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel of this Python, whatever kernels the user has
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # an old debugger's warning, at every start
    print(", ".join(f"{name} {version(name)}" for name in STACK), flush=True)
    paths = [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if not wanted or path.name[:2] in wanted]
    failed = 0
    for path in paths:
        start = time.monotonic()
        problem = execute(path)
        failed += bool(problem)
        print(f"{path.stem}: {'FAILED' if problem else 'passed'} in {time.monotonic() - start:.0f} s", problem, flush=True)
    print(f"{len(paths) - failed} passed, {failed} failed")
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
