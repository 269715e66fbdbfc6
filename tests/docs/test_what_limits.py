"""docs/what_limits_the_student.md: every percentage in it is in the committed rows, of the method that it is said of."""

import re
from pathlib import Path

import pytest

from adadfq_lab.studies.tables import read_rows, shipped_results, summaries

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "what_limits_the_student.md").read_text(encoding="utf-8").split())


def test_every_percentage_is_of_a_row():
    rows = [row for row in read_rows(shipped_results()) if (row.dataset, row.bits) == ("cifar10", "3w3a")]
    ended = {s.ended for s in summaries(rows)}
    untrained = {
        f"{sum(found) / 3:.1f}"
        for method in ("adadfq", "adadfq+")
        for found in [[r.calibrated for r in rows if (r.method, r.budget, r.fidelity) == (method, "short", "corrected")]]
    }
    said = re.findall(r"\d\d\.\d(?: ± \d\.\d)?", PAGE)
    assert len(said) > 15
    assert set(said) <= ended | untrained | {f"{rows[0].teacher:.1f}"}, set(said) - ended - untrained


@pytest.mark.parametrize(
    ("method", "budget", "fidelity", "before"),
    [
        ("real", "short", "corrected", "student reaches "),
        ("adadfq", "short", "corrected", "AdaDFQ reaches "),
        ("adadfq+", "short", "corrected", "for clipped values, it reaches "),
        ("adadfq", "long", "corrected", "updates AdaDFQ has "),
        ("adadfq+", "long", "corrected", "`adadfq+` "),
        ("adadfq+lsq", "long", "corrected", "`adadfq+lsq` "),
        ("gdfq", "short", "released", "ranges GDFQ has "),
    ],
)
def test_each_is_of_its_method(method, budget, fidelity, before):
    rows = [r for r in read_rows(shipped_results()) if (r.dataset, r.bits, r.method) == ("cifar10", "3w3a", method)]
    (one,) = summaries([r for r in rows if (r.budget, r.fidelity) == (budget, fidelity)])
    assert f"{before}{one.ended} %" in PAGE


def test_the_first_screen_of_the_readme_says_what_the_rows_say():
    """Teacher, plainly quantised, and AdaDFQ+ after 5,000 updates, means of three seeds."""
    rows = [r for r in read_rows(shipped_results()) if (r.dataset, r.bits, r.method) == ("cifar10", "3w3a", "adadfq+")]
    long = [r for r in rows if (r.budget, r.fidelity) == ("long", "corrected")]
    (one,) = summaries(long)
    plain = sum(r.plain for r in long) / len(long)
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    falls = f"from {long[0].teacher:.1f} to {plain:.1f} % on CIFAR-10"
    assert f"{falls}; after 5,000 updates on generated images it has {one.ended[:4]} %" in readme
