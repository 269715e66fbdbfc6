"""AdaSG: data-free quantization as a zero-sum game between generator and student.

G raises the disagreement of P and Q, Q lowers it. Its released trainer is AdaDFQ's with other constants: a higher lambda_l, and
disagreement and agreement weighted alike.

Qian et al., Rethinking Data-Free Quantization as a Zero-Sum Game, AAAI 2023. `fidelity` decides the same as for AdaDFQ.
"""

from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.method import Method


def adasg(
    lower: float = 0.3,
    upper: float = 0.8,
    *,
    alpha_ds: float = 0.1,
    alpha_as: float = 0.1,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 20.0,
) -> Method:
    """AdaSG with the constants of its released code; `temperature` as in `adadfq`."""
    weights = {"alpha_ds": alpha_ds, "alpha_as": alpha_as, "beta": beta, "gamma": gamma}
    return adadfq(lower, upper, **weights, temperature=temperature, name="AdaSG")
