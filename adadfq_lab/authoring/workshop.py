"""The folder that a class gets: wheel, students' notebooks, constraints, and an install script for each system.

`make workshop` builds the wheel, runs `python -m adadfq_lab.authoring.workshop build/workshop`, and packs build/workshop.zip.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from adadfq_lab.authoring.build import sources
from adadfq_lab.authoring.pages import FOLDER, index

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


def workshop(folder: Path, notebooks: Path = FOLDER) -> None:
    """Write everything but the wheel into `folder`: notebooks without solutions, their index, constraints, install scripts."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in sources(notebooks):
        for kind in (".ipynb", ".py"):
            shutil.copy(notebooks / f"{path.stem}{kind}", folder / "notebooks")
    names = [path.stem for path in sources(notebooks)]
    (folder / "notebooks" / "index.md").write_text(index(names, handout=True), encoding="utf-8")
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
