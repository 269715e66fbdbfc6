"""Sentences of the notebooks that say what a recording shows: each stands in its notebook and is true of the recording."""

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from adadfq_lab import wilson
from adadfq_lab.authoring.build import read, sources
from adadfq_lab.game.recordings import load_population, load_recording

TEXT = {path.stem[:2]: re.sub(r"\s+", " ", " ".join(cell.source for cell in read(path).cells)) for path in sources()}


@cache
def history(name: str):
    return load_recording(name).history


def at(name: str, column: str, *rounds: int) -> list[float]:
    """Values of a column after so many rounds."""
    return [float(history(name)[column][one - 1]) for one in rounds]


def calibration_gives_everything() -> bool:
    calibrated, learned = at("adadfq_3w3a", "test.accuracy", 60, 300)
    low, high = wilson(round(5 * calibrated), 500)
    return low <= learned <= high


def every_third_differs() -> bool:
    return 0.55 < history("adadfq_3w3a")["agreement"][-30:].mean() < 0.75


@cache
def long_games() -> dict[str, tuple[float, float, float]]:
    """Distance from P's memory, share that P recognises, accuracy of Q, of the three long games."""
    metas = {
        how: load_recording(f"gdfq_long{end}").meta for how, end in {"averaged": "", "summed": "_sum", "out": "_label"}.items()
    }
    return {how: (np.mean(m["bns"]), m["recognised"], m["final"]["test.accuracy"]) for how, m in metas.items()}


def summed_is_nearest_and_best() -> bool:
    (near, known, right), (near_a, known_a, right_a), (near_o, known_o, right_o) = (
        long_games()[how] for how in ("summed", "averaged", "out")
    )
    return near < near_a < near_o and right > max(right_a, right_o) and known < min(known_a, known_o)


def gains() -> tuple[np.ndarray, np.ndarray]:
    one = history("adadfq_3w3a")
    known = np.isfinite(one["gain_g"]) & (one["round"] >= 60)
    return one["gain_g"][known], one["gain_q"][known]


def noise_passes() -> bool:
    random = np.random.default_rng(0)
    g, q = (random.normal(0, gain.std(), (2000, len(gain))) for gain in gains())
    within = np.abs((g + q).sum(1)) / (np.abs(g) + np.abs(q)).sum(1) <= 0.1
    both = within & ((g > 0).mean(1) > 0.5) & ((q < 0).mean(1) > 0.5)
    return bool(within.mean() > 0.7 and 0.15 < both.mean() < 0.25)


def losses_hardly_correlate() -> bool:
    totals = [np.diff(history("adadfq_3w3a").total(player)[60:]) for player in ("generator", "student")]
    return bool(abs(np.corrcoef(*totals)[0, 1]) < 0.2)


def many_are_neither() -> bool:
    people = load_population()
    p = people.teacher_logits.argmax(1)
    low, high = wilson(int((p == people.labels).sum()), len(p))
    return bool(((p != people.labels) & (p != people.student_logits[3].argmax(1))).mean() > 0.3 and low < 15 and high < 20)


ROWS = ("adadfq_3w3a", "no_ds_3w3a", "no_as_3w3a", "no_bal_3w3a", "no_band_3w3a")


def without_bns_is_worse() -> bool:
    worst = np.max([at(row, "test.loss", 90, 120, 150) for row in ROWS], axis=0)
    return bool((np.array(at("no_bns_3w3a", "test.loss", 90, 120, 150)) > worst).all())


def six_within_four_points() -> bool:
    ends = [at(row, "test.accuracy", 150)[0] for row in (*ROWS, "no_bns_3w3a")]
    return max(ends) - min(ends) < 4.01


def lower_at_either_width() -> bool:
    return all(at(f"adadfq_{b}", "test.loss", 150) < at(f"gdfq_{b}", "test.loss", 150) for b in ("3w3a", "5w5a"))


def back_at_the_lowest() -> bool:
    before, later = at("gdfq_3w3a", "test.loss", 60, 300)
    return round(later, 2) <= round(before, 2)


def training_falls_testing_does_not() -> bool:
    ends = {"3w3a": 300, "5w5a": 150}
    falls = all(np.subtract(*at(f"gdfq_{b}", "train.loss", 60, end)) > 0.3 for b, end in ends.items())
    return falls and all(abs(np.subtract(*at(f"gdfq_{b}", "test.loss", 60, end))) < 0.03 for b, end in ends.items())


def agreement_at_five_bits() -> bool:
    real = at("adadfq_5w5a", "test.agreement", 150)[0]
    return bool(real > 0.98 and history("adadfq_5w5a")["agreement"][119:150].mean() < 0.9)


def gdfq_differs_as_well() -> bool:
    return bool(history("gdfq_5w5a")["agreement"][-30:].mean() < 0.9)


SENTENCES: list[tuple[str, str, Callable[[], bool]]] = [
    ("00", "calibration gives everything that 500 images can show", calibration_gives_everything),
    ("00", "P and Q differ on about every third sample to the end", every_third_differs),
    ("03", "summed, the images lie nearest to P's memory", summed_is_nearest_and_best),
    (
        "03",
        "averaged, Q is right on fewer images than without L_BNS",
        lambda: long_games()["averaged"][2] < long_games()["out"][2],
    ),
    ("04", "one noise in five passes the whole rule", noise_passes),
    ("04", "From round to round hardly any correlation is left", losses_hardly_correlate),
    ("05", "this G, after 300 rounds, does not make classes yet", many_are_neither),
    ("05", "without L_BNS Q is worse at every measurement", without_bns_is_worse),
    ("05", "all six lie within four points", six_within_four_points),
    ("07", "at either width AdaDFQ ends below GDFQ", lower_at_either_width),
    ("07", "By round 300 GDFQ's testing loss is as low as before Q's first step", back_at_the_lowest),
    ("07", "GDFQ has it at both widths, also at 3 bits", training_falls_testing_does_not),
    ("07", "in about 99 of 100 cases, on generated ones in less than nine of ten", agreement_at_five_bits),
    ("07", "makes images on which they differ as well", gdfq_differs_as_well),
]


@pytest.mark.parametrize(("notebook", "sentence", "holds"), SENTENCES, ids=lambda one: one if isinstance(one, str) else "")
def test_sentence_is_there_and_true(notebook, sentence, holds):
    """The notebook says it, and the recording it is about agrees; who changes one of them must look at the other."""
    assert sentence in TEXT[notebook].replace("# ", "")
    assert holds()
