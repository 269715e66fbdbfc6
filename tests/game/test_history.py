"""What happened in a game, at any length: a history does not change any more, and a drawn one is short and means the same."""

import math

import numpy as np
import pytest
import torch

from adadfq_lab.equations import Bounds
from adadfq_lab.game.history import SAMPLES, History, Record, Recorder, Thinned

KEPT = Thinned.KEPT


def row(number: int, samples: int = 5) -> dict:
    random = np.random.default_rng(number)
    made = {"round": number, "h_prime": random.random(samples).astype(np.float32), "lower": number / 10_000, "upper": 0.8}
    made |= {"gain_g": float(number)} if number % 25 == 0 else {}
    return made | ({"test.accuracy": 1.0 * number} if number % 50 == 7 else {})


@pytest.mark.parametrize("rounds", [1, KEPT, KEPT + 1, 2 * KEPT + 3, 5 * KEPT])
def test_a_thinned_history_means_what_the_whole_one_does(rounds):
    """Rows are means of equal stretches, against a loop; samples in order of size; the last value measured; the last rounds."""
    rows = [row(i) for i in range(rounds)]
    thinned = Thinned(classes=3)
    for one in rows:
        thinned.add(one)
    found = thinned.history()
    length = 2 ** max(0, math.ceil(math.log2(rounds / KEPT)))
    stretches = [rows[i : i + length] for i in range(0, rounds, length)]
    assert (found.played, len(found), found.classes) == (rounds, len(stretches), 3) and len(found) <= KEPT
    np.testing.assert_allclose(found["lower"], [np.mean([r["lower"] for r in s]) for s in stretches], rtol=1e-6)
    samples = [np.mean([np.sort(r["h_prime"]) if length > 1 else r["h_prime"] for r in s], axis=0) for s in stretches]
    np.testing.assert_allclose(found["h_prime"], samples, rtol=1e-5)
    for name, of in (("gain_g", np.mean), ("test.accuracy", lambda values: values[-1])):
        known = [[r[name] for r in s if name in r] for s in stretches]
        np.testing.assert_allclose(found[name], [of(k) if k else np.nan for k in known], rtol=1e-6)
    assert (found["round"][0], found["round"][-1]) == (0, rounds - 1) and found.bounds().lower == (rounds - 1) / 10_000
    last = np.concatenate([r["h_prime"] for r in rows])[-SAMPLES:]
    np.testing.assert_array_equal(found.last_samples()[-len(last) :], last)


def record(number: int, lower: float = 0.1) -> Record:
    one = torch.tensor(float(number))
    terms = {"generator.a": one} | ({"student.b.c": one} if number > 2 else {})
    return Record(number, "play", terms, torch.full((4,), 0.5), torch.full((4,), 0.5), one, Bounds(lower, 0.8), False)


def test_a_history_does_not_change_when_the_game_goes_on():
    """Also where its columns share memory with the recorder's; nobody can write to it; late terms are NaN before they begin."""
    recorder, taken = Recorder(), []
    for number in range(300):
        recorder.add(record(number))
        if number in (0, 2, 63, 64, 150):
            taken.append((recorder.history(), recorder.drawn()))
    for history, drawn in taken:
        count = len(history)
        assert history["round"].tolist() == list(range(count)) == drawn["round"].tolist()
        assert history["agreement"].tolist() == list(range(count))
        assert np.isnan(history["student.b.c"][:3]).all() and history["student.b.c"][3:].tolist() == list(range(count))[3:]
        with pytest.raises(ValueError, match="read-only"):
            history["h_prime"][0, 0] = 1
    assert recorder.drawn().played == 300 and len(recorder.drawn()) <= KEPT


def test_samples_of_another_number_and_empty_games_can_be_drawn():
    """A batch of another size is repeated or cut to the first's; no round is an empty history."""
    assert (len(Thinned().history()), Recorder().drawn().played, len(History())) == (0, 0, 0)
    thinned = Thinned()
    for i, count in enumerate((5, 3, 8)):
        thinned.add(row(i, count))
    assert thinned.history()["h_prime"].shape == (3, 5)
