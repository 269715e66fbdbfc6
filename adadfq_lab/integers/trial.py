"""Does a file compute what its student computes? Its layers, each on the student's own numbers, and then the whole of it.

A code that lies on a rounding tie may fall either way, and what it becomes changes every code after it: at few bits two correct
networks soon differ in thousands of codes. So the file is cut at every activation. Each piece starts from Q's own codes, and
what it makes must be Q's codes but for ties. That finds a wrong operation wherever it is, and names the activation after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.integers.inference import TIE
from adadfq_lab.integers.layers import Grid, Integers
from adadfq_lab.integers.onnx_file.graph import byte_of
from adadfq_lab.integers.onnx_file.layers import IMAGES, LOGITS
from adadfq_lab.integers.operations import Operation, forward_values
from adadfq_lab.integers.runtimes import session
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.student.student import Student

COARSE_TIE = 0.05  # the same for 8-bit weights, whose convolutions may add their bias as an integer
STRAY = 1e-4  # the share of codes that may differ by one without being a tie
LAST, UNCUT = 1e-3, 1e-2  # of the largest logit: from the last codes on, and over a whole network that has no activations
LOST = 0.25  # of the variance: how far a form that rounds more may be from Q


@dataclass(frozen=True)
class Trial:
    """What running a file piece by piece showed.

    fault: where it first computes something else than its student, "" if nowhere
    codes: compared in all; `differing` of them differ, as rounding ties may
    """

    fault: str
    codes: int
    differing: int


def trial(content: bytes, student: Student, steps: list[Operation], table: Integers, x: Tensor, *, exact: bool) -> Trial:
    """Runs the file `content` piece by piece on the normalised images `x`, with Q's own codes at the start of each piece.

    exact: whether every code must be Q's but for ties; else, in a form that rounds more, codes need only follow Q's

    Raises UserError if ONNX Runtime is missing or does not run the file.
    """
    reference = forward_values(student, x)
    activations = [step for step in steps if step.kind == "activation"]
    grids = {step.name: table.activations[step.target.removeprefix("activations.")] for step in activations}
    given = {name: grid.codes(reference[name]) for name, grid in grids.items()}
    made, logits = _run_pieces(content, {n: _bytes(codes, grids[n]) for n, codes in given.items()}, x)
    if missing := [name for name in given if name not in made]:
        return Trial(f"it has no activation {missing[0]}", 0, 0)
    codes = differing = 0
    for step in activations:
        grid, own = grids[step.name], given[step.name]
        theirs = torch.from_numpy(made[step.name]).int() - byte_of(grid, 0)
        codes, differing = codes + own.numel(), differing + int((theirs != own).sum())
        y = reference[step.inputs[0]] / grid.scale
        if not (_same(own, theirs, y, COARSE_TIE if student.bits.weights == 8 else TIE) if exact else _follows(own, theirs)):
            share = 100 * float((theirs != own).double().mean())
            return Trial(
                f"at activation {step.name} {share:.2g} % of the codes are others than the student's", codes, differing
            )
    own = reference[steps[-1].name]
    far = (
        float((logits - own).abs().max()) > (LAST if activations else UNCUT) * float(own.abs().max())
        if exact
        else not _follows(own, logits)
    )
    return Trial("its logits, computed from the student's last codes, are others" if far else "", codes, differing)


def _same(own: Tensor, theirs: Tensor, y: Tensor, tie: float) -> bool:
    """Whether codes are equal but for rounding ties; `y` is what was rounded, in steps of the grid."""
    wrong = own != theirs
    apart = (own - theirs).abs()[wrong]
    on_tie = (y[wrong] - y[wrong].floor() - 0.5).abs() < tie
    stray = int((~on_tie).sum())
    return int(apart.max()) <= 1 and stray <= max(2, STRAY * own.numel()) if len(apart) else True


def _follows(own: Tensor, theirs: Tensor) -> bool:
    """Whether `theirs` are near `own`, measured by how much `own` vary."""
    own, theirs = own.double(), theirs.double()
    variance = float((own - own.mean()).square().mean())
    return float((own - theirs).square().mean()) <= LOST * variance + 1e-12


def _bytes(codes: Tensor, grid: Grid) -> np.ndarray[Any, Any]:
    return (codes + byte_of(grid, 0)).to(torch.uint8).contiguous().numpy()


def _run_pieces(content: bytes, given: Mapping[str, Any], x: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The codes of every activation that the file has, and its logits; what follows an activation starts from those given."""
    onnx = import_extra("onnx")
    model = onnx.load_model_from_string(content)
    names = {name for node in model.graph.node for name in node.output}
    places = {n: next((p for p in (f"{n}.clipped", f"{n}.codes") if p in names), "") for n in given}
    places = {n: place for n, place in places.items() if place}
    starts = {place: f"{place}.given" for place in places.values()}
    for node in model.graph.node:
        node.input[:] = [starts.get(name, name) for name in node.input]
    uint8 = onnx.TensorProto.UINT8
    for name, place in places.items():
        shape = ["N", *given[name].shape[1:]]
        model.graph.input.append(onnx.helper.make_tensor_value_info(starts[place], uint8, shape))
        model.graph.output.append(onnx.helper.make_tensor_value_info(place, uint8, shape))
    feeds = {IMAGES: x.float().contiguous().numpy()} | {starts[place]: given[name] for name, place in places.items()}
    run = session(model.SerializeToString(), "the file")
    try:
        used = {i.name for i in run.get_inputs()}
        out = run.run([LOGITS, *places.values()], {k: v for k, v in feeds.items() if k in used})
    except Exception as error:  # of a dozen types without a common base
        raise UserError(f"the file does not run on images of shape {tuple(x.shape[1:])}: {first_line(error)}") from None
    return dict(zip(places, out[1:], strict=True)), torch.from_numpy(out[0])
