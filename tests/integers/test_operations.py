"""Every way PyTorch spells an operation: on integers and in the file it gives what the student gives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.integers.aten import ELEMENTWISE
from adadfq_lab.integers.export import export_onnx
from adadfq_lab.integers.inference import run_integer
from adadfq_lab.integers.onnx_file.functions import FUNCTIONS
from adadfq_lab.integers.operations import operations
from adadfq_lab.integers.runtimes import load
from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student

SHAPE = (3, 9, 9)


class Between(nn.Module):
    """A convolution, a ReLU, `f` on 8 channels of 4 x 4 pixels, and a linear layer."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.conv, self.linear = f, nn.Conv2d(3, 8, 3, 2), nn.LazyLinear(5)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 8))
        self.norm, self.prelu = nn.BatchNorm2d(8).eval(), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.f(self, F.relu(self.conv(x)) - 0.3), start_dim=1))


def student(f: Callable[..., Tensor], bits: str = "6w6a") -> Student:
    torch.manual_seed(0)
    network = Between(f)
    network(torch.zeros(1, *SHAPE))
    Q = quantize(network, bits)
    observe_noise(Q, SHAPE, batches=1, batch=8)
    return Q


SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "max of two": lambda m, x: torch.max(x, x.flip(3)),
    "max over channels": lambda m, x: torch.max(x, 1, keepdim=True)[0],
    "max by keyword": lambda m, x: torch.max(input=x, dim=1).values,
    "min": lambda m, x: x.min(dim=-1)[0],
    "amax": lambda m, x: torch.amax(x, dim=(2, 3)),
    "amin": lambda m, x: x.amin(1, keepdim=True),
    "mean of pixels": lambda m, x: x.mean((2, 3)),
    "mean by keyword": lambda m, x: torch.mean(input=x, dim=[-1, -2], keepdim=True),
    "mean after flatten": lambda m, x: x.flatten(2).mean(2),
    "successive means": lambda m, x: x.mean(3).mean(2),
    "sum": lambda m, x: x.sum(dim=1),
    "mean of one pixel": lambda m, x: F.max_pool2d(x, 4).mean([2, 3]),
    "adaptive pool of one pixel": lambda m, x: F.adaptive_avg_pool2d(F.avg_pool2d(x, kernel_size=4), output_size=1),
    "adaptive pool": lambda m, x: F.adaptive_avg_pool2d(input=x, output_size=(3, 2)),
    "adaptive max pool": lambda m, x: F.adaptive_max_pool2d(x, 2),
    "max pool by keyword": lambda m, x: F.max_pool2d(input=x, kernel_size=2, stride=1, padding=1, ceil_mode=True),
    "padded max pool": lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=float("-inf")), 3, 2),
    "chunks joined": lambda m, x: torch.cat(tensors=x.chunk(2, dim=1), dim=2),
    "splits joined": lambda m, x: torch.cat(torch.split(x, [2, 6], 1)[::-1], -3),
    "unbound and stacked": lambda m, x: torch.stack(x.unbind(1)[2:5], dim=1),
    "stack": lambda m, x: torch.stack([x, x * 2], -1),
    "shuffle": lambda m, x: x.view(-1, 2, 4, 4, 4).transpose(1, 2).contiguous().view(-1, 8, 4, 4),
    "channel shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "pixel shuffle": lambda m, x: F.pixel_shuffle(x, 2),
    "unflatten": lambda m, x: x.unflatten(1, (2, 4)).swapaxes(1, 2).sum(1),
    "movedim": lambda m, x: torch.movedim(x, 1, -1).softmax(dim=3),
    "expand_as": lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) + x,
    "narrow and select": lambda m, x: x.narrow(1, 2, 4).select(2, 1),
    "slices": lambda m, x: x[:, 1::2, ::2, -3:],
    "index list": lambda m, x: x[:, [7, 0, -2]],
    "index_select": lambda m, x: x.index_select(dim=1, index=torch.tensor([3, 1])),
    "roll": lambda m, x: torch.roll(x, 1, dims=3),
    "flip": lambda m, x: torch.flip(x, dims=[2]),
    "casts": lambda m, x: x.double().to(torch.float32).type_as(x),
    "clamp with one bound": lambda m, x: x.clamp(min=0.1) + torch.clamp(x, max=0.4) + x.clip(0, 1),
    "clamp by a tensor": lambda m, x: torch.clamp(x, min=torch.tensor(0.2)),
    "hardtanh": lambda m, x: F.hardtanh(x, -0.2, 0.4),
    "elu": lambda m, x: F.elu(input=x, alpha=0.5) + F.selu(x) + F.celu(x, alpha=0.4),
    "mish and softplus": lambda m, x: F.mish(x) + F.softplus(x) + F.softplus(x, beta=2.0),
    "gelu and silu": lambda m, x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.hardswish(x) + F.hardsigmoid(x),
    "leaky": lambda m, x: F.leaky_relu(x, 0.2) + m.prelu(x) + F.prelu(x, m.prelu.weight),
    "roots and powers": lambda m, x: x.square().add(1).sqrt() + torch.rsqrt(x.abs() + 1) + x**3 + (x.abs() + 1).log() + x.exp(),
    "one minus": lambda m, x: torch.rsub(x, 1) + (2 - x) / (1 + x.sigmoid()) + torch.true_divide(x, 3) + torch.tanh(-x),
    "scaled channels": lambda m, x: x * m.scale.view(1, -1, 1, 1) + m.scale[:, None, None],
    "batch norm": lambda m, x: m.norm(F.avg_pool2d(x, 2)),
    "batch norm by hand": lambda m, x: F.batch_norm(x, m.norm.running_mean + 0.1, m.norm.running_var * 2, eps=1e-3),
    "layer norm": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), m.scale),
    "constant made in forward": lambda m, x: x + torch.ones_like(x) + torch.arange(4.0),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_gives_what_the_student_gives(name, tmp_path):
    """Q, its integers and the file on eight images; the file runs no float convolution."""
    pytest.importorskip("onnxruntime")
    Q = student(SPELLINGS[name])
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Q.frozen():
        expected = Q(x)
    file = load(export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE).file)
    for actual in (run_integer(Q, x), file(x)):
        errors = (actual - expected).abs().amax(1) / expected.abs().max()
        assert float(errors.median()) < 1e-5
    assert file.float_convs == 0


