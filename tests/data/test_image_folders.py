"""ImageNet folders: lazily decoded, as the networks' authors evaluate, and in an order whose beginning is a fair sample."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from adadfq_lab.cli.main import main
from adadfq_lab.data.accuracy import accuracy, agreement
from adadfq_lab.data.image_folders import decode
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.teacher.teacher import normalize
from adadfq_lab.teacher.teacher_files import load_teacher

COLOURS = {"blue": (10, 20, 240), "green": (20, 230, 10), "red": (250, 0, 30)}


def write(path: Path, pixels: np.ndarray, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder of three classes, images of one colour: two blue, one green, three red; and things that are no images."""
    for colour, count in (("blue", 2), ("green", 1), ("red", 3)):
        for i in range(count):
            pixels = np.full((30 + i, 40, 3), COLOURS[colour], np.uint8)
            write(tmp_path / "val" / colour / f"{i}.{('png', 'JPEG', 'jpg')[i]}", pixels)
    (tmp_path / "val" / "red" / "notes.txt").write_text("no image")
    (tmp_path / "val" / "red" / "._0.png").write_bytes(b"what macOS leaves")
    (tmp_path / "val" / ".cache").mkdir()
    return tmp_path / "val"


def test_an_image_of_the_right_height_is_its_own_centre(tmp_path, generator):
    """Where the shorter side is 256 already, decode cuts rows 16 to 239 and the middle 224 columns, and changes no pixel."""
    pixels = torch.randint(0, 256, (256, 448, 3), generator=generator, dtype=torch.uint8)
    write(tmp_path / "a.png", pixels.numpy())
    assert torch.equal(decode(tmp_path / "a.png"), pixels[16:240, 112:336].permute(2, 0, 1))
    write(tmp_path / "b.png", pixels.transpose(0, 1).numpy())
    assert torch.equal(decode(tmp_path / "b.png"), pixels[16:240, 112:336].permute(2, 1, 0))


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 375), (100, 90), (256, 256)])
def test_decode_and_normalize_are_torchvisions_evaluation(height, width, tmp_path, generator):
    """decode, then the teacher's normalisation, is the transform that torchvision's weights were measured with."""
    pixels = torch.randint(0, 256, (height // 10, width // 10, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy()).resize((width, height))
    image.save(tmp_path / "a.png")
    preset = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
    torch.testing.assert_close(normalize(decode(tmp_path / "a.png")[None], mean, std)[0], preset(image))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png")])
def test_every_mode_becomes_rgb(mode, suffix, tmp_path):
    """Grey, CMYK, palette and transparent files, all of which ImageNet or its users have, give three channels."""
    write(tmp_path / f"a.{suffix}", np.full((30, 30, 3), 204, np.uint8), mode)
    pixels = decode(tmp_path / f"a.{suffix}")
    assert (pixels.shape, pixels.dtype) == ((3, 224, 224), torch.uint8)
    assert (pixels.int() - 204).abs().max() <= 2


def test_a_folder_is_a_set_of_images(tree):
    """Classes in alphabetical order; the classes take turns, so the first images of a tree are one of each."""
    data = load_data(str(tree))
    assert isinstance(data, ImageSet)
    assert (data.name, data.split, data.classes, len(data)) == ("val", "test", ("blue", "green", "red"), 6)
    assert data.source == "6 images of 3 classes in the folder val, 1 skipped that Pillow does not read (1 .txt)"
    assert data.labels.tolist() == [0, 1, 2, 0, 2, 2]
    assert [str(path.relative_to(tree)) for path in data.paths] == [
        "blue/0.png",
        "green/0.png",
        "red/0.png",
        "blue/1.JPEG",
        "red/1.JPEG",
        "red/2.jpg",
    ]


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_batches_are_the_decoded_files_in_order(size, tree):
    """Together the batches of any size are decode(path) and label of every image, once each, in the order of the set."""
    data = load_data(str(tree))
    images, labels = zip(*data.batches(size), strict=True)
    assert [len(batch) for batch in labels] == [len(part) for part in torch.arange(6).split(size)]
    assert torch.equal(torch.cat(images), torch.stack([decode(path) for path in data.paths]))
    assert torch.equal(torch.cat(labels), data.labels)


def test_nothing_is_decoded_before_its_batch_is_asked_for(tree):
    """The pixels take no memory, `images` tells their shape only, and a damaged file is an error of its own batch, by name."""
    (tree / "red" / "1.JPEG").write_bytes(b"\xff\xd8 cut off")
    data = load_data(str(tree))
    assert (data.images.shape, data.images.dtype, data.images.device.type) == ((6, 3, 224, 224), torch.uint8, "meta")
    batches = data.batches(3)
    assert next(batches)[0].shape == (3, 3, 224, 224)
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(tree))}/red/1.JPEG cannot be read as an image .*; mend or remove it$"
    ):
        next(batches)


