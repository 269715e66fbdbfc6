"""Random networks, grouped, dilated, branched, concatenated and pooled in every way: what holds for all of them."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adadfq_lab.integers.export import export_onnx
from adadfq_lab.integers.float_network import float_network
from adadfq_lab.integers.inference import compare_layers
from adadfq_lab.integers.runtimes import load
from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.quantize import quantize

SHAPE, WIDTH = (3, 12, 12), 8
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)
POOLS = (
    lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: F.pad(x, (1, 0, 0, 1)),
    lambda x: x[:, :, ::2],
    lambda x: F.channel_shuffle(x, 2),
    lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
)


class Step(nn.Module):
    """A convolution with or without a batch norm, an activation, and how its result joins its input."""

    def __init__(self, kernel: int, dilation: int, groups: int, norm: bool, activation: type[nn.Module], join: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            WIDTH, WIDTH, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups, bias=not norm
        )
        self.norm = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
        self.activation, self.join = activation(), join

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.conv(x)))
        if self.join == "add":
            return F.relu(x + y)
        if self.join == "concat":
            return torch.cat([y[:, :3], x[:, 3:]], 1)
        if self.join == "halves":
            left, right = y.chunk(2, 1)
            return torch.cat([right, left], 1)
        return y


class Pool(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return POOLS[self.kind](x)


steps = st.builds(
    Step,
    kernel=st.sampled_from([1, 3]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, WIDTH]),
    norm=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    join=st.sampled_from(["", "add", "concat", "halves"]),
)
bodies = st.lists(steps | st.builds(Pool, st.integers(0, len(POOLS) - 1)), min_size=2, max_size=5)


@given(body=bodies, bits=st.sampled_from(["2w3a", "4w4a", "8w8a"]), every_input=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=8)
def test_student_integers_and_file_are_one_network(body, bits, every_input, seed, tmp_path_factory):
    """The float network is the untouched one; codes differ by ties only, in integers and in the file, which has no float
    convolution."""
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 5)]
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), *body, *head)
    with torch.no_grad():
        network.train()(torch.randn(16, *SHAPE))
    network.eval()
    x = torch.randn(4, *SHAPE)
    Q = quantize(network, bits, every_input=every_input)
    with torch.no_grad():
        expected = network(x)
        assert torch.allclose(float_network(Q)(x), expected, atol=1e-4 * float(expected.abs().max()))
    observe_noise(Q, SHAPE, batches=1, batch=8)
    assert all(row.differing == row.ties for row in compare_layers(Q, x))
    done = export_onnx(Q, tmp_path_factory.mktemp("random") / "q.onnx", shape=SHAPE)  # raises if a layer differs by more
    assert load(done.file).float_convs == 0