REFUSED: dict[str, Callable[..., Tensor]] = {
    "sort": lambda m, x: x.sort(1)[0],
    "topk": lambda m, x: x.topk(2, 1).values,
    "median": lambda m, x: torch.median(x, 1)[0],
    "cummax": lambda m, x: x.cummax(1)[0],
    "indices": lambda m, x: x.max(1)[1].float(),
    "the batch": lambda m, x: x - x.mean(0, keepdim=True),
    "half": lambda m, x: x.half().float(),
    "two dimensions at once": lambda m, x: x.flip([2, 3]),
    "product": lambda m, x: x @ x,
}


class Block(nn.Module):
    """A module of the network, to be named in a message."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_refused_by_the_name_of_its_module(name):
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Block(REFUSED[name]), nn.Flatten())
    Q = quantize(blocks, "4w4a")
    observe_noise(Q, SHAPE, batches=1, batch=2)
    with pytest.raises(UserError, match=r"in module 2 \(Block\) has no integer form") as refused:
        operations(Q, SHAPE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("out", [4, 6])
def test_a_linear_layer_on_channels_last_maps_has_its_channels_last(out, tmp_path):
    """A 1 x 1 convolution written as Linear, on a map of 4 x 4 pixels: as many channels as pixels, and more."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.last = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, out), nn.Linear(out, 3)
            with torch.no_grad():
                self.linear.weight.mul_(torch.logspace(-2, 0, out)[:, None])

        def forward(self, x: Tensor) -> Tensor:
            tokens = F.relu(self.linear(F.relu(self.conv(x)).permute(0, 2, 3, 1)))
            return self.last(tokens.mean((1, 2)))

    Q = quantize(Tokens(), "6w6a")
    observe_noise(Q, SHAPE, batches=1, batch=8)
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Q.frozen():
        expected = Q(x)
    for actual in (run_integer(Q, x), load(export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE).file)(x)):
        assert float((actual - expected).abs().amax(1).median()) < 1e-5 * float(expected.abs().max())


def test_each_function_that_is_read_can_be_written():
    assert set(ELEMENTWISE) == set(FUNCTIONS)


class SeveralGrids(nn.Module):
    """Codes of a ReLU and a ReLU6 side by side: shuffled, pooled, padded, chunked, and given to layers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.point = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 1)
        self.depth, self.two = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.spread, self.linear, self.mirrored = (
            nn.Linear(8 * 9, 5),
            nn.Linear(4, 5),
            nn.Conv2d(8, 5, 2, padding_mode="reflect"),
        )

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.a(x)), F.relu6(3 * self.b(x))], 1)
        shuffled = F.max_pool2d(both.view(-1, 2, 4, 7, 7).transpose(1, 2).flatten(1, 2), 2)
        again = torch.cat([F.relu(self.point(shuffled)), shuffled[:, :4]], 1)
        deep = F.relu(self.depth(F.pad(shuffled.chunk(2, 1)[1], (1, 0, 0, 1))))
        ends = self.spread(torch.flatten(shuffled, 1)) + self.mirrored(again).mean((2, 3))
        return ends + self.linear(deep.amax((2, 3)) + self.two(both).mean((2, 3)) + again[:, 2:6].mean((2, 3)))


@pytest.mark.parametrize("bits", ["4w4a", "8w8a"])
def test_codes_of_several_grids_stay_codes(bits, tmp_path):
    """A layer is a product for each grid its channels come from, not three on floats; a depthwise one is a single product."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    Q = quantize(SeveralGrids(), bits)
    observe_noise(Q, SHAPE, batches=1, batch=8)
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Q.frozen():
        expected = Q(x)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE)
    file = load(done.file)
    for actual in (run_integer(Q, x), file(x)):
        assert float((actual - expected).abs().amax(1).median()) < 1e-4 * float(expected.abs().max())
    if bits == "4w4a":  # three planes of two image convolutions; a and b; depth; two; mirrored on floats, padded by reflection
        assert file.executed["ConvInteger"] == 3 + 3 + 2 + 1 + 1 + 3
        assert "Q leaves the input of a, b, mirrored, linear float" in "".join(done.notes)
