"""Thousands of broken files: every reader reads one or says in one line why not, and none executes what is in it."""

import dataclasses
import json
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_games import OBSERVE, images_for, play, saved_teacher, tiny_game

from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.fields import build, fitting
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.runs.log import RecordLog, read_records
from adadfq_lab.student.student_files import load_student, rebuild_student, save_student
from adadfq_lab.teacher.teacher_files import load_teacher

FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.remove"}
_seen: list[str] | None = None


def _watch(event: str, _: tuple[Any, ...]) -> None:
    if _seen is not None and event in FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_watch)  # for the rest of the process; it looks only within `nothing_is_executed`


@contextmanager
def nothing_is_executed() -> Iterator[None]:
    """Within it nothing is unpickled, started, removed or connected to."""
    global _seen
    _seen = []
    try:
        yield
        assert _seen == []
    finally:
        _seen = None


def test_the_watch_sees_what_it_is_for():
    """An unpickled function is noticed."""
    with pytest.raises(AssertionError), nothing_is_executed():
        pickle.loads(pickle.dumps(Path))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """`content` after one to three accidents: bits flipped, bytes overwritten, cut off, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        # Half of the accidents strike the first bytes, where lengths and descriptions are.
        end = len(data) if draw.random() < 0.5 else min(len(data), 2000)
        at = draw.randrange(end) if end else 0
        size = min(draw.choice((1, 1, 2, 8, 100)), max(1, len(data) - at))
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at:at] = draw.choice(
                (b"\x00", b"\xff" * 8, b'"', b"{", b"[" * 3000, b"cos\nsystem\n(S'x'\ntR.", b"1e999", b"NaN")
            )
        else:
            data[at : at + size] = draw.choice((b"\x00", b"\xff", b"9", b" ")) * size
    return bytes(data)


def withstands(read: Callable[[Path], Any], path: Path, content: bytes) -> bool:
    """Whether `read` takes `content`; any other answer than a value or a UserError of one line fails the test."""
    path.write_bytes(content)
    with nothing_is_executed():
        try:
            read(path)
            return True
        except UserError as error:
            assert "\n" not in str(error)
            return False


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, a student, a game, a configuration, records and images of one run, on disk."""
    folder = tmp_path_factory.mktemp("fuzz")
    teacher = saved_teacher(folder / "teacher.safetensors", classes=10)
    game = play(tiny_game(teacher=teacher), 0)
    log = RecordLog(folder / "records.jsonl", 0)
    for record in game.play(OBSERVE + 1):
        log.write(record, {"seconds": 1.5})
    log.close()
    game.save(folder / "game.ckpt")
    save_student(game.student, teacher, folder / "student.safetensors")
    config = RunConfig(str(folder / "teacher.safetensors"), schedule=Schedule(milestones=(3, 4)), settings={"alpha_ds": 0.3})
    (folder / "config.json").write_text(json.dumps(config.as_json()))
    images_for(folder, "cifar10")
    return folder, teacher


def readers(place: tuple[Path, Any], folder: Path) -> dict[str, tuple[str, Callable[[Path], Any]]]:
    _, teacher = place
    return {
        "game": ("game.ckpt", lambda path: Game.resume(path, teacher=teacher)),
        "student": ("student.safetensors", lambda path: load_student(path, teacher)),
        "rebuilt": ("student.safetensors", rebuild_student),
        "teacher": ("teacher.safetensors", lambda path: load_teacher(str(path))),
        "tensors": ("student.safetensors", load_tensors),
        "config": ("config.json", read_config),
        "records": ("records.jsonl", read_records),
        "resumed": ("records.jsonl", lambda path: RecordLog(path, 10**9).close()),
        "images": ("cifar10_test.npz", lambda path: load_data("cifar10")),
    }


KINDS = ("game", "student", "rebuilt", "teacher", "tensors", "config", "records", "resumed", "images")


def fuzz(kind: str, count: int, seed: int, place: tuple[Path, Any], folder: Path) -> tuple[int, int]:
    name, read = readers(place, folder)[kind]
    content, draw = (place[0] / name).read_bytes(), random.Random(f"{kind} {seed}")
    assert withstands(read, folder / name, content)
    taken = sum(withstands(read, folder / name, mutated(content, draw)) for _ in range(count))
    return taken, count


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_one_line(kind, place, tmp_path, monkeypatch):
    """Forty accidents to each kind of file."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    taken, count = fuzz(kind, 40, 0, place, tmp_path)
    assert taken == count if kind == "resumed" else taken < count  # a resumed run plays on, and says what its log lacks
    if kind in ("game", "student", "rebuilt", "teacher", "tensors"):
        assert taken <= 1  # an accident that undoes itself; any other breaks the checksum


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_broken_files_are_one_line_each(kind, place, tmp_path, monkeypatch):
    """Five hundred to two thousand accidents to each kind of file, 10,900 in all."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    taken, count = fuzz(kind, {"game": 500, "student": 1000, "rebuilt": 1000}.get(kind, 1400), 1, place, tmp_path)
    assert taken == count if kind == "resumed" else taken < count  # a resumed run plays on, and says what its log lacks


