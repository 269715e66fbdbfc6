"""Ctrl-C between rounds: what is saved then is a whole round, and continues bit for bit."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from adadfq_lab.machine.distributed import on_any


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], None]]:
    """Within it a Ctrl-C waits until the function that it yields is called, which then raises KeyboardInterrupt.

    A game on several processes ends on all of them after the same round.

    A second Ctrl-C does not wait: it raises SystemExit (130) on the spot. Where Ctrl-C is ignored or handled by somebody else,
    and outside the main thread, which alone receives it, nothing changes.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise SystemExit(130)
        asked = True

    def look() -> None:
        if on_any(asked):
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield look
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield look
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
