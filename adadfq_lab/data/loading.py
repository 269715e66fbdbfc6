"""Images, with labels or without, as one uint8 tensor in memory.

Data-free quantization needs images for one purpose only: to *measure* the student. Training images appear in exactly one
place, `adadfq train-teacher`. A data set is looked for, in this order, in

1. the folder named by the environment variable `ADADFQ_DATA` (`<name>_<split>.npz` with `x` uint8 (N, C, H, W) and `y`),
2. `data_stubs/`, shipped with the package (2,000 Fashion-MNIST test images),
3. the system's own copy (Debian's package `dataset-fashion-mnist`),
4. torchvision's download, kept in `~/.cache/adadfq_lab`.

A data set of your own is a file `photos.npz`, by its path, or two files in the folder of 1. under a name of your own; the names
of its classes may stand in a third array, `classes`. Without `y` its images are unlabelled. A folder of images is a data set
too, and stays on disk, as ImageNet does: see `adadfq_lab.data.image_folders`.
"""

import gzip
import math
import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adadfq_lab.data.class_names import in_order_of
from adadfq_lab.data.image_folders import load_folder
from adadfq_lab.data.image_sets import CLASSES, UNLABELLED, ImageSet
from adadfq_lab.data.locations import cache_folder, stub_path
from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.reading import check_regular

DATASETS = (*CLASSES, "imagenet")
MOST_CLASSES = 100_000
"""Limit for a data set without class names; a larger label is taken for a mistake."""
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def load_data(name: str, split: str = "test", *, stub: bool = False) -> ImageSet:
    """Loads a split of `fashion_mnist`, `cifar10`, `cifar100` or a data set of your own (above), or the test images of
    `imagenet`, of a folder such as `photos/val`, which has one folder of images a class, or of a file `photos.npz`;
    `stub=True` insists on the shipped images.

    Raises UserError if the data set is unknown, or has to be downloaded and cannot be.
    """
    if name == "imagenet" or _is_path(name):
        if name.endswith(".npz") and Path(name).is_file() and not stub:
            return _from_npz(Path(name).stem, split, Path(name), own=True)
        return load_folder(name, split, stub=stub)
    if split not in ("train", "test"):
        raise UserError(f"no split is called {split!r}; choose train or test")
    folder = os.environ.get("ADADFQ_DATA")
    if not stub and folder and (path := Path(folder) / f"{name}_{split}.npz").exists():
        return _from_npz(name, split, path)
    if name not in CLASSES:
        known, files = ", ".join(DATASETS) + ", give a path to a folder of images", f"{name}_test.npz"
        if split == "train":
            known, files = ", ".join(CLASSES), f"{name}_train.npz and {name}_test.npz"
        raise UserError(
            f"no data set is called {name!r}; choose from {known}, or put {files} (x uint8 (N, C, H, W), y) in a folder and "
            "set ADADFQ_DATA to it"
        )
    if not stub and name == "fashion_mnist" and DEBIAN_FASHION.is_dir():
        return _from_idx(name, split, DEBIAN_FASHION)
    if not stub and (cached := _from_torchvision(name, split, download=False)) is not None:
        return cached
    if split == "test" and (path := stub_path(f"{name}_{split}.npz")).exists():
        return _from_npz(name, split, path)
    if stub:
        raise UserError(f"no {split} images of {name} are shipped; leave out --stub")
    if (downloaded := _from_torchvision(name, split, download=True)) is None:
        raise UserError(
            f"{name} ({split}) is not on this machine and could not be downloaded; "
            f"put {name}_{split}.npz (x uint8 (N, C, H, W), y) in a folder and set ADADFQ_DATA to it"
        )
    return downloaded


def _is_path(name: str) -> bool:
    """Whether `name` is a path, and not the name of a data set; known names are never paths."""
    if os.sep in name or (os.altsep and os.altsep in name):
        return True
    data = os.environ.get("ADADFQ_DATA")
    in_data = data and any((Path(data) / f"{name}_{split}.npz").exists() for split in ("train", "test"))
    return name not in CLASSES and not in_data and name != "" and (Path(name).is_dir() or name.endswith(".npz"))


