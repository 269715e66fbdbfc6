"""Ranges that clip: each activation grid ends where rounding the activations costs least, not at the largest of them.

Three bits are eight levels. A grid that reaches to the maximum spends them on a few outliers, and what most activations are
rounded by grows with its step; one that ends earlier clips the outliers and rounds the rest finely. `fit_ranges` finds the
end that minimises E (x - x_hat)^2 of each quantiser on given images. The grid is still per tensor, static,
and of the same bits.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.student import Student

FRACTIONS = tuple(i / 50 for i in range(5, 51))
"""Fractions of the observed range at which a grid may end: 0.1, 0.12, ..., 1."""


def rounding_error(x: Tensor, activation: QuantActivation) -> Tensor:
    """sum (x - x_hat)^2 of what `activation` rounds, for a grid over each of FRACTIONS of its range: `(len(FRACTIONS),)`."""
    if activation.relu != "none":
        x = x.clamp(0, 6 if activation.relu == "relu6" else None)
    scale, zero_point = activation.qparams()
    lowest = -(2 ** (activation.bits - 1))
    below, above = lowest - zero_point, lowest + activation.levels - zero_point  # in steps, of code quant_min and quant_max
    errors = []
    for fraction in FRACTIONS:
        step = scale * fraction
        rounded = (x / step).round_().clamp_(below, above).mul_(step)
        errors.append(rounded.sub_(x).square_().sum())
    return torch.stack(errors)


@torch.no_grad()
def fit_ranges(student: Student, batches: Iterable[Tensor]) -> None:
    """Sets each activation range of Q to the fraction of itself that rounds the images of `batches` with the least error.

    batches: normalised images `(N, C, H, W)`; Q must have observed ranges before. The host does not wait for an accelerator.
    """
    quantisers = list(student.activations().values())
    like = quantisers[0].range.high if quantisers else torch.zeros(())
    errors = torch.zeros(len(quantisers), len(FRACTIONS), device=like.device, dtype=like.dtype)

    def note(i: int) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            errors[i] += rounding_error(inputs[0].to(errors.dtype), quantisers[i])

        return quantisers[i].register_forward_pre_hook(hook)

    handles = [note(i) for i in range(len(quantisers))]
    try:
        with student.frozen():
            for images in batches:
                student(images)
    finally:
        for handle in handles:
            handle.remove()
    best = torch.tensor(FRACTIONS, device=like.device, dtype=like.dtype)[errors.argmin(dim=1)]
    for fraction, activation in zip(best, quantisers, strict=True):
        activation.range.low.mul_(fraction)
        activation.range.high.mul_(fraction)
        activation.follow_range()
