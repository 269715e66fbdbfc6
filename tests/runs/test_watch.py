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
    log, opening = Log(folder / "records.jsonl"), Path.open
    (folder / "new").write_text("".join(map(line, range(4))))

    def open_and_replace(path, *arguments):
        file = opening(path, *arguments)
        os.replace(folder / "new", path)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_and_replace)
        assert [one["round"] for one in log.new()[0]] == [0, 1]
    found, anew = log.new()
    assert anew and [one["round"] for one in found] == [0, 1, 2, 3]
