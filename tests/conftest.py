"""What every test file may use."""

import signal

import pytest
import torch
from hypothesis import settings

# No deadline: a busy machine is no failure. Derandomised: the same commit passes or fails every time.
settings.register_profile("adadfq", deadline=None, derandomize=True)
settings.load_profile("adadfq")


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU random generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


# A shell that starts the tests in the background has Ctrl-C ignored; the tests of it want Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
