"""Freed memory is kept for the next round, and given back when asked."""

import subprocess
import sys

import pytest

CODE = """
import re
from pathlib import Path
import torch
from adadfq_lab.machine.memory import keep_freed_memory, release_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

assert keep_freed_memory()
before = resident()
blocks = [torch.ones(250_000) for _ in range(200)]  # 200 MB
blocks.clear()
kept = resident()
assert kept > before + 150, (before, kept)
assert release_freed_memory()
assert resident() < before + 50, (before, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt and malloc_trim are glibc's")
def test_freed_memory_is_kept_until_it_is_released():
    """200 MB of tensors, freed, stay with the process; after release_freed_memory they do not."""
    subprocess.run([sys.executable, "-c", CODE], check=True)
