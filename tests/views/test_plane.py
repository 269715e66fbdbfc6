"""The plane's picture: contours lie where values cross the level, and controls do what they say."""

import time

import numpy as np
import pytest

pytest.importorskip("ipywidgets")

from adadfq_lab.equations import Bounds
from adadfq_lab.views.plane import PlaneExplorer, contour, frames, plane_explorer


@pytest.fixture(scope="module")
def explorer() -> PlaneExplorer:
    return plane_explorer()


def test_contours_lie_on_the_level():
    """Of a plane z = 2x + 3y every segment's ends have z = level; of a constant there is none; a peak is closed."""
    y, x = np.mgrid[:6, :6].astype(float)
    for x1, y1, x2, y2 in contour(2 * x + 3 * y, 7.5):
        assert 2 * x1 + 3 * y1 == pytest.approx(7.5) and 2 * x2 + 3 * y2 == pytest.approx(7.5)
    assert contour(np.ones((4, 4)), 0.5) == []
    peak = contour(-((x - 2.5) ** 2) - (y - 2.5) ** 2, -3.0)
    ends = [tuple(np.round(end, 9)) for x1, y1, x2, y2 in peak for end in ((x1, y1), (x2, y2))]
    assert peak and all(ends.count(end) == 2 for end in ends)


def test_walls_and_dials_count_while_it_stands_and_while_it_plays(explorer):
    """A slider redraws at once; an upper wall below the lower one is put above it; played rounds have the dials' terms."""
    before = explorer.output.value
    explorer.inputs["lower"].value = 0.6
    assert explorer.output.value != before and explorer.game.bounds == Bounds(0.6, 0.7)
    explorer.inputs["upper"].value = 0.3
    assert explorer.game.bounds == Bounds(0.6, 0.61)
    explorer.inputs["gamma"].value, explorer.inputs["upper"].value = 1.0, 0.9
    (record,) = explorer.game.play(1)
    assert "generator.bns" in record.terms
    explorer.compare()
    assert 'fill="none" stroke="#797979"' in explorer.output.value


def test_it_plays_in_the_background_until_it_is_paused(explorer):
    """Rounds pass and the picture changes, then stand still; the same game begins again."""
    explorer.again()
    first = explorer.output.value
    explorer.start()
    while explorer.game.index < 8:
        time.sleep(0.01)
    explorer.pause()
    with explorer._lock:
        stood = explorer.game.index
    assert explorer.output.value != first and explorer.game.index - stood <= 4
    explorer.again()
    assert explorer.game.index == 0


def test_frames_are_pictures_with_words(explorer):
    """A film for pages without a kernel: one picture in every five rounds, each described."""
    explorer.again()
    film = frames(explorer.game, 10)
    assert len(film) == 2
    assert all(picture.startswith("<svg") and "samples" in picture and "NaN" not in picture for picture in film)
