"""The student: every way of writing a network gives the same arithmetic, and what is counted is what was quantised."""

import copy
import threading
from typing import ClassVar

import pytest
import torch
import torchvision
from helpers.networks import (
    CHANNELS,
    CLASSES,
    ODD,
    SIDE,
    ArithmeticInPlace,
    EverySpelling,
    EverySpellingOfSix,
    Grouped,
    HasANetwork,
    LeftFloat,
    NoNorm,
    OptionalArguments,
    ResidualAdd,
    SharedConv,
    SharedNorm,
    SharedRelu,
    Untraceable,
    randomize,
)
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.student.layers import QuantConv2d, QuantLayer, QuantLinear
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import BitWidths, QuantActivation
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.networks import resnet8, resnet20
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.tracing import traced

FINE = 44  # bits at which a grid is as good as float64: a student of that many bits must be its teacher


def images(generator: torch.Generator, n: int = 3) -> Tensor:
    return torch.randn(n, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)


def refine(student: Student) -> Student:
    """The same student with grids so fine that rounding is below 1e-9."""
    for module in student.double().modules():
        if isinstance(module, QuantLayer | QuantActivation):
            module.bits = FINE
    return student


def teacher_of(network: nn.Module, shape: tuple[int, int, int], classes: int) -> Teacher:
    names = tuple(str(i) for i in range(classes))
    return Teacher(network, TeacherInfo("t", "n", "d", names, shape, (0.5,) * shape[0], (0.25,) * shape[0]))


# The graph


