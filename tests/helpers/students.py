"""Students with observed ranges, of the networks of `networks.ODD` and of others."""

from collections.abc import Sequence
from typing import Any

import pytest
from helpers.networks import CHANNELS, ODD, SIDE, NormWithoutMemory
from torch import nn

from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student

SHAPE = (CHANNELS, SIDE, SIDE)
WITH_INTEGERS = [kind for kind in ODD if kind is not NormWithoutMemory]


def student_of(network: nn.Module, bits: str = "3w3a", shape: tuple[int, int, int] = SHAPE, **options: Any) -> Student:
    """A student of `network` whose ranges have seen two batches of noise."""
    Q = quantize(network, bits, **options)
    observe_noise(Q, shape, batches=2, batch=8)
    return Q


def every_network(fast: Sequence[str], seldom: Sequence[str] = ()) -> list[Any]:
    """(network, bits) of all networks with integers; of the bits in `seldom`, one network in four is fast, the others slow."""
    return [
        pytest.param(kind, bits, marks=[pytest.mark.slow] * (bits in seldom and (i + seldom.index(bits)) % 4 != 0),
                     id=f"{kind.__name__}-{bits}")
        for i, kind in enumerate(WITH_INTEGERS)
        for bits in (*fast, *seldom)
    ]  # fmt: skip
