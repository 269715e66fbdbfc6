"""Signals that end a run wait for the end of a round."""

import signal

import pytest

from adadfq_lab.machine.interrupts import ENDING, interrupts_wait


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_ends_is_one_ctrl_c(number):
    """SIGTERM and SIGHUP, even twice, wait until they are asked for; afterwards they do what they did before."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with interrupts_wait() as look:
            look()
            signal.raise_signal(number)
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt):
                look()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_second_ctrl_c_says_what_is_lost(capfd):
    """In one line on standard error, then the program ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit), interrupts_wait(lambda: "the last 3 rounds are lost"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.strip() == "adadfq: stopped at once; the last 3 rounds are lost"
