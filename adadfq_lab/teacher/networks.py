"""The networks of the paper's CIFAR rows, small enough to read.

`resnet20` is the ResNet of He et al. (2016, section 4.2) with *projection* shortcuts (1x1 convolution + batch norm where the
shape changes), as the paper's model zoo has it: 272,474 parameters for 10 classes on RGB, 21 convolutions, 19 ReLUs.
ImageNet networks come from torchvision; see `adadfq_lab.teacher.teacher`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.machine.torch_state import untouched_torch


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut(x)); `(N, in, H, W)` to `(N, out, H/stride, W/stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
        return y


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


class ResNetCifar(nn.Module):
    """Three stages of `blocks` basic blocks, widths 16/32/64, on small images: `(N, C, H, W)` to logits `(N, classes)`."""

    def __init__(self, blocks: int, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, blocks, stride=1)
        self.stage2 = _stage(16, 32, blocks, stride=2)
        self.stage3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def resnet20(classes: int = 10, channels: int = 3) -> ResNetCifar:
    """The paper's CIFAR network."""
    return ResNetCifar(3, classes, channels)


def resnet8(classes: int = 10, channels: int = 3) -> ResNetCifar:
    """One block a stage: the same shape at a third of the cost, for tests and first experiments."""
    return ResNetCifar(1, classes, channels)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet20": resnet20, "resnet8": resnet8}


@untouched_torch()
def build_network(name: str, classes: int, channels: int = 3) -> nn.Module:
    """An untrained network: one of NETWORKS, `resnet50_v1`, `mobilenet_v2_full`, or a classification network of torchvision.

    Raises UserError for any other name, and where a network for RGB images is asked for another number of channels.
    """
    if name in NETWORKS:
        return NETWORKS[name](classes=classes, channels=channels)
    from torchvision import models  # slow to import

    make = {"resnet50_v1": _resnet50_v1, "mobilenet_v2_full": _mobilenet_v2_full}.get(name)
    if make is None and name not in models.list_models(models):
        raise UserError(
            f"network {name!r} is neither one of {', '.join(NETWORKS)}, resnet50_v1, mobilenet_v2_full nor one of torchvision's"
        )
    if channels != 3:
        raise UserError(f"network {name} takes images of 3 channels, not {channels}")
    network: nn.Module = make(classes) if make else models.get_model(name, num_classes=classes)
    return network


def _resnet50_v1(classes: int) -> nn.Module:
    from torchvision import models  # slow to import

    resnet = models.resnet50(num_classes=classes)
    for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    network: nn.Module = resnet
    return network


def _mobilenet_v2_full(classes: int) -> nn.Module:
    from torchvision import models, ops  # slow to import

    mobilenet = models.mobilenet_v2(num_classes=classes)
    expand = ops.Conv2dNormActivation(32, 32, kernel_size=1, activation_layer=nn.ReLU6)
    mobilenet.features[1].conv = nn.Sequential(expand, *mobilenet.features[1].conv)
    # A 1x1 convolution of the pooled map, as pytorchcv writes it, is a linear layer.
    mobilenet.classifier = nn.Linear(1280, classes, bias=False)
    network: nn.Module = mobilenet
    return network
