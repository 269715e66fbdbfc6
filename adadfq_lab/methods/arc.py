"""ARC: GDFQ with a generator found by architecture search.

For each teacher, AutoReCon searches which convolutions a generator of three cells should have so that its images match P's
batch-norm statistics. The game is then GDFQ's, with its losses and rates. The search is not repeated here: CELLS lists what
it found.

Three cells double a map of 64 channels, from an eighth of the image's sides to the full size. The latent is split in three;
each part, through a linear layer, is added to the input of one cell. The label enters through conditional batch norm only.

A cell has two nodes made from its input by one *up* edge each, n0 and n1, and two that sum *op* edges: n2 of (n0, n1) and n3
of (n0, n1, n2), its output. *Cross* edges add the previous cell's n0, n1, n2, doubled, to n2 and to n3.

    up, cross    double (n: nearest, b: bilinear) -> class norm -> LeakyReLU -> 1x1 convolution
    op           class norm -> LeakyReLU -> k x k convolution; d3 and d5 with dilation 2

Nearest-neighbour doubling repeats each pixel four times. Norm, LeakyReLU and a 1x1 convolution then give four equal results,
and so does a convolution of dilation 2, whose taps are two pixels apart. All of that is computed once, on the small map
(`Repeated`), and a k x k convolution of it is one transposed convolution (`UpsampleConv2d`): the same images for less work.

Zhu et al., AutoReCon: Neural Architecture Search-based Reconstruction for Data-free Compression, IJCAI 2021; the cells as
listed in the code of ARC+AIT. `fidelity` decides the eps of the generator's batch norms, and the same as for GDFQ.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.methods.gdfq import generator_loss, student_loss
from adadfq_lab.methods.generators import ConditionalBatchNorm2d, Generator, UpsampleConv2d
from adadfq_lab.methods.method import Method
from adadfq_lab.teacher.teacher import Teacher

WIDTH = 64


class Cell(NamedTuple):
    """The edges of one cell: n or b for up and cross; 1, 3, 5 (kernel), d3, d5 (dilated) for op; 0 if there is no edge."""

    up: str  # input -> n0, n1
    op: str  # n0 -> n2, n1 -> n2, n0 -> n3, n1 -> n3, n2 -> n3
    cross: str = ""  # the previous cell's n0, n1, n2 -> n2, then -> n3


CELLS: dict[str, tuple[Cell, Cell, Cell]] = {
    "resnet20_cifar10": (
        Cell("n n", "d5 0 d5 d3 5"),
        Cell("n n", "d5 d5 3 d3 d5", "0 0 b 0 0 n"),
        Cell("b n", "d5 d5 1 5 d3", "n n n b b b"),
    ),
    "resnet20_cifar100": (
        Cell("b n", "d5 d5 d5 0 5"),
        Cell("n n", "d5 5 1 d3 d5", "0 b n 0 0 n"),
        Cell("n n", "d5 d3 5 5 d5", "0 b n n b b"),
    ),
    "resnet18": (
        Cell("b b", "d5 d5 d5 d5 d5"),
        Cell("b b", "d5 d5 d5 d5 d3", "n b n b b n"),
        Cell("b b", "d5 d5 5 d3 d3", "b b n n b n"),
    ),
    "resnet50": (
        Cell("b b", "d5 d5 d5 d5 d5"),
        Cell("b b", "d5 d5 3 1 1", "b b b n n b"),
        Cell("b b", "d3 d5 d5 5 d3", "n n n n b b"),
    ),
    "mobilenetv2": (
        Cell("b b", "d5 d5 5 d5 d5"),
        Cell("b b", "5 d5 1 1 1", "b b n b b b"),
        Cell("n b", "3 d5 5 d5 d3", "b n b b b n"),
    ),
}
"""The cells found for each teacher of the paper's Table 2, as listed in the code of ARC+AIT."""


