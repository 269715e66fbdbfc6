"""The project's frame: what is declared in several places agrees, and what is built contains what it must."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import adadfq_lab as lab
from adadfq_lab import _moved
from adadfq_lab.cli import listing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
EVERYTHING = BASE + [Requirement(line) for lines in EXTRAS.values() for line in lines]
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge's name: the registry's name
# What a Colab runtime has installed, as Google published it in August 2026.
COLAB = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.1.3",
    "plotly": "5.24.1",
    "ipywidgets": "7.7.1",
    "ipykernel": "6.17.1",
    "anywidget": "0.9.21",
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def ranges(requirements: list[Requirement]) -> dict[str, SpecifierSet]:
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def pins() -> dict[str, str]:
    """name -> version, of constraints.txt; every line is a comment or an exact pin."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    bad = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert not bad, f"neither a comment nor an exact pin: {bad}"
    pairs = [line.split("==") for line in lines]
    assert len({canonicalize_name(name) for name, _ in pairs}) == len(pairs), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in pairs}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make as from a fresh shell, also when the tests themselves were started by make."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "PYTHON", "ARGS", "TORCH", "TORCH_INDEX"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_conda_environment_is_base_plus_notebooks():
    """environment.yml asks conda-forge for the packages and ranges of pyproject.toml's base and `notebooks`, and no others."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = ranges([Requirement(line) for line in lines])
    assert len(conda) == len(lines)
    assert conda.pop("pip") == SpecifierSet()
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    expected = ranges(BASE + [Requirement(line) for line in EXTRAS["notebooks"]])
    assert {CONDA_NAMES.get(name, name): wanted for name, wanted in conda.items()} == expected
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}


def test_constraints_pin_every_dependency_within_its_range():
    """constraints.txt holds one version of each direct dependency of base and extras, and pyproject.toml admits it."""
    pinned = pins()
    for requirement in EVERYTHING:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]} is outside {requirement.specifier}"


def test_constraints_fit_any_build_of_torch():
    """No CUDA package is pinned: a machine whose torch is a CPU or another CUDA build can use the same file."""
    assert not [name for name in pins() if name.startswith(("cuda", "nvidia", "triton"))]


@pytest.mark.parametrize("name", COLAB)
def test_ranges_admit_what_colab_ships(name):
    """The range of each package that Colab preinstalls contains Colab's version, so that nothing there is replaced."""
    wanted = [r.specifier for r in EVERYTHING if r.name == name]
    assert wanted
    assert all(specifier.contains(COLAB[name]) for specifier in wanted)


def test_import_needs_neither_the_command_line_nor_the_notebooks():
    """`import adadfq_lab` works without tyro, which Colab lacks, and without the packages of the extra `notebooks`."""
    absent = ["tyro", *(Requirement(line).name for line in EXTRAS["notebooks"])]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import adadfq_lab"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


