"""Memory: the most that was held, whether an error means that there was too little, and how freed memory is kept."""

import contextlib
import ctypes
import math
import sys
from functools import cache
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


def forget_peak() -> None:
    """Starts a new measurement of the peak, if the system can: writing 5 to /proc/self/clear_refs resets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """The most memory held since `forget_peak`, in MB of 2^20 bytes: a GPU's, or the process's; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    except (OSError, StopIteration):
        if resource is None:
            return math.nan
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that there was too little memory, on a GPU or on the machine.

    Only the text tells for the CPU allocator, cuBLAS and cuDNN: PyTorch raises a plain RuntimeError for them.
    """
    texts = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
    by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return by_type or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for what it sets, from glibc's malloc.h


@cache
def keep_freed_memory() -> bool:
    """Tells glibc to serve blocks up to 32 MiB from its heap and to keep 1 GiB of it; False if there is no glibc.

    A setting of the whole process, so a game does not make it: the command line, runs, live runs and the notebooks' `check_env`
    do. It makes rounds faster and changes nothing else.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_TRIM_THRESHOLD, 1 << 30))


def release_freed_memory() -> bool:
    """Returns freed memory to the kernel; False if there is no glibc, or nothing to return.

    Before a live run: the figure's 5 MB of JavaScript were copied several times on their way to the page. After
    it: memory that its thread has freed is not available to other threads.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))