# Files whose checksum is right and whose content is wrong: another program's, or somebody's who means harm

ODD = (None, True, -1, 0, 1, 10**30, 1.5, float("inf"), float("nan"), "", "x", "../../x", [], [1, "a"], {}, {"a": [1]}, "9w9a")


def places(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, by the keys that lead there."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def altered(plain: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of `plain` with `value` at that place."""
    new = json.loads(json.dumps(plain))
    inner = new
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return new


SIGNED = [pytest.param("game", marks=pytest.mark.slow), "student", pytest.param("rebuilt", marks=pytest.mark.slow), "teacher"]


@pytest.mark.parametrize("kind", SIGNED)
def test_a_wrong_description_under_a_right_checksum_is_one_line(kind, place, tmp_path):
    """Something odd in place of each value of the description; keys that lack, or are too many."""
    name, read = readers(place, tmp_path)[kind]
    tensors, meta, _ = load_tensors(place[0] / name)
    draw, path = random.Random(kind), tmp_path / name
    for at in places(meta):
        for value in draw.sample(ODD, 2):
            save_tensors(path, tensors, altered(meta, at, value))
            withstands(read, path, path.read_bytes())
    for key in meta:
        save_tensors(path, tensors, {k: v for k, v in meta.items() if k != key})
        withstands(read, path, path.read_bytes())
    for wrong in ([], "x", None):
        save_tensors(path, tensors, wrong)
        assert not withstands(read, path, path.read_bytes())


@pytest.mark.parametrize("kind", SIGNED)
def test_wrong_tensors_under_a_right_checksum_are_one_line(kind, place, tmp_path):
    """Each tensor missing, of another shape, of another type, or under another name."""
    name, read = readers(place, tmp_path)[kind]
    tensors, meta, _ = load_tensors(place[0] / name)
    draw, path = random.Random(kind), tmp_path / name
    for key in draw.sample(sorted(tensors), 12) + (["random"] if kind == "game" else []):
        rest = {k: v for k, v in tensors.items() if k != key}
        value = tensors[key]
        changes = [{}, {key: value.reshape(-1)[:1]}, {key + "x": value}, {key.replace(".", "..", 1) + ".q": value}]
        for change in [*changes, {key: value.flatten().double()}]:
            save_tensors(path, rest | change, meta)
            withstands(read, path, path.read_bytes())


def test_a_configuration_of_wrong_types_is_refused(tmp_path):
    """Whatever stands in a field must be of its type: a run that starts has been understood."""
    plain, path = RunConfig(schedule=Schedule(milestones=(3,))).as_json(), tmp_path / "config.json"
    for at in places(plain):
        for value in ODD:
            wrong = altered(plain, at, value)
            if withstands(read_config, path, json.dumps(wrong).encode()):
                config = read_config(path)
                assert dataclasses.asdict(config) == config.as_json()
                hints = {f.name: type(getattr(RunConfig(), f.name)) for f in dataclasses.fields(RunConfig)}
                for name, usual in hints.items():
                    assert usual is type(None) or isinstance(getattr(config, name), usual)


# The types of fields


def test_what_fits_a_field_is_taken():
    """A list as a tuple, a whole number as a real, an object as a dataclass; nothing else is bent."""
    assert fitting("x", float, 3) == 3.0 and type(fitting("x", float, 3)) is float
    assert fitting("x", tuple[int, ...], [1, 2]) == (1, 2)
    assert fitting("x", tuple[int, int, int], [1, 2, 3]) == (1, 2, 3)
    assert fitting("x", float | None, None) is None
    assert build(Schedule, {"batch": 3, "milestones": [7]}) == Schedule(batch=3, milestones=(7,))
    for hint, value in (
        (int, True),
        (int, 1.0),
        (bool, 1),
        (float, "1"),
        (str, 1),
        (tuple[int, int, int], [1, 2]),
        (float, 10**30),
    ):
        with pytest.raises(UserError, match="x does not take"):
            fitting("x", hint, value)
    with pytest.raises(UserError, match="Schedule has no field 'epochs'"):
        build(Schedule, {"epochs": 3})
