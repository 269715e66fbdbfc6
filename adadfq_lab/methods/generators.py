"""Generators G: a latent z and a label y to a normalised image.

Two shapes, after the ACGAN that this line of work inherited. On small images the label multiplies the latent; on large ones it
selects the scale and shift of every batch norm. Both end in tanh and a batch norm without parameters, so that a batch has zero
mean and unit variance per channel; pixels are not confined to a valid range.

Nearest-neighbour upsampling followed by a 3x3 convolution multiplies every pixel by the same weight up to four times: it equals
one transposed convolution of the small map with a 4x4 kernel of summed weights, at 4/9 of the arithmetic. `UpsampleConv2d`
computes it so; its parameter is the 3x3 kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _doubling(k: int) -> Tensor:
    """`(k + 1, k)`, rows: taps of the kernel on the small row, columns: of the kernel on the doubled one; the first is the
    second reversed, each tap plus its neighbour, since two outputs share an input."""
    return (torch.eye(k + 1, k) + torch.eye(k + 1, k).roll(1, 0)).flip(0)


class UpsampleConv2d(nn.Conv2d):
    """conv2d(nearest_x2(x)) with an odd kernel k and padding k // 2: `(N, in, H, W)` to `(N, out, 2H, 2W)`."""

    doubling: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        doubling = _doubling(kernel)
        self.register_buffer("doubling", torch.kron(doubling, doubling).T.contiguous(), persistent=False)

    def kernel(self) -> Tensor:
        """The kernel of the transposed convolution, `(in, out, k + 1, k + 1)`."""
        out_channels, in_channels, k, _ = self.weight.shape
        taps = self.weight.reshape(-1, k * k) @ self.doubling
        return taps.view(out_channels, in_channels, k + 1, k + 1).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel(), self.bias, stride=2, padding=self.kernel_size[0] // 2)


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are looked up by label: tables of `classes` rows, 1 and 0 at first."""

    def __init__(self, channels: int, classes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.scale = nn.Embedding(classes, channels)
        self.shift = nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = self.scale(labels)[:, :, None, None], self.shift(labels)[:, :, None, None]
        return torch.addcmul(shift, self.norm(x), scale)


class Generator(nn.Module):
    """What every generator offers: its latent width, and `(z (N, latent), y (N,))` to images `(N, C, H, W)`.

    A network makes images of any class in any round. The other functions are for generators that do not: a bank of images
    that are worked on one batch after another (see `intraq.ImageBank`).
    """

    latent: int

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def plan(self, batch: int, warmup: int) -> None:
        """Told once, before anything else: how many images a round will ask for, and how many rounds the warm-up has."""

    def turn(self, index: int, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What round `index` is to ask for, given what was drawn for it; on the host."""
        return z, y

    def rate(self, index: int) -> float:
        """What the learning rate of G is multiplied by in round `index`."""
        return 1.0

    def notes(self, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What is known about each of the images that `forward` makes of z and y; one row for each."""
        return {}


def quarter(shape: tuple[int, int, int]) -> tuple[int, int]:
    """(H/4, W/4) of images (C, H, W), rounded up: the map that a generator doubles twice."""
    _, height, width = shape
    return -(-height // 4), -(-width // 4)


def cropped(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The middle H x W of `x` `(N, C, ...)`: sides that 4 does not divide are made larger, then cut."""
    _, height, width = shape
    if x.shape[2:] == (height, width):
        return x
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


class LabelGenerator(Generator):
    """G for small images: embedding(y) * z, linear to 128 x H/4 x W/4, doubled twice. 1,052,139 parameters for CIFAR-10.

    eps: of the two inner batch norms. The released code passes 0.8 where a momentum was meant; 1e-5 is the usual value.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], *, latent: int = 100, eps: float = 1e-5) -> None:
        super().__init__()
        self.latent = latent
        self.shape, self.base = shape, quarter(shape)
        self.label: nn.Module = nn.Embedding(classes, latent)
        self.linear = nn.Linear(latent, 128 * self.base[0] * self.base[1])
        self.norm0 = nn.BatchNorm2d(128)
        self.up1, self.norm1 = UpsampleConv2d(128, 128), nn.BatchNorm2d(128, eps=eps)
        self.up2, self.norm2 = UpsampleConv2d(128, 64), nn.BatchNorm2d(64, eps=eps)
        self.image = nn.Conv2d(64, shape[0], 3, padding=1)
        self.standardize = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.linear(self.label(y) * z).view(len(z), 128, *self.base).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.norm1(self.up1(self.norm0(x))), 0.2, inplace=True)
        x = F.leaky_relu(self.norm2(self.up2(x)), 0.2, inplace=True)
        images: Tensor = self.standardize(torch.tanh(self.image(cropped(x, self.shape))))
        return images


class _AnyLabel(nn.Module):
    """The label that multiplies every latent by 1."""

    def forward(self, y: Tensor) -> float:
        return 1.0


class LatentGenerator(LabelGenerator):
    """G without labels; the classes asked for are ignored. 2,329,091 parameters for 32x32 images and a latent of 256."""

    def __init__(self, shape: tuple[int, int, int], *, latent: int = 256) -> None:
        super().__init__(1, shape, latent=latent)
        self.label = _AnyLabel()


class ClassNormGenerator(Generator):
    """G for large images: the label enters through conditional batch norm only. 41,405,315 parameters for ImageNet."""

    def __init__(self, classes: int, shape: tuple[int, int, int], *, latent: int = 100, eps: float = 1e-5) -> None:
        super().__init__()
        self.latent = latent
        self.shape, self.base = shape, quarter(shape)
        self.linear = nn.Linear(latent, 128 * self.base[0] * self.base[1])
        self.norm0 = ConditionalBatchNorm2d(128, classes, 1e-5)
        self.up1, self.norm1 = UpsampleConv2d(128, 128), ConditionalBatchNorm2d(128, classes, eps)
        self.up2, self.norm2 = UpsampleConv2d(128, 64), ConditionalBatchNorm2d(64, classes, eps)
        self.image = nn.Conv2d(64, shape[0], 3, padding=1)
        self.standardize = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.linear(z).view(len(z), 128, *self.base).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.norm1(self.up1(self.norm0(x, y)), y), 0.2, inplace=True)
        x = F.leaky_relu(self.norm2(self.up2(x), y), 0.2, inplace=True)
        images: Tensor = self.standardize(torch.tanh(self.image(cropped(x, self.shape))))
        return images


def conditional_generator(classes: int, shape: tuple[int, int, int], *, eps: float = 1e-5) -> Generator:
    """The generator of GDFQ, AdaSG and AdaDFQ for images of `shape` (C, H, W): by label up to 64 pixels, else by class norm."""
    kind = LabelGenerator if max(shape[1:]) <= 64 else ClassNormGenerator
    return kind(classes, shape, eps=eps)
