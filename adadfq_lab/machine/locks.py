"""Locks: for a game that several threads use, and for a folder that several processes play in."""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # on Windows, where filelock does without
    fcntl = None  # type: ignore[assignment]

# Threads

_turns: "weakref.WeakSet[Turns]" = weakref.WeakSet()


class Turns:
    """The lock of a game and its student: a round excludes everything else, and so does a look.

        with turns.round(): ...     # plays; lets those who wait to look go first
        with turns.look(): ...      # looks at the game or writes it to a file

    Re-entrant. A copy of an object that owns a lock gets a lock of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[object] = []
        _turns.add(self)

    def __reduce__(self) -> tuple[type["Turns"], tuple[()]]:
        return Turns, ()

    @contextmanager
    def look(self) -> Iterator[None]:
        """Waits for the end of the round that is being played, if any; no round begins before the look is over."""
        me = object()
        self._waiting.append(me)
        with self._lock:
            self._waiting.remove(me)
            yield

    @contextmanager
    def round(self) -> Iterator[None]:
        """Waits until no thread looks; a loop that plays round after round would otherwise rarely let others in."""
        for _ in range(50):
            if not self._waiting:
                break
            time.sleep(0.001)
        else:
            self._waiting.clear()  # 50 ms with the lock free: the waiting thread was interrupted
        with self._lock:
            yield

    def taken(self) -> bool:
        """Whether another thread plays or looks right now."""
        return not (self._lock.acquire(blocking=False) and self._released())

    def _released(self) -> bool:
        self._lock.release()
        return True


@atexit.register
def _no_more_rounds() -> None:
    """The interpreter ends between two rounds: a thread that is inside torch then would abort the process."""
    for turns in list(_turns):
        turns._lock.acquire(timeout=10)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.clear)  # the threads of the parent are not in the child


# Processes


@contextmanager
def claimed(path: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process holds the lock file `path` within the block; the lock ends with the process.

    patience: seconds to try; `held` takes the lock for a moment

    Raises OSError if the file cannot be written.
    """
    lock = FileLock(path, timeout=patience, poll_interval=0.05)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def held(path: Path) -> bool:
    """Whether a process holds the lock file `path`, on this machine or on another that shares the disk.

    True also if that is not known, for example because the file may not be read.
    """
    try:
        if fcntl is None:
            with path.open("rb"), claimed(path) as free:
                return not free
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # if it is a FIFO, opening it does not wait
        try:  # a shared lock: those who ask at the same time do not see each other, nor need to write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
