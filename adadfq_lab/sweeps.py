"""Grids of configurations: every combination of some options, and how far each run of such a grid is."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from adadfq_lab.errors import UserError
from adadfq_lab.game import Schedule
from adadfq_lab.grids import State, rounds_done, state
from adadfq_lab.methods import make_method
from adadfq_lab.quantizer import BitWidths
from adadfq_lab.runs import RunConfig, read_config


def combinations(config: RunConfig, vary: Sequence[str]) -> list[RunConfig]:
    """`config` with every combination of values, the last option changing fastest.

    vary: "NAME=VALUE,VALUE" each; NAME is a field of RunConfig or of its schedule, as on the command line: lower, batch

    Combinations in which lower is not below upper are left out. Raises UserError for an unknown name, a value that does not
    fit, or where nothing is left.
    """
    axes = [_axis(text) for text in vary]
    names = [name for name, _ in axes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{twice[0]} is varied twice; give all its values at once")
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        told = dict(zip(names, values, strict=True))
        inner = {name: told.pop(name) for name in names if name in _SCHEDULE}
        one = dataclasses.replace(config, **told, schedule=dataclasses.replace(config.schedule, **inner))
        usual = make_method(one.method).bounds
        BitWidths.parse(one.bits)
        lower, upper = (own if told is None else told for own, told in ((usual.lower, one.lower), (usual.upper, one.upper)))
        if lower < upper:
            found.append(one)
    if not found:
        raise UserError("no combination is left: lower must be below upper")
    return found


_SCHEDULE = get_type_hints(Schedule)


def _axis(text: str) -> tuple[str, list[Any]]:
    name, sign, values = text.partition("=")
    name = name.replace("-", "_")
    kinds = _SCHEDULE | get_type_hints(RunConfig)
    if not sign or name not in kinds or name == "schedule":
        raise UserError(f"{text!r} varies nothing; write NAME=VALUE,VALUE with a name as in --help, such as lower=0,0.1,0.2")
    return name, [_value(name, kinds[name], value) for value in values.split(",")]


def _value(name: str, kind: Any, text: str) -> Any:
    """`text` as a value of the type `kind`; a Literal takes one of its own, X | None takes an X."""
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices):
        if text not in choices:
            raise UserError(f"{text!r} is no {name}; choose from {', '.join(choices)}")
        return text
    plain = next((choice for choice in choices if choice is not type(None)), kind)
    if plain is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if plain in (int, float, str):
            return plain(text)
    except ValueError:
        pass
    raise UserError(f"{text!r} is no value of {name}, which is {getattr(plain, '__name__', plain)}")


@dataclass(frozen=True)
class Status:
    """How far a run is. `student` and `teacher` are top-1 in percent, once it is done; `starts` is how often it was begun."""

    folder: Path
    config: RunConfig
    state: State
    rounds: int
    starts: int
    student: float | None = None
    interval: tuple[float, float] | None = None
    teacher: float | None = None
    note: str = ""


def status(root: Path) -> list[Status]:
    """The status of every run under `root`, by name of folder; raises UserError where there is none."""
    folders = sorted(path.parent for path in root.glob("*/wanted.json"))
    if not folders:
        raise UserError(f"{root} holds no grid; make one with: adadfq grid play {root} --vary NAME=VALUE,VALUE")
    return [_status(folder) for folder in folders]


def _status(folder: Path) -> Status:
    now, sessions, failed = state(folder), folder / "sessions.jsonl", folder / "failed.txt"
    starts = len(sessions.read_text().splitlines()) if sessions.exists() else 0
    found = Status(folder, read_config(folder / "wanted.json"), now, rounds_done(folder), starts)
    if now == "failed":
        return dataclasses.replace(found, note=failed.read_text().strip())
    if now != "done":
        return found
    result = json.loads((folder / "result.json").read_text())
    low, high = result["intervals"]["student"]
    return dataclasses.replace(found, student=result["student"], interval=(low, high), teacher=result["teacher"])


def varied(rows: Sequence[Status]) -> dict[Path, dict[str, Any]]:
    """By folder: those options, by name, in which the runs differ."""
    flat = []
    for row in rows:
        plain = row.config.as_json()
        flat.append(plain | plain.pop("schedule"))
    names = [name for name in flat[0] if len({str(one[name]) for one in flat}) > 1]
    return {row.folder: {name: one[name] for name in names} for row, one in zip(rows, flat, strict=True)}


def counts(rows: Sequence[Status]) -> dict[State, int]:
    """How many runs are in each state."""
    seen = Counter(row.state for row in rows)
    return {name: seen[name] for name in get_args(State)}


def as_json(rows: Sequence[Status]) -> dict[str, Any]:
    """What `adadfq grid ... --json` prints."""
    options = varied(rows)
    runs = []
    for row in rows:
        plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "config"}
        runs.append(plain | {"folder": str(row.folder), "of": row.config.rounds, "options": options[row.folder]})
    return {"counts": counts(rows), "runs": runs}


def status_text(rows: Sequence[Status]) -> str:
    """Counts in one line, then a line for each run: its options, its state, its rounds, its accuracy or its trouble."""
    options = varied(rows)
    names = list(next(iter(options.values())))
    table = [[*names, "state", "rounds", "starts", "student"]]
    for row in rows:
        result = f"{row.student:.2f} % of {row.teacher:.2f}" if row.student is not None else row.note[:60]
        told = [str(value) for value in options[row.folder].values()]
        table.append([*told, row.state, f"{row.rounds}/{row.config.rounds}", str(row.starts), result])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([", ".join(f"{count} {name}" for name, count in counts(rows).items()), "", *lines])
