"""A learner's answers on disk: what was tried, what passed, the source of each function, and the quizzes.

Each check that is run in a notebook is kept in `my_answers.json` beside the notebook, so that a later notebook, or a restarted
kernel, knows what passed before; `lab.hand_in` writes the same with a name. ADADFQ_LAB_ANSWERS names another file, or is "off".
In fast mode, and outside a notebook, nothing is kept.

A source is kept with what it needs: the learner's own helpers, constants and imports. It is a text; nothing is unpickled.
"""

import ast
import inspect
import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from adadfq_lab.errors import UserError
from adadfq_lab.machine.environment import fast, in_kernel
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import check_regular

FORMAT = "adadfq answers 1"
FILE = "my_answers.json"
MAX_SOURCE, MAX_FILE = 50_000, 5_000_000
PRELUDE = "import math\nimport numpy as np\nimport torch\nimport torch.nn.functional as F\nimport adadfq_lab as lab\n"
"""What every notebook imports, and so every answer may use."""
_KNOWN = {"math": "math", "np": "numpy", "torch": "torch", "F": "torch.nn.functional", "lab": "adadfq_lab"}


@dataclass
class Attempts:
    """How often an exercise was checked, how often it failed, whether it ever passed, and the function's source then."""

    count: int = 0
    failures: int = 0
    passed: bool = False
    source: str = ""
    when: str = ""


@dataclass
class Answers:
    """All answers of one learner. quizzes: for each notebook and question "1", "2", ..., the letters in order of choice."""

    learner: str = ""
    exercises: dict[str, Attempts] = field(default_factory=dict)
    quizzes: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""

    def merged(self, other: "Answers") -> "Answers":
        """Both together: what passed in either has passed; of two sources, one that passed, or the later one."""
        exercises = dict(self.exercises)
        for name, theirs in other.exercises.items():
            exercises[name] = _merge(exercises[name], theirs) if name in exercises else theirs
        quizzes = {notebook: dict(letters) for notebook, letters in self.quizzes.items()}
        for notebook, letters in other.quizzes.items():
            quizzes[notebook] = letters | quizzes.get(notebook, {})
        later = max((self, other), key=lambda answers: answers.date)
        return Answers(self.learner or other.learner, exercises, quizzes, later.versions or self.versions, later.date)

    def as_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def _merge(a: Attempts, b: Attempts) -> Attempts:
    best = max((a, b), key=lambda attempts: (attempts.passed, attempts.when))
    return Attempts(max(a.count, b.count), max(a.failures, b.failures), a.passed or b.passed, best.source, best.when)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# On disk


def read_answers(path: Path) -> Answers:
    """The answers in a file, whose author is not trusted. Raises UserError if it is missing, too large or not of this form."""
    try:
        if check_regular(path).st_size > MAX_FILE:
            raise UserError(f"{path} is larger than {MAX_FILE // 10**6} MB: these are not answers of this course")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError
        exercises = {_word(name): _attempts(row) for name, row in raw["exercises"].items()}
        quizzes = {
            _word(notebook): {_word(question): _word(letters) for question, letters in answered.items()}
            for notebook, answered in raw["quizzes"].items()
        }
        versions = {_word(name): _word(version) for name, version in raw["versions"].items()}
        return Answers(_word(raw["learner"]), exercises, quizzes, versions, _word(raw["date"]))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} holds no answers of this course; choose another name or remove it") from None


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError
    return "".join(character for character in value if character.isprintable())


def _attempts(row: Mapping[str, Any]) -> Attempts:
    source = row["source"]
    if not isinstance(source, str) or len(source) > MAX_SOURCE:
        raise ValueError
    return Attempts(int(row["count"]), int(row["failures"]), bool(row["passed"]), source, _word(row["when"]))


def place() -> Path | None:
    """Where answers are kept; None if they are not."""
    asked = os.environ.get("ADADFQ_LAB_ANSWERS", "")
    if asked.lower() == "off" or (not asked and (fast() or not in_kernel())):
        return None
    return Path(asked or FILE)


def kept() -> Answers:
    """What earlier sessions kept; nothing if there is no such file, or an unreadable one."""
    path = place()
    try:
        return read_answers(path) if path is not None and path.exists() else Answers()
    except UserError:
        return Answers()


def keep(answers: Answers) -> None:
    """Adds `answers` to those kept, where there is a place for them; a folder that cannot be written to is no error."""
    path = place()
    if path is None:
        return
    try:
        before = read_answers(path) if path.exists() else Answers()
        write_atomically(path, before.merged(answers).as_json().encode())
    except (UserError, OSError):
        return


# A function as a text, and back


def source_of(function: Any, name: str) -> str:
    """Python that defines `name` as `function`, with its helpers; "" if its source cannot be had (a lambda, a partial)."""
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>" or function.__closure__:
        return ""
    try:
        parts = [*_needed(function, {function.__name__}), _text(function)]
    except (OSError, TypeError, SyntaxError, RecursionError):
        return ""
    if function.__name__ != name:
        parts.append(f"{name} = {function.__name__}\n")
    source = "\n".join(dict.fromkeys(parts))
    return source if len(source) <= MAX_SOURCE else ""


def _text(thing: Any) -> str:
    return textwrap.dedent(inspect.getsource(thing)).strip("\n") + "\n"


def _needed(function: FunctionType, seen: set[str]) -> Iterator[str]:
    """What `function` finds among its globals: imports, plain constants, functions and classes of the learner."""
    space = function.__globals__
    for name in sorted(_names(function.__code__) & space.keys() - seen):
        seen.add(name)
        value = space[name]
        if isinstance(value, ModuleType):
            if _KNOWN.get(name) != value.__name__:
                yield f"import {value.__name__} as {name}\n"
        elif isinstance(value, FunctionType) and value.__globals__ is space:
            yield from _needed(value, seen)
            yield _text(value)
        elif isinstance(value, type) and value.__module__ == function.__module__:
            yield _text(value)
        elif literal := _literal(value):
            yield f"{name} = {literal}\n"
        elif _importable(value):
            yield f"from {value.__module__} import {value.__name__} as {name}\n"


def _literal(value: Any) -> str:
    """Python that gives `value` again; "" if it is not a plain constant."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    plain = isinstance(value, bool | int | float | str | tuple | list | dict | None) and len(repr(value)) < 1000
    try:
        return repr(value) if plain and ast.literal_eval(repr(value)) == value else ""
    except (ValueError, SyntaxError, TypeError):
        return ""


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _importable(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    return bool(name) and module not in (None, "__main__") and getattr(sys.modules.get(str(module)), str(name), None) is value


def rebuild(name: str, source: str) -> Callable[..., Any]:
    """The function that `source` defines under `name`. Runs the source: only for the learner's own answers, or in a sandbox."""
    space: dict[str, Any] = {"__name__": "answers"}
    exec(PRELUDE, space)
    exec(compile(source, f"<answer {name}>", "exec"), space)  # the point of this function
    function = space.get(name)
    if not callable(function):
        raise TypeError(f"the answer defines no function {name}")
    return function  # type: ignore[no-any-return]
