"""Little networks that write the same things in all the ways people do, and a network of somebody else's.

All of ODD take images `(N, 4, 8, 8)` to logits `(N, 5)`. Each says in its docstring what is odd about it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, SIDE, CLASSES = 4, 8, 5


def conv(stride: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, stride, **({"padding": 1} | options))  # type: ignore[arg-type]


class Odd(nn.Module):
    """`features`, then an average over pixels and a linear layer."""

    relus = 1  # how many sites of ReLU or ReLU6
    layers = 2  # how many convolutions and linear layers

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.linear = nn.Linear(CHANNELS, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class EverySpelling(Odd):
    """A ReLU is a function, a method or a module, in place or not, by position or by keyword."""

    relus = 9

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)) - 0.1
        x = F.relu(x, inplace=True) - 0.1
        x = F.relu(input=x) - 0.1
        x = torch.relu(x) - 0.1
        x = torch.relu_(x) - 0.1
        x = x.relu() - 0.1
        x = x.relu_() - 0.1
        x = self.relu(x) - 0.1
        return self.relu_in_place(x)


class EverySpellingOfSix(Odd):
    """A ReLU6 is a module, a function, or a hardtanh from 0 to 6."""

    relus = 4

    def __init__(self) -> None:
        super().__init__()
        self.six, self.hardtanh = nn.ReLU6(), nn.Hardtanh(0.0, 6.0)

    def features(self, x: Tensor) -> Tensor:
        x = 9 * self.six(3 * self.conv(x)) - 10
        x = 9 * F.relu6(x) - 10
        x = 9 * self.hardtanh(x) - 10
        return F.hardtanh(x, 0.0, 6.0)


class FunctionInPlace(Odd):
    """The input of an in-place F.relu is used again, and so is not what it was."""

    def features(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        after = F.relu(before, inplace=True)
        return after - 2 * before


class PositionalInPlace(Odd):
    """As before, with `inplace` given by position."""

    def features(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        after = F.relu(before, True)
        return after - 2 * before


class MethodInPlace(Odd):
    """`x.relu_()` as a statement: its result has no name but x."""

    def features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.relu_()
        return x


class ModuleInPlace(Odd):
    """The input of nn.ReLU(inplace=True) is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def features(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        after = self.relu(before)
        return after - 2 * before


class IdentityInPlace(Odd):
    """A shortcut through nn.Identity is the very tensor that the ReLU then overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        shortcut = self.shortcut(x)
        return 3 * self.relu(x) - shortcut


class ArithmeticInPlace(Odd):
    """In-place arithmetic on a tensor of two names, most of it as statements whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        identity = self.conv(x)
        second_name = out = self.norm(identity)
        out.add_(identity)
        out.mul_(2)
        second_name.sub_(0.25)
        torch.neg_(out)
        second_name.clamp_(max=2.0)
        return F.relu(out) + second_name


class ResidualAdd(Odd):
    """The residual block of torchvision: `out += identity`, then one ReLU module at two sites."""

    relus, layers = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second, self.second_norm = nn.BatchNorm2d(CHANNELS), conv(bias=False), nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=True)

    def features(self, x: Tensor) -> Tensor:
        identity = out = self.relu(self.norm(self.conv(x)))
        out = self.second_norm(self.second(out))
        out += identity
        return self.relu(out)


class SharedRelu(Odd):
    """One ReLU module at three sites of different ranges."""

    relus = 3

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.relu(10 * self.conv(self.relu(x)))))


class SharedConv(Odd):
    """One convolution at two sites, each followed by a batch norm of its own: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv(F.relu(self.norm1(self.conv(x)))))


class SharedNorm(Odd):
    """One batch norm after two convolutions."""

    layers = 3

    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm = conv(), nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.second(F.relu(self.norm(self.conv(x)))))


class ConvUsedTwice(Odd):
    """A convolution's output goes to a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        u = self.conv(x)
        return F.relu(self.norm(u)) + u


class NormBeforeConv(Odd):
    """Pre-activation: batch norm and ReLU come before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class NoNorm(Odd):
    """A convolution with a bias and no batch norm."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class NormWithoutAffine(Odd):
    """Batch norm without gamma and beta after a convolution with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS, affine=False)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class NormWithoutMemory(Odd):
    """Batch norm that keeps no running statistics: it depends on the batch and cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS, track_running_stats=False)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Grouped(Odd):
    """A depthwise and a grouped convolution."""

    layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.grouped = conv(groups=CHANNELS, bias=False), conv(groups=2)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def features(self, x: Tensor) -> Tensor:
        return self.grouped(F.relu(self.norm(self.depthwise(self.conv(x)))))


