"""The band of a live game, and the grid of Fig. 4: real ipywidgets, no kernel."""

import re

import numpy as np
import pytest
import torch
from helpers.live_games import tiny_game

pytest.importorskip("ipywidgets")

from adadfq_lab.equations import Bounds
from adadfq_lab.game.dials import Dials, play_turns
from adadfq_lab.game.recordings import load_grid
from adadfq_lab.views.band import band_game, grid_explorer, measured
from adadfq_lab.views.controls import film

FREE = Dials(Bounds(0.1, 0.8), "zero", 0.0, 0.0, student_learns=False)


def weights(game):
    return [value for module in (game.generator, game.student) for value in module.state_dict().values()]


@pytest.fixture
def band(monkeypatch):
    monkeypatch.delenv("ADADFQ_LAB_FAST", raising=False)
    made = band_game(tiny_game(), rounds=12, dials=FREE)
    made.run.blocking = False
    yield made
    made.run.stop()
    made.run._join()


def test_dials_turned_during_a_game_are_noted_and_played_again_to_the_bit(band):
    """Turned while its thread plays or before, every change has its round; the same notes give the same weights."""
    band.inputs["lower"].value = 0.3
    assert band.turns == [(0, Dials(Bounds(0.3, 0.8), "zero", 0.0, 0.0, student_learns=False))]
    band.run.on_publish.insert(0, lambda history: setattr(band.inputs["gamma"], "value", 1.0) if len(history) >= 4 else None)
    band.start()
    history = band.run.wait()
    (_, first), (at, later) = band.turns
    assert 4 <= at <= 12 and later.gamma == 1.0 and later.changes(first) == "γ 1"
    assert np.isfinite(history["generator.bns"]).nonzero()[0].tolist() == list(range(at, 12))
    again = tiny_game()
    for _ in play_turns(again, band.turns, 12):
        pass
    assert all(map(torch.equal, weights(band.run.game), weights(again)))


def test_the_picture_says_what_was_measured(band):
    """The share inside is counted by hand; H_min of the batch stands apart; an outline is left by a change."""
    band.start()
    history = band.run.wait()
    h = history["entropy"] / np.log(4)
    inside = round(100 * float(((h > 0.1) & (h < 0.8)).mean()))
    assert f"{inside} % between λ_l = 0.1" in band.output.value and "H_min, always" not in band.output.value
    band.inputs["floor"].value = "batch"
    assert "always 0" in band.output.value and ">before<" in band.output.value and "NaN" not in band.output.value
    assert (measured(history, "batch").min(axis=1) == 0).all()


def test_held_and_let_go_q_keeps_the_rate_of_its_schedule():
    game = tiny_game(student_lr=3e-3)
    FREE.turn(game)
    assert game.rates.student_lr == 0
    Dials().turn(game)
    assert game.rates.student_lr == 3e-3


def test_a_cell_of_the_grid_shows_its_histogram():
    """Pressing a button shows the samples of its bounds; the words of the cells are the grid's numbers."""
    grid, _ = load_grid()
    control = grid_explorer()
    rows = control.box.children[2].children[0].children
    cell = rows[4].children[1 + 3]  # from the top: λ_l = 0.1; λ_u = 0.8
    assert cell.description == f"{grid['accuracy'][1, 3]:.1f}"
    cell.click()
    assert f"mean {grid['h_prime'][1, 3].astype(float).mean():.2f}" in control.output.value
    assert control.film().count("adadfq-frame") == 36 + 1


def test_a_film_has_a_picture_for_every_position():
    """Two axes, six pictures: one is shown, chosen by the positions; a missing picture is an error."""
    page = film({"a": [1, 2], "b": ["x", "y", "z"]}, [f"<p>{i}</p>" for i in range(6)], (1, 0))
    frames = re.findall(r'<div class="adadfq-frame"(.*?)><p>(\d)</p>', page)
    assert [number for look, number in frames if "none" not in look] == ["3"] and len(frames) == 6
    with pytest.raises(ValueError, match="6 pictures"):
        film({"a": [1, 2], "b": [1, 2, 3]}, ["<p></p>"])
