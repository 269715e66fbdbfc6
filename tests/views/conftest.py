"""What the tests of views share."""

import pytest

from adadfq_lab.views import live


@pytest.fixture(autouse=True)
def slow_mode(monkeypatch):
    """Games are played in full, and a live run that a test leaves behind is stopped."""
    monkeypatch.delenv("ADADFQ_LAB_FAST", raising=False)
    yield
    if live._current is not None:
        live._current.stop()
        live._current._join()
