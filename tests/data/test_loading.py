"""Data sets: where they are looked for, what is shipped, and what a wrong file is told."""

import hashlib
import io
import pickle
import re
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import CLASSES, ImageSet
from adadfq_lab.data.loading import DEBIAN_FASHION, load_data
from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError

STUBS = Path(__file__).parents[2] / "data_stubs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty ADADFQ_DATA, and no cache of torchvision's."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Every connection fails as it does without a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def made_up(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n images of 3x4x4 whose pixels all are the image's number, and labels modulo 10."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 4, 4)).copy(), np.arange(n) % 10


# What is shipped


def test_shipped_images_are_fashion_mnist():
    """2,000 images, uint8, (1, 28, 28), some 200 of each class; the first is an ankle boot; no training images."""
    data = load_data("fashion_mnist", stub=True)
    assert (data.name, data.split, len(data), tuple(data.images.shape)) == ("fashion_mnist", "test", 2000, (2000, 1, 28, 28))
    assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
    assert data.classes[int(data.labels[0])] == "ankle boot"
    counts = data.labels.bincount()
    assert len(counts) == len(data.classes) == 10
    assert (int(counts.min()), int(counts.max())) == (188, 219)
    assert data.source == "2,000 of 10,000 fashion_mnist test images"
    with pytest.raises(UserError, match="no train images of fashion_mnist are shipped"):
        load_data("fashion_mnist", "train", stub=True)


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_shipped_images_are_the_first_of_the_original(monkeypatch):
    """Pixel by pixel, the shipped images are the first 2,000 of the 10,000 test images that Debian packages."""
    monkeypatch.delenv("ADADFQ_DATA", raising=False)
    everything, shipped = load_data("fashion_mnist"), load_data("fashion_mnist", stub=True)
    assert len(everything) == 10_000
    assert everything.source == "all 10,000 fashion_mnist test images"
    assert torch.equal(everything.images[:2000], shipped.images)
    assert torch.equal(everything.labels[:2000], shipped.labels)
    assert torch.equal(everything.labels.bincount(), torch.full((10,), 1000))


def test_shipped_images_and_weights_are_described_with_their_sha256():
    """data_stubs/README.md lists every file of images or weights beside it with the sha256 it has, and the images' licence."""
    text = (STUBS / "README.md").read_text()
    listed = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    assert {path.name for pattern in ("*.safetensors", "*_test.npz") for path in STUBS.glob(pattern)} <= set(listed)
    assert listed == {name: hashlib.sha256((STUBS / name).read_bytes()).hexdigest() for name in listed}
    assert "The MIT License (MIT) Copyright © 2017 Zalando SE" in text


def test_stubs_are_found_from_the_checkout():
    """stub_path names the file in data_stubs/, whatever the working folder is."""
    assert stub_path("README.md").resolve() == (STUBS / "README.md").resolve()


# Where data sets are looked for


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_named_folder_comes_first(name, split, folder):
    """`<name>_<split>.npz` in ADADFQ_DATA wins over every other copy, and its incompleteness is said."""
    x, y = made_up(7)
    np.savez(folder / f"{name}_{split}.npz", x=x, y=y)
    data = load_data(name, split)
    assert torch.equal(data.images, torch.from_numpy(x))
    assert data.labels.tolist() == y.tolist()
    assert data.classes == CLASSES[name]
    total = "10,000" if split == "test" else {"fashion_mnist": "60,000"}.get(name, "50,000")
    assert data.source == f"7 of {total} {name} {split} images"


def test_a_data_set_of_your_own_has_a_name_of_its_own(folder):
    """NAME_SPLIT.npz: classes are numbered, or named by a third array; no official size is spoken of."""
    x, _ = made_up(7)
    np.savez(folder / "mine_test.npz", x=x, y=np.array([0, 1, 2, 2, 1, 0, 2]))
    data = load_data("mine")
    assert (data.name, data.classes, data.source) == ("mine", ("class 0", "class 1", "class 2"), "7 mine test images")
    np.savez(folder / "mine_test.npz", x=x, y=np.zeros(7, np.int64), classes=np.array(["cat", "dog"]))
    assert load_data("mine").classes == ("cat", "dog")
    with pytest.raises(
        UserError, match=r"choose from fashion_mnist, .*, or put mine_train.npz and mine_test.npz \(x uint8 .* set ADADFQ_DATA"
    ):
        load_data("mine", "train")
    for wrong in (np.full(7, 2), np.full(7, -1)):
        np.savez(folder / "mine_test.npz", x=x, y=wrong, classes=np.array(["cat", "dog"]))
        with pytest.raises(UserError, match=r"with labels y from 0 to 1$"):
            load_data("mine")
    np.savez(folder / "mine_test.npz", x=x, y=np.full(7, 10**9))
    with pytest.raises(UserError, match=r"with labels y from 0 to 99999$"):
        load_data("mine")
    np.savez(folder / "mine_test.npz", x=x, y=np.full(7, 0.5))
    with pytest.raises(UserError, match=r"whole numbers, not x uint8 .* and y float64"):
        load_data("mine")


def test_the_shipped_images_can_be_insisted_on(folder):
    """stub=True passes over ADADFQ_DATA, so that a demo shows the same images everywhere."""
    np.savez(folder / "fashion_mnist_test.npz", x=made_up(7)[0], y=made_up(7)[1])
    assert len(load_data("fashion_mnist")) == 7
    assert len(load_data("fashion_mnist", stub=True)) == 2000


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_a_network_there_is_one_line(name, folder, no_network):
    """A data set that is nowhere and cannot be downloaded is one line that says where to put it; no file is left behind."""
    with pytest.raises(UserError, match=rf"put {name}_test\.npz .* set ADADFQ_DATA to it") as error:
        load_data(name)
    assert len(str(error.value).splitlines()) == 1
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "split", "reason"), [("mnist", "test", "choose from fashion_mnist"), ("cifar10", "val", "train or test")]
)
def test_unknown_names_are_refused(name, split, reason):
    """A data set or split that does not exist is one line with those that do."""
    with pytest.raises(UserError, match=reason):
        load_data(name, split)


