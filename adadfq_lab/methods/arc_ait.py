"""ARC+AIT: ARC whose student learns from P's logits alone, with steps long enough to change its integers.

On generated images, labels and distillation pull Q in different directions, so Q keeps distillation only. A step of SGD moves
every float weight a little and seldom across the border to the next integer: Q, which computes with the integers, stays the
same. Gradient inundation multiplies the step of each quantised weight tensor by one number,

    w <- w - kappa lr d,    kappa >= 1 the smallest for which a share tau of the tensor's codes changes,

where d is the direction of Nesterov's step and the codes are those of the grid after the move, since a channel's range moves
with it. The momentum is that of SGD; kappa = 1 is plain SGD.

The released code doubles kappa until the share is reached and then halves the last interval five times. Here log2 kappa is
bisected from the start, for all tensors at once and a fixed number of times, so that no step waits for an accelerator.

Choi et al., It's All In the Teacher: Zero-Shot Quantization Brought Closer to the Teacher, CVPR 2022. `fidelity` decides how
far a step may be stretched (`gi_cap`), how distillation is averaged, and the same as for ARC.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.equations import Terms, distillation
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.machine.optimizers import SGD
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.method import Method, Rates, Round
from adadfq_lab.student.quantizer import codes, weight_qparams
from adadfq_lab.student.student import Student

UNCAPPED = 2.0**40
"""The largest multiplier if there is no cap: it makes a step of 1e-12 of the range as long as the range."""

RESOLUTION = 1 / 16
"""Resolution of log2 kappa: kappa is at most 4.4 % larger than necessary."""


def _rows(tensors: list[Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """Weights `(out, ...)` as matrices of channels: for each row length n a matrix `(rows, n)` and the tensor of each row."""
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for i, tensor in enumerate(tensors):
        flat = tensor.flatten(1)
        rows, owners = found.setdefault(flat.shape[1], ([], []))
        rows.append(flat)
        owners.append(torch.full((len(flat),), i, device=flat.device))
    return {n: (torch.cat(rows), torch.cat(owners)) for n, (rows, owners) in found.items()}


class Codes:
    """The codes of some weights before a move, to count how many a move changes."""

    def __init__(self, weights: list[Tensor], moves: list[Tensor], bits: int, zero_point: Any) -> None:
        self.bits, self.zero_point = bits, zero_point
        self.sizes = torch.tensor([float(w.numel()) for w in weights], device=weights[0].device)
        moved = _rows(moves)
        self.parts = [(w, moved[n][0], owner, self._codes(w)) for n, (w, owner) in _rows(weights).items()]

    def _codes(self, rows: Tensor) -> Tensor:
        return codes(rows, *weight_qparams(rows, self.bits, zero_point=self.zero_point), self.bits)

    def changed(self, kappa: Tensor) -> Tensor:
        """The share of each tensor's codes that differ between w and w + kappa move; `kappa` and the result `(tensors,)`."""
        count = torch.zeros_like(self.sizes)
        for w, move, owner, before in self.parts:
            after = self._codes(torch.addcmul(w, move, kappa[owner][:, None].to(w.dtype)))
            count.index_add_(0, owner, (after != before).sum(1).to(count.dtype))
        return count / self.sizes


def multipliers(weights: list[Tensor], moves: list[Tensor], bits: int, zero_point: Any, share: float, cap: float) -> Tensor:
    """kappa of each weight `(out, ...)` for its move, float32 `(weights,)`: in [1, cap]; `cap` if nothing smaller suffices.

    Bisects log2 kappa and returns the upper end, at which the share is reached.
    """
    grid = Codes(weights, moves, bits, zero_point)
    low = torch.zeros_like(grid.sizes)
    high = torch.full_like(grid.sizes, math.log2(cap))
    enough = grid.changed(torch.ones_like(low)) >= share
    for _ in range(math.ceil(math.log2(max(math.log2(cap) / RESOLUTION, 1)))):
        middle = (low + high) / 2
        reached = grid.changed(middle.exp2()) >= share
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(enough, 1.0, high.exp2().clamp(max=cap))


