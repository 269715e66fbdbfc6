"""The integers of a student, and the student run on them, against integer arithmetic written out and against Q's forward."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from helpers.networks import (
    CHANNELS,
    CLASSES,
    Grouped,
    LeftFloat,
    NoNorm,
    NormWithoutMemory,
    OtherActivations,
    OtherPools,
    ResidualAdd,
    SharedRelu,
    StoredTensors,
    ThirdPartyResNet20,
    randomize,
)
from helpers.students import SHAPE, WITH_INTEGERS, every_network, student_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.integers.inference import compare_layers, convolve, run_integer, split_planes
from adadfq_lab.integers.layers import Integers, to_integers
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import quant_range
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher_files import load_teacher


def images(generator: torch.Generator, n: int = 4, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=generator)


@contextmanager
def products() -> Iterator[list[tuple[str, set[torch.dtype]]]]:
    """What torch convolves and multiplies as matrices while it lasts: the operator, and the types of its tensors."""
    seen: list[tuple[str, set[torch.dtype]]] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func.overloadpacket).removeprefix("aten.")
            if any(word in name for word in ("conv", "mm", "matmul", "linear")):
                seen.append((name, {a.dtype for a in args if isinstance(a, Tensor)}))
            return func(*args, **(kwargs or {}))

    with Spy():
        yield seen


# What the integers are


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_is_its_code_less_the_zero_point_times_the_scale(bits, generator):
    """w_q = (q - zero_point) * scale exactly, q and zero_point int8 in [-2^(n-1), 2^(n-1) - 1], for every layer."""
    Q = student_of(randomize(Grouped(), generator), f"{bits}w{bits}a")
    table = to_integers(Q)
    assert list(table.layers) == list(Q.layers())
    low, high = quant_range(bits)
    for name, layer in table.layers.items():
        assert layer.codes.dtype == layer.zero_point.dtype == torch.int8
        assert layer.codes.min() >= low and layer.codes.max() <= high and layer.bits == bits
        assert layer.zero_point.min() >= low and layer.zero_point.max() <= high
        shape = (-1,) + (1,) * (layer.codes.dim() - 1)
        assert torch.equal(layer.centred * layer.weight_scale.view(shape), Q.layers()[name].quantized_weight())


def test_a_batch_norm_is_folded_into_scale_and_bias_and_leaves_the_codes_alone(generator):
    """By hand: W = [[-1, 0.5]] at 2 bits has scale 0.5 and the codes -2, 1 around zero point 0; gamma -2, variance 4, mean 3
    and beta 1 make the scale 0.5 * -2/2 = -0.5 and the bias 1 - 3 * -2/2 = 4."""
    network = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0), nn.ReLU())
    conv, norm = network[0], network[1]
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([-1.0, 0.5]).view(1, 2, 1, 1))
        norm.weight.fill_(-2.0)
        norm.bias.fill_(1.0)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    layer = to_integers(student_of(network, "2w2a", (2, 4, 4))).layers["0"]
    assert layer.codes.flatten().tolist() == [-2, 1] and layer.zero_point.tolist() == [0]
    assert layer.weight_scale.tolist() == [0.5] and layer.scale.tolist() == [-0.5] and layer.bias.tolist() == [4.0]


@pytest.mark.parametrize("rule", ["ema", "ema_gdfq"])
@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_an_activation_is_its_code_less_the_zero_point_times_the_scale(bits, relu, rule, generator):
    """(grid.codes(y) - zero_point) * scale is what Q's quantiser makes of y, bit for bit; also where its range reaches beyond
    a ReLU6's 6."""
    Q = student_of(nn.Sequential(nn.Conv2d(CHANNELS, 3, 1), relu), f"{bits}w{bits}a", rule=rule)
    (grid,), (quantizer,) = to_integers(Q).activations.values(), Q.activations().values()
    y = torch.randn(1000, generator=generator) * 2 * float(quantizer.range.high)
    assert torch.equal((grid.codes(y) - grid.zero_point) * grid.scale, quantizer(y))


