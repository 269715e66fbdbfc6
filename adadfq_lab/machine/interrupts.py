"""Moves Ctrl-C and similar signals to the end of a round, so that the saved game continues bit for bit."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from adadfq_lab.machine.distributed import on_any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a run as one Ctrl-C does: sent by Slurm and docker, and by a terminal that is closed."""


@contextmanager
def interrupts_wait(lost: Callable[[], str] = str) -> Iterator[Callable[[], None]]:
    """Within it a Ctrl-C waits until the function that it yields is called, which then raises KeyboardInterrupt.

    SIGTERM and SIGHUP wait like a Ctrl-C, however often they come. A second Ctrl-C does not wait: it raises SystemExit (130) on
    the spot, after the line that `lost` returns. A game on several processes ends on all of them after the same round.

    A signal that is ignored or handled elsewhere stays so; nothing changes outside the main thread, which alone gets signals.
    """
    asked = pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal asked, pressed
        if pressed:
            with contextlib.suppress(OSError):  # not print: the signal may have struck within another print
                os.write(2, f"\nadadfq: stopped at once; {lost()}\n".encode() if lost is not str else b"")
            raise SystemExit(130)
        asked = pressed = True

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    def look() -> None:
        if on_any(asked):
            raise KeyboardInterrupt

    usual = [(signal.SIGINT, signal.default_int_handler, press), *((number, signal.SIG_DFL, end) for number in ENDING)]
    if threading.current_thread() is not threading.main_thread():
        usual = []
    taken = [(number, before, handler) for number, before, handler in usual if signal.getsignal(number) == before]
    try:
        for number, _, handler in taken:
            signal.signal(number, handler)
        yield look
    finally:
        for number, before, _ in taken:
            signal.signal(number, before)
