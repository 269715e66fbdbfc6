"""Networks as other people write them; all take images `(N, 3, 8, 8)` to logits `(N, 5)`. Each docstring says what is odd.

RIGHT lists those that must come out as what they are, with how many convolutions and linear layers they have.
"""

import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from helpers.networks import randomize
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

SHAPE, CLASSES = (3, 8, 8), 5


class Plain(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm, ReLU, mean, linear layer: what the others vary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.relu = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, CLASSES)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.first(x)))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.second(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class NormWithActivation(nn.BatchNorm2d):
    """A batch norm with an activation inside, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        )


class ActivatedNorms(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = NormWithActivation(8), NormWithActivation(8)

    def stem(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))

    def body(self, x: Tensor) -> Tensor:
        return self.norm2(self.second(x))


class FunctionalNorm(Plain):
    """F.batch_norm on buffers of its own, without gamma."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.randn(8))
        self.register_buffer("v", torch.rand(8) + 0.5)
        self.beta = nn.Parameter(torch.randn(8))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(self.second(x), self.m, self.v, None, self.beta, eps=1e-3))


class NormTwice(Plain):
    """One batch norm after two convolutions."""

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.second(x)))


class ReadsNorm(Plain):
    """Scales by the weight of a batch norm that is folded into a convolution."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(x) * self.norm2.weight[:, None, None]


class NormElsewhere(Plain):
    """Batch norms of the image, after a pool, and of the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.pooled, self.vector = nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pooled(F.avg_pool2d(self.stem(self.image(x)), 2)))
        return self.head(self.vector(self.body(x).mean((2, 3))))


class Reset(nn.Conv2d):
    """A subclass with its base's forward."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Same(nn.Conv2d):
    """Pads as TensorFlow does: it counts pixels in Python."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.size()[-2:]
        k, s = self.kernel_size[0], self.stride[0]
        down, right = (max((math.ceil(n / s) - 1) * s + k - n, 0) for n in (h, w))
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    """Its weight is standardised in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=self.padding)


class Subclasses(Plain):
    def __init__(self, first: type[nn.Conv2d] = Reset, second: type[nn.Conv2d] = Reset) -> None:
        super().__init__()
        self.first, self.second = first(3, 8, 3, padding=1), second(8, 8, 3, padding=1)


class Stored(Plain):
    """Convolves and multiplies by parameters without a layer, by three spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.randn(8, CLASSES))
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(self.stem(x), self.kernel, stride=2))
        x = F.relu(F.linear(x.flatten(2).transpose(1, 2), self.mix))
        return x.mean(1) @ self.matrix


class ChannelsLast(Plain):
    """A 1 x 1 convolution written as a linear layer on permuted maps."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class WriteBehindDropout(Plain):
    """relu(inplace=True) of a Dropout's output, which in eval mode is its input."""

    def body(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(x))
        return F.relu(self.second(self.relu(self.drop(y))) + y)