class Repeated(NamedTuple):
    """A map `pixels` `(N, C, H, W)` in which each pixel stands for 2^doublings x 2^doublings equal ones."""

    pixels: Tensor
    doublings: int = 0

    def at(self, doublings: int) -> Tensor:
        """These pixels with only `doublings` doublings left to do."""
        factor = 2.0 ** (self.doublings - doublings)
        return self.pixels if factor == 1 else F.interpolate(self.pixels, scale_factor=factor, mode="nearest")


def total(maps: list[Repeated]) -> Repeated:
    """The sum of maps; maps of equal size are added before they are doubled."""
    while len(maps) > 1:
        *maps, a, b = sorted(maps, key=lambda m: m.doublings)
        maps.append(Repeated(a.pixels + b.at(a.doublings), a.doublings))
    return maps[0]


class UpEdge(nn.Module):
    """Doubles a map ("n" by nearest neighbour, "b" bilinearly), then class norm, LeakyReLU and a 1x1 convolution."""

    def __init__(self, kind: str, rows: int, eps: float) -> None:
        super().__init__()
        self.nearest = kind == "n"
        self.norm = ConditionalBatchNorm2d(WIDTH, rows, eps)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, m: Repeated, y: Tensor) -> Repeated:
        if self.nearest:
            m = Repeated(m.pixels, m.doublings + 1)
        else:
            m = Repeated(F.interpolate(m.at(0), scale_factor=2.0, mode="bilinear", align_corners=False))
        return Repeated(self.conv(F.leaky_relu(self.norm(m.pixels, y), 0.2, inplace=True)), m.doublings)


class OpEdge(nn.Module):
    """Class norm, LeakyReLU and a convolution that keeps the map's size: 1, 3 or 5 wide, or d3, d5 of dilation 2."""

    def __init__(self, kind: str, rows: int, eps: float) -> None:
        super().__init__()
        self.kernel, self.dilated = int(kind[-1]), kind[0] == "d"
        self.norm = ConditionalBatchNorm2d(WIDTH, rows, eps)
        self.conv = UpsampleConv2d(WIDTH, WIDTH, self.kernel)  # a plain convolution if nothing is doubled

    def forward(self, m: Repeated, y: Tensor) -> Repeated:
        m = Repeated(F.leaky_relu(self.norm(m.pixels, y), 0.2, inplace=True), m.doublings)
        weight, bias, pad = self.conv.weight, self.conv.bias, self.kernel // 2
        if self.kernel == 1:
            return Repeated(F.conv2d(m.pixels, weight, bias), m.doublings)
        if self.dilated and not m.doublings:
            return Repeated(F.conv2d(m.pixels, weight, bias, padding=2 * pad, dilation=2))
        outer = int(self.dilated)  # dilation 2 sees every other pixel: one doubling waits until afterwards
        if m.doublings == outer:
            return Repeated(F.conv2d(m.pixels, weight, bias, padding=pad), outer)
        return Repeated(self.conv(m.at(outer + 1)), outer)


class SearchedCell(nn.Module):
    """`(N, 64, H, W)` to `(N, 64, 2H, 2W)`: the cell's nodes n0, n1, n2, n3, of which the last is its output."""

    def __init__(self, cell: Cell, rows: int, eps: float) -> None:
        super().__init__()
        self.up = nn.ModuleList(UpEdge(kind, rows, eps) for kind in cell.up.split())
        self.op = nn.ModuleDict({str(i): OpEdge(kind, rows, eps) for i, kind in enumerate(cell.op.split()) if kind != "0"})
        self.cross = nn.ModuleDict(
            {str(i): UpEdge(kind, rows, eps) for i, kind in enumerate(cell.cross.split()) if kind != "0"}
        )

    def forward(self, x: Repeated, before: list[Repeated], y: Tensor) -> list[Repeated]:
        nodes = [up(x, y) for up in self.up]
        for op, cross in (((0, 1), (0, 1, 2)), ((2, 3, 4), (3, 4, 5))):
            inputs = [(self.op, i, m) for i, m in zip(op, nodes, strict=True)]
            inputs += [(self.cross, i, m) for i, m in zip(cross, before[:3], strict=False)]
            nodes.append(total([edges[str(i)](m, y) for edges, i, m in inputs if str(i) in edges]))
        return nodes