class GradientInundation(SGD):  # type: ignore[misc, valid-type]
    """SGD with Nesterov momentum 0.9 that changes at least a `share` of each quantised weight tensor's codes in a step.

    share: tau, of the integer codes of each tensor
    cap:   the largest multiplier, or None; a zero gradient moves nothing in any case

    Biases and batch norms take plain steps. Parameter groups: one for each grid (bits and kind of zero point), then the rest.
    """

    def __init__(
        self,
        student: Student,
        *,
        share: float = 1e-3,
        cap: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < share < 1:
            raise UserError(f"share must be between 0 and 1, not {share}")
        if student.quantization.learned:
            raise UserError(
                "gradient inundation counts codes on grids that follow the weights; those of this student are learned"
            )
        trainable = [p for p in student.parameters() if p.requires_grad]
        grids: dict[tuple[int, str], list[Tensor]] = {}
        quantised: set[int] = set()
        for layer in student.layers().values():
            if layer.weight.requires_grad and id(layer.weight) not in quantised:  # a weight may be shared
                quantised.add(id(layer.weight))
                grids.setdefault((layer.bits, layer.zero_point_rule), []).append(layer.weight)
        groups: list[dict[str, Any]] = [{"params": w, "bits": bits, "zero_point": rule} for (bits, rule), w in grids.items()]
        groups.append({"params": [p for p in trainable if id(p) not in quantised], "bits": None, "zero_point": None})
        groups = [group | {"share": share, "cap": cap} for group in groups if group["params"]]
        fused = {"fused": True} if trainable[0].device.type in ("cpu", "cuda") else {}
        super().__init__(groups, 1.0, momentum=momentum, weight_decay=weight_decay, nesterov=True, **fused)

    @torch.no_grad()
    def step(self) -> None:
        """One step of SGD; the step of a quantised tensor in which too few codes changed is then made longer."""
        moving = [[w for w in group["params"] if w.grad is not None and group["bits"]] for group in self.param_groups]
        before = [[w.clone() for w in weights] for weights in moving]
        super().step()
        for group, weights, old in zip(self.param_groups, moving, before, strict=True):
            if not weights:
                continue
            # Not the new weight minus the old one: steps of 1e-10, the ones to be stretched, would be lost in rounding.
            moves = []
            for w, start in zip(weights, old, strict=True):
                assert w.grad is not None
                direction = w.grad.add(start, alpha=group["weight_decay"])
                direction.add_(self.state[w]["momentum_buffer"], alpha=group["momentum"])
                moves.append(direction.mul_(-group["lr"]))
            cap = UNCAPPED if group["cap"] is None else group["cap"]
            kappa = multipliers(old, moves, group["bits"], group["zero_point"], group["share"], cap)
            for w, start, move, factor in zip(weights, old, moves, kappa, strict=True):
                w.copy_(torch.where(factor > 1, torch.addcmul(start, move, factor.to(w.dtype)), w))


def student_loss(r: Round) -> Terms:
    return {"kd": distillation(r.teacher_logits, r.student_logits, T=20, reduction=r.fidelity.kd_reduction)}


def arc_ait(cells: str | None = None, *, share: float = 1e-3 * 16 / 200) -> Method:
    """ARC+AIT in which at least a `share` of each layer's integer weights changes in every step of Q.

    The share is the published one for batches of 200, scaled to 16, so that each image moves as many integers. At least one
    integer changes: in layers of up to 12,500 weights that is more than the share.
    """

    def inundation(student: Student, weight_decay: float, fidelity: Fidelity) -> torch.optim.Optimizer:
        return GradientInundation(student, share=share, cap=fidelity.gi_cap, weight_decay=weight_decay)

    return dataclasses.replace(
        arc(cells),
        name="ARC+AIT",
        student_loss=student_loss,
        settings={"cells": cells, "share": share},
        rates=Rates(weight_decay=0.0),
        student_optimizer=inundation,
    )
