"""AdaDFQ+LSQ: AdaDFQ+ whose grids go on learning.

Until the warm-up ends it is AdaDFQ+'s game. Then each grid's scale, one per activation tensor and one per output channel of a
weight, is a parameter that Q's loss moves with the straight-through gradient of LSQ.
"""

import dataclasses
from typing import Any

from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.method import Method


def adadfq_lsq(**settings: Any) -> Method:
    """AdaDFQ with learned ranges; takes AdaDFQ's settings."""
    return dataclasses.replace(adadfq_plus(**settings), name="AdaDFQ+LSQ", ranges="learned")