@pytest.mark.parametrize("odd", ODD, ids=lambda kind: kind.__name__)
def test_student_of_many_bits_is_its_teacher(odd, generator):
    """With 44 bits instead of 3, Q(x) = P(x) in float64, and so are the gradients of x and of every layer's weight and bias."""
    network = randomize(odd(), generator).double()
    student = refine(quantize(network, "3w3a"))
    x = images(generator).requires_grad_()
    expected, actual = network(x), student(x)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    theirs: list[Tensor] = [x]
    ours: list[Tensor] = [x]
    for name, layer in student.layers().items():
        original = network.get_submodule(name)
        theirs += original.parameters()
        ours += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    gradients = zip(torch.autograd.grad(actual, ours, upstream), torch.autograd.grad(expected, theirs, upstream), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("odd", ODD, ids=lambda kind: kind.__name__)
def test_every_layer_and_every_relu_site_is_quantised(odd, generator):
    """As many quantised layers and activation quantisers as the network has layers and ReLU sites; no ReLU is left."""
    student = quantize(randomize(odd(), generator), "4w3a")
    assert len(student.layers()) == odd.layers
    assert len(student.activations()) == odd.relus
    assert {layer.bits for layer in student.layers().values()} == {4}
    assert {quantizer.bits for quantizer in student.activations().values()} == {3}
    kinds = {type(module) for module in student.modules()}
    assert not kinds & {nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Conv2d, nn.Linear}
    student(images(generator).float())
    assert all(quantizer.range.batches == 1 for quantizer in student.activations().values())


@pytest.mark.parametrize("odd", [NoNorm, ResidualAdd, Grouped, EverySpellingOfSix], ids=lambda kind: kind.__name__)
def test_three_bits_make_at_most_eight_values(odd, generator):
    """What leaves an activation quantiser takes at most 2^3 values, 0 among them; every row of a rounded weight as well."""
    student = quantize(randomize(odd(), generator), "3w3a")
    seen: list[Tensor] = []
    for quantizer in student.activations().values():
        quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    student(images(generator, 16).float())
    assert len(seen) == odd.relus
    for output in seen:
        assert len(output.unique()) <= 8
        assert (output == 0).any()
    for layer in student.layers().values():
        assert all(len(row.unique()) <= 8 for row in layer.quantized_weight())


def test_one_relu_module_at_two_sites_is_two_quantisers(generator):
    """Each site has a range of its own: that of 10 conv(...) is wider than that of the images."""
    student = quantize(randomize(SharedRelu(), generator), "3w3a")
    student(images(generator).float())
    assert len({float(quantizer.range.high) for quantizer in student.activations().values()}) == 3


def test_relu6_is_known_by_every_name(generator):
    """nn.ReLU6, F.relu6 and hardtanh from 0 to 6 are ReLU6; everything else is a ReLU."""
    sixes = quantize(EverySpellingOfSix(), "3w3a").activations().values()
    assert [quantizer.relu for quantizer in sixes] == ["relu6"] * EverySpellingOfSix.relus
    plain = quantize(EverySpelling(), "3w3a").activations().values()
    assert [quantizer.relu for quantizer in plain] == ["relu"] * EverySpelling.relus


def test_batch_norm_is_folded_only_where_it_alone_follows_one_convolution():
    """conv -> bn folds; a convolution or a batch norm at two sites does not."""
    folded = [
        layer.bn is not None for layer in quantize(ResidualAdd(), "3w3a").layers().values() if isinstance(layer, QuantConv2d)
    ]
    assert folded == [True, True]
    for odd in (SharedConv, SharedNorm):
        layers = quantize(odd(), "3w3a").layers().values()
        assert all(layer.bn is None for layer in layers if isinstance(layer, QuantConv2d))


def test_names_are_those_of_the_network_in_order_of_execution():
    """layers() has the network's own names; activations() come in the order they run, inputs included."""
    student = quantize(ResidualAdd(), "3w3a", every_input=True)
    assert list(student.layers()) == ["conv", "second", "linear"]
    assert list(student.activations()) == ["x", "relu", "relu_1", "mean"]


def test_an_attribute_called_network_is_not_the_network():
    """Only a Teacher is unwrapped: a module with an attribute `network` is quantised whole, head included."""
    assert set(quantize(HasANetwork(), "3w3a").layers()) == {"conv", "linear"}
    whole = quantize(teacher_of(HasANetwork(), (CHANNELS, SIDE, SIDE), CLASSES), "3w3a")
    assert set(whole.layers()) == {"conv", "linear"}


def test_other_arguments_have_their_defaults(generator):
    """A network with forward(x, early=False, *, gain=2.0) becomes a student of images alone."""
    network = randomize(OptionalArguments(), generator).double()
    x = images(generator)
    torch.testing.assert_close(refine(quantize(network, "8w8a"))(x), 2 * network(x, gain=1.0), rtol=1e-8, atol=1e-8)


# Counts


@pytest.mark.parametrize(
    ("build", "convolutions", "linears", "relus", "inputs"),
    [
        (resnet20, 21, 1, 19, 2),
        (resnet8, 9, 1, 7, 2),
        (torchvision.models.resnet18, 20, 1, 17, 2),
        (torchvision.models.resnet50, 53, 1, 49, 2),
        # torchvision's MobileNetV2 has 52 convolutions and a linear classifier; inputs: the image, 17 blocks' outputs, the pool
        (torchvision.models.mobilenet_v2, 52, 1, 35, 19),
    ],
    ids=["resnet20", "resnet8", "resnet18", "resnet50", "mobilenet_v2"],
)
def test_counts_of_known_networks(build, convolutions, linears, relus, inputs):
    """Convolutions, linear layers, ReLU sites; and with every_input nothing is left in float but biases and batch norm."""
    with torch.device("meta"):
        network = build()
        student, whole = quantize(network, "3w3a"), quantize(network, "3w3a", every_input=True)
    layers = list(student.layers().values())
    assert sum(isinstance(layer, QuantConv2d) for layer in layers) == convolutions
    assert sum(isinstance(layer, QuantLinear) for layer in layers) == linears
    assert len(student.activations()) == relus
    assert len(student.left_float()) == inputs == len(whole.activations()) - relus
    assert whole.left_float() == []
    assert whole.report().endswith("left in float: biases, batch norm")
    weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    assert (
        f"{convolutions + linears} layers ({convolutions} convolutions, {linears} linear), {weights:,} weights"
        in student.report()
    )
    assert f"{relus} activation quantisers of 3 bits" in student.report()


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.mobilenet_v2])
def test_student_of_many_bits_is_torchvisions_network(build, generator):
    """ResNet-18 and MobileNetV2 as torchvision writes them, in-place ReLUs and all: Q(x) = P(x) with 44 bits."""
    network = randomize(build(num_classes=7), generator).double()
    x = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    for every_input in (False, True):
        student = refine(quantize(network, "3w3a", every_input=every_input))
        with torch.no_grad():
            expected = network(x)
            torch.testing.assert_close(student(x), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_what_stays_float_is_named():
    """A transposed convolution, group norm, attention and products of activations are not quantised, and the report says so."""
    student = quantize(LeftFloat(), "3w3a")
    left = student.left_float()
    for phrase in (
        "transposed (ConvTranspose2d)",
        "group_norm (GroupNorm)",
        "attention (MultiheadAttention)",
        "input of conv2d (group_norm)",
        "matmul_1 (matmul outside a layer)",
        "matmul_2 (matmul outside a layer)",
        "input of matmul (conv2d)",
        "input of conv (x)",
        "input of linear (mean)",
    ):
        assert phrase in left
        assert phrase in student.report()
    assert len(left) == 9


# Nearness


def test_eight_bits_are_close_and_fewer_are_further(generator):
    """|Q(x) - P(x)| / |P(x)| is below 2 % at 8w8a and grows with every bit taken away."""
    network = randomize(resnet8(), generator)
    x = torch.randn(32, 3, 16, 16, generator=generator)
    with torch.no_grad():
        expected = network(x)
        errors = [float((quantize(network, f"{b}w{b}a")(x) - expected).norm() / expected.norm()) for b in (8, 6, 4, 2)]
    assert errors[0] < 0.02
    assert errors == sorted(errors)
    assert errors[-1] > 0.2


# What is left alone


def test_quantize_does_not_touch_the_network(generator):
    """P has the same modules, weights, modes and requires_grad before and after; Q shares no memory with it."""
    network = randomize(ResidualAdd(), generator).train()
    network.conv.weight.requires_grad_(False)
    before, modules = copy.deepcopy(network.state_dict()), [type(module) for module in network.modules()]
    student = quantize(network, "3w3a")
    assert [type(module) for module in network.modules()] == modules
    assert all(module.training for module in network.modules())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["conv.weight"]
    assert all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    memory = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not memory & {tensor.data_ptr() for tensor in student.state_dict().values()}


def test_training_the_student_leaves_the_teacher_alone(generator):
    """After ten steps of SGD, Q's weights have moved, but not P's weights, running statistics, logits or gradients."""
    teacher = teacher_of(randomize(resnet8(), generator), (3, 16, 16), 10)
    student = quantize(teacher, "3w3a")
    x = torch.randn(8, 3, 16, 16, generator=generator)
    before, logits = copy.deepcopy(teacher.state_dict()), teacher(x)
    first = {name: value.clone() for name, value in student.named_parameters()}
    memory = {name: value.clone() for name, value in student.named_buffers() if "running" in name}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        (student(x) - teacher(x)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(value, first[name]) for name, value in student.named_parameters())
    assert all(torch.equal(value, memory[name]) for name, value in student.named_buffers() if "running" in name)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(teacher(x), logits)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_within_frozen_no_range_moves(generator):
    """student.frozen() stops observation and gives each quantiser back the switch it had, also after an error."""
    student = quantize(randomize(ResidualAdd(), generator), "3w3a")
    x = images(generator).float()
    student(x)
    first, second = student.activations().values()
    first.observing = False
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ZeroDivisionError), student.frozen():
        assert not student.observing
        student(10 * x)
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert (first.observing, second.observing, student.observing) == (False, True, True)
    student(10 * x)
    assert second.range.batches == 2
    assert first.range.batches == 1
    student.observing = False
    assert not second.observing


