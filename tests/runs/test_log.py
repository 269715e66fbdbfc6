"""The log of a resumed run: whatever became of it, the run says it first, and what it holds then is true."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.errors import UserError
from adadfq_lab.runs import log as logs
from adadfq_lab.runs.log import RecordLog, read_past, read_records, spans_text

BATCH, INDEX = 3, 12


def line(number: int, **more: object) -> str:
    plain = {"round": number, "phase": "play", "generator.a.b": 1.5, "h_prime": [0.5] * BATCH, "seconds": number + 1.0}
    if number % 4 == 3:
        plain["accuracy"] = dataclasses.asdict(Accuracy(50.0 + number, 40, 60 + number, 9))
    return json.dumps(plain | more) + "\n"


def opened(path: Path, index: int = INDEX) -> RecordLog:
    log = RecordLog(path, index, batch=BATCH)
    log.close()
    return log


@pytest.fixture
def path(tmp_path):
    """The log of a run that was saved before round 12, with the sums that were noted then."""
    path = tmp_path / "records.jsonl"
    path.write_text("".join(map(line, range(INDEX))))
    log = RecordLog(path, INDEX, batch=BATCH)
    log.sync()
    log.close()
    return path


def numbers(path: Path) -> list[int]:
    return [record["round"] for record in read_records(path)]


def test_a_whole_log_is_continued_as_it_is(path):
    """Nothing is said; the file is the same one, and lines of rounds that were not saved are dropped."""
    before = path.stat().st_ino, path.read_bytes()
    log = opened(path)
    assert (log.trouble, log.missing, log.seconds) == ("", (), 12.0)
    assert log.best().top1 == log.measured("accuracy").top1 == 61.0
    assert (path.stat().st_ino, path.read_bytes()) == before
    with path.open("a") as file:
        file.write(line(12) + "{damaged}\n" + line(13)[:20])
    assert opened(path).trouble == "" and path.read_bytes() == before[1]


LINES = [line(i) for i in range(INDEX)]
ODD = {
    "missing": (None, "is damaged (it is not there); rounds 0 to 11 are missing"),
    "empty": ("", "(its end was cut off); rounds 0 to 11 are missing"),
    "cut": ("".join(LINES)[:-20], "(its end was cut off); round 11 are missing"),
    "doubled": ("".join(sorted(LINES * 2)), "put in order, and no round is missing"),
    "reordered": ("".join(reversed(LINES)), "(lines out of order); it was put in order, and no round is missing"),
    "a line lost": ("".join(LINES[:3] + LINES[5:]), "(lines are missing); rounds 3 to 4 are missing"),
    "a line damaged": ("".join([*LINES[:3], "{]\n", *LINES[4:]]), "(1 damaged line); round 3 are missing"),
    "foreign": ("".join(line(i, h_prime=[0.1] * 5) for i in range(INDEX)), "(12 lines of another run); rounds 0 to 11"),
    "of the same shape": ("".join(line(i, agreement=0.1) for i in range(INDEX)), "was changed after it was written"),
    "contradicting": ("".join([*LINES, line(5, agreement=0.9)]), ""),
    "a measurement damaged": ("".join([*LINES[:3], line(3, accuracy=5), *LINES[4:]]), "(1 damaged line); round 3 are"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_became_of_a_log_is_said_in_one_line(odd, path):
    """Missing, cut, doubled, out of order, with lines lost, damaged or foreign: it says what it lacks, and so does the next."""
    content, said = ODD[odd]
    path.unlink()
    if content is not None:
        path.write_text(content)
    log = opened(path)
    assert said.replace("round 11 are", "round 11 is").replace("round 3 are", "round 3 is") in log.trouble
    assert "\n" not in log.trouble
    kept = numbers(path)
    assert kept == sorted(set(kept)) and len(kept) + sum(b - a + 1 for a, b in log.missing) == INDEX
    again = opened(path)
    assert again.missing == log.missing and bool(again.trouble) == (bool(log.missing) or odd == "of the same shape")


def test_contradicting_lines_of_a_round_count_for_nothing(path):
    """Before the checkpoint, and not at the end: which of the two is the run's, nothing says."""
    path.write_text("".join([*LINES[:6], line(5, agreement=0.9), *LINES[6:]]))
    log = opened(path)
    assert log.missing == ((5, 5),) and "1 round with contradicting lines" in log.trouble and 5 not in numbers(path)


@given(st.randoms(use_true_random=False))
def test_any_damage_leaves_a_true_log(tmp_path_factory, chance: random.Random):
    """Bytes changed, cut out and put in at random: every line that is left is one that the run wrote, each round once."""
    path = tmp_path_factory.mktemp("log") / "records.jsonl"
    content = bytearray("".join(LINES).encode())
    for _ in range(chance.randrange(1, 4)):
        start, length = chance.randrange(len(content)), chance.randrange(0, 200)
        content[start : start + chance.choice([0, length])] = bytes(
            chance.randrange(256) for _ in range(chance.choice([0, 1, 5]))
        )
    path.write_bytes(content)
    log = opened(path)
    kept = numbers(path)
    assert kept == sorted(set(kept)) and all(0 <= number < INDEX for number in kept)
    assert {number for first, last in log.missing for number in range(first, last + 1)} == set(range(INDEX)) - set(kept)
    assert bool(log.missing) <= bool(log.trouble)


def test_a_line_without_end_is_damaged_and_not_held(path, monkeypatch):
    """A line of more bytes than LONGEST is passed over; those after it count."""
    monkeypatch.setattr(logs, "LONGEST", 1000)
    monkeypatch.setattr(logs, "_BLOCK", 64)
    path.write_text("".join(LINES[:4]) + '{"round": ' + "9" * 5000 + "}\n" + "".join(LINES[4:]))
    past = read_past(path, INDEX, batch=BATCH)
    assert past.missing == () and past.trouble == "1 damaged line"


def test_an_absurd_index_takes_no_time(path):
    """The checkpoint of round 10^15 has no log that fits it."""
    assert read_past(path, 10**15).missing == ((12, 10**15 - 1),)


def test_a_log_that_is_no_file_is_refused_before_anything_is_played(path):
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"records\.jsonl is a folder; give a file"):
        opened(path)


def test_spans_are_said_in_words():
    assert spans_text(((3, 3),)) == "round 3"
    assert spans_text(((0, 1), (4, 4), (6, 9), (11, 11), (13, 14))) == "rounds 0 to 1, 4, 6 to 9 and 2 more spans"
