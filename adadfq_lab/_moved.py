"""Module paths of version 0.1.0: they keep working, with a warning, until 0.3.0.

`python -m adadfq_lab.grids FOLDER` runs `adadfq_lab.studies.grid`; `from adadfq_lab.grids import prepare` finds the name where
it is now. Folders that are called like an old module (`student`, `game`, ...) find its names by `old_names`.
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_TABLE = """
allocator machine.memory
arc_generator methods.arc
bench studies.bench
check course.check
checkpoints game.checkpoints
comparison game.method_comparison
compiling game.compiling
controls views.controls
course_check authoring.rules
course_minutes authoring.minutes
devices machine.devices
discrepancies studies.paper_and_code studies.discrepancies
distributed machine.distributed
engines studies.engines
environment machine.environment
estimates runs.estimates machine.timing
evaluation data.accuracy
evidence studies.paper_figures
exercises course.exercises.catalogue
exercises_foundations course.exercises.disagreement course.exercises.imagining course.exercises.quantization
exercises_game course.exercises.game course.exercises.rounds
exercises_integers course.exercises.integers
exercises_methods course.exercises.methods
exercises_training course.exercises.training
export integers.export machine.environment
features teacher.features methods.zaq
fields machine.fields
figures views.figures
figures_game views.figures
figures_tables studies.tables
files machine.files authoring.marks
gallery authoring.gallery
generators methods.generators
grading course.grading
grids studies.grid studies.grid_run
history game.history
image_bank methods.intraq
imagenet data.image_folders
imagined authoring.imagined
integer_layers integers.layers
integer_run integers.inference
interrupts machine.interrupts
inundation methods.arc_ait
layers student.layers
live views.live
live_views views.game_panels views.renderers
lsq student.learned_scales
memory machine.memory runs.config
networks teacher.networks
onnx_graph integers.onnx_file.graph
onnx_layers integers.onnx_file.layers
onnx_qdq integers.onnx_file.qdq
operations integers.operations
optimizers machine.optimizers
overview authoring.overview
packing integers.packing
probing game.probing
qimera_generator methods.qimera
quantizer student.quantizer
quizzes course.quizzes
ranges student.range_fitting
recipes runs.recipes
recordings authoring.recording game.recordings
records runs.log
report runs.report views.game_panels
run_folders runs.folder
runtimes integers.runtimes
schedule game.schedule
statistics teacher.statistics
student_files student.student_files
style views.style
svg views.charts
sweeps studies.sweeps
tables studies.tables
teachers teacher.teacher_files teacher.teacher
timing machine.timing integers.float_network
training_teachers teacher.training
verification integers.verification
watch runs.watch
widgets views.widgets
zoo teacher.zoo teacher.networks data.image_sets
"""
MOVED = {old: homes for old, *homes in map(str.split, _TABLE.strip().splitlines())}
"""Old module: the modules that have its names now; the first is the one that `python -m` runs."""


def old_names(old: str, *homes: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds the names of `adadfq_lab.old` in `homes`, modules of this package."""

    def find(name: str) -> Any:
        if not name.startswith("__") and not _is_submodule(old, name):
            for home in homes:
                module = importlib.import_module(f"adadfq_lab.{home}")
                if hasattr(module, name):
                    value = getattr(module, name)
                    where = getattr(value, "__module__", module.__name__)
                    warnings.warn(f"adadfq_lab.{old}.{name} is now {where}.{name}", FutureWarning, stacklevel=2)
                    return value
        raise AttributeError(f"module 'adadfq_lab.{old}' has no attribute {name!r}")

    return find


def _is_submodule(package: str, name: str) -> bool:
    """Whether `from adadfq_lab.PACKAGE import NAME` asks for a module of the package, which Python imports by itself."""
    paths = getattr(sys.modules.get(f"adadfq_lab.{package}"), "__path__", ())
    return any((Path(path) / f"{name}.py").exists() or (Path(path) / name).is_dir() for path in paths)


class _Alias(Loader):
    """Loads, under its old path, a module that finds every name where it is now."""

    def __init__(self, old: str) -> None:
        self.old, self.homes = old, MOVED[old]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = old_names(self.old, *self.homes)

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        new = f"adadfq_lab.{self.homes[0]}"
        warnings.warn(f"adadfq_lab.{self.old} is now {new}", FutureWarning, stacklevel=2)
        spec = importlib.util.find_spec(new)
        loader = spec.loader if spec else None
        return loader.get_code(new) if isinstance(loader, InspectLoader) else None


class Finder(MetaPathFinder):
    """Finds old module paths."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, _Alias(old)) if package == "adadfq_lab" and old in MOVED else None


def install() -> None:
    """Lets `import` and `python -m` find old paths."""
    sys.meta_path.append(Finder())