def test_switches_reach_every_quantiser():
    """ste, rule and zero_point given to quantize are those of each layer and each activation."""
    student = quantize(ArithmeticInPlace(), "5w6a", ste="clipped", rule="minmax", zero_point="real", every_input=True)
    for layer in student.layers().values():
        assert (layer.bits, layer.ste, layer.zero_point_rule) == (5, "clipped", "real")
    for quantizer in student.activations().values():
        assert (quantizer.bits, quantizer.ste, quantizer.range.rule) == (6, "clipped", "minmax")
    assert student.bits == BitWidths(5, 6)
    assert quantize(NoNorm(), BitWidths(5, 6)).bits == BitWidths(5, 6)


def test_student_survives_its_state_dict(generator):
    """A second student of the same network that loads the first one's state computes the same bits."""
    network = randomize(ResidualAdd(), generator)
    x = images(generator).float()
    one, other = quantize(network, "3w3a"), quantize(ResidualAdd(), "3w3a")
    one(x)
    other.load_state_dict(one.state_dict())
    with one.frozen(), other.frozen():
        assert torch.equal(one(x), other(x))


# Refusals


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_branch_on_values_is_refused_by_the_name_of_its_module():
    """A data-dependent branch two modules deep is one line that names the module and the network."""
    with pytest.raises(UserError) as error:
        quantize(Untraceable(), "3w3a")
    assert "cannot trace module 'body.1.1' (Branch) of Untraceable" in one_line(error)
    assert "must not depend on the values of its input" in one_line(error)