def test_inputs_are_named_by_the_grid_they_come_on(generator):
    """The image and the pooled vector are float; with every_input they have grids too."""
    network = randomize(ResidualAdd(), generator)
    Q = student_of(network)
    inputs = {name: layer.input for name, layer in to_integers(Q).layers.items()}
    grids = to_integers(Q).activations
    assert inputs == {"conv": None, "second": grids["relu"], "linear": None}
    assert all(layer.input is not None for layer in to_integers(student_of(network, every_input=True)).layers.values())


@pytest.mark.parametrize(
    ("x", "input_bits", "message"),
    [
        (torch.zeros(0, *SHAPE), 24, "one or more"),
        (torch.zeros(SHAPE), 24, "images must be"),
        (torch.zeros(1, *SHAPE, dtype=torch.uint8), 24, "normalised"),
        (torch.full((1, *SHAPE), math.nan), 24, "finite"),
        (torch.zeros(1, SHAPE[0] + 1, *SHAPE[1:]), 24, "does not take images of shape"),
        (torch.zeros(1, *SHAPE), 12, "input_bits must be 8, 16 or 24, not 12"),
    ],
)
def test_what_are_no_images_is_refused_in_a_line(x, input_bits, message, generator):
    Q = student_of(randomize(ResidualAdd(), generator))
    for compute in (run_integer, compare_layers):
        with pytest.raises(UserError, match=message) as refused:
            compute(Q, x, input_bits=input_bits)
        assert "\n" not in str(refused.value)


def test_a_layer_called_view_is_a_layer(generator):
    """Only the method `view` passes a grid on: what follows a convolution of that name comes on none."""
    network = nn.Sequential()
    for name, module in {"conv": nn.Conv2d(CHANNELS, 4, 1), "relu": nn.ReLU(), "view": nn.Conv2d(4, 4, 1)}.items():
        network.add_module(name, module)
    network.add_module("last", nn.Conv2d(4, 4, 1))
    layers = to_integers(student_of(randomize(network, generator))).layers
    assert layers["view"].input is not None and layers["last"].input is None


@pytest.mark.parametrize("kind", [OtherActivations, OtherPools, StoredTensors])
def test_a_layer_is_compared_with_what_it_made(kind, generator):
    """Also where the next operation overwrites that in place."""
    Q = student_of(randomize(kind(), generator))
    rows = [row for row in compare_layers(Q, images(generator)) if row.kind != "activation"]
    assert len(rows) == kind.layers and max(row.difference for row in rows) < 1e-5


def test_the_table_has_a_line_a_layer(generator):
    table = to_integers(student_of(randomize(ResidualAdd(), generator)))
    head, *lines = table.table().splitlines()
    assert head.split()[:3] == ["layer", "weight", "bits"] and [line.split()[0] for line in lines] == list(table.layers)
    assert lines[0].split()[1:3] == ["4x4x3x3", "3"] and lines[0].endswith("float") and "3 bits on [0, " in lines[1]


# What cannot be integers


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (NoNorm, {"zero_point": "real"}, "real zero points"),
        (NormWithoutMemory, {}, "the batch's own statistics"),
    ],
    ids=["real", "memory"],
)
def test_what_has_no_integers_is_refused_in_a_line(network, options, message, generator):
    Q = student_of(randomize(network(), generator), "8w8a", **options)
    with pytest.raises(UserError, match=message):
        to_integers(Q)


def test_sums_that_int32_does_not_hold_are_refused():
    """70,000 weights of +-1 at 8 bits have codes up to 128 from zero: with inputs of 255 they add up to more than 2^31."""
    linear = nn.Linear(70_000, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([1.0, -1.0]).repeat(35_000)[None])
    with pytest.raises(UserError, match="more than an int32 holds"):
        to_integers(quantize(nn.Sequential(linear), "8w8a"))
    assert to_integers(quantize(nn.Sequential(linear), "3w8a")).layers["0"].bits == 3


def test_a_student_that_has_seen_nothing_has_no_integers(generator):
    with pytest.raises(UserError, match="activation relu has seen no batch"):
        to_integers(quantize(randomize(SharedRelu(), generator), "3w3a"))


def test_an_operation_without_integer_form_is_named(generator):
    with pytest.raises(UserError, match=r"transposed \(ConvTranspose2d\) has no integer form"):
        run_integer(student_of(randomize(LeftFloat(), generator)), images(generator))


