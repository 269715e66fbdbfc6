"""Images in folders, decoded batch by batch: ImageNet's, or the user's own photographs.

    photos/val/cat/0001.jpg                      one folder a class, at any depth below it: labelled
    photos/camera/0001.jpg                       no folders: unlabelled, to measure agreement of two networks

ImageNet is neither shipped nor downloaded; its licence requires each user to request access. Its validation images, sorted
into `imagenet/val/n01440764` and so on, are found if the environment variable `ADADFQ_DATA` names the folder that holds
`imagenet`, or by a path of their own: `load_data("imagenet")`, `load_data("photos/val")`.

Files are read as torchvision's evaluation reads them: the first frame, transparency dropped, and the orientation that a camera
noted in EXIF not applied. A 16-bit grey file is scaled to 8 bits.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adadfq_lab.data.image_sets import UNLABELLED, ImageSet, chosen, imagenet_classes
from adadfq_lab.errors import UserError, first_line

RESIZED = {224: 256}
"""Crop size -> size to which the shorter side is resized before the centre crop, if that is another."""
SHAPE = (3, 224, 224)
MODES = {1: "L", 3: "RGB"}
OFFICIAL = 50_000
_NOT_PHOTOGRAPHS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow lists but cannot read by itself, or that do not hold pixels."""
_LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ImageFolder(ImageSet):
    """Images of one split, on disk, and their labels if they lie in class folders.

    images: only their shape and type, `(N, 3, 224, 224)` uint8 on the device `meta` unless another shape is asked for; the
            pixels come out of `batches`
    paths:  of the files, `N`, in an order that visits the classes in turn, so that the first few are a sample of them all
    """

    paths: tuple[Path, ...]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Successive (images, labels) of at most `size` samples, in order; the next batch is decoded while one is used.

        Raises UserError for a file that is not an image, naming it.
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
        """The first `count` samples (all of them for None); if the classes do not take turns, `count` drawn at random."""
        if (picked := chosen(self.labels, count)) is None:
            return self
        which, word = picked
        paths = tuple(self.paths[i] for i in which.tolist())
        source = f"{word} {count} of {self.source}"
        return replace(self, images=self.images[: len(which)], labels=self.labels[which], paths=paths, source=source)


def decode(path: Path, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """The centre of the image file `path`, uint8 of the square `shape` (C, H, H), in grey (C = 1) or RGB (C = 3).

    For 224 x 224 as the networks' authors evaluate it: the shorter side is resized to 256 before. For another size it is
    resized to just that size, so that a file which has it stays as it is. Raises UserError for a file that is not an image, or
    one with 32-bit numbers, whose value for white is not known.
    """
    from torchvision.transforms import functional  # slow to import, and only files need it

    try:
        with Image.open(path) as file:
            image = _eight_bits(file, path).convert(MODES[shape[0]])
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({first_line(error)}); mend or remove it") from None
    side = shape[1]
    resized = functional.resize(image, [RESIZED.get(side, side)], functional.InterpolationMode.BILINEAR)
    pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [side, side]))
    return pixels


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """`image` with 8 bits a channel. Pillow's own conversion would cut 16-bit grey at 255 and show it white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.float64) / 65535
        return Image.fromarray((255 * wide).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path} has pixels of 32 bits (mode {image.mode}), whose white is not known; save it with 16 or 8")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


@cache
def suffixes() -> frozenset[str]:
    """Endings of the files that Pillow reads as images, in lower case."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NOT_PHOTOGRAPHS)


SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "eval")


def load_folder(name: str, split: str = "test", *, stub: bool = False) -> ImageFolder:
    """The validation images of ImageNet for `name` "imagenet", or those of the folder `name`.

    Classes are the folders in alphabetical order, or in that of their numbers if they are called 0, 1, 2 and so on; 1,000
    folders of WordNet ids get ImageNet's names. A folder of images without class folders is unlabelled. Raises UserError if
    there are no images, and for `stub` and training images, which do not exist.
    """
    if stub:
        raise UserError(f"no image of {name} is shipped; leave out --stub")
    if split != "test":
        raise UserError(
            f"{name} is there to measure on (split test); train-teacher takes "
            "fashion_mnist, cifar10, cifar100, or NAME for NAME_train.npz and NAME_test.npz in the folder ADADFQ_DATA"
        )
    if name != "imagenet":
        return _read(Path(name), official=False)
    data = os.environ.get("ADADFQ_DATA")
    root = Path(data or "") / "imagenet" / "val"
    if not data or not root.is_dir():
        raise UserError(
            "ImageNet is not on this machine; put its validation images, one folder a class, into a folder imagenet/val "
            "and set ADADFQ_DATA to the folder that holds imagenet"
        )
    return _read(root, official=True)