# Images in memory


def test_batches_are_all_images_once_in_order():
    """Seven images in batches of three are 3, 3 and 1, in order."""
    x, y = made_up(7)
    data = ImageSet("cifar10", "test", torch.from_numpy(x), torch.from_numpy(y), CLASSES["cifar10"], "seven")
    found = list(data.batches(3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    assert torch.equal(torch.cat([images for images, _ in found]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in found]), data.labels)


def test_take_says_what_it_took():
    """The first 3 of seven are so called; the first 7, 8 or all of seven are the set itself."""
    x, y = made_up(7)
    data = ImageSet("cifar10", "test", torch.from_numpy(x), torch.from_numpy(y), CLASSES["cifar10"], "all seven")
    data = replace(data, labels=data.labels[torch.tensor([3, 1, 2, 0, 4, 5, 6])])
    assert len(data.take(3)) == 3
    assert data.take(3).source == "first 3 of all seven"
    assert torch.equal(data.take(3).images, data.images[:3])
    assert all(data.take(count) is data for count in (7, 8, None))


def test_of_a_set_in_class_order_a_sample_is_drawn():
    """The first 100 of 1,000 images sorted by class would be one class; the drawn ones are of all ten, the same each time."""
    labels = torch.arange(1000) // 100
    data = ImageSet("sorted", "test", labels.view(-1, 1, 1, 1).byte(), labels, CLASSES["cifar10"], "1,000")
    few = data.take(100)
    assert few.source == "random 100 of 1,000" and torch.equal(few.labels, few.images.flatten().long())
    assert few.labels.bincount(minlength=10).min() >= 3
    assert torch.equal(few.labels, data.take(100).labels) and not torch.equal(few.labels, few.labels.sort().values)


# Data sets of one's own


def test_a_file_is_a_data_set_by_its_path(folder, monkeypatch):
    """photos.npz with and without a folder before it; without y its images are unlabelled; a name stays the name."""
    monkeypatch.chdir(folder)
    x, y = made_up(7)
    np.savez(folder / "photos.npz", x=x, y=y % 2, classes=np.array(["cat", "dog"]))
    for name in ("photos.npz", "./photos.npz", str(folder / "photos.npz")):
        data = load_data(name)
        assert (data.name, data.classes, data.source) == ("photos", ("cat", "dog"), "7 images of 2 classes in photos.npz")
    np.savez(folder / "bare.npz", x=x)
    bare = load_data("bare.npz")
    assert (bare.labelled, bare.classes, len(bare)) == (False, (), 7)
    assert bare.source == "7 unlabelled images in bare.npz (it holds no y)"
    with pytest.raises(UserError, match=r"^accuracy needs labels, and bare has none"):
        accuracy(torch.nn.Flatten(), bare, lambda x: x.float())
    with pytest.raises(UserError, match=r"^cannot read absent.npz"):
        load_data("absent.npz")


def test_channels_last_is_refused_with_the_remedy(folder):
    """(N, 20, 20, 1) would train a teacher of 20 channels."""
    np.savez(folder / "mine_test.npz", x=np.zeros((5, 20, 20, 1), np.uint8), y=np.zeros(5, np.int64))
    with pytest.raises(UserError, match=r"of shape \(5, 20, 20, 1\), channels last; save x.transpose\(0, 3, 1, 2\)"):
        load_data("mine")


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(folder):
    """An array of a terabyte in a file of some hundred bytes is refused by its header, before it is read."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 20, 20)})
    with zipfile.ZipFile(folder / "mine_test.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1200))
    with pytest.raises(UserError, match=r"mine_test.npz is damaged .*x.npy claims 1,200,000,000,128 bytes and has 1,328\)"):
        load_data("mine")


def test_the_classes_of_a_known_data_set_are_put_into_its_order(folder):
    """A cifar10_test.npz that counts the classes in another order is read in CIFAR-10's; other names are refused."""
    x, y = made_up(20)
    turned = CLASSES["cifar10"][::-1]
    np.savez(folder / "cifar10_test.npz", x=x, y=y, classes=np.array(turned))
    data = load_data("cifar10")
    assert data.classes == CLASSES["cifar10"] and data.labels.tolist() == [9 - label for label in y]
    np.savez(folder / "cifar10_test.npz", x=x, y=y, classes=np.array([*turned[:9], "lion"]))
    with pytest.raises(UserError, match=r"^the classes of cifar10 are not those of .*: lion there, airplane here"):
        load_data("cifar10")


# Wrong files


def npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)


