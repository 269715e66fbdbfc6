"""Watching: a run's log alone says how it stands, while it grows, when it is cut off, and when it is written anew."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adadfq_lab.cli import main as cli
from adadfq_lab.errors import UserError
from adadfq_lab.machine.reading import open_regular
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.watch import Log, Status, Watch, follow, scalars, sparkline, to_tensorboard

ROUNDS = 10


def line(index: int, **more: object) -> str:
    """A round's line: half a second a round, H' of 0, 0.5 and 1, of which one lies in the band."""
    plain = {"round": index, "phase": "warm-up" if index < 2 else "play", "observing": True, "generator.bns": 1.5}
    plain |= {"agreement": 0.25, "lower": 0.1, "upper": 0.8, "entropy": [0.1, 0.2, 0.3], "h_prime": [0.0, 0.5, 1.0]}
    return json.dumps(plain | {"seconds": 0.5 * (index + 1)} | more) + "\n"


@pytest.fixture
def folder(tmp_path):
    """A run that is about to play ten rounds."""
    (tmp_path / "config.json").write_text(json.dumps(RunConfig(rounds=ROUNDS, seed=7).as_json()))
    return tmp_path


def append(folder: Path, text: str) -> None:
    with (folder / "records.jsonl").open("a") as file:
        file.write(text)


def test_the_status_by_hand(folder):
    """Four rounds of ten at two a second: three seconds left; a third of the samples within the band."""
    append(folder, "".join(line(i) for i in range(3)) + line(3, accuracy={"top1": 40.0, "low": 1, "high": 2, "images": 9}))
    status = Watch(folder).look()
    assert (status.state, status.round, status.rounds, status.phase) == ("playing", 4, ROUNDS, "play")
    assert (status.rounds_per_second, status.seconds, status.left) == (2.0, 2.0, 3.0)
    assert (status.h_prime, status.occupancy, status.agreement) == (0.5, pytest.approx(1 / 3), 0.25)
    assert (status.accuracy, status.best, status.curve) == (40.0, 40.0, (40.0,))
    text = status.frame("x")
    assert "40.0 %   round 4 of 10, play, playing" in text and "2.0 rounds/s, 2 s so far, 3 s left" in text


def test_a_log_that_grows_is_read_on(folder):
    """A line counts once it is whole; a damaged one is passed over; what was read is not read again."""
    watch = Watch(folder)
    assert watch.look().state == "waiting"
    half = line(1)
    append(folder, line(0) + half[:30])
    assert watch.look().round == 1
    assert watch.look().round == 1
    append(folder, half[30:])
    assert watch.look().round == 2
    append(folder, "{broken}\n5\n" + line(2))
    assert watch.look().round == 3
    assert len(watch.recent) == 3


@pytest.mark.parametrize("block", [64, 500, 4096])
def test_a_first_look_at_a_long_log_is_what_reading_all_of_it_says(folder, monkeypatch, block):
    """Of a log of more than four blocks only the end is read, and elsewhere the accuracies alone: none missing, none twice."""
    accuracies = {3: 30.0, 50: 90.5, 51: 12.5, 97: 40.0, 130: 41.0, 299: 42.0}
    lines = [
        line(i, **({"accuracy": {"top1": accuracies[i], "low": 1, "high": 2}} if i in accuracies else {})) for i in range(300)
    ]
    append(folder, "".join(lines[:250]) + "{damaged}\n" + "".join(lines[250:]))
    whole = Watch(folder).look()
    monkeypatch.setattr("adadfq_lab.runs.watch.BLOCK", block)
    monkeypatch.setattr("adadfq_lab.runs.watch.LATELY", 30)
    watch = Watch(folder)
    status = watch.look()
    assert status.curve == whole.curve == tuple(accuracies.values()) and status.best == 90.5
    assert status.round == 300 and 0 < len(watch.recent) <= 200
    append(folder, line(300, accuracy={"top1": 99.0}) + line(301))
    assert (watch.look().round, watch.look().best) == (302, 99.0)


FOREIGN = [
    {"round": 3, "phase": "\x1b[2J\x07p", "h_prime": [0.5, float("nan"), "x", None, 10**400], "lower": 0.1, "upper": 0.8},
    {"round": 4, "seconds": "x", "h_prime": 5, "lower": "a", "upper": [], "agreement": float("nan"), "accuracy": {"top1": "y"}},
    {"round": 5, "seconds": float("inf"), "h_prime": [0.9], "lower": float("nan"), "upper": 1, "phase": 7, "accuracy": 3},
    {"round": True}, {"round": -1}, {"round": 10**30}, {"round": 1.5}, [], "x",
    {"round": 6, "accuracy": {"top1": float("nan")}},
]  # fmt: skip


def test_nothing_in_a_foreign_log_ends_the_watching_or_reaches_the_terminal(folder, capsys):
    """Wrong types, NaN, infinities, numbers without end, escape sequences in log, configuration and folder name."""
    odd = folder / "odd\x1b[31m\n"
    odd.mkdir()
    config = RunConfig(rounds=ROUNDS).as_json() | {"teacher": "evil\x1b]0;owned\x07"}
    (odd / "config.json").write_text(json.dumps(config))
    for count in range(1, len(FOREIGN) + 1):
        (odd / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in FOREIGN[:count]))
        cli.main(["watch", str(odd), "--json"])
        shown = capsys.readouterr().out
        assert all(part.isprintable() for part in shown.splitlines()) and "NaN" not in shown and "nan" not in shown
        json.loads(shown.splitlines()[-1], parse_constant=lambda name: pytest.fail(name))
        list(map(scalars, [one for one in FOREIGN if isinstance(one, dict)]))
    assert Watch(odd).look().h_prime == 0.5
    cli.main(["watch", str(odd), "--html", str(folder / "page.html"), "--once"])
    assert "\x1b" not in (folder / "page.html").read_text()


@pytest.mark.parametrize("name", ["config.json", "records.jsonl"])
def test_a_folder_or_a_fifo_in_the_place_of_a_file_is_one_line(folder, name):
    """Not waited for."""
    append(folder, line(0))
    for make in (os.mkfifo, os.mkdir):
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(UserError, match=f"{name} is a (FIFO|folder); give a file"):
            Watch(folder).look()
        os.rmdir(folder / name) if make is os.mkdir else None


def test_a_log_that_is_written_anew_is_read_anew(folder):
    """A resumed run replaces its log by a shorter one; accuracies of rounds that are gone do not stay."""
    accuracy = {"top1": 90.0, "low": 1, "high": 2, "images": 9}
    append(folder, line(0) + line(1) + line(2, accuracy=accuracy))
    watch = Watch(folder)
    assert watch.look().best == 90
    (folder / "new").write_text(line(0))
    os.replace(folder / "new", folder / "records.jsonl")
    assert (watch.look().round, watch.look().best) == (1, None)


def test_another_tracker_takes_the_loop_of_the_documentation(folder, monkeypatch):
    """The block of docs/full_training.md, with a tracker that notes what it is given."""
    page = Path(__file__).parents[2] / "docs" / "full_training.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    logged = []
    tracker = SimpleNamespace(
        init=lambda **_: None, log=lambda scalars, step: logged.append((step, scalars)), finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    append(folder, "".join(line(i) for i in range(ROUNDS)))
    exec(block.replace("runs/mine", str(folder)), {})
    assert [step for step, _ in logged] == list(range(ROUNDS)) and logged[3][1]["agreement"] == 0.25


def test_finished_and_silent_runs_are_told_apart(folder):
    """The last round is there; or nothing has come for more than a minute."""
    append(folder, "".join(line(i) for i in range(5)))
    os.utime(folder / "records.jsonl", (0, 0))
    assert Watch(folder).look().state == "silent"
    append(folder, "".join(line(i) for i in range(5, ROUNDS)))
    status = Watch(folder).look()
    assert (status.state, status.left) == ("finished", 0.0)


def test_sparklines_end_at_their_extremes():
    """Lowest and highest bar for the lowest and highest value, all low where nothing changes, never wider than asked."""
    assert sparkline((0, 1, 2, 7)) == "▁▂▃█"
    assert sparkline((3, 3)) == "▁▁"
    long = sparkline(tuple(range(1000)), 40)
    assert len(long) == 40 and long[-1] == "█"


def test_scalars_are_what_trackers_take(folder):
    """One number each; samples as their mean, accuracies in percent."""
    found = scalars(json.loads(line(3, accuracy={"top1": 40.0, "low": 1, "high": 2, "images": 9}, gain_g=0.5)))
    assert found == {"generator.bns": 1.5, "agreement": 0.25, "lower": 0.1, "upper": 0.8, "seconds": 2.0, "gain_g": 0.5,
                     "accuracy": 40.0, "h_prime": 0.5}  # fmt: skip


def test_follow_gives_each_round_once(folder):
    """Also where the log is written anew in between."""
    append(folder, line(0) + line(1))
    seen, lines = [], follow(folder, every=0)
    for record in lines:
        seen.append(record["round"])
        if record["round"] == 1:
            (folder / "new").write_text("".join(line(i) for i in range(ROUNDS)))
            os.replace(folder / "new", folder / "records.jsonl")
    assert seen == list(range(ROUNDS))


def test_the_log_reaches_tensorboard(folder):
    """Every scalar of every round, under its name."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    append(folder, "".join(line(i) for i in range(ROUNDS)))
    to_tensorboard(folder, folder / "logs")
    events = EventAccumulator(str(folder / "logs")).Reload()
    assert [event.step for event in events.Scalars("generator/bns")] == list(range(ROUNDS))


