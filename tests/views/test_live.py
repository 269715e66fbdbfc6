"""A game in the background: what its buttons do, what its thread tells, and how much it sends."""

import json
import threading
import time
from dataclasses import replace
from typing import ClassVar

import comm
import ipywidgets.widgets.widget as widgets
import numpy as np
import pytest
from helpers.live_games import tiny_game, tiny_images

from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import History, Recorder, thin
from adadfq_lab.game.recordings import load_recording
from adadfq_lab.views import game_panels, live, renderers
from adadfq_lab.views.live import LiveRun

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ipywidgets")


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def background(rounds=100_000, backend="none", **more):
    return LiveRun(tiny_game(), rounds, backend=backend, blocking=False, **more)


def test_a_run_plays_its_rounds_and_remembers_them():
    """After wait() the history has one row a round, in order, and what is measured where it is due."""
    run = LiveRun(tiny_game(gains_every=2), 9, data=tiny_images(), evaluate_every=4, backend="none", blocking=False).start()
    history = run.wait(60)
    assert run.state == "finished"
    assert history["round"].tolist() == list(range(9))
    assert history["h_prime"].shape == (9, 8)
    assert np.isfinite(history["gain_g"]).tolist() == [True, False] * 4 + [True]
    assert np.isfinite(history["test.accuracy"]).tolist() == [i in (0, 3, 7, 8) for i in range(9)]
    assert np.isnan(history.total("student")[:2]).all(), "Q does not move in the warm-up"
    assert np.isfinite(history.total("student")[2:]).all()


def test_a_live_run_is_the_same_game():
    """Played in a thread, a game gives the records that `play` gives."""
    records = list(tiny_game().play(5))
    history = LiveRun(tiny_game(), 5, backend="none", blocking=True).start().history
    assert np.allclose(history["h_prime"], np.stack([record.h_prime.numpy() for record in records]), atol=1e-6)


def test_pause_resume_stop():
    """The buttons: a paused run plays no round, a resumed one does, a stopped one is over and keeps what it has."""
    run = background()
    assert run.controls.children
    buttons = run._buttons
    assert [name for name, button in buttons.items() if not button.disabled] == ["start"]
    buttons["start"].click()
    until(lambda: len(run.history) > 2)
    buttons["pause"].click()
    until(lambda: run.state == "paused")
    count = len(run.history)
    time.sleep(0.2)
    assert len(run.history) == count
    until(lambda: not buttons["resume"].disabled)
    assert buttons["pause"].disabled
    with pytest.raises(UserError, match="paused"):
        run.wait(1)
    buttons["resume"].click()
    until(lambda: len(run.history) > count)
    buttons["stop"].click()
    history = run.wait(10)
    assert run.state == "stopped"
    assert len(run.history) == len(history)
    assert all(button.disabled for button in buttons.values())
    assert "stopped" in run._status.value


def test_stop_ends_a_paused_run():
    """Stop works in a pause too."""
    run = background().start()
    run.pause()
    until(lambda: run.state == "paused")
    run.stop()
    run.wait(10)
    assert run.state == "stopped"


def test_a_second_run_stops_the_first():
    """Running the cell twice: one run plays at a time, and the first says why it ended."""
    first, second = background(), background()
    first.start()
    second.start()
    assert not first.running
    assert "another run was started" in first.status()
    assert second.running
    assert sum(thread.name == "adadfq live run" for thread in threading.enumerate()) == 1


def test_an_error_of_the_thread_is_told_twice():
    """What goes wrong in the thread stands in the status line and is raised again by wait() and then()."""

    def fails(_: History) -> None:
        raise ZeroDivisionError("on purpose")

    run = background(5)
    assert run.controls.children
    run.on_publish.append(fails)
    run.start()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        run.wait(30)
    assert run.state == "failed"
    assert "ZeroDivisionError: on purpose" in run.status()
    with pytest.raises(ZeroDivisionError):
        run.then(lambda history: "never")