def damage_npz(path: Path, at: float) -> None:
    """Compressed arrays, with a byte in the middle of them wrong (at < 1) or the end missing (at = 1)."""
    np.savez_compressed(
        path, x=np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8), y=np.zeros(20, np.uint8)
    )
    content = bytearray(path.read_bytes())
    if at == 1:
        del content[-200:]
    else:
        content[int(at * len(content))] ^= 0xFF
    path.write_bytes(content)


WRONG = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("x, y\n1, 2\n"),
    "truncated": lambda path: damage_npz(path, 1),
    "altered": lambda path: damage_npz(path, 0.3),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"x": 1, "y": 2})),
    "objects": lambda path: npz(path, x=np.array([{}], dtype=object), y=np.zeros(1)),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "no labels": lambda path: npz(path, x=made_up(3)[0]),
    "float images": lambda path: npz(path, x=made_up(3)[0] / 255, y=made_up(3)[1]),
    "flat images": lambda path: npz(path, x=made_up(3)[0].reshape(3, -1), y=made_up(3)[1]),
    "too few labels": lambda path: npz(path, x=made_up(3)[0], y=made_up(2)[1]),
    "no images": lambda path: npz(path, x=made_up(3)[0][:0], y=made_up(3)[1][:0]),
    "labels from 1 on": lambda path: npz(path, x=made_up(3)[0], y=np.array([1, 2, 10])),
    "one-hot labels": lambda path: npz(path, x=made_up(3)[0], y=np.eye(3)),
    "one label": lambda path: npz(path, x=made_up(1)[0], y=np.array(3)),
    "a folder": lambda path: path.mkdir(),
    "a class too many": lambda path: npz(path, x=made_up(3)[0], y=np.array([0, 9, 10])),
    "a class below 0": lambda path: npz(path, x=made_up(3)[0], y=np.array([0, -1, 9])),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_wrong_file_is_refused_in_one_line(kind, folder):
    """Whatever stands in the place of a data file, the error is one line that names it and what it should hold."""
    path = folder / "cifar10_test.npz"
    WRONG[kind](path)
    with pytest.raises(
        UserError, match=r"(damaged or not a data file|must hold (x uint8|one image)|is a folder; give a file)"
    ) as error:
        load_data("cifar10")
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_asking_for_shipped_images_that_are_not_shipped_says_so(monkeypatch, tmp_path):
    """Whether or not they lie elsewhere on this machine."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"no test images of cifar100 are shipped; leave out --stub"):
        load_data("cifar100", stub=True)
