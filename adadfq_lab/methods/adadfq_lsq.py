"""AdaDFQ+LSQ: AdaDFQ+ whose grids go on learning.

Until the warm-up ends it is AdaDFQ+'s game. From there on the scale of each grid, one per activation tensor and one per output
channel of a weight, is a parameter that Q's loss moves with the gradient of LSQ; weights start on the grid over their minimum
and maximum. What comes out is the quantizer that every method here has: per tensor, static, n bits in every layer, and
integers. Q's weights learn three times as fast as in AdaDFQ.

No paper of its own. LSQ: Esser et al., Learned Step Size Quantization, ICLR 2020. Both rates were chosen on training images of
CIFAR-10; docs/what_limits_the_student.md has what they give on test images.
"""

import dataclasses
from typing import Any

from adadfq_lab.methods.adadfq_plus import adadfq_plus
from adadfq_lab.methods.method import Method, Rates


def adadfq_lsq(**settings: Any) -> Method:
    """AdaDFQ with learned ranges; takes AdaDFQ's settings."""
    rates = Rates(student_lr=3e-4, scale_lr=1e-3)
    return dataclasses.replace(adadfq_plus(**settings), name="AdaDFQ+LSQ", ranges="learned", rates=rates)