def test_a_network_of_two_inputs_is_refused():
    """A second argument without default cannot be had from images alone."""

    class Two(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    with pytest.raises(UserError, match=r"cannot trace Two: .*missing 1 required positional argument: 'mask'") as error:
        quantize(Two(), "3w3a")
    one_line(error)


@pytest.mark.parametrize("thing", [None, 3, nn.Conv2d], ids=str)
def test_what_is_no_network_is_refused(thing):
    """A class in place of its instance, for one."""
    with pytest.raises(UserError, match=r"takes a network, a torch\.nn\.Module, not") as error:
        quantize(thing, "3w3a")
    one_line(error)


def test_a_network_without_layers_is_refused():
    """Nothing to quantise is said, rather than a float copy returned."""
    with pytest.raises(UserError, match="Sequential has no Conv2d or Linear layer to quantise") as error:
        quantize(nn.Sequential(nn.ReLU(), nn.Flatten()), "3w3a")
    one_line(error)


@pytest.mark.parametrize("bits", ["3w3x", "9w9a", "3", ""])
def test_a_bad_bit_string_is_refused(bits):
    """quantize(P, bits) refuses what is not a bit width in one line that shows the form."""
    with pytest.raises(UserError, match="as in 3w3a") as error:
        quantize(NoNorm(), bits)
    one_line(error)


class Crossroads(nn.Module):
    """Between its layers it waits for another thread, which runs the same layers."""

    met: ClassVar[list[Tensor]] = []  # of the class: the copy that is traced notes it here too

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.scale = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Parameter(torch.ones(()))

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: self.met.append(self.body(torch.ones(1, 3, 8, 8))))
        out = self.body(x)
        thread.start()
        thread.join()
        return out


def test_what_another_thread_computes_meanwhile_is_not_traced():
    """torch.fx replaces `nn.Module.__call__` for all threads: theirs stay tensors, and out of the graph."""
    network = Crossroads().eval()
    graph = traced(network).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_module"] == ["conv", "bn"]
    assert len(network.met) >= 2  # when it was run to be compared, and when it was traced
    for met in network.met:
        torch.testing.assert_close(met, network.body(torch.ones(1, 3, 8, 8)))
