"""Recorded games: what is written is read back, what is shipped is complete and small."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch
from helpers.live_games import tiny_game, tiny_images

from adadfq_lab.authoring import recording
from adadfq_lab.authoring.imagined import EVERY, LONG, ROUNDS, method
from adadfq_lab.authoring.recording import RUNS, play_and_record
from adadfq_lab.data.locations import stub_path
from adadfq_lab.equations import disagreement_entropy, normalized_entropy
from adadfq_lab.errors import UserError
from adadfq_lab.game import recordings
from adadfq_lab.game.probing import probe
from adadfq_lab.game.recordings import Recording, load_grid, load_population, load_recording

SHIPPED = [f"run_{name}.npz" for name in (*RUNS, *LONG)] + ["population.npz", "grid.npz"]


def test_the_shipped_recordings_are_all_there_and_below_640_kb():
    """Every file the course replays is in data_stubs/, 0.64 MB together, readable without pickle."""
    sizes = []
    for name in SHIPPED:
        path = stub_path(name)
        assert path.exists(), name
        sizes.append(path.stat().st_size)
        with np.load(path, allow_pickle=False) as file:
            assert all(file[key].dtype != object for key in file.files)
    assert sum(sizes) < 640_000


def test_every_stub_has_a_row_with_its_checksum():
    """data_stubs/README.md names each file that is shipped, with its sha256, and no other file."""
    text = stub_path("README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w.]+)` \|.*`([0-9a-f]{64})` \|$", text, re.MULTILINE))
    shipped = {path.name: path for path in stub_path("README.md").parent.iterdir() if path.name != "README.md"}
    assert listed.keys() == shipped.keys()
    for name, path in shipped.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name], name


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_run_is_whole(name):
    """As many rounds as planned, H' in [0, 1] with a 0 in each batch, measurements, images, and how it was made."""
    one, plan = load_recording(name), RUNS[name]
    history = one.history
    assert len(history) == plan.rounds == one.meta["rounds"]
    assert one.meta["bits"] == plan.bits
    assert one.meta["settings"] == plan.settings
    assert one.meta["student_lr"] == plan.student_lr
    assert one.meta["bns"] == ("mean" if plan.averaged else "sum")
    h_prime = history["h_prime"]
    assert h_prime.min() == 0
    assert h_prime.max() <= 1
    assert (h_prime.min(1) == 0).all()
    assert (history["entropy"] <= math.log(10) + 1e-3).all()
    assert np.isfinite(history["test.accuracy"]).sum() >= 5
    assert one.images.shape[1:] == (10, 28, 28)
    assert (
        len(one.image_rounds)
        == len(one.images)
        == (len([at for at in recording.IMAGES_AT if at <= plan.rounds]) if plan.gallery else 1)
    )


@pytest.mark.parametrize("name", LONG)
def test_a_long_game_is_whole(name):
    """One round in six of 1,200, images of every class at five of them, and what notebook 03 prints about the end."""
    one = load_recording(name)
    assert one.meta["rounds"] == ROUNDS == one.image_rounds[-1]
    assert len(one.history) == ROUNDS // EVERY + 1
    assert one.meta["method"] == method(name).name
    assert one.images.shape == (5, 10, 28, 28)
    assert len(one.meta["bns"]) == 21
    assert 10 < one.meta["recognised"] <= 100
    assert ("generator.bns" in one.history.columns) == (name != "gdfq_long_label")


def test_notebook_03_says_what_was_recorded():
    """Its reading of three ways to add up L_BNS: summed is nearest to P's memory, left out farthest; summed has the best Q."""
    averaged, summed, without = (load_recording(name) for name in LONG)
    distances = [np.mean(one.meta["bns"]) for one in (summed, averaged, without)]
    assert distances == sorted(distances)
    assert averaged.meta["recognised"] == pytest.approx(without.meta["recognised"], abs=3)
    assert summed.meta["recognised"] < averaged.meta["recognised"]
    assert summed.meta["final"]["test.accuracy"] > max(one.meta["final"]["test.accuracy"] for one in (averaged, without))
    ratio = summed.history["generator.bns"][0] / averaged.history["generator.bns"][0]
    assert ratio == pytest.approx(700, rel=0.05)


def test_the_players_of_notebook_00_differ_on_a_third():
    """It says so of the end of the recorded game, whose mean H' hardly ever leaves the band."""
    history = load_recording("adadfq_3w3a").history
    assert 0.6 < history["agreement"][-30:].mean() < 0.75
    means = history["h_prime"].mean(1)
    assert ((means > 0.1) & (means < 0.8)).mean() > 0.98