def test_a_diverging_game_is_told_in_the_status_line():
    """Losses that become infinite end the run as failed, naming the round."""
    run = LiveRun(tiny_game(student_lr=1e30), 50, backend="none", blocking=False).start()
    with pytest.raises(UserError, match=r"round \d+"):
        run.wait(60)
    assert "round" in run.status()


def test_bounds_count_from_the_next_round_and_leave_a_mark():
    """Bounds set while a game runs are in the record of a later round, which is marked on every plot over rounds."""
    run = background().start()
    until(lambda: len(run.history) > 1)
    run.set_bounds(Bounds(0.3, 0.6))
    until(lambda: run.history.marks)
    run.stop()
    history = run.wait(10)
    (mark,) = history.marks
    i = int(np.flatnonzero(history["round"] == mark.round)[0])
    assert history["lower"][i - 1] == pytest.approx(0.1)
    assert history["lower"][i] == pytest.approx(0.3)
    assert mark.text == "λ_l 0.3, λ_u 0.6"
    over_rounds = [panel for panel in game_panels.panels(history) if panel.x == "round"]
    assert len(over_rounds) == 5
    assert all(any(rule.value == mark.round for rule in panel.rules) for panel in over_rounds)


def test_losses_far_apart_are_told_apart():
    """G's is a hundred times Q's at first: a log axis shows both; a loss that falls below 0 keeps the axis linear."""

    def losses(history):
        return next(panel for panel in game_panels.panels(history) if panel.title == "What the players minimise")

    history = load_recording("adadfq_3w3a").history
    assert losses(history).log and losses(history).y == "loss (log scale)"
    assert not losses(History()).log
    below = replace(history, columns=history.columns | {"student.entropy": history["student.entropy"] - 1})
    assert not losses(below).log and losses(below).y == "loss"
    view = renderers.FigureView()
    for shown, kind in ((history, "log"), (below, "linear")):
        view.publish(shown)
        assert view.figure.layout.yaxis3.type == kind
    view.close()


def test_then_fills_in_when_the_run_is_over():
    """A report asked for early appears at the end; one asked for late, at once."""
    run = background(4).start()
    early = run.then(lambda history: f"{len(history)} rounds")
    run.wait(30)
    until(lambda: early.text == "4 rounds")
    assert run.then(lambda history: "late").text == "late"


def test_fast_mode_is_short_and_blocks(monkeypatch):
    """In fast mode a run has six rounds at most and start() returns when they are played."""
    monkeypatch.setenv("ADADFQ_LAB_FAST", "1")
    run = LiveRun(tiny_game(), 1000, backend="none").start()
    assert run.state == "finished"
    assert len(run.history) == live.FAST_ROUNDS


def test_a_run_needs_rounds_and_a_start():
    """Mistakes are told in a line."""
    with pytest.raises(UserError, match="at least 1"):
        LiveRun(tiny_game(), 0, backend="none")
    with pytest.raises(UserError, match="start"):
        background().wait()


# What is sent


class RecordedComm(comm.base_comm.BaseComm):
    """Counts what a widget would send to its front end."""

    log: ClassVar[list[tuple[float, int]]] = []

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        if msg_type == "comm_msg":
            size = len(json.dumps(data or {}, default=str)) + sum(memoryview(b).nbytes for b in buffers or [])
            self.log.append((time.monotonic(), size))


@pytest.fixture
def traffic(monkeypatch):
    """The messages of all widgets created in the test: (time, bytes)."""
    RecordedComm.log = []
    manager = comm.base_comm.CommManager()
    monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: RecordedComm(*args, **keys))
    monkeypatch.setattr(comm, "get_comm_manager", lambda: manager)
    return RecordedComm.log


