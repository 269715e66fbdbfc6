"""The paper's other evidence: verdicts follow from the numbers they stand beside, and can go either way."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny_games import changed, play, state, tiny_game

from adadfq_lab.authoring.recording import differences
from adadfq_lab.cli import main as cli
from adadfq_lab.game.history import History
from adadfq_lab.game.recordings import Recording
from adadfq_lab.studies import paper_figures as evidence
from adadfq_lab.studies.paper_figures import EVIDENCE, evidence_page, mean_distance


@pytest.fixture(scope="module")
def found():
    return {name: make() for name, make in EVIDENCE.items()}


def test_every_figure_has_a_claim_a_rule_and_finite_numbers(found):
    for name, one in found.items():
        assert one.name == name and one.claim and one.rule and one.figures
        assert all(np.isfinite(value) for value in one.measured.values()), name
        assert all(len(fig.layout.meta["alt"]) > 30 for fig in one.figures)
        assert one.as_json()["supported"] is one.supported


def test_mean_distance_by_hand():
    """Rows (1, 0), (0, 1), (1, 0): distances 2, 0 and 2 over three pairs."""
    assert mean_distance(np.array([[1, 0], [0, 1], [1, 0]], np.float32)) == pytest.approx(4 / 3)


def a_recording(monkeypatch, columns: dict) -> None:
    made = History({name: np.asarray(values, np.float32) for name, values in columns.items()})
    monkeypatch.setattr(evidence, "load_recording", lambda name: Recording(name, made, np.zeros((1, 10, 8, 8), np.uint8), (0,)))


@pytest.mark.parametrize(
    ("q", "supported"),
    [(-0.5, True), (-0.4, False), (0.5, False), (-0.6, True)],  # of 0.5: sums 0, 0.1/0.9, 1, -0.1/1.1
)
def test_gains_that_cancel_are_zero_sum(q, supported, monkeypatch):
    """Within 10 % of all that moved: 0.1/0.9 is more, 0.1/1.1 is less."""
    rounds = np.arange(60, 100)
    a_recording(monkeypatch, {"round": rounds, "gain_g": np.full(40, 0.5), "gain_q": np.full(40, q)})
    one = evidence.fig3()
    assert one.supported is supported
    assert one.measured["sum of both [nats]"] == pytest.approx(40 * (0.5 + q), abs=1e-4)


@pytest.mark.parametrize(("optimal", "medians", "supported"), [(92, (0.2, 0.5, 0.8), True), (90, (0.2, 0.5, 0.8), False)])
def test_the_region_is_optimal_if_it_is_better_and_h_prime_moves(optimal, medians, supported, monkeypatch):
    """Nine cells a point or two above the other 26, whose own spread is small; and no verdict without a shift of H'."""
    dice = np.random.default_rng(0)
    accuracy = 90 + 0.1 * dice.standard_normal((6, 6))
    accuracy[:3, 2:5] += optimal - 90
    accuracy[5, 0] = np.nan
    h = np.zeros((6, 6, 4))
    for at, median in zip(((0, 0), (1, 3), (5, 5)), medians, strict=True):
        h[at] = median
    steps = np.arange(6) / 10
    grid = {"accuracy": accuracy, "h_prime": h, "lower": steps, "upper": 0.5 + steps}
    monkeypatch.setattr(evidence, "load_grid", lambda: (grid, {}))
    assert evidence.fig4().supported is supported
    h[:] = 0.5
    assert not evidence.fig4().supported


def test_differences_are_p_ds_by_class_and_change_nothing():
    """softmax(z_p - z_q) of ten samples a class, in the order of the classes, by hand for one batch."""
    game = tiny_game()
    play(game, 3)
    before = state(game)
    p = differences(game)
    assert p.shape == (50, 5) and not changed(before, state(game))
    y = torch.arange(5).repeat_interleave(2)
    x = game.generate(y, seed=0)
    with torch.no_grad(), game.student.frozen():
        expected = torch.softmax(game.teacher(x) - game.student(x), 1).numpy()
    assert p[[0, 1, 10, 11]] == pytest.approx(expected[:4], abs=1e-6)


def test_the_command_prints_verdicts_and_draws_a_page(tmp_path, capsys):
    cli.main(["evidence", "fig3", "table3", "--figure", str(tmp_path / "e.html"), "--json"])
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert [one["figure"] for one in told] == ["fig3", "table3"]
    assert all(("not supported at this scale" in out) or one["supported"] for one in told)
    page = (tmp_path / "e.html").read_text()
    assert page.count("plotly-graph-div") == 2 and "<script src=" not in page
    with pytest.raises(SystemExit) as caught:
        cli.main(["evidence", "fig2"])
    assert caught.value.code == 2 and "no evidence is called 'fig2'; choose from fig1" in capsys.readouterr().err


def test_the_page_escapes_and_names_each_verdict(found):
    page = evidence_page(list(found.values()))
    for one in found.values():
        assert f"<h2>{one.name}: {'supported' if one.supported else 'not supported at this scale'}</h2>" in page
