"""Memory: how much was held at most, whether an error says that there was too little, and what to try then."""

import contextlib
import dataclasses
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from adadfq_lab.runs import RunConfig

LEAST_BATCH = 4  # images a round below which batch statistics, and so L_BNS and H', say little
_SAYS = ("out of memory", "can't allocate memory", "not enough memory", "CUDNN_STATUS_ALLOC_FAILED")


def forget_peak() -> None:
    """Counts peaks from here on, where the system can: /proc/self/clear_refs takes a 5 for it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """The most memory held since `forget_peak`, in MB of 2^20 bytes: a GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice, a GPU's or the machine's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAYS)


def smaller(config: "RunConfig") -> "RunConfig | None":
    """The next smaller setting: on a GPU bf16, then half the images a round, down to 4; None where there is none."""
    if config.device.startswith(("cuda", "auto")) and torch.cuda.is_available() and config.precision != "bf16":
        return dataclasses.replace(config, precision="bf16")
    batch = config.schedule.batch // 2
    if batch < LEAST_BATCH:
        return None
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, batch=batch))


def offer(config: "RunConfig") -> str:
    """What to try where memory did not suffice for `config`, in a sentence."""
    said = f"there is too little memory for {config.schedule.batch} images a round in {config.precision}"
    less = smaller(config)
    if less is None:
        return f"{said}; this takes a machine with more"
    return f"{said}; start again with --set batch={less.schedule.batch} --set precision={less.precision}"
