"""The searched generator against its definition: every edge carried out on whole maps, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.methods.arc import CELLS, WIDTH, OpEdge, Repeated, SearchedGenerator, searched_generator, total
from adadfq_lab.methods.generators import ConditionalBatchNorm2d

CLASSES = 3
UP, OP, CROSS = {"n", "b"}, {"0", "1", "3", "5", "d3", "d5"}, {"0", "n", "b"}


def small(name: str, shape: tuple[int, int, int] = (2, 16, 16), eps: float = 1e-5) -> SearchedGenerator:
    """The generator with weights of which none is 0 or 1 by accident, in float64."""
    torch.manual_seed(0)
    made = searched_generator(name, CLASSES, shape, eps=eps).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize(
    ("name", "classes", "side", "published"),
    [
        ("resnet20_cifar10", 10, 32, 5_995_459),
        ("resnet20_cifar100", 100, 32, 6_138_051),
        ("resnet18", 1000, 224, 42_397_443),
        ("resnet50", 1000, 224, 42_200_835),
        ("mobilenetv2", 1000, 224, 42_168_067),
    ],
)
def test_parameter_counts_are_the_released_ones(name, classes, side, published):
    """With tables of 1,000 rows, and with the weights that the released code keeps for absent cross edges: each 1x1 convolution
    (64 * 64 + 64) and class norm (2 * 1000 * 64) that is multiplied by zero."""
    with torch.device("meta"):
        made = searched_generator(name, classes, (3, side, side), rows=1000)
    absent = sum(cell.cross.split().count("0") for cell in CELLS[name])
    assert sum(p.numel() for p in made.parameters()) + absent * (64 * 64 + 64 + 2 * 1000 * 64) == published


def test_the_table_has_the_right_number_of_known_edges():
    """Two up edges, five op edges and, but for the first cell, six cross edges."""
    for cells in CELLS.values():
        for i, cell in enumerate(cells):
            edges = [cell.up.split(), cell.op.split(), cell.cross.split()]
            assert [len(e) for e in edges] == [2, 5, 6 if i else 0]
            assert all(set(e) <= known for e, known in zip(edges, (UP, OP, CROSS), strict=True))


# The definition


def activate(norm: ConditionalBatchNorm2d, x: Tensor, y: Tensor) -> Tensor:
    """Class norm from its formula, then LeakyReLU."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    scale, shift = norm.scale.weight[y][:, :, None, None], norm.shift.weight[y][:, :, None, None]
    x = (x - mean) / (var + norm.norm.eps).sqrt() * scale + shift
    return torch.where(x > 0, x, 0.2 * x)


