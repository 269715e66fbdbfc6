"""Networks of other people: what the package makes of them is what they compute, or one line says where it is not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.foreign import CLASSES, RIGHT, SHAPE, Plain, WriteToPart, old_weight_norm, settled
from helpers.networks import randomize
from torch import Tensor, nn

from adadfq_lab.equations import BatchStatistics, loss_bns
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.student.layers import QuantLayer
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo, wrap_teacher
from adadfq_lab.teacher.tracing import traced

INFO = TeacherInfo("t", "n", "d", tuple("abcde"), SHAPE, (0.5,) * 3, (0.25,) * 3)
FINE = 44  # bits at which a grid is as good as float64


def images(n: int = 3) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def fine(student: Student) -> Student:
    for module in student.double().modules():
        if isinstance(module, QuantLayer | QuantActivation):
            module.bits = FINE
    return student


def small() -> nn.Module:
    return randomize(Plain(), torch.Generator().manual_seed(0))


def wrapped(network: nn.Module) -> Teacher:
    return wrap_teacher(network, input_shape=SHAPE, classes=CLASSES, mean=0.5, std=0.25)


@pytest.mark.parametrize("name", RIGHT)
def test_student_of_many_bits_is_the_untouched_network(name):
    """Q(x) of 44 bits = the network's own logits in float64, and every convolution and linear layer is quantised."""
    network, x = settled(name), images()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    student = fine(quantize(network, "3w3a", input_shape=SHAPE))
    with torch.no_grad():
        torch.testing.assert_close(student(x), network(x), rtol=1e-7, atol=1e-7)
    assert len(student.layers()) == RIGHT[name][1]
    assert all(isinstance(layer.weight, nn.Parameter) for layer in student.layers().values())
    assert not student._float_weights()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", RIGHT)
def test_the_teacher_that_is_observed_is_the_untouched_network(name):
    """Logits = the network's own in float64; as many statistics as it calls batch norms, of what went into them."""
    network, x = settled(name), images()
    seen: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        expected = network(x)
        logits, statistics = WithStatistics(Teacher(settled(name), INFO))(x)
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-7)
    calls = {tuple(round(float(v), 6) for v in layer.mean) for layer in statistics}
    assert {tuple(round(float(v), 6) for v in u.transpose(0, 1).flatten(1).mean(1)) for u in seen} <= calls


def test_old_weight_norm_is_baked_too():
    """torch.nn.utils.weight_norm by hooks, whose deprecation torch announces."""
    with pytest.warns(FutureWarning, match="deprecated"):
        network = old_weight_norm()
    randomize(network, torch.Generator().manual_seed(0)).double()
    x = images()
    network(x)  # as anyone does: from now on the weight is a tensor that deepcopy refuses
    student = fine(quantize(network, "3w3a"))
    torch.testing.assert_close(student(x), network(x), rtol=1e-7, atol=1e-7)


class Random(Plain):
    """Drops in eval mode too."""

    def body(self, x: Tensor) -> Tensor:
        return F.dropout(super().body(x), 0.5)


class Scripted(Plain):
    """A part of it is TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.jit.trace(nn.Conv2d(8, 8, 3), torch.zeros(1, 8, 8, 8))


class Outside(Plain):
    """Keeps a state of its own that no trace can see."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(x) * float(self.norm.weight[0] + self.second(x.detach()).sum())


def nan() -> nn.Module:
    network = Plain()
    nn.init.constant_(network.second.weight, float("nan"))
    return network


def reading_hook() -> nn.Module:
    network = small()
    network.second.register_forward_hook(lambda m, i, o: o * float(o.sum()))
    return network


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: WriteToPart(),
            r"module 'relu' \(ReLU\) overwrites memory that module 'norm2' \(BatchNorm2d\) shares and getitem",
        ),
        (lambda: Random(), "Random gives other logits for the same images in eval mode"),
        (lambda: Outside(), "cannot trace Outside"),
        (nan, "second.weight of the network has 576 NaN or infinite of 576 entries"),
        (reading_hook, "second"),
        (lambda: quantize(small(), "3w3a"), "this is a student already, quantised to 3w3a"),
        (lambda: nn.Sequential(nn.Conv3d(3, 5, 3), nn.Flatten()), "takes none of the usual image sizes"),
        (lambda: "network", "takes a network, a torch.nn.Module, not 'network'"),
    ],
    ids=["overlap", "random", "state", "nan", "hook", "student", "sizes", "string"],
)
def test_what_would_come_out_wrong_is_refused_by_name(build, message):
    """One line that names what is in the way."""
    with pytest.raises(UserError, match=message) as error:
        quantize(build(), "4w4a")
    assert len(str(error.value).splitlines()) == 1


