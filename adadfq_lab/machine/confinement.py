"""Takes rights away from this process, for good: to write, remove, run programs, connect and send signals.

    confine()    before other people's code runs; True if the kernel enforces it

Linux has Landlock for this since 5.13; it needs no privileges. What it takes away does not come back, in this process or
in those it starts. Reading stays allowed. On other systems `confine` does nothing and returns False.
"""

import ctypes
import sys

_CREATE, _RESTRICT, _NO_NEW_PRIVILEGES = 444, 446, 38  # system calls (the same on every architecture), and one of prctl
_EXECUTE, _WRITE, _REMOVE_AND_MAKE, _REFER, _TRUNCATE = 1 << 0, 1 << 1, 0x1FF0, 1 << 13, 1 << 14
_CONNECT_AND_BIND, _SIGNALS_AND_SOCKETS = 3, 3


def _system() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def landlock() -> int:
    """The version of Landlock that the kernel offers; 0 if it has none."""
    system = _system()
    return max(0, system.syscall(_CREATE, None, 0, 1)) if system is not None else 0


def confine() -> bool:
    """Allows this thread, and what it starts, only to read and to compute; returns whether that is in force."""
    version, system = landlock(), _system()
    if not version or system is None:
        return False
    files = _EXECUTE | _WRITE | _REMOVE_AND_MAKE
    files |= _REFER if version >= 2 else 0
    files |= _TRUNCATE if version >= 3 else 0
    handled = [files, *([_CONNECT_AND_BIND] if version >= 4 else []), *([_SIGNALS_AND_SOCKETS] if version >= 6 else [])]
    rules = (ctypes.c_uint64 * len(handled))(*handled)  # everything handled is refused unless a rule allows it
    ruleset = system.syscall(_CREATE, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0 or system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return int(system.syscall(_RESTRICT, ruleset, 0)) == 0
