"""Standard output and error as a program finds them: closed, narrow in encoding, or with a reader that leaves early."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ASCII = {"█": "#", "░": ".", "′": "'", "λ": "lambda", "Δ": "delta", "×": "x", "≥": ">=", "≤": "<=", "–": "-", "—": "-"}
_ASCII |= dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)) | dict(zip("─│╭╮╰╯•…", "-|+++++.", strict=False))
_ASCII |= {"•": "*", "…": "..."}


def _narrow(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding lacks: by letters that look alike, else by an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


@contextmanager
def usable_streams() -> Iterator[None]:
    """Makes printing safe while a command runs.

    A closed standard stream is opened on /dev/null, so that no file of a run gets its number. Characters that the terminal's
    encoding lacks are replaced. If the reader of the output leaves, as `head` does, the program ends quietly with status 141.
    """
    codecs.register_error("adadfq", _narrow)
    with suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # takes the lowest number that is free
            os.set_inheritable(handle, True)
        os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="adadfq")
    try:
        try:
            yield
        finally:
            if sys.exc_info()[0] is not BrokenPipeError:
                sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        sys.exit(141)


def discard_output() -> None:
    """Sends what is still to be printed to nowhere, so that the interpreter does not complain when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
