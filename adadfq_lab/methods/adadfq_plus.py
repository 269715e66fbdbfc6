"""AdaDFQ+: AdaDFQ on activation grids that clip.

The game is AdaDFQ's to the letter. But when the warm-up ends, each of Q's activation ranges, so far as wide as the largest
value, is cut to where rounding costs least on G's images, and stays: at three bits that is about half of it, and worth more
than all the rounds that follow. The quantizer is the one every method here has: per tensor, static, n bits in every layer.

No paper of its own: range fitting by squared error is old (calibration does it), and among the mechanisms tried here it is the
one that paid. See docs/what_limits_the_student.md.
"""

import dataclasses
from typing import Any

from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Method


def adadfq_plus(**settings: Any) -> Method:
    """AdaDFQ with fitted ranges; takes AdaDFQ's settings."""
    return dataclasses.replace(adadfq(**settings), name="AdaDFQ+", ranges="fitted")