class Padded(Odd):
    """Paddings other than zeros, paddings by name, strides and dilations."""

    layers = 7

    def __init__(self) -> None:
        super().__init__()
        self.paddings = nn.Sequential(
            conv(padding_mode="reflect"),
            conv(padding=(2, 1), padding_mode="circular", dilation=(2, 1)),
            conv(padding_mode="replicate", stride=2),
            conv(padding="same", padding_mode="reflect"),
            conv(padding="same"),
            nn.Conv2d(CHANNELS, CHANNELS, (1, 2), padding="valid"),
        )
        del self.conv

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.paddings(x))


class OptionalArguments(Odd):
    """`forward` takes more than the images; what is not given has its default."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    def forward(self, x: Tensor, early: bool = False, *, gain: float = 2.0) -> Tensor:
        x = self.features(x)
        if early:
            return x
        return gain * self.linear(x.mean((2, 3)))


class KeywordCalls(Odd):
    """Layers called by keyword."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(input=self.conv(input=x), inplace=False)


class HasANetwork(Odd):
    """Has an attribute called `network`, which is only a part of it, and one called `activations`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = self.conv
        self.activations = nn.ModuleList([nn.ReLU()])

    def features(self, x: Tensor) -> Tensor:
        return self.activations[0](self.network(x))


class StoredTensors(Odd):
    """Normalises its images itself and scales channels, by buffers and parameters; all of them have names of tensor methods."""

    layers = 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.register_buffer("relu_", torch.tensor(0.5))
        self.flatten = nn.Parameter(torch.rand(1, CHANNELS, 1, 1))
        self.view = conv()

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv((x - self.mean.view(1, -1, 1, 1)) / self.relu_))
        return self.view(x) * self.flatten + self.mean[:, None, None]


class OtherActivations(Odd):
    """Activations that are no ReLU, some in place; what they overwrite was the output of a layer."""

    layers = 6

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            *(conv(), nn.SiLU(inplace=True)),
            *(conv(), nn.LeakyReLU(0.2, inplace=True)),
            *(conv(), nn.PReLU(CHANNELS)),
            *(conv(), nn.Hardswish(inplace=True)),
        )

    def features(self, x: Tensor) -> Tensor:
        return F.softmax(self.conv(F.relu(F.gelu(F.leaky_relu(self.steps(x))))), dim=1)


class OtherPools(Odd):
    """Adaptive pools whose windows overlap, tile, or repeat pixels, and borders of pixels next to them."""

    layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.border = nn.Sequential(nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d(1))
        self.uneven, self.third = conv(), conv()

    def features(self, x: Tensor) -> Tensor:
        x = self.uneven(F.adaptive_max_pool2d(self.border(F.relu(self.conv(x))), (1, 13)))
        return self.third(F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (3, 5)), (7, 4)))


ODD: tuple[type[Odd], ...] = tuple(Odd.__subclasses__())


class Branch(nn.Module):
    """Decides by the values of its input: no trace of it is true for all inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Untraceable(Odd):
    """Hides a data-dependent branch two modules deep."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Identity(), Branch()))

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


class LeftFloat(Odd):
    """Multiplies by weights in ways that are no Conv2d and no Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed, self.group_norm = nn.ConvTranspose2d(CHANNELS, CHANNELS, 1), nn.GroupNorm(1, CHANNELS)
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.own = nn.Parameter(torch.eye(CHANNELS))

    def features(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.transposed(F.relu(self.conv(x))))
        x = F.conv2d(x, self.own[:, :, None, None])
        tokens = x.flatten(2).transpose(1, 2) @ self.own
        tokens = tokens @ (tokens.transpose(1, 2) @ tokens) / SIDE**2
        tokens = self.attention(tokens, tokens, tokens)[0]
        return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def randomize(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Gives every parameter and every batch norm's memory random values, so that nothing is the identity by accident."""
    with torch.no_grad():
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1:
                    fan_in = parameter[0].numel()
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
                else:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
    return network.eval()


class ThirdPartyBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut(x)); the shortcut drops pixels and pads channels, without parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (out_channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        out += x
        return F.relu(out)


class ThirdPartyResNet20(nn.Module):
    """ResNet-20 as others write it: functional ReLUs, shortcuts padded with zero channels; `(N, 3, 32, 32)` to `(N, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        first = ThirdPartyBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(ThirdPartyBlock(out_channels, out_channels, 1) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.size()[3]).flatten(1))