def test_the_command_prints_a_frame_or_an_object(folder, capsys):
    """Once; as JSON; as a page; until the end where the run is finished."""
    append(folder, "".join(line(i) for i in range(4)))
    cli.main(["watch", str(folder), "--once", "--html", str(folder / "page.html")])
    assert "round 4 of 10" in capsys.readouterr().out
    page = (folder / "page.html").read_text()
    assert 'http-equiv="refresh" content="2"' in page and "round 4 of 10" in page
    cli.main(["watch", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["left"] == 3.0
    append(folder, "".join(line(i) for i in range(4, ROUNDS)))
    cli.main(["watch", str(folder)])
    assert "finished" in capsys.readouterr().out


def test_where_no_run_is_there_is_nothing_to_watch(tmp_path):
    with pytest.raises(UserError, match="holds no run to watch; give the folder"):
        Watch(tmp_path / "none")


def test_a_status_without_measurements_can_be_drawn():
    """A run that has not played a round."""
    assert "round 0 of 5" in Status("r", "waiting", 0, 5, "warm-up").frame()
    assert Log(Path("nowhere")).new() == ([], False)


def test_a_log_that_is_replaced_while_it_is_read_is_read_whole(folder, monkeypatch):
    """A resumed run puts a new log in the old one's place between opening and reading: nothing of it is passed over."""
    append(folder, line(0) + line(1))
    log = Log(folder / "records.jsonl")
    (folder / "new").write_text("".join(map(line, range(4))))

    def open_and_replace(path):
        file = open_regular(path)
        os.replace(folder / "new", path)
        return file

    with monkeypatch.context() as patch:
        patch.setattr("adadfq_lab.runs.watch.open_regular", open_and_replace)
        assert [one["round"] for one in log.new()[0]] == [0, 1]
    found, anew = log.new()
    assert anew and [one["round"] for one in found] == [0, 1, 2, 3]