def test_the_gains_of_notebook_04():
    """Summed, signs as in Fig. 3 and a sum within a tenth, but G's own within its error; averaged, the sum is G's part."""
    found = {}
    for name in ("adadfq_3w3a", "adadfq_averaged"):
        history = load_recording(name).history
        known = np.isfinite(history["gain_g"]) & (history["round"] >= 60)
        found[name] = [history[f"gain_{p}"][known].astype(float) for p in "gq"]
        assert history["entropy"][60:80].mean() < history["entropy"][-20:].mean()  # the disagreement fell, in either
    g, q = found["adadfq_3w3a"]
    assert g.sum() > 0 > q.sum() and (g > 0).mean() > 0.5 < (q < 0).mean()
    assert abs((g + q).sum()) < 0.1 * (np.abs(g).sum() + np.abs(q).sum())
    errors = [1.96 * gain.std() * len(gain) ** 0.5 for gain in (g, q)]
    assert g.sum() < errors[0] and errors[1] < -q.sum() < 1.3 * errors[1]
    g, q = found["adadfq_averaged"]
    assert 7 < g.sum() < 9 and 0 < q.sum() < 0.1 * g.sum()
    history = load_recording("adadfq_3w3a").history
    both = [history.total(player) for player in ("generator", "student")]
    assert np.corrcoef(both[0][60:], both[1][60:])[0, 1] > 0.2
    assert all(total[60:80].mean() > 1.3 * total[-20:].mean() for total in both)


def test_adasg_of_notebook_04_is_close_to_adadfq():
    """It has a few samples more below its own bound, not fewer, and about the same mean."""
    h = {name: load_recording(name).history.upto(150).last_samples(320) for name in ("adasg_3w3a", "adadfq_3w3a")}
    shares = {name: (values < 0.3).mean() for name, values in h.items()}
    assert 0 < shares["adasg_3w3a"] - shares["adadfq_3w3a"] < 0.1
    assert h["adasg_3w3a"].mean() == pytest.approx(h["adadfq_3w3a"].mean(), abs=0.1)


def test_the_ablation_of_notebook_05():
    """Accuracies cannot be told apart; in testing loss the row without L_BNS is the worst at each of three measurements.

    H' and H_info of three games hardly differ, and L_BNS is several times the other terms.
    """
    rows = ("adadfq_3w3a", "no_ds_3w3a", "no_as_3w3a", "no_bal_3w3a", "no_band_3w3a", "no_bns_3w3a")
    ends = {name: load_recording(name).history.upto(150) for name in rows}
    accuracy = [history["test.accuracy"][-1] for history in ends.values()]
    assert min(accuracy) > 90 and max(accuracy) - min(accuracy) < 4
    losses = {name: h["test.loss"][np.isfinite(h["test.loss"])][-3:] for name, h in ends.items()}
    worst = losses.pop("no_bns_3w3a")
    assert all((worst > other).all() for other in losses.values())
    means = [other.mean() for other in losses.values()]
    assert max(means) - min(means) < 0.03 < worst.mean() - max(means)
    three = [ends[name] for name in rows[:3]]
    assert np.ptp([history.last_samples(320).mean() for history in three]) < 0.05
    assert np.ptp([history["entropy"][-20:].mean() for history in three]) < 0.05
    for history in three:
        other = max(
            history[f"generator.{term}"][-20:].mean() for term in ("ds", "as") if f"generator.{term}" in history.columns
        )
        assert 5.5 < history["generator.bns"][-20:].mean() / other < 9


def test_the_curves_of_notebook_07():
    """AdaDFQ ends lower in testing loss at both widths, GDFQ falls in training loss, its 3-bit student gets worse."""
    ends = {}
    for bits in (3, 5):
        for name in ("adadfq", "gdfq"):
            history = load_recording(f"{name}_{bits}w{bits}a").history.upto(150)
            known = np.isfinite(history["test.loss"]) & (history["round"] > 10)
            ends[name, bits] = {kind: history[f"{kind}.loss"][known] for kind in ("train", "test")}
    for bits in (3, 5):
        ours, theirs = ends["adadfq", bits], ends["gdfq", bits]
        assert ours["test"][-1] < theirs["test"][-1]
        assert theirs["train"][-1] < 0.8 * theirs["train"][0]
        assert ours["train"][-1] > 0.85 * ours["train"][0]
    assert (np.diff(ends["gdfq", 3]["test"][1:]) > 0).all()
    assert ends["adadfq", 3]["test"][-1] < 1.1 * ends["adadfq", 3]["test"][0]
    people = load_population()
    z_p, y = torch.from_numpy(people.teacher_logits), torch.from_numpy(people.labels)
    own = torch.nn.functional.cross_entropy(z_p, y)
    assert own == pytest.approx(ends["adadfq", 3]["train"][-1], abs=0.2)
    assert (z_p.argmax(1) == y).float().mean() < 0.2
    five = load_recording("adadfq_5w5a").history
    real = five["test.agreement"][np.isfinite(five["test.agreement"]) & (five["round"] > 10)]
    assert real.min() > 0.975 and five["agreement"][30:].mean() < 0.9
    finals = [load_recording(name).meta["final"]["test.accuracy"] for name in ("adadfq_3w3a", "gdfq_3w3a")]
    assert abs(finals[0] - finals[1]) < 1.3


def test_the_parts_of_the_loss_of_notebook_06():
    """Three quarters are L_BNS, less than a hundredth is the band."""
    history = load_recording("adadfq_3w3a").history
    terms = {name: history[f"generator.{name}"][-50:].mean() for name in ("band", "ds", "as", "bns")}
    assert terms["bns"] / sum(terms.values()) == pytest.approx(0.75, abs=0.03)
    assert terms["band"] / sum(terms.values()) < 0.01


