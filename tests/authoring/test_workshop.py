"""The workshop's folder: what students get, and install scripts that take a CPU build of torch first where there is no GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from adadfq_lab.authoring import build
from adadfq_lab.authoring.workshop import copy_course, workshop
from adadfq_lab.errors import UserError

PYTHON = """#!/bin/sh
# A Python that makes an environment with itself as its Python, and notes what pip is asked for.
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"-m pip"*) echo "$*" >> pip.log; case "$*" in *"--index-url"*) exit "${REFUSED:-0}" ;; esac ;;
esac
"""


@pytest.fixture
def handout(tmp_path):
    workshop(tmp_path)
    (tmp_path / "adadfq_lab-0.1.0-py3-none-any.whl").write_text("")
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def install(folder: Path, **variables: str) -> tuple[list[str], str]:
    """What install.sh asks pip for, and what it prints. No nvidia-smi is on its PATH."""
    for name in ("sh", "dirname", "uname", "grep", "ls", "mkdir", "cp"):
        (folder / "bin" / name).symlink_to(next(p for p in (f"/bin/{name}", f"/usr/bin/{name}") if os.path.exists(p)))
    environment = {"PATH": str(folder / "bin"), **variables}
    done = subprocess.run(
        ["sh", str(folder / "install.sh")], env=environment, capture_output=True, text=True, cwd="/", check=True
    )
    return (folder / "pip.log").read_text().splitlines(), done.stdout


def test_students_get_no_solutions(handout):
    """Eleven notebooks with their exports and an index; no solution, and no solution line in any file."""
    names = {path.name for path in (handout / "notebooks").iterdir()}
    stems = {path.stem for path in build.sources()}
    assert names == {f"{stem}{kind}" for stem in stems for kind in (".ipynb", ".py")} | {"index.md"}
    assert not any("@title Solution" in path.read_text(encoding="utf-8") for path in (handout / "notebooks").iterdir())


def test_copying_again_keeps_answers_and_brings_back_what_is_missing(handout):
    """`copy_course` writes only what is not there: an answered notebook, and even a dangling link, stay as they are."""
    folder = handout / "notebooks"
    answered, link, missing = folder / "01_disagreement.ipynb", folder / "02_quantization.py", folder / "03_imagining_data.py"
    answered.write_text("answers")
    link.unlink(), link.symlink_to("nowhere"), missing.unlink()
    assert copy_course(folder) == ([missing], [answered, link])
    assert answered.read_text() == "answers" and link.is_symlink()
    with pytest.raises(UserError, match="is not a folder"):
        copy_course(answered)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere the registry's torch is a CPU build")
def test_cpu_build_of_torch_comes_first(handout):
    """Without a GPU the script takes torch from the CPU index, then the wheel with notebooks and export from the registry."""
    asked, _ = install(handout)
    assert len(asked) == 2
    assert re.search(r"--index-url https://download.pytorch.org/whl/cpu torch==\S+ torchvision==\S+$", asked[0])
    assert "--index-url" not in asked[1] and asked[1].endswith("adadfq_lab-0.1.0-py3-none-any.whl[notebooks,export]")


def test_registry_alone_is_enough(handout):
    """If the CPU index refuses, the script says so and goes on; TORCH_INDEX=none does not ask it."""
    asked, said = install(handout, REFUSED="1")
    assert asked[-1].endswith("[notebooks,export]") and ("several gigabytes" in said) == (len(asked) == 2)


def test_cpu_index_can_be_switched_off(handout):
    assert len(install(handout, TORCH_INDEX="none")[0]) == 1


def test_windows_script_has_windows_line_ends(handout):
    """cmd.exe reads CRLF; every line of install.bat has it, and it installs the same extras."""
    text = (handout / "install.bat").read_bytes()
    assert text.count(b"\r\n") == text.count(b"\n") > 5
    assert b"[notebooks,export]" in text
