"""What learners get: a copy of the notebooks without solutions, and the folder that a class gets.

`adadfq course copy` makes the copy. `make workshop` builds the wheel, runs `python -m adadfq_lab.authoring.workshop
build/workshop`, which adds notebooks, constraints and an install script for each system, and packs build/workshop.zip.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from adadfq_lab.authoring.pages import FOLDER, PAGES, index
from adadfq_lab.data.locations import notebooks_folder
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically

README = """AdaDFQ: a workshop in eleven notebooks

Needed: Python 3.11 or newer, and a package registry (pypi.org or a mirror). No GPU.

1. Linux, macOS:  sh install.sh
   Windows:       install.bat
2. .venv/bin/jupyter lab notebooks/00_welcome.ipynb          (Windows: .venv\\Scripts\\jupyter lab notebooks\\00_welcome.ipynb)

On Linux, the registry's torch comes with CUDA, several gigabytes that the course does not need. Without an NVIDIA GPU,
install.sh therefore takes the CPU build from download.pytorch.org first; if that address cannot be reached, it takes the
registry's torch. To do the same by hand, in an environment of your own:

   pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
   pip install "NAME_OF_THE_WHEEL.whl[notebooks,export]"

TORCH_INDEX=URL names another address of CPU builds; TORCH_INDEX=none takes the registry's. PYTHON=python3.12 names the Python.
"""

POSIX = """#!/bin/sh
# Installs the course into .venv beside this file; README.txt says what it needs.
set -e
cd "$(dirname "$0")"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "$python is missing or older than Python 3.11; name a newer one: PYTHON=python3.12 sh install.sh"; exit 1; }
"$python" -m venv .venv
pip="$PWD/.venv/bin/python -m pip install --disable-pip-version-check"
index="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
if [ "$(uname -s)" = Linux ] && [ "$index" != none ] && ! command -v nvidia-smi >/dev/null; then
  echo "no NVIDIA GPU: taking the CPU build of torch from $index"
  $pip --no-deps --index-url "$index" $(grep -E '^torch(vision)?==' constraints.txt) ||
    echo "no CPU build from $index; taking the registry's torch, which is several gigabytes larger"
fi
$pip -c constraints.txt "$(ls "$PWD"/adadfq_lab-*.whl)[notebooks,export]"
echo "ready; open the first notebook with: .venv/bin/jupyter lab notebooks/00_welcome.ipynb"
"""

WINDOWS = """@echo off
rem Installs the course into .venv beside this file; README.txt says what it needs. On Windows the registry's torch is small.
cd /d "%~dp0"
if not defined PYTHON where py >nul 2>nul && set "PYTHON=py -3"
if not defined PYTHON set "PYTHON=python"
%PYTHON% -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>nul
if errorlevel 1 echo %PYTHON% is missing or older than Python 3.11; install a newer one, or: set PYTHON=C:\\path\\python.exe
if errorlevel 1 exit /b 1
%PYTHON% -m venv .venv
if errorlevel 1 exit /b 1
for %%w in ("%~dp0adadfq_lab-*.whl") do set "WHEEL=%%~fw"
.venv\\Scripts\\python -m pip install --disable-pip-version-check -c constraints.txt "%WHEEL%[notebooks,export]"
if errorlevel 1 exit /b 1
echo ready; open the first notebook with: .venv\\Scripts\\jupyter lab notebooks\\00_welcome.ipynb
"""


def copy_course(folder: Path) -> tuple[list[Path], list[Path]]:
    """Copies the notebooks without solutions, and their index, into `folder`, from a checkout or a wheel.

    Returns the files it wrote, and those it left because a file of that name with other content is there: it never overwrites.
    """
    shipped = notebooks_folder()
    names = [name for name, _, _ in PAGES]
    files = {f"{name}{kind}": (shipped / f"{name}{kind}").read_bytes() for name in names for kind in (".ipynb", ".py")}
    files["index.md"] = index(names, handout=True).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is not a folder; name one, or one that can be made") from None
    written, left = [], []
    for name, content in files.items():
        path = folder / name
        if not os.path.lexists(path):
            write_atomically(path, content)
            written.append(path)
        elif not path.is_file() or path.read_bytes() != content:
            left.append(path)
    return written, left


def workshop(folder: Path) -> None:
    """Writes everything but the wheel into `folder`: notebooks without solutions, their index, constraints, install scripts."""
    copy_course(folder / "notebooks")
    for name in ("constraints.txt", "LICENSE"):
        shutil.copy(FOLDER.parent / name, folder)
    for name, text, newline in (("README.txt", README, "\r\n"), ("install.sh", POSIX, "\n"), ("install.bat", WINDOWS, "\r\n")):
        (folder / name).write_text(text, encoding="utf-8", newline=newline)


def main(arguments: Sequence[str]) -> None:
    """Write the folder that is named."""
    (folder,) = arguments
    workshop(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