def test_the_population_of_notebooks_04_to_06():
    """Values of the game have no order from 3 bits on while agreement has one; the band's shares at 3 bits and at 8."""
    people = load_population()
    values = {bits: 1 - people.h_prime(bits).mean() for bits in people.student_logits}
    assert max(values, key=values.__getitem__) == 2
    assert values[8] < values[3] < values[4] < values[2]
    same = {b: (people.teacher_logits.argmax(1) == z.argmax(1)).mean() for b, z in people.student_logits.items()}
    assert same[2] < 0.5 < same[3] < same[4] < same[5] < 0.95 < same[8]
    three, eight = people.h_prime(3), people.h_prime(8)
    assert ((three > 0.1) & (three < 0.8)).mean() == pytest.approx(2 / 3, abs=0.03)
    assert (three >= 0.8).mean() > 2 * (three <= 0.1).mean()
    assert ((eight > 0.1) & (eight < 0.8)).mean() > 0.5 and eight.mean() < 0.75
    assert math.log(10) - people.entropy(8).mean() < 0.01


def test_the_population_is_what_a_game_sees():
    """H' of the population, batch by batch, is Eq. (3) of its logits; more bits agree more with P."""
    people = load_population()
    z_p, z_q = (torch.from_numpy(logits[:16]) for logits in (people.teacher_logits, people.student_logits[3]))
    expected = normalized_entropy(disagreement_entropy(z_p, z_q), 10)
    assert np.allclose(people.h_prime(3)[:16], expected.numpy(), atol=1e-6)
    means = [people.entropy(bits).mean() for bits in sorted(people.student_logits)]
    assert means == sorted(means)


def test_the_grid_covers_fig_4():
    """35 of the 36 pairs of the paper's grid, all but λ_l = λ_u, are measured; the shares inside are those of the samples."""
    grid, meta = load_grid()
    lower, upper = np.meshgrid(grid["lower"], grid["upper"], indexing="ij")
    known = np.isfinite(grid["accuracy"])
    assert (known == (lower < upper)).all()
    assert known.sum() == 35
    h = grid["h_prime"].astype(np.float64)
    inside = ((h > lower[..., None]) & (h < upper[..., None])).mean(-1)
    assert np.allclose(inside[known], grid["inside"][known], atol=0.02)  # samples are stored as half floats
    assert meta["common"] > 0 and meta["rounds"] > 0


def test_a_recording_is_read_as_it_was_written(tmp_path):
    """History, marks, images and facts survive the disk; single samples to half precision."""
    game = tiny_game(gains_every=2)
    made = play_and_record(game, 5, tiny_images(), evaluate_every=2)
    recording = Recording("tiny", made.history, made.images, made.image_rounds, {"bits": "3w3a"})
    recordings.save_recording(recording, tmp_path / "tiny.npz")
    read = load_recording(tmp_path / "tiny.npz")
    assert read.name == "tiny"
    assert read.meta == {"bits": "3w3a"}
    assert read.history.classes == 4
    assert read.history.columns.keys() == made.history.columns.keys()
    for name, column in made.history.columns.items():
        assert np.allclose(read.history[name], column, atol=2e-3, equal_nan=True), name
    assert np.array_equal(read.images, made.images)


def test_measuring_changes_nothing():
    """A game that is probed in between plays the same rounds."""
    plain, probed = tiny_game(), tiny_game()
    for a, b in zip(plain.play(4), probed.play(4), strict=True):
        probe(probed, tiny_images())
        recording.sample_images(probed)
        assert torch.equal(a.entropy, b.entropy)


def test_the_grid_is_recorded_from_one_common_game(tmp_path, monkeypatch):
    """record_grid continues one saved game under each pair of bounds and leaves λ_l >= λ_u out."""
    monkeypatch.setattr(recording, "GRID_LOWER", (0.0, 0.5))
    monkeypatch.setattr(recording, "GRID_UPPER", (0.5, 1.0))
    resumed = []
    monkeypatch.setattr(recording, "new_game", lambda plan, gains_every: tiny_game())

    def resume(path):
        game = tiny_game()
        for _ in game.play(2):
            pass
        resumed.append(game)
        return game

    monkeypatch.setattr(recording.Game, "resume", staticmethod(resume))
    recording.record_grid(tmp_path, tiny_images(), common=2, rounds=3, samples=16)
    with np.load(tmp_path / "grid.npz") as file:
        assert np.isnan(file["accuracy"]).tolist() == [[False, False], [True, False]]
        assert file["h_prime"].shape == (2, 2, 16)
    assert [game.index for game in resumed] == [5, 5, 5]


def test_a_wrong_name_is_told_in_a_line(tmp_path):
    """A recording that does not exist names those that do; a damaged one says so."""
    with pytest.raises(UserError, match="adadfq_3w3a"):
        load_recording("nothing")
    (tmp_path / "bad.npz").write_bytes(b"no zip file")
    with pytest.raises(UserError, match="not a recording"):
        load_recording(tmp_path / "bad.npz")
