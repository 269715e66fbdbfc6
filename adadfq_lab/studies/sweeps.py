"""Grids of configurations: every combination of some options, and how far each run of such a grid is."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from adadfq_lab.errors import UserError
from adadfq_lab.machine.reading import read_bytes
from adadfq_lab.methods.registry import make_method
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.runs.recipes import override, usual_run
from adadfq_lab.studies.grid_run import State, damage, failure, read_result, rounds_done, state


def combinations(config: RunConfig, vary: Sequence[str]) -> list[RunConfig]:
    """`config` with every combination of values, the last option changing fastest.

    vary: "NAME=VALUE,VALUE" each; NAME and VALUE as `recipes.override` takes them: lower, batch, alpha_ds

    If methods are varied and warm-ups are not, each method has its usual warm-up, and as many rounds of play as
    `config`. Combinations in which lower is not below upper are left out. Raises UserError for an unknown name, a value that
    does not fit, or if nothing is left.
    """
    axes = [_axis(text) for text in vary]
    names = Counter(name for name, _ in axes)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{twice[0]} is varied twice; give all its values at once")
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        told = dict(zip(names, values, strict=True))
        base = usual_run(told["method"], config) if "method" in told and "warmup" not in told else config
        one = override(base, *(f"{name}={value}" for name, value in told.items()))
        usual = make_method(one.method).bounds
        lower, upper = (own if new is None else new for own, new in ((usual.lower, one.lower), (usual.upper, one.upper)))
        if lower < upper:
            found.append(one)
    if not found:
        raise UserError("no combination is left: lower must be below upper")
    return found


def _axis(text: str) -> tuple[str, list[str]]:
    name, sign, values = text.partition("=")
    if not (sign and name):
        raise UserError(f"{text!r} varies nothing; write NAME=VALUE,VALUE with a name as in --help, such as lower=0,0.1,0.2")
    return name.replace("-", "_").removeprefix("schedule."), values.split(",")


@dataclass(frozen=True)
class RunStatus:
    """How far a run is. `student` and `teacher` are top-1 in percent, once it is done; `starts` is how often it was begun.

    config: None if the run is damaged and no file of it says what was to be played
    """

    folder: Path
    config: RunConfig | None
    state: State
    rounds: int
    starts: int
    student: float | None = None
    interval: tuple[float, float] | None = None
    teacher: float | None = None
    note: str = ""


def status(root: Path) -> list[RunStatus]:
    """The status of every run under `root`, sorted by the options they differ in; raises UserError if there is none."""
    try:
        folders = sorted(path for path in root.iterdir() if os.path.lexists(path / "wanted.json"))
    except OSError as error:
        folders = []
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"cannot read {root}: {error.strerror}") from None
    if not folders:
        raise UserError(f"{root} holds no grid; make one with: adadfq grid play {root} --vary NAME=VALUE,VALUE")
    rows = [_status(folder) for folder in folders]
    options = varied(rows)
    return sorted(rows, key=lambda row: [_rank(value) for value in options[row.folder].values()])


def _rank(value: Any) -> tuple[bool, float, str]:
    """Sorts numbers by size, and all else behind them by name."""
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, str(value)


def _status(folder: Path) -> RunStatus:
    now = state(folder)
    found = RunStatus(folder, _config(folder), now, rounds_done(folder), _starts(folder))
    if now == "failed":
        return dataclasses.replace(found, note=failure(folder))
    if now == "damaged":
        return dataclasses.replace(found, note=damage(folder))
    if now != "done":
        return found
    try:
        result = read_result(folder)
    except UserError as error:  # damaged since it was looked at
        return dataclasses.replace(found, state="damaged", note=str(error))
    if result["student"] is None:
        return dataclasses.replace(found, note=_without_labels(result))
    low, high = result["intervals"]["student"]
    return dataclasses.replace(found, student=result["student"], interval=(low, high), teacher=result["teacher"])


def _config(folder: Path) -> RunConfig | None:
    """What is to be played in `folder`."""
    for name in ("wanted.json", "config.json"):
        with suppress(UserError):
            return read_config(folder / name)
    return None


def _starts(folder: Path) -> int:
    """How often the run was begun."""
    try:
        return len(read_bytes(folder / "sessions.jsonl").splitlines())
    except UserError:
        return 0


def _without_labels(result: dict[str, Any]) -> str:
    """What a run without labelled images measured."""
    found = result.get("agreement", {})
    which = "images" if "images" in found else "generated"
    return f"{found[which]['student']:.2f} % as P on {which}" if which in found else "no labelled images"


def varied(rows: Sequence[RunStatus]) -> dict[Path, dict[str, Any]]:
    """By folder: those options, by name, in which the runs differ."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        if row.config is None:
            flat.append({})
            continue
        plain = row.config.as_json()
        schedule, settings = plain.pop("schedule"), plain.pop("settings")
        flat.append(plain | schedule | settings)
    known = [one for one in flat if one]
    names = [name for name in dict.fromkeys(itertools.chain(*flat)) if len({str(one.get(name)) for one in known}) > 1]
    return {row.folder: {name: one.get(name) for name in names} for row, one in zip(rows, flat, strict=True)}


def counts(rows: Sequence[RunStatus]) -> dict[State, int]:
    """How many runs are in each state."""
    seen = Counter(row.state for row in rows)
    return {name: seen[name] for name in get_args(State)}


def as_json(rows: Sequence[RunStatus]) -> dict[str, Any]:
    """What `adadfq grid ... --json` prints."""
    options = varied(rows)
    runs = []
    for row in rows:
        plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "config"}
        runs.append(
            plain | {"folder": str(row.folder), "of": row.config.rounds if row.config else None, "options": options[row.folder]}
        )
    return {"counts": counts(rows), "runs": runs}


def status_text(rows: Sequence[RunStatus]) -> str:
    """Counts in one line, then a line for each run: its options, its state, its rounds, its accuracy or its trouble."""
    options = varied(rows)
    names = list(next(iter(options.values())))
    table = [[*names, "state", "rounds", "starts", "student"]]
    for row in rows:
        result = f"{row.student:.2f} % of {row.teacher:.2f}" if row.student is not None else row.note.partition("\n")[0][:100]
        told = [str(value) if row.config else "?" for value in options[row.folder].values()]
        table.append([*told, row.state, f"{row.rounds}/{row.config.rounds if row.config else '?'}", str(row.starts), result])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([", ".join(f"{count} {name}" for name, count in counts(rows).items()), "", *lines])