def _read(root: Path, *, official: bool) -> ImageFolder:
    name = root.resolve().name
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not _ignored(path))
        loose = sorted(path for path in root.iterdir() if path.is_file() and not _ignored(path))
        files = [_files(folder) for folder in folders]
    except OSError as error:
        raise UserError(f"cannot read {root} ({error.strerror}); give a folder with a folder of images a class") from None
    if len(folders) == 1 and any(path.is_dir() and not _ignored(path) for path in folders[0].iterdir()):
        raise UserError(f"{root} holds one folder only, which holds folders; give {folders[0]}")
    if len(folders) > 1 and all(folder.name.lower() in SPLITS for folder in folders):
        raise UserError(f"{root} holds {', '.join(folder.name for folder in folders)}, which are no classes; give one of them")
    images = [[path for path in found if path.suffix.lower() in suffixes()] for found in files]
    flat = [path for path in loose if path.suffix.lower() in suffixes()]
    if folders and any(images):
        skipped = [path for found in files for path in found if path.suffix.lower() not in suffixes()]
        return _labelled(root, name, official, [folder.name for folder in folders], images, _notes(skipped, len(loose)))
    if not flat:
        there = f"{sum(map(len, files)) + len(loose)} files, of which none is an image that Pillow reads"
        raise UserError(f"{root} holds no images ({there}); give a folder with a folder of images a class")
    notes = _notes([path for path in loose if path not in flat], 0)
    return ImageFolder(
        name=name,
        split="test",
        images=torch.empty((len(flat), *SHAPE), dtype=torch.uint8, device="meta"),
        labels=torch.full((len(flat),), UNLABELLED),
        classes=(),
        source=f"{len(flat):,} unlabelled images in the folder {name}{notes}",
        paths=tuple(flat),
    )


def _labelled(root: Path, name: str, official: bool, names: list[str], images: list[list[Path]], notes: str) -> ImageFolder:
    if set(names) == {str(i) for i in range(len(names))}:  # 10 comes after 9, not after 1
        order = sorted(range(len(names)), key=lambda i: int(names[i]))
        names, images = [names[i] for i in order], [images[i] for i in order]
    ordered = sorted((i, label, path) for label, found in enumerate(images) for i, path in enumerate(found))
    count, classes = len(ordered), tuple(names)
    source = f"{count:,} images of {len(names)} classes in the folder {name}"
    is_imagenet = len(names) == 1000 and all(re.fullmatch(r"n\d{8}", one) for one in names)
    if is_imagenet:
        classes = imagenet_classes()
        source = f"{count:,} images of ImageNet's 1,000 classes in the folder {name}"
        if official:
            source = ("all 50,000" if count == OFFICIAL else f"{count:,} of 50,000") + " imagenet validation images"
    if empty := [one for one, found in zip(names, images, strict=True) if not found]:
        notes += f", {', '.join(empty[:3])}{' and others' * (len(empty) > 3)} empty"
    return ImageFolder(
        name="imagenet" if official else name,
        split="test",
        images=torch.empty((count, *SHAPE), dtype=torch.uint8, device="meta"),
        labels=torch.tensor([label for _, label, _ in ordered]),
        classes=classes,
        source=source + notes,
        paths=tuple(path for _, _, path in ordered),
    )


def _notes(skipped: list[Path], loose: int) -> str:
    """What of a folder was left out, and why; empty if nothing was."""
    said = ""
    if skipped:
        kinds = Counter(path.suffix.lower() or "no ending" for path in skipped)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        said += f", {len(skipped):,} skipped that Pillow does not read ({shown})"
    if loose:
        said += f", {loose:,} skipped outside of the class folders"
    return said


def _ignored(path: Path) -> bool:
    """Whether `path` is hidden or left behind by an operating system."""
    return path.name.startswith(".") or path.name in _LEFT_BY_SYSTEMS


def _files(folder: Path) -> list[Path]:
    """The files under `folder`, at any depth."""
    found: list[Path] = []
    for path in folder.iterdir():
        if not _ignored(path):
            found += _files(path) if path.is_dir() else [path]
    return sorted(found)
