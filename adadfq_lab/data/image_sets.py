"""A split of a data set as one uint8 tensor in memory, and the class names that are known.

It needs no loader and no worker processes. For files on disk see `image_folders.ImageFolder`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNLABELLED = -1
"""The label of an image whose class is not known."""

FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(name.replace("_", " ") for name in _CIFAR100.split())
CLASSES = {"fashion_mnist": FASHION_CLASSES, "cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES}


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of one split, in memory.

    images:  uint8, `(N, C, H, W)`
    labels:  int64, `(N,)`; all UNLABELLED if they are not known
    classes: their names; none if the labels are not known
    source:  where they came from and how many of how many they are, for a table's caption
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the classes of the images are known, so that accuracy can be measured on them."""
        return bool(self.classes)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Successive (images, labels) of at most `size` samples, in order."""
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)

    def of_shape(self, shape: tuple[int, int, int]) -> "ImageSet":
        """Returns these images resized to `shape`. Only image folders can change size; a set in memory returns itself."""
        return self

    def take(self, count: int | None) -> "ImageSet":
        """The first `count` samples (all of them for None); of a set in class order, `count` drawn at random, always the same.

        The first thousand of a set in class order would be one class.
        """
        if (picked := chosen(self.labels, count)) is None:
            return self
        which, word = picked
        return replace(self, images=self.images[which], labels=self.labels[which], source=f"{word} {count} of {self.source}")


def chosen(labels: Tensor, count: int | None) -> tuple[Tensor, str] | None:
    """Which `count` samples `take` takes, `(count,)`, and how they were chosen, in a word; None for all of them."""
    if count is None or count >= len(labels):
        return None
    if len(labels) > 1 and labels[0] != labels[-1] and bool((labels.diff() >= 0).all()):
        return torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count], "random"
    return torch.arange(count), "first"


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of their WordNet ids: the order of every network's outputs."""
    from torchvision import models  # slow to import

    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