class WriteToHalf(Plain):
    """One half is overwritten, only the other is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(self.first(x[:, :3]), 2, dim=1)
        return torch.cat([F.relu(self.norm2(self.second(self.relu(a)))), b], 1)


class WriteToPart(Plain):
    """A slice is overwritten, and the whole is read again: the whole has changed."""

    def body(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(x))
        return F.relu(torch.cat([self.relu(y[:, :4]), y[:, 4:]], 1) + y)


class Gate(Plain):
    """Half of CBAM: the largest over channels, of a function that also gives where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(1, 1, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        largest, _ = torch.max(x, dim=1, keepdim=True)
        return x * torch.sigmoid(self.second(largest))


class View(Plain):
    """x.view, which cannot read channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.body(self.stem(x)), 2).view(-1, 128))


class Counts(Plain):
    """Asks for sizes in Python, in an if and a loop."""

    def body(self, x: Tensor) -> Tensor:
        batch, channels, height, _ = x.shape
        if height > 4:
            x = F.avg_pool2d(x, height // 4)
        for _ in range(math.ceil(x.shape[-1] / 4)):
            x = super().body(x)
        return x.reshape(batch, channels, -1).unflatten(2, (x.shape[2], -1))


def named(name: str, value: Any = None) -> nn.Module:
    """A network with a submodule or parameter of this name."""

    class Named(Plain):
        def body(self, x: Tensor) -> Tensor:
            own = getattr(self, name)
            return F.relu(own(x) if isinstance(own, nn.Module) else x * own)

    network = Named()
    setattr(network, name, nn.Conv2d(8, 8, 3) if value is None else value)
    return network


def changed(change: Callable[[Plain], Any]) -> Callable[[], nn.Module]:
    """`Plain` after `change`."""

    def build() -> nn.Module:
        network = Plain()
        given = change(network)
        return given if isinstance(given, nn.Module) else network

    return build


def _hooked(place: str, hook: str, function: Any) -> Callable[[], nn.Module]:
    return changed(lambda n: getattr(n.get_submodule(place), f"register_forward_{hook}")(function) and None)


def _double_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (inputs[0] * 2 - 1,)


def _double_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * 2 - 1


def _short(self: Plain, x: Tensor) -> Tensor:
    return self.head(self.stem(x).mean((2, 3)))


RIGHT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (Plain, 3),
    "activation in the norm": (ActivatedNorms, 3),
    "F.batch_norm": (FunctionalNorm, 3),
    "one norm twice": (NormTwice, 3),
    "reads a norm's weight": (ReadsNorm, 3),
    "norms elsewhere": (NormElsewhere, 3),
    "subclass": (Subclasses, 3),
    "TensorFlow's padding": (lambda: Subclasses(Same, Same), 3),
    "weight standardization": (lambda: Subclasses(Standardized, Standardized), 3),
    "stored weights": (Stored, 4),
    "linear on maps": (ChannelsLast, 3),
    "write behind a dropout": (WriteBehindDropout, 3),
    "write to a half": (WriteToHalf, 3),
    "tuple of torch.max": (Gate, 3),
    "view": (View, 3),
    "counts": (Counts, 3),
    "code": (lambda: named("code"), 3),
    "graph": (lambda: named("graph"), 3),
    "activations": (lambda: named("activations", nn.Parameter(torch.rand(1, 8, 1, 1))), 2),
    "prune": (changed(lambda n: prune.l1_unstructured(n.second, "weight", 0.5) and None), 3),
    "prune twice": (changed(lambda n: [prune.random_unstructured(n.second, "weight", 0.3) for _ in range(2)]), 3),
    "weight_norm": (changed(lambda n: parametrizations.weight_norm(n.second) and None), 3),
    "spectral_norm": (changed(lambda n: parametrizations.spectral_norm(n.second) and None), 3),
    "spectral_norm by hook": (changed(lambda n: spectral_norm(n.second) and None), 3),
    "hook on the network": (_hooked("", "pre_hook", _double_input), 3),
    "hook on a convolution": (_hooked("second", "hook", _double_output), 3),
    "hook on a norm": (_hooked("norm", "pre_hook", _double_input), 3),
    "SyncBatchNorm": (changed(nn.SyncBatchNorm.convert_sync_batchnorm), 3),
    "DataParallel": (changed(nn.DataParallel), 3),
    "forward of the instance": (changed(lambda n: setattr(n, "forward", MethodType(_short, n))), 2),
}


def settled(name: str, seed: int = 0) -> nn.Module:
    """The network of that name in float64 and eval mode, with random weights; a trained weight moves after it was pruned."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RIGHT[name][0]()
    return randomize(network, torch.Generator().manual_seed(seed)).double()


def old_weight_norm() -> nn.Module:
    """By hooks; torch announces its end."""
    network = Plain()
    weight_norm(network.second)
    return network