def _image_set(name: str, split: str, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    count = f"{len(labels):,}"
    if name in CLASSES:
        official = {"train": 60_000 if name == "fashion_mnist" else 50_000, "test": 10_000}[split]
        count = f"all {count}" if len(labels) == official else f"{count} of {official:,}"
    return ImageSet(
        name,
        split,
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(labels.astype(np.int64)),
        classes,
        f"{count} {name} {split} images",
    )


def _from_npz(name: str, split: str, path: Path, *, own: bool = False) -> ImageSet:
    """The data set in a file; `own`: named by its path, so its name is not that of a known data set."""
    check_regular(path)
    try:
        _check_headers(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, labels = file["x"], file.get("y")
            classes = tuple(map(str, file["classes"])) if "classes" in file else ()
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise UserError(f"{path} is damaged or not a data file with arrays x and y ({first_line(error)})") from None
    if images.ndim == 4 and images.dtype == np.uint8 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise UserError(
            f"{path} has x of shape {images.shape}, channels last; save x.transpose(0, 3, 1, 2), which is (N, C, H, W)"
        )
    if images.ndim != 4 or images.dtype != np.uint8:
        whole = (
            ""
            if images.dtype == np.uint8
            else "; save pixels in [0, 1] as (255 * x).round().astype('uint8'), others scaled alike"
        )
        raise UserError(f"{path} must hold x uint8 (N, C, H, W), not {images.dtype} {images.shape}{whole}")
    official = CLASSES.get(name, ()) if not own else ()
    if labels is None:
        if split == "train" or official:
            raise UserError(f"{path} must hold x uint8 (N, C, H, W) and y (N,); it has no y")
        if not len(images):
            raise UserError(f"{path} must hold one image or more")
        source = f"{len(images):,} unlabelled images in {path.name} (it holds no y)"
        unknown = torch.full((len(images),), UNLABELLED)
        return ImageSet(name, split, torch.from_numpy(np.ascontiguousarray(images)), unknown, (), source)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path} must hold x uint8 (N, C, H, W) and y (N,), whole numbers, "
            f"not x {images.dtype} {images.shape} and y {labels.dtype} {labels.shape}"
            + ("; save one-hot labels as y.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else "")
            + ("; save names as classes, y = numpy.unique(y, return_inverse=True)" if labels.dtype.kind in "US" else "")
        )
    classes = classes or official or tuple(f"class {i}" for i in range(min(int(labels.max(initial=0)) + 1, MOST_CLASSES)))
    if not len(labels) or not (labels.min() >= 0 and labels.max() < len(classes)):
        raise UserError(f"{path} must hold one image or more, with labels y from 0 to {len(classes) - 1}")
    found = _image_set(name, split, images, labels, classes)
    if own:
        return replace(found, source=f"{len(found):,} images of {len(classes)} classes in {path.name}")
    return in_order_of(found, official, f"the data set {name}") if official else found


def _check_headers(path: Path) -> None:
    """Raises ValueError if an array's header claims more than its file holds, before memory is allocated."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
                claimed = math.prod(shape) * kind.itemsize + file.tell()
            if claimed != entry.file_size and not kind.hasobject:
                raise ValueError(f"the array {entry.filename} claims {claimed:,} bytes and has {entry.file_size:,}")


def _from_idx(name: str, split: str, folder: Path) -> ImageSet:
    prefix = "train" if split == "train" else "t10k"
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return _image_set(name, split, images.copy(), labels, CLASSES[name])


def _from_torchvision(name: str, split: str, *, download: bool) -> ImageSet | None:
    from torchvision import datasets  # slow to import

    kind = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        dataset = kind(str(cache_folder()), train=split == "train", download=download)
    except (OSError, RuntimeError):  # not there, or no network: the caller says what to do
        return None
    images = np.asarray(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return _image_set(name, split, images, np.asarray(dataset.targets), CLASSES[name])