SHIPPED = ("adadfq_lab/data_stubs/", "adadfq_lab/notebooks/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_contains_the_stubs_bit_by_bit(wheel):
    """In the wheel are data_stubs/ and the students' notebooks of the checkout: the same files, the same bytes."""
    stubs = [path for path in (ROOT / "data_stubs").rglob("*") if path.is_file()]
    notebooks = [ROOT / "notebooks" / "dashboard.ipynb", *(ROOT / "notebooks").glob("[0-9]*")]
    names = {f"adadfq_lab/{path.relative_to(ROOT).as_posix()}": path for path in [*stubs, *notebooks]}
    assert len(stubs) > 2 and len(notebooks) == 23
    assert {name for name in wheel.namelist() if name.startswith(SHIPPED)} == names.keys()
    assert all(wheel.read(name) == path.read_bytes() for name, path in names.items())


def test_wheel_contains_the_package_and_nothing_else(wheel):
    """Beside the stubs: every file of adadfq_lab/, py.typed too, the licence and the command; no tests, no solutions."""
    files = [path for path in (ROOT / "adadfq_lab").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    package = {path.relative_to(ROOT).as_posix() for path in files}
    info = f"adadfq_lab-{PROJECT['version']}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    inside = {name for name in wheel.namelist() if not name.startswith(SHIPPED)}
    assert inside == package | metadata
    assert "adadfq_lab/py.typed" in inside
    assert "adadfq = adadfq_lab.cli.front:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_citation_names_this_version_and_the_paper():
    """CITATION.cff cites the software at pyproject.toml's version and licence, and prefers the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["preferred-citation"]["title"] == "Adaptive Data-Free Quantization"
    assert citation["preferred-citation"]["doi"] == "10.1109/CVPR52729.2023.00769"


@needs_make
def test_help_lists_every_target():
    """`make`, with nothing said, prints a line for each target that a person may ask for."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    answer = make()
    assert answer.returncode == 0
    assert [line.split()[1] for line in answer.stdout.splitlines()] == phony[1].split()


@needs_make
@pytest.mark.parametrize(("target", "stamp"), [("demo", ".base"), ("lab", ".dev")])
def test_make_installs_again_only_when_what_to_install_changed(tmp_path, target, stamp):
    """A stamp newer than pyproject.toml and constraints.txt means no pip; an older one means pip, with the constraints."""
    (tmp_path / "pyvenv.cfg").touch()
    (tmp_path / stamp).touch()
    newest = max((ROOT / name).stat().st_mtime for name in ("pyproject.toml", "constraints.txt"))
    for age, installs in ((+10, False), (-10, True)):
        os.utime(tmp_path / stamp, (newest + age, newest + age))
        plan = make("--dry-run", target, f"VENV={tmp_path}")
        assert plan.returncode == 0, plan.stderr
        assert ("pip install" in plan.stdout and "-c constraints.txt" in plan.stdout) is installs


@needs_make
@pytest.mark.parametrize(
    ("chosen", "index"), [((), None), (("TORCH=cpu",), "https://download.pytorch.org/whl/cpu"), (("TORCH_INDEX=X",), "X")]
)
def test_a_new_environment_takes_torch_from_the_index_that_is_chosen(tmp_path, chosen, index):
    """TORCH=cpu installs the pinned torch from the index of CPU builds first, without its dependencies."""
    plan = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", *chosen).stdout
    assert ("--no-deps --index-url" in plan) == (index is not None)
    assert index is None or f"--index-url {index} " in plan


@needs_make
def test_old_python_is_named_in_one_line(tmp_path):
    """A Python that is missing or too old ends make with one line that says what to do, and leaves nothing behind."""
    answer = make("demo", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'python3.10'}")
    assert answer.returncode == 2
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert "older than Python 3.11" in line
    assert "make demo PYTHON=" in line
    assert not list(tmp_path.iterdir())


def test_ci_runs_the_documented_command():
    """.ci/run is executable, is valid bash, and its first check is the README's `make test`."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"^timeout .* make test$", script.read_text(), re.MULTILINE)


def test_old_module_paths_keep_working():
    """A path that documentation named before the move runs the module at its new place, with a warning that names it."""
    answer = subprocess.run([sys.executable, "-m", "adadfq_lab.grids"], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 2
    assert "adadfq_lab.grids is now adadfq_lab.studies.grid" in answer.stderr
    with pytest.warns(FutureWarning, match=r"adadfq_lab\.teachers\.load_teacher is now adadfq_lab\.teacher\.teacher_files\."):
        from adadfq_lab.teachers import load_teacher
    with pytest.warns(FutureWarning, match=r"adadfq_lab\.student\.traced is now adadfq_lab\.teacher\.tracing\."):
        from adadfq_lab.student import traced
    assert load_teacher is lab.load_teacher and callable(traced)
    with pytest.raises(AttributeError):  # a module of the new folder: Python imports it, no old home is asked
        importlib.import_module("adadfq_lab.course").__getattr__("slips")
    for old, homes in _moved.MOVED.items():
        for home in homes:
            assert importlib.util.find_spec(f"adadfq_lab.{home}"), f"{old} is not at {home}"


def test_help_and_version_import_no_torch():
    """`adadfq --help` names every command with a line about it, and `--version` the version, both without torch."""
    code = "import sys; from adadfq_lab.cli.front import main; main(); assert 'torch' not in sys.modules"
    told = {
        option: subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True).stdout
        for option in ("--help", "--version")
    }
    assert all(f"\n  {name} " in told["--help"] for name in listing.COMMANDS)
    assert told["--version"] == f"adadfq {lab.__version__}\n"
