"""Images in folders, one folder a class, decoded when a batch of them is asked for: how ImageNet is measured on.

ImageNet is neither shipped nor downloaded; its terms want everybody to ask for it themselves. Its validation images lie sorted,

    imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG

and are found where the environment variable `ADADFQ_DATA` names the folder that holds `imagenet`, or by a path of their own:
`load_data("imagenet")`, `load_data("/data/imagenet/val")`.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from adadfq_lab.data.image_sets import ImageSet, imagenet_classes
from adadfq_lab.errors import UserError, first_line

MARGIN = {224: 256}
"""By the side of the cut: the shorter side to which a file is brought before its centre is cut out, if that is another."""
SHAPE = (3, 224, 224)
MODES = {1: "L", 3: "RGB"}
SUFFIXES = (".jpeg", ".jpg", ".png")
OFFICIAL = 50_000


@dataclass(frozen=True)
class ImageFolder(ImageSet):
    """Images and labels of one split, the images still on disk.

    images: their shape and type alone, `(N, 3, 224, 224)` uint8 on the device `meta` if nobody asks for another shape; the
            pixels come out of `batches`
    paths:  of the files, `N`, in an order that visits the classes in turn, so that the first few are a sample of them all
    """

    paths: tuple[Path, ...]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Successive (images, labels) of at most `size` samples, in order; the next batch is decoded while one is used.

        Raises UserError for a file that is no image, naming it.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = partial(decode, shape=self.images.shape[1:])
            coming = pool.map(read, self.paths[:size])
            for start in range(0, len(self), size):
                now, coming = coming, pool.map(read, self.paths[start + size : start + 2 * size])
                yield torch.stack(list(now)), self.labels[start : start + size]

    def of_shape(self, shape: tuple[int, int, int]) -> "ImageFolder":
        """The same files, cut to a square `shape` of one or three channels; left as they are for any other."""
        channels, height, width = shape
        if channels not in MODES or height != width:
            return self
        return replace(self, images=torch.empty((len(self), *shape), dtype=torch.uint8, device="meta"))

    def take(self, count: int | None) -> "ImageFolder":
        """The first `count` samples (all of them for None)."""
        if count is None or count >= len(self):
            return self
        source = f"first {count} of {self.source}"
        return replace(self, images=self.images[:count], labels=self.labels[:count], paths=self.paths[:count], source=source)


def decode(path: Path, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """The centre of the image file `path`, uint8 of the square `shape` (C, H, H), in grey (C = 1) or RGB (C = 3).

    For 224 x 224 as the networks' authors evaluate it, the shorter side brought to 256 before. For another size it is brought
    to just that size, so that a file which has it stays as it is. Raises UserError for a file that is no image.
    """
    from torchvision.transforms import functional

    try:
        with Image.open(path) as file:
            image = file.convert(MODES[shape[0]])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({first_line(error)}); mend or remove it") from None
    side = shape[1]
    resized = functional.resize(image, [MARGIN.get(side, side)], functional.InterpolationMode.BILINEAR)
    pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [side, side]))
    return pixels


def load_folder(name: str, split: str = "test", *, stub: bool = False) -> ImageFolder:
    """The validation images of ImageNet for `name` "imagenet", or those of the folder `name`.

    Classes are the folders in alphabetical order; 1,000 folders of WordNet ids get ImageNet's names. Raises UserError where
    there are none, and for what there is not: a shipped part, training images.
    """
    if stub:
        raise UserError(f"no image of {name} is shipped; leave out --stub")
    if split != "test":
        raise UserError(
            f"{name} is there to measure on (split test); train-teacher takes "
            "fashion_mnist, cifar10, cifar100, or NAME for NAME_train.npz and NAME_test.npz in the folder ADADFQ_DATA"
        )
    if name != "imagenet":
        return _read(Path(name), Path(name).name)
    data = os.environ.get("ADADFQ_DATA")
    root = Path(data or "") / "imagenet" / "val"
    if not data or not root.is_dir():
        raise UserError(
            "ImageNet is not on this machine; put its validation images, one folder a class, into a folder imagenet/val "
            "and set ADADFQ_DATA to the folder that holds imagenet"
        )
    return _read(root, name)


def _read(root: Path, name: str) -> ImageFolder:
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [sorted(path for path in folder.iterdir() if _is_image(path)) for folder in folders]
    except OSError as error:
        raise UserError(f"cannot read {root} ({error.strerror}); give a folder with a folder of images a class") from None
    if not folders:
        raise UserError(f"{root} holds no folders; sort its images into one folder a class")
    if empty := [folder.name for folder, found in zip(folders, files, strict=True) if not found]:
        raise UserError(f"{root / empty[0]} holds no images ({', '.join(SUFFIXES)}); fill it or remove it")
    ordered = sorted((i, label, path) for label, found in enumerate(files) for i, path in enumerate(found))
    count, names = len(ordered), tuple(folder.name for folder in folders)
    source = f"{count:,} images of {len(names)} classes in the folder {root.name}"
    is_imagenet = len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names)
    if is_imagenet:
        names = imagenet_classes()
        source = ("all 50,000" if count == OFFICIAL else f"{count:,} of 50,000") + " imagenet validation images"
    return ImageFolder(
        name="imagenet" if is_imagenet else name,
        split="test",
        images=torch.empty((count, *SHAPE), dtype=torch.uint8, device="meta"),
        labels=torch.tensor([label for _, label, _ in ordered]),
        classes=names,
        source=source,
        paths=tuple(path for _, _, path in ordered),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
