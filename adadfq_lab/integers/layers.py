"""The integers of a student: what "3 bits" means, as plain tensors and as a table.

Q's forward is fake: floats that lie on grids. Behind every weight stands a code q of n bits, behind every activation too, and

    w = (q_w - zero_point_w) * scale_w          per output channel
    x = (q_x - zero_point_x) * scale_x          per tensor

A batch norm y -> a y + b is multiplied into the channel's scale and bias, which leaves its codes alone. `run_integer` computes
the network on these integers, `pack` stores them at n bits each and `export_onnx` writes them to a file that runs.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.student.grids import grid_source
from adadfq_lab.student.layers import QuantConv2d, QuantLayer
from adadfq_lab.student.quantizer import QuantActivation, codes, quant_range
from adadfq_lab.student.student import Student

LARGEST_INPUT = 255  # q_x - zero_point_x never exceeds it, at 8 bits


@dataclass(frozen=True)
class Grid:
    """The numbers an activation tensor may hold: (q - zero_point) * scale for the integers q from quant_min to `largest`.

    scale is 0-dim; relu is "none", "relu" or "relu6". After a ReLU zero_point = quant_min: the grid starts at 0. `largest` is
    quant_max, or less if a ReLU6's observed range reaches beyond 6.
    """

    bits: int
    scale: Tensor
    zero_point: int
    relu: str

    @property
    def largest(self) -> int:
        top = quant_range(self.bits)[1]
        return min(top, self.zero_point + int((6.0 / self.scale).round())) if self.relu == "relu6" else top

    def codes(self, y: Tensor) -> Tensor:
        """The integers of `y`, int32; rounded exactly as the fake quantiser of Q rounds."""
        if self.relu == "none":
            return codes(y, self.scale, torch.tensor(float(self.zero_point), dtype=y.dtype, device=y.device), self.bits)
        return (y / self.scale).round().clamp(0, self.largest - self.zero_point).to(torch.int32) + self.zero_point

    def __str__(self) -> str:
        low, high = ((q - self.zero_point) * float(self.scale) for q in (quant_range(self.bits)[0], self.largest))
        return f"{self.bits} bits on [{low:.4g}, {high:.4g}], scale {float(self.scale):.4g}, zero point {self.zero_point}"


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or linear layer as integers; `out` is its number of output channels.

    codes:        int8, in [-2^(bits-1), 2^(bits-1) - 1], in the weight's shape (out, in/groups, kh, kw) or (out, in)
    zero_point:   int8 (out,), one of the codes: what stands for 0
    weight_scale: (out,), the step of the weight's grid
    scale:        (out,), the same times gamma/sigma of the batch norm folded in: negative where gamma is, 0 where it is 0
    bias:         (out,), float, with the batch norm's shift folded in
    input:        the grid of the layer's input, None if Q leaves it float
    """

    name: str
    kind: str
    bits: int
    codes: Tensor
    zero_point: Tensor
    weight_scale: Tensor
    scale: Tensor
    bias: Tensor
    input: Grid | None

    @property
    def centred(self) -> Tensor:
        """q - zero_point, int32: the multiples of the scale that the weights are."""
        shape = (-1,) + (1,) * (self.codes.dim() - 1)
        return self.codes.to(torch.int32) - self.zero_point.to(torch.int32).view(shape)


@dataclass(frozen=True)
class Integers:
    """Everything integer about a student: its layers and the grids of its activations, by name, in order of execution."""

    layers: Mapping[str, IntegerLayer]
    activations: Mapping[str, Grid]

    def table(self) -> str:
        """A line per layer: shape, bits, the codes in use, zero points, scales and the grid of the input."""
        name = max(len("layer"), *(len(n) for n in self.layers))
        lines = [f"{'layer':{name}}  {'weight':>15}  bits  codes used   {'zero points':>11}  {'scale (median)':>14}  input"]
        for layer in self.layers.values():
            used = f"{int(layer.codes.min())} .. {int(layer.codes.max())}"
            zeros = f"{int(layer.zero_point.min())} .. {int(layer.zero_point.max())}"
            shape = "x".join(map(str, layer.codes.shape))
            start = f"{layer.name:{name}}  {shape:>15}  {layer.bits:4}  {used:>10}   {zeros:>11}"
            lines.append(f"{start}  {float(layer.weight_scale.median()):14.4g}  {layer.input or 'float'}")
        return "\n".join(lines)

    __str__ = table


def snapshot(student: Student) -> Student:
    """A copy of `student` on the CPU, where integers are computed and written; if its game plays, of the end of a round."""
    return copy.deepcopy(student).cpu()


def to_integers(student: Student) -> Integers:
    """The integer weights, scales, zero points, bit widths and activation grids of `student`, as plain tensors.

    Raises UserError if the student has no integers: real zero points (fidelity "paper"), a batch norm on the batch's own
    statistics, activation ranges that have seen no batch, or sums that int32 might not hold.
    """
    if student.quantization.zero_point != "rounded":
        raise UserError('this student has real zero points, which no integer stands for; quantize with zero_point="rounded"')
    student = snapshot(student)
    grids = {name: _grid(name, module) for name, module in student.activations().items()}
    modules = dict(student.graph.named_modules())
    layers: dict[str, IntegerLayer] = {}
    for node in student.graph.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantLayer):
            name, source = str(node.target), str(grid_source(node.all_input_nodes[0], modules).target)
            grid = grids.get(source.removeprefix("activations."))
            if name in layers and layers[name].input != grid:  # one layer, called on two grids: its input has not one grid
                grid = None
            layers[name] = _layer(name, layer, grid)
    return Integers(layers, grids)


def _grid(name: str, module: QuantActivation) -> Grid:
    if not bool(module.range.batches):
        raise UserError(f"activation {name} has seen no batch, so it has no grid; let the student observe images first")
    scale, zero_point = module.qparams()
    return Grid(module.bits, scale.detach(), int(zero_point), module.relu)


@torch.no_grad()
def _layer(name: str, layer: QuantLayer, grid: Grid | None) -> IntegerLayer:
    weight_scale, zero_point = (q.flatten() for q in layer.qparams())
    scale, bias = weight_scale, getattr(layer, "bias", None)
    bias = torch.zeros_like(scale) if bias is None else bias.detach()
    if isinstance(layer, QuantConv2d) and layer.bn is not None:
        affine = layer.affine()
        if affine is None:
            raise UserError(
                f"the batch norm of {name} works on the batch's own statistics, which cannot be folded; use running ones"
            )
        a, b = affine
        scale, bias = weight_scale * a, torch.addcmul(b, bias, a)
    plain = layer.integer_weight().to(torch.int8).contiguous()
    kind = "conv" if isinstance(layer, QuantConv2d) else "linear"
    made = IntegerLayer(name, kind, layer.bits, plain, zero_point.to(torch.int8), weight_scale, scale, bias, grid)
    largest = LARGEST_INPUT * int(made.centred.abs().flatten(1).sum(1).max())
    if largest >= 2**31:
        raise UserError(f"the sums of {name} may reach {largest:.1e}, more than an int32 holds; use fewer bits")
    return made
