"""Module paths of version 0.1.0 that documentation named: they keep working, with a warning, until 0.3.0.

`python -m adadfq_lab.grids FOLDER` runs `adadfq_lab.studies.grid`, and `import adadfq_lab.grids` gives that module.
"""

import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED = {
    "adadfq_lab.course_minutes": "adadfq_lab.authoring.minutes",
    "adadfq_lab.discrepancies": "adadfq_lab.studies.paper_and_code",
    "adadfq_lab.gallery": "adadfq_lab.authoring.gallery",
    "adadfq_lab.grading": "adadfq_lab.course.grading",
    "adadfq_lab.grids": "adadfq_lab.studies.grid",
    "adadfq_lab.imagined": "adadfq_lab.authoring.imagined",
    "adadfq_lab.overview": "adadfq_lab.authoring.overview",
    "adadfq_lab.recordings": "adadfq_lab.authoring.recording",
    "adadfq_lab.teachers": "adadfq_lab.teacher.teacher_files",
}


class _Alias(Loader):
    """Loads the module at the new path under the old one."""

    def __init__(self, old: str) -> None:
        self.new = MOVED[old]
        warnings.warn(f"{old} is now {self.new}", FutureWarning, stacklevel=2)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(self.new)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the import of the new path has executed it."""

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        spec = importlib.util.find_spec(self.new)
        loader = spec.loader if spec else None
        return loader.get_code(self.new) if isinstance(loader, importlib.abc.InspectLoader) else None


class Finder(MetaPathFinder):
    """Finds old module paths."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Alias(name)) if name in MOVED else None


def install() -> None:
    """Lets `import` and `python -m` find old paths."""
    sys.meta_path.append(Finder())