def test_images_of_another_shape_are_refused(generator):
    with pytest.raises(UserError, match="does not take images of shape"):
        run_integer(student_of(randomize(NoNorm(), generator)), torch.zeros(2, 1, 3, 3))


# Sums in integers


def by_hand(q: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> list[int]:
    """A convolution as its definition, on Python's integers."""
    n, _, height, width = q.shape
    out, per_group, kh, kw = weight.shape
    rows = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    sums = []
    for i, o, r, c in itertools.product(range(n), range(out), range(rows), range(columns)):
        total = 0
        for k, dy, dx in itertools.product(range(per_group), range(kh), range(kw)):
            y, x = r * stride[0] + dy * dilation[0] - padding[0], c * stride[1] + dx * dilation[1] - padding[1]
            if 0 <= y < height and 0 <= x < width:
                total += int(q[i, o // (out // groups) * per_group + k, y, x]) * int(weight[o, k, dy, dx])
        sums.append(total)
    return sums


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**16),
)
def test_an_integer_convolution_is_its_definition(kernel, stride, padding, dilation, groups, bits, seed):
    """int32 sums equal those of Python's integers, for any kernel, stride, padding, dilation and groups."""
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups)
    module = QuantConv2d(conv, None, bits, "identity", "rounded")
    q = torch.randint(-255, 256, (1, 4, 5, 5), generator=generator, dtype=torch.int32)
    weight = torch.randint(-255, 256, conv.weight.shape, generator=generator, dtype=torch.int32)
    acc = convolve(q, weight, module)
    assert acc.dtype == torch.int32
    assert acc.flatten().tolist() == by_hand(q, weight, stride, padding, dilation, groups)


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_planes_of_eight_bits_add_up(bits, generator):
    """x = s (q_1 + q_2/254 + ...) up to half a step of the last plane; the first is of 256 numbers, each other within +-127."""
    x = torch.randn(1000, generator=generator, dtype=torch.float64)
    planes = split_planes(x, bits)
    reach = float(x.max() - x.min())
    assert len(planes) == bits // 8
    assert planes[0].codes.max() - planes[0].codes.min() <= 255
    assert all(plane.codes.dtype == torch.int32 and int(plane.codes.abs().max()) <= 127 for plane in planes[1:])
    assert float((sum(plane.real() for plane in planes) - x).abs().max()) <= 0.500001 * reach / 255 / 254 ** (bits // 8 - 1)


# The whole network


@pytest.mark.parametrize(("kind", "bits"), every_network(["3w3a", "8w8a"], seldom=["2w2a", "5w4a"]))
def test_the_integer_network_is_the_student(kind, bits, generator):
    """With every layer input on a grid, in float64, integers give Q's logits to 1e-9."""
    Q = student_of(randomize(kind(), generator), bits, every_input=True).double()
    x = images(generator, 8).double()
    with torch.no_grad():
        expected = Q(x)
    actual = run_integer(Q, x)
    assert actual.shape == (8, CLASSES) and float((actual - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("kind", WITH_INTEGERS, ids=lambda kind: kind.__name__)
def test_every_product_is_of_integers(kind, generator):
    """While the integer network runs, torch convolves and multiplies int32 tensors only."""
    Q, x = student_of(randomize(kind(), generator)), images(generator)
    table = to_integers(Q)
    with products() as seen, torch.no_grad():
        Q(x)
    assert {torch.float32} in [types for _, types in seen]  # the spy sees what Q itself does
    from adadfq_lab.integers.operations import operations

    calls = sum(step.kind in ("conv", "linear") for step in operations(Q, SHAPE))
    with products() as seen:
        run_integer(Q, x, table=table)
    inside = [types for _, types in seen if types != {torch.float32}]
    assert len(inside) >= calls and set(map(frozenset, inside)) == {frozenset({torch.int32})}


@pytest.mark.parametrize("bits", range(2, 9))
def test_negative_gammas_are_negative_scales(bits, generator):
    """A batch norm whose gamma is negative, or 0, turns its channel round, or silences it, in integers too."""
    network = randomize(ResidualAdd(), generator)
    with torch.no_grad():
        network.norm.weight.copy_(torch.tensor([-1.3, 0.7, 0.0, -1e-3]))
        network.second_norm.weight.mul_(-1)
    Q = student_of(network, f"{bits}w{bits}a", every_input=True).double()
    layer = to_integers(Q).layers["conv"]
    assert torch.equal(layer.scale.sign(), torch.tensor([-1.0, 1.0, 0.0, -1.0], dtype=torch.float64))
    x = images(generator, 8).double()
    with torch.no_grad():
        expected = Q(x)
    assert float((run_integer(Q, x) - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: torchvision.models.resnet18(weights=None, num_classes=7), (3, 64, 64)),
        (lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=7), (3, 64, 64)),
        (ThirdPartyResNet20, (3, 32, 32)),
    ],
    ids=["resnet18", "mobilenet_v2", "third party"],
)
def test_networks_of_others_run_on_integers(make, shape, generator):
    """Residual adds, depthwise convolutions, ReLU6 and shortcuts without parameters: codes differ at ties only."""
    Q = student_of(randomize(make(), generator), "4w4a", shape)
    rows = compare_layers(Q, images(generator, 2, shape))
    assert [row.name for row in rows if row.kind != "activation"] and all(row.differing == row.ties for row in rows)
    assert max(row.difference for row in rows if row.kind != "activation") < 3e-6
    assert sum(row.differing for row in rows) <= 1e-4 * sum(row.elements for row in rows)


# The shipped teachers


@pytest.fixture(scope="module")
def shipped() -> Student:
    P = load_teacher("fashion_mnist_resnet20")
    return student_of(P, "3w3a", P.info.input_shape)


def test_layer_by_layer_codes_differ_at_ties_only(shipped):
    """A 3-bit ResNet-20 on real images: each layer as Q's to float precision, each differing code a rounding tie."""
    P = load_teacher("fashion_mnist_resnet20")
    rows = compare_layers(shipped, P.normalize(load_data("fashion_mnist", stub=True).images[:20]))
    assert [row.kind for row in rows].count("conv") == 21 and [row.kind for row in rows].count("linear") == 1
    assert all(row.difference < 1e-6 for row in rows if row.kind != "activation")
    assert all(row.differing == row.ties for row in rows)
    assert str(rows[1]).endswith(f"{rows[1].differing} codes differ, {rows[1].ties} of them ties")


def test_a_wrong_integer_is_found_where_it_is(shipped, generator):
    """One code of one weight changed by one: its layer's output differs, and the activation after it, not by ties."""
    table = to_integers(shipped)
    name = list(table.layers)[3]
    codes = table.layers[name].codes.clone()
    codes.view(-1)[0] += 1 if codes.view(-1)[0] < 3 else -1
    broken = {**table.layers, name: table.layers[name].__class__(**{**vars(table.layers[name]), "codes": codes})}
    rows = compare_layers(shipped, images(generator, 4, (1, 28, 28)), table=Integers(broken, table.activations))
    wrong = [row for row in rows if row.kind != "activation" and row.difference > 1e-3]
    assert [row.name for row in wrong] == [name.replace(".", "_")]
    assert any(row.differing > row.ties for row in rows)


def test_the_whole_network_predicts_what_the_student_predicts(shipped):
    """On 200 real images the integer network and Q choose the same class but for images that a tie decides."""
    P = load_teacher("fashion_mnist_resnet20")
    x = P.normalize(load_data("fashion_mnist", stub=True).images[:200])
    with torch.no_grad(), shipped.frozen():
        expected = shipped(x).argmax(1)
    assert int((run_integer(shipped, x).argmax(1) != expected).sum()) <= 2


def test_fewer_planes_are_coarser(shipped):
    """Images of 8 bits move the logits, of 16 less, of 24 next to nothing: the median image's logits by less than 1e-5."""
    P = load_teacher("fashion_mnist_resnet20")
    x = P.normalize(load_data("fashion_mnist", stub=True).images[:40])
    with torch.no_grad(), shipped.frozen():
        expected = shipped(x)
    medians = [float((run_integer(shipped, x, input_bits=b) - expected).abs().amax(1).median()) for b in (8, 16, 24)]
    assert medians[0] > medians[1] >= medians[2] and medians[2] < 1e-5 < medians[0] and math.isfinite(medians[0])
