"""AdaDFQ+: AdaDFQ on activation grids that clip.

The game is AdaDFQ's to the letter. But when the warm-up ends, each of Q's activation ranges, so far as wide as the largest
value, is cut to where rounding costs least on G's images, and stays; from then on no gradient passes what is clipped. At three
bits the cut is to about half, and is worth more than the choice of method. The quantizer is the one that every method here has:
per tensor, static, n bits in every layer.

No paper of its own: ranges of least squared error are an old tool of calibration. docs/what_limits_the_student.md has
what it gives.
"""

import dataclasses
from typing import Any

from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Method


def adadfq_plus(**settings: Any) -> Method:
    """AdaDFQ with fitted ranges; takes AdaDFQ's settings."""
    return dataclasses.replace(adadfq(**settings), name="AdaDFQ+", ranges="fitted")