def test_a_hook_that_only_looks_is_left_out(generator):
    """A hook that records does not keep a network from being traced, and sees nothing of the student's forwards."""
    network, seen = small(), []
    network.second.register_forward_hook(lambda m, i, o: seen.append(float(o.sum())))
    student = quantize(network, "8w8a")
    count = len(seen)
    student(images().float())
    assert len(seen) == count


# wrap_teacher


def test_wrapping_leaves_the_network_as_it_was():
    """Modes, gradients, memory layout and bits of the network are what they were; the teacher shares nothing with it."""
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    teacher = wrapped(network)
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert all(p.is_contiguous() for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not {t.data_ptr() for t in network.state_dict().values()} & {t.data_ptr() for t in teacher.state_dict().values()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precision_are_played_in_float32(dtype):
    """The teacher computes in float32 with these very weights."""
    network = small().to(dtype)
    teacher = wrapped(network)
    x = images().float()
    assert all(p.dtype == torch.float32 for p in teacher.parameters())
    torch.testing.assert_close(teacher(x), copy.deepcopy(network).float()(x))
    assert quantize(network, "4w4a")(x.to(torch.float64 if dtype == torch.float64 else torch.float32)).shape == (3, CLASSES)


def test_a_view_is_read_in_whatever_layout():
    """x.view after a pool: the teacher, the student and a game take images of any memory format."""
    network = settled("view").float()
    teacher = wrapped(network)
    pixels = torch.randint(256, (4, *SHAPE), dtype=torch.uint8)
    x = teacher.normalize(pixels)
    torch.testing.assert_close(teacher(x), network(x.contiguous()))
    student = quantize(teacher, "4w4a")
    records = list(Game(teacher, student, adadfq(), schedule=Schedule(batch=4, warmup=1)).play(2))
    assert len(records) == 2
    assert student(x).shape == network(x.contiguous()).shape


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (0.5, 0.25, (0.5, 0.25)),
        (torch.full((3,), 0.5), [0.25] * 3, (0.5, 0.25)),
        ((127.5,) * 3, (63.75,) * 3, (0.5, 0.25)),
        (127.5, 1.0, (0.5, 1 / 255)),
        (0, 255, (0.0, 1.0)),
        (None, None, (0.0, 1.0)),
    ],
)
def test_means_and_deviations_of_any_form_and_scale(mean, std, expected):
    """Numbers, tensors and lists; above 1 they are of pixels 0 .. 255."""
    info = wrap_teacher(small(), input_shape=SHAPE, classes=CLASSES, mean=mean, std=std).info
    torch.testing.assert_close(info.mean, (expected[0],) * 3, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(info.std, (expected[1],) * 3, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 0.5, "std": 58.0}, "are on no one scale"),
        ({"mean": 300.0, "std": 58.0}, "are on no one scale"),
        ({"mean": "imagenet"}, "mean must be a number, or one per channel"),
        ({"classes": 7}, "Plain tells 5 classes apart, not 7"),
        ({"input_shape": (1, 8, 8)}, r"Plain does not take images of shape \(1, 8, 8\)"),
    ],
)
def test_what_does_not_fit_the_network_is_one_line(options, message):
    """Said when it is wrapped, not rounds later."""
    with pytest.raises(UserError, match=message) as error:
        wrap_teacher(small(), **({"input_shape": SHAPE, "classes": CLASSES} | options))
    assert len(str(error.value).splitlines()) == 1


# The game's teacher, and L_BNS without a scale


def test_a_teacher_that_is_not_the_one_observed_is_refused():
    """The comparison that every game begins with notices another network."""
    observed = WithStatistics(wrapped(small()))
    observed.compare(wrapped(small()))
    other = wrapped(randomize(Plain(), torch.Generator().manual_seed(1)))
    with pytest.raises(UserError, match="gives other logits than my network itself"):
        observed.compare(other)


def test_normalized_bns_by_hand_and_without_a_scale():
    """((2-1)^2/4 + (8-4)^2/16)/1 = 1.25 for one channel; activations times 100 change the sum, not this."""
    layer = BatchStatistics(*(torch.tensor([v]) for v in (2.0, 8.0, 1.0, 4.0)))
    assert loss_bns([layer], reduction="normalized") == 1.25
    large = BatchStatistics(layer.mean * 100, layer.var * 1e4, layer.running_mean * 100, layer.running_var * 1e4)
    torch.testing.assert_close(loss_bns([large, layer], reduction="normalized"), torch.tensor(1.25))
    assert loss_bns([large]) > 1e7 * loss_bns([layer])
    dead = BatchStatistics(*(torch.zeros(1) for _ in range(4)))
    assert loss_bns([dead], reduction="normalized") == 0


def test_a_trace_keeps_global_random_state():
    """Comparing the network with its trace draws nothing from torch's global generator."""
    network = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    traced(network, SHAPE)
    assert torch.equal(torch.rand(3), expected)
