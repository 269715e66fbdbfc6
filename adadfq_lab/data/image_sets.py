"""A split of a data set as one uint8 tensor in memory, and the class names that are known.

No loader, no workers, nothing to wait for. An image set of files on disk is `image_folders.ImageFolder`."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

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

    images: uint8, `(N, C, H, W)`
    labels: int64, `(N,)`
    source: where they came from and how many of how many they are, in words fit for a table's caption
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Successive (images, labels) of at most `size` samples, in order."""
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)

    def of_shape(self, shape: tuple[int, int, int]) -> "ImageSet":
        """The images as a network for `shape` (C, H, W) takes them, where that is open still: files on disk have none yet."""
        return self

    def take(self, count: int | None) -> "ImageSet":
        """The first `count` samples (all of them for None)."""
        if count is None or count >= len(self):
            return self
        return ImageSet(
            self.name, self.split, self.images[:count], self.labels[:count], self.classes, f"first {count} of {self.source}"
        )


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of their WordNet ids: the order of every network's outputs."""
    from torchvision import models

    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