def long_history(rounds=5000, samples=16):
    random = np.random.default_rng(0)
    columns = {"h_prime": random.random((rounds, samples)), "entropy": random.random((rounds, samples))}
    columns |= {name: random.random(rounds) for name in ("agreement", "gain_g", "gain_q", "generator.ds", "student.entropy")}
    columns |= {"round": np.arange(rounds), "lower": np.full(rounds, 0.1), "upper": np.full(rounds, 0.8)}
    columns["test.accuracy"] = 100 * random.random(rounds)
    return History({name: column.astype(np.float32) for name, column in columns.items()})


def test_an_update_is_small(traffic):
    """One publish of 5,000 rounds sends less than 60 kB and at most 500 points a line, and no binary; so does the SVG."""
    view = renderers.FigureView()
    traffic.clear()
    view.publish(long_history())
    assert traffic, "nothing was sent: the recorder does not see the figure"
    assert sum(size for _, size in traffic) < 60_000
    assert all(len(trace.x) <= 500 for trace in view.figure.data)
    assert not widgets._remove_buffers(view.figure.get_state())[2], "static pages cannot read binary buffers"
    assert len(game_panels.svg(long_history())) < 60_000
    view.close()


def test_at_most_five_updates_a_second():
    """However fast the rounds, the figure is told at most five times a second."""
    times = []
    run = background()
    run.on_publish.append(lambda history: times.append(time.monotonic()))
    run.start()
    until(lambda: len(times) >= 4)
    run.stop()
    run.wait(10)
    assert min(np.diff(times)) > 0.18


def test_the_figure_shows_what_was_played(traffic):
    """After a run, the traces of the FigureWidget hold the history: mean H' of each round, bars that add up to 100 %."""
    run = background(12, backend="widget").start()
    history = run.wait(60)
    data = {trace.name: trace for trace in run.figure.data}
    assert np.allclose(np.array(data["mean H′"].y), history["h_prime"].mean(1), atol=1e-6)
    assert sum(float(np.sum(data[name].y)) for name in ("below", "inside", "above")) == pytest.approx(100)
    run.close()


# Columns


def test_thin_keeps_the_mean_and_skips_what_is_missing():
    """Stretches of equal length keep the overall mean; missing values do not count; short columns stay."""
    column = np.arange(1000, dtype=np.float32)
    assert thin(column, 100).mean() == pytest.approx(column.mean())
    assert thin(column, 2000) is column
    column[::2] = np.nan
    assert thin(column, 100)[0] == pytest.approx(np.mean([1, 3, 5, 7, 9]))
    assert np.isnan(thin(np.full(10, np.nan, np.float32), 5)).all()


def test_a_history_can_be_cut():
    """upto(k) is the history after k rounds: its columns' beginnings and the marks until then."""
    recorder, game = Recorder(4), tiny_game()
    for record in game.play(3):
        recorder.add(record)
    game.bounds = Bounds(0.2, 0.7)
    for record in game.play(2):
        recorder.add(record)
    history = recorder.history()
    assert len(history.upto(3)) == 3
    assert history.upto(3).marks == ()
    assert [mark.round for mark in history.upto(4).marks] == [3]
    assert len(history.last_samples(10)) == 16, "two whole batches of 8 hold at least 10 samples"
    assert len(History().last_samples()) == 0
    assert len(game_panels.panels(History())) == len(game_panels.panels(history))


def test_a_game_is_played_by_one_loop_at_a_time():
    """While a live run is in the middle of a round, a second loop over its game is refused in one line and harms nothing."""
    game = tiny_game()
    inside, go_on = threading.Event(), threading.Event()
    played = game._play

    def slow_round(undo):
        inside.set()
        assert go_on.wait(30)
        return played(undo)

    game._play = slow_round
    run = LiveRun(game, 2, backend="none", blocking=False).start()
    assert inside.wait(30)
    with pytest.raises(UserError, match=r"run\.wait\(\)"):
        next(game.play(1))
    go_on.set()
    assert len(run.wait(30)) == 2
    assert game.index == 2
    assert next(game.play(1)).index == 2