def test_files_are_cut_for_the_network_that_is_to_see_them(tree, tmp_path, generator):
    """of_shape: other squares than 224 have no margin, so a file of just that size keeps every pixel; grey for one channel."""
    pixels = torch.randint(0, 256, (28, 28, 3), generator=generator, dtype=torch.uint8)
    write(tmp_path / "a.png", pixels.numpy())
    assert torch.equal(decode(tmp_path / "a.png", (3, 28, 28)), pixels.permute(2, 0, 1))
    grey = np.asarray(Image.fromarray(pixels.numpy()).convert("L"))
    assert torch.equal(decode(tmp_path / "a.png", (1, 28, 28)), torch.from_numpy(grey.copy())[None])
    small = load_data(str(tree)).of_shape((3, 30, 30))
    assert small.images.shape == (6, 3, 30, 30)
    assert next(small.take(2).batches(2))[0].unique(dim=0).shape == (2, 3, 30, 30)
    for shape in ((4, 30, 30), (3, 30, 40)):  # what a file cannot be cut to is left as it was
        assert small.of_shape(shape).images.shape == (6, 3, 30, 30)


def test_a_folder_serves_a_small_teacher(tmp_path, capsys):
    """The shipped images, written as files, are for the command line what they are as an array."""
    data = load_data("fashion_mnist", stub=True).take(60)
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        write(tmp_path / "photos" / str(int(label)) / f"{i}.png", image[0].numpy(), "L")
    teacher = load_teacher("fashion_mnist_resnet20")
    main(["evaluate", "fashion_mnist_resnet20", "--data", str(tmp_path / "photos"), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["top1"]) == (60, accuracy(teacher, data, teacher.normalize).top1)


def test_take_keeps_the_first(tree):
    """The first count samples, and a source that says so; all of them for None or a larger count."""
    data = load_data(str(tree))
    few = data.take(4)
    assert (len(few), few.paths, few.labels.tolist()) == (4, data.paths[:4], [0, 1, 2, 0])
    assert few.source == "first 4 of 6 images of 3 classes in the folder val, 1 skipped that Pillow does not read (1 .txt)"
    assert few.images.shape == (4, 3, 224, 224)
    assert torch.equal(torch.cat([x for x, _ in few.batches(3)]), next(data.batches(4))[0])
    assert data.take(None) is data.take(6) is data


class Brightest(nn.Module):
    """Says blue, green or red by the strongest channel, red being channel 0; notes the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return x.mean((2, 3)).flip(1)


def test_accuracy_is_measured_on_a_folder(tree):
    """A network that tells the colours apart has 100 %; one file in the wrong folder costs a sixth."""
    measured = accuracy(Brightest(), load_data(str(tree)), lambda images: images.float())
    assert (measured.top1, measured.images) == (100, 6)
    write(tree / "red" / "2.jpg", np.full((30, 30, 3), COLOURS["green"], np.uint8))
    assert accuracy(Brightest(), load_data(str(tree)), lambda images: images.float()).top1 == pytest.approx(100 * 5 / 6)


def test_large_images_come_in_small_batches(tree):
    """Unless asked otherwise, 2^20 pixels a channel at most and 100 images on a CPU: 20 of 224 x 224, 100 of 32 x 32."""
    for i in range(25):
        write(tree / "green" / f"more{i}.png", np.full((8, 8, 3), COLOURS["green"], np.uint8))
    large = Brightest()
    accuracy(large, load_data(str(tree)), lambda images: images.float())
    assert large.sizes == [20, 11]
    images = torch.zeros(600, 3, 32, 32, dtype=torch.uint8)
    small = Brightest()
    accuracy(small, ImageSet("a", "test", images, torch.zeros(600), ("b", "g", "r"), "zeros"), lambda images: images.float())
    assert small.sizes == [100] * 6


def test_imagenet_is_found_where_adadfq_data_says(tree, monkeypatch):
    """ADADFQ_DATA/imagenet/val, in ImageNet's order and names where the folders are the 1,000 WordNet ids."""
    root = tree.parent / "imagenet"
    for i in range(1000):
        (root / "val" / f"n{i:08d}").mkdir(parents=True)
        (root / "val" / f"n{i:08d}" / "only.JPEG").touch()
    monkeypatch.setenv("ADADFQ_DATA", str(root.parent))
    data = load_data("imagenet")
    assert (data.name, len(data), len(data.classes)) == ("imagenet", 1000, 1000)
    assert (data.classes[0], data.classes[1], data.classes[999]) == ("tench", "goldfish", "toilet tissue")
    assert data.labels.tolist() == list(range(1000))
    assert data.source == "1,000 of 50,000 imagenet validation images"
    (root / "val" / "n00000999").rename(root / "val" / "other")
    assert load_data("imagenet").classes[-1] == "other"


def test_a_place_without_imagenet_is_one_line_that_says_what_to_do(monkeypatch, tmp_path, capsys):
    """Without ADADFQ_DATA, and with one that holds no imagenet/val, adadfq exits with 2 and one line."""
    for value in ("", str(tmp_path)):
        monkeypatch.setenv("ADADFQ_DATA", value)
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", "fashion_mnist_resnet20", "--data", "imagenet"])
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("adadfq: ImageNet is not on this machine; put its validation images, one folder a class, into")


def test_trees_that_are_none_are_refused(tree, tmp_path):
    """No such folder, one without images, and one folder too many: each names the place and the remedy."""
    with pytest.raises(UserError, match=r"^cannot read .*absent \(No such file or directory\); give a folder"):
        load_data(str(tmp_path / "absent"))
    (tmp_path / "texts" / "red").mkdir(parents=True)
    (tmp_path / "texts" / "red" / "a.txt").touch()
    with pytest.raises(UserError, match=r"^.*texts holds no images \(1 files, of which none is an image that Pillow reads\)"):
        load_data(str(tmp_path / "texts"))
    for split in ("train", "Val"):
        (tmp_path / "splits" / split / "red").mkdir(parents=True)
    with pytest.raises(UserError, match=r"splits holds Val, train, which are no classes; give one of them$"):
        load_data(str(tmp_path / "splits"))
    (tmp_path / "outer").mkdir()
    tree.rename(tmp_path / "outer" / "val")
    with pytest.raises(UserError, match=r"^.*outer holds one folder only, which holds folders; give .*outer/val$"):
        load_data(str(tmp_path / "outer"))


def test_what_people_have_in_their_folders(tree, monkeypatch):
    """Nested folders and unusual endings count; an empty class keeps its place; what is left out is counted and named."""
    write(tree / "green" / "second batch" / "a.webp", np.full((30, 30, 3), 10, np.uint8))
    write(tree / "green" / "b.TIFF", np.full((30, 30, 3), 10, np.uint8))
    write(tree / "loose.png", np.full((30, 30, 3), 10, np.uint8))
    for name in ("__MACOSX/green", "yellow"):
        (tree / name).mkdir(parents=True)
    (tree / "red" / "b.svg").touch()
    monkeypatch.chdir(tree.parent)
    data = load_data("val")  # named without a slash
    assert data.classes == ("blue", "green", "red", "yellow") and data.labels.bincount(minlength=4).tolist() == [2, 3, 3, 0]
    assert data.source == (
        "8 images of 4 classes in the folder val, 2 skipped that Pillow does not read (1 .svg, 1 .txt), "
        "1 skipped outside of the class folders, yellow empty"
    )


def test_a_folder_of_images_alone_is_unlabelled(tree):
    data = load_data(str(tree / "red")).of_shape((3, 30, 30))
    assert (len(data), data.labelled, data.name) == (3, False, "red")
    assert data.source == "3 unlabelled images in the folder red, 1 skipped that Pillow does not read (1 .txt)"
    assert agreement(Brightest(), Brightest(), data, lambda images: images.float()).top1 == 100


def test_folders_of_numbers_are_in_their_order(tmp_path):
    """Class 10 comes after class 9, where the alphabet has it after class 1."""
    for i in range(11):
        write(tmp_path / "val" / str(i) / "a.png", np.full((30, 30, 3), i, np.uint8))
    data = load_data(str(tmp_path / "val")).of_shape((3, 30, 30))
    images, labels = next(data.batches(11))
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == list(range(11))


def test_grey_of_sixteen_bits_is_scaled(tmp_path):
    """Black, half and white stay what they are; 32-bit pixels, whose white nobody knows, are refused by their mode."""
    ramp = np.array([0, 32768, 65535], np.uint16)[:, None] * np.ones((1, 3), np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", (1, 3, 3))[0, :, 1].tolist() == [0, 128, 255]
    for kind, mode in ((np.int32, "I"), (np.float32, "F")):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "a.tiff")
        with pytest.raises(UserError, match=rf"a.tiff has pixels of 32 bits \(mode {mode}\)"):
            decode(tmp_path / "a.tiff", (1, 3, 3))


def test_imagenet_is_neither_trained_on_nor_shipped(tree):
    """The training split and the stub of a folder are refused in one line."""
    with pytest.raises(UserError, match=r"to measure on .*train-teacher takes fashion_mnist"):
        load_data("imagenet", "train")
    with pytest.raises(UserError, match=r"is shipped; leave out --stub"):
        load_data(str(tree), stub=True)


@pytest.mark.slow
def test_a_run_at_the_size_of_imagenet_goes_through(tmp_path, capsys):
    """ResNet-18 at 224 x 224 with ImageNet's generator and schedule in short, from a folder of images to the report.

    Its classes are twenty, so that measuring takes seconds; the teacher is untrained, so that its accuracy says nothing.
    """
    import dataclasses
    import time

    from adadfq_lab.runs.estimates import estimate
    from adadfq_lab.runs.recipes import recipe, shortened
    from adadfq_lab.runs.run import run
    from adadfq_lab.teacher.networks import build_network
    from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
    from adadfq_lab.teacher.teacher_files import save_teacher

    torch.manual_seed(0)
    classes = tuple(f"n{i:08d}" for i in range(20))
    for i, name in enumerate(classes):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (300, 260), (12 * i, 90, 255 - 12 * i)).save(tmp_path / "val" / name / "a.jpg")
    network = build_network("resnet18", len(classes))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 224, 224))
    info = TeacherInfo("resnet18", "resnet18", "val", classes, (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_teacher(Teacher(network, info), tmp_path / "teacher.safetensors")
    config = shortened(recipe("imagenet-resnet18-4w4a").config(), 8)
    config = dataclasses.replace(
        config, teacher=str(tmp_path / "teacher.safetensors"), data=str(tmp_path / "val"), device="cpu", save_every=4
    )
    assert config.schedule.batch == 16 and config.schedule.warmup == 1
    found = estimate(config, seconds=1)
    started = time.perf_counter()
    result = run(config, tmp_path / "run", quiet=True)
    seconds = time.perf_counter() - started
    assert (result.rounds, result.student.images) == (8, 20)
    assert (tmp_path / "run" / "report.html").exists()
    with capsys.disabled():
        print(f"\n{seconds:.0f} s for 8 rounds of 16 images on ResNet-18 at 224 x 224 (estimated: {found.seconds:.0f} s), ")
        print(f"{found.play_round:.1f} s a round, {found.peak_mb:.0f} MB")