def literally(G: SearchedGenerator, name: str, z: Tensor, y: Tensor) -> Tensor:
    """G's images by the table: double first, convolve the whole map, one edge after the other."""

    def up(edge, kind, x):
        x = (
            F.interpolate(x, scale_factor=2, mode="nearest")
            if kind == "n"
            else F.interpolate(x, scale_factor=2, mode="bilinear")
        )
        return F.conv2d(activate(edge.norm, x, y), edge.conv.weight, edge.conv.bias)

    def op(edge, kind, x):
        dilation = 2 if kind[0] == "d" else 1
        padding = dilation * (int(kind[-1]) // 2)
        return F.conv2d(activate(edge.norm, x, y), edge.conv.weight, edge.conv.bias, padding=padding, dilation=dilation)

    out, before = None, []
    for i, (cell, edges) in enumerate(zip(G.cells, CELLS[name], strict=True)):
        h = G.linears[i](z.split([33, 33, 34], 1)[i]).view(len(z), WIDTH, G.base[0] * 2**i, G.base[1] * 2**i)
        x = h if out is None else out + h
        (u0, u1), o, c = edges.up.split(), edges.op.split(), edges.cross.split()

        def ops(sources, cell=cell, o=o):
            return sum(op(cell.op[str(j)], o[j], m) for j, m in sources.items() if o[j] != "0")

        def crosses(numbers, cell=cell, c=c, before=before):
            pairs = zip(numbers, before, strict=False)
            return sum(up(cell.cross[str(j)], c[j], m) for j, m in pairs if c[j] != "0")

        n0, n1 = up(cell.up[0], u0, x), up(cell.up[1], u1, x)
        n2 = ops({0: n0, 1: n1}) + crosses((0, 1, 2))
        out = ops({2: n0, 3: n1, 4: n2}) + crosses((3, 4, 5))
        before = [n0, n1, n2]
    image = torch.tanh(G.image(activate(G.norm, out, y)))
    var, mean = torch.var_mean(image, (0, 2, 3), correction=0, keepdim=True)
    return (image - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("eps", [1e-5, 0.8])
@pytest.mark.parametrize("name", CELLS)
def test_images_and_gradients_are_those_of_the_definition(name, eps, generator):
    """What is kept small is exact: images of every table of cells, and the gradient of every parameter, to 1e-10."""
    G = small(name, eps=eps)
    z, y = torch.randn(4, 100, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    ours, theirs = G(z, y), literally(G, name, z, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(x, list(G.parameters()), upstream) for x in (ours, theirs)]
    for (parameter, _), one, other in zip(G.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=parameter)


@pytest.mark.parametrize("doublings", [0, 1, 2])
@pytest.mark.parametrize("kind", sorted(OP - {"0"}))
def test_an_edge_of_a_repeated_map_is_the_edge_of_the_map(kind, doublings, generator):
    """For every kind and zero, one or two doublings still to be done: the same result, and no larger than it must be."""
    torch.manual_seed(0)
    edge = OpEdge(kind, CLASSES, 1e-5).double()
    x = torch.randn(2, WIDTH, 3, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([2, 0])
    made = edge(Repeated(x, doublings), y)
    whole = copy.deepcopy(edge)(Repeated(F.interpolate(x, scale_factor=2**doublings, mode="nearest")), y)
    torch.testing.assert_close(made.at(0), whole.at(0), rtol=1e-10, atol=1e-10)
    left = {"1": doublings, "3": 0, "5": 0, "d3": min(doublings, 1), "d5": min(doublings, 1)}
    assert made.doublings == left[kind]


def test_a_sum_of_maps_is_as_small_as_its_largest():
    """1 at 1x1 twice doubled, 10 at 2x2 once doubled and 100 at 4x4 make 111 in each of 4x4 pixels."""
    maps = [Repeated(torch.full((1, 1, s, s), v), d) for s, v, d in ((4, 100.0, 0), (1, 1.0, 2), (2, 10.0, 1))]
    assert torch.equal(total(maps).at(0), torch.full((1, 1, 4, 4), 111.0))
    assert total(maps[1:]).doublings == 1
    assert total(maps[1:2]) is maps[1]


# Any teacher


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 8, 20), (3, 72, 80)])
def test_images_have_the_teachers_shape_zero_mean_and_unit_variance(shape, generator):
    """Also where sides are no multiples of 8."""
    torch.manual_seed(0)
    made = searched_generator(None, 5, shape)
    images = made(torch.randn(4, 100, generator=generator), torch.arange(4))
    assert images.shape == (4, *shape)
    var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(shape[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, torch.ones(shape[0]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_moves_the_image(name, generator):
    """No edge is in vain; only a constant added before a batch norm is."""
    G = small(name)
    images = G(torch.randn(4, 100, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    (images * torch.randn(images.shape, generator=generator, dtype=torch.float64)).sum().backward()
    for parameter, value in G.named_parameters():
        cancels = parameter.endswith("conv.bias")
        assert value.grad is not None, parameter
        assert cancels or float(value.grad.abs().max()) > 1e-6, parameter


@pytest.mark.parametrize(
    ("classes", "side", "name"),
    [(10, 32, "resnet20_cifar10"), (100, 32, "resnet20_cifar100"), (10, 64, "resnet20_cifar10"), (1000, 72, "resnet18")],
)
def test_cells_are_chosen_by_image_size_and_classes(classes, side, name):
    """Where none are named; a name always counts."""
    with torch.device("meta"):
        chosen, named = (searched_generator(n, classes, (3, side, side)) for n in (None, name))
        other = searched_generator("resnet50", classes, (3, side, side))
    assert str(chosen) == str(named) != str(other)


def test_unknown_cells_are_refused():
    """In one line that lists what there is."""
    with pytest.raises(UserError, match=r"no cells were searched for 'vgg'; choose from resnet20_cifar10, .*mobilenetv2$"):
        searched_generator("vgg", 10, (3, 32, 32))