class SearchedGenerator(Generator):
    """G of ARC: three cells of CELLS between a latent in three parts and a 3x3 convolution, tanh and a norm per batch.

    Images may have any sides: if they are not multiples of 8, the surplus is cropped evenly.

    rows: rows of the class norms' tables; by default the number of classes. The code of ARC+AIT has 1,000 for CIFAR too and
          keeps weights for absent cross edges: 5,995,459 parameters for CIFAR-10 against 1,918,659 here.
    eps:  of every class norm. The released code passes 0.8, meant as a momentum; 1e-5 is the usual value.
    """

    def __init__(
        self,
        cells: tuple[Cell, Cell, Cell],
        classes: int,
        shape: tuple[int, int, int],
        *,
        latent: int = 100,
        eps: float = 1e-5,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.latent, self.shape = latent, shape
        self.parts = [latent // 3, latent // 3, latent - 2 * (latent // 3)]
        self.base = -(-shape[1] // 8), -(-shape[2] // 8)
        pixels = self.base[0] * self.base[1]
        self.linears = nn.ModuleList(nn.Linear(part, WIDTH * pixels * 4**i) for i, part in enumerate(self.parts))
        self.cells = nn.ModuleList(SearchedCell(cell, rows or classes, eps) for cell in cells)
        self.norm = ConditionalBatchNorm2d(WIDTH, classes, eps)
        self.image = nn.Conv2d(WIDTH, shape[0], 3, padding=1)
        self.standardize = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        nodes: list[Repeated] = []
        for i, (linear, cell, part) in enumerate(zip(self.linears, self.cells, z.split(self.parts, 1), strict=True)):
            x = linear(part).view(len(z), WIDTH, self.base[0] * 2**i, self.base[1] * 2**i)
            start = Repeated(x.contiguous(memory_format=torch.channels_last))
            nodes = cell(total([start, *nodes[3:]]), nodes, y)
        x = self.image(F.leaky_relu(self.norm(nodes[3].at(0), y), 0.2, inplace=True))
        top, left = ((made - asked) // 2 for made, asked in zip(x.shape[2:], self.shape[1:], strict=True))
        images: Tensor = self.standardize(torch.tanh(x[:, :, top : top + self.shape[1], left : left + self.shape[2]]))
        return images


def searched_generator(
    cells: str | None, classes: int, shape: tuple[int, int, int], *, eps: float = 1e-5, rows: int | None = None
) -> SearchedGenerator:
    """The generator found for the teacher `cells`, a key of CELLS, for images of `shape` (C, H, W).

    cells: None for ResNet-20's up to 64 pixels (CIFAR-100's from 100 classes on), ResNet-18's above

    Raises UserError for a name that is not in CELLS.
    """
    if cells is None:
        cells = "resnet18" if max(shape[1:]) > 64 else "resnet20_cifar10" if classes < 100 else "resnet20_cifar100"
    if cells not in CELLS:
        raise UserError(f"no cells were searched for {cells!r}; choose from {', '.join(CELLS)}")
    return SearchedGenerator(CELLS[cells], classes, shape, eps=eps, rows=rows)


def arc(cells: str | None = None) -> Method:
    """ARC with the cells found for the teacher `cells`, a key of CELLS; by default chosen by image size and classes."""

    def build_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
        info = teacher.info
        return searched_generator(cells, len(info.classes), info.input_shape, eps=fidelity.generator_bn_eps)

    return Method("ARC", generator_loss, student_loss, settings={"cells": cells}, build_generator=build_generator)
