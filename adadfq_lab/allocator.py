"""Keep freed memory, instead of handing it back to the kernel and faulting it in again.

By default glibc maps every block of 128 KiB to 32 MiB (the threshold moves) anew and unmaps it when it is freed. A round of the
game allocates hundreds of tensors of that size, so each was zeroed by the kernel and faulted in page by page: 12 % of a round.
"""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for what it sets, from glibc's malloc.h


@cache
def keep_freed_memory() -> bool:
    """Tells glibc to serve blocks up to 32 MiB from its heap and to keep 1 GiB of it; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, 1 << 30))


def release_freed_memory() -> bool:
    """Gives what is freed now back to the kernel; False where there is no glibc, or nothing to give.

    Before a live run: the figure's JavaScript, 5 MB, was copied on its way to the page several times, and would stay. After
    it: what its thread has freed, no other thread can use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))
