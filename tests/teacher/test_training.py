"""Training a teacher: the augmentation by brute force, the schedule by hand, and a run that may be cut off anywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.teacher import training as training_teachers
from adadfq_lab.teacher.networks import resnet8
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.teacher.training import TeacherConfig, augment, learning_rate, train_teacher

CONFIG = TeacherConfig(data="fashion_mnist", network="resnet8", epochs=4, small_epochs=2, batch=32, lr=0.1, seed=3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A made-up Fashion-MNIST of 16x16 images whose class is where a bright stripe lies: 96 to learn from, 60 to test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 60)):
        y = np.arange(count) % 3
        x = rng.integers(0, 60, (count, 1, 16, 16))
        for image, label in zip(x, y, strict=True):
            image[:, 2 + 5 * label : 4 + 5 * label] += 180
        np.savez(tmp_path / f"fashion_mnist_{split}.npz", x=x.astype(np.uint8), y=y.astype(np.uint8))
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    return tmp_path


def cut_off(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Whoever trains now is interrupted when `epoch` begins, as by Ctrl-C."""
    real = training_teachers._epoch

    def epoch_or_interrupt(config: TeacherConfig, index: int, *rest: object) -> float:
        if index == epoch:
            raise KeyboardInterrupt
        return real(config, index, *rest)

    monkeypatch.setattr(training_teachers, "_epoch", epoch_or_interrupt)


# Augmentation and schedule


def test_augment_shifts_and_flips_and_nothing_else(generator):
    """Each output is its image, flipped or not, moved by up to 12 // 8 pixels, zeros moving in: brute force finds which."""
    images = torch.randint(1, 256, (64, 3, 16, 12), generator=generator, dtype=torch.uint8)
    pad = 1
    out = augment(images, torch.Generator().manual_seed(1))
    assert out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    seen = set()
    for before, after in zip(images, out, strict=True):
        found = []
        for flip in (False, True):
            around = torch.zeros(3, 16 + 2 * pad, 12 + 2 * pad, dtype=torch.uint8)
            around[:, pad:-pad, pad:-pad] = before.flip(2) if flip else before
            for top in range(2 * pad + 1):
                for left in range(2 * pad + 1):
                    if torch.equal(around[:, top : top + 16, left : left + 12], after):
                        found.append((flip, top, left))
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == {0, 1, 2}


def test_augment_depends_on_its_generator_alone(generator):
    """The same seed gives the same images, whatever the global random state; another seed gives others."""
    images = torch.randint(1, 256, (8, 1, 16, 16), generator=generator, dtype=torch.uint8)
    one = augment(images, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(one, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, augment(images, torch.Generator().manual_seed(2)))


def test_learning_rate_by_hand():
    """Of 100 steps and peak 0.2: 0.02 first, 0.2 at the 10th, half of it in the middle of the rest, almost 0 at the end."""
    assert learning_rate(0, 100, 0.2) == pytest.approx(0.02)
    assert learning_rate(9, 100, 0.2) == learning_rate(10, 100, 0.2) == pytest.approx(0.2)
    assert learning_rate(55, 100, 0.2) == pytest.approx(0.1)
    assert 0 < learning_rate(99, 100, 0.2) < 1e-4
    assert learning_rate(0, 1, 0.2) == pytest.approx(0.2)


# A run


def test_a_trained_teacher_knows_its_data_and_itself(folder, capfd):
    """It tells stripes apart, writes one file that loads, and knows the mean, deviation, classes, seed and recipe it had."""
    output = folder / "stripes.safetensors"
    P = train_teacher(TeacherConfig(**{**vars(CONFIG), "epochs": 8}), output)
    assert sorted(path.name for path in folder.glob("stripes*")) == ["stripes.safetensors"]
    assert P.info.top1 is not None and P.info.top1 > 80
    with np.load(folder / "fashion_mnist_train.npz") as file:
        pixels = file["x"] / 255
    assert P.info.mean == pytest.approx((pixels.mean(),), rel=1e-5)
    assert P.info.std == pytest.approx((pixels.std(ddof=1),), rel=1e-5)
    assert (P.info.name, P.info.network, P.info.data, P.info.input_shape) == (
        "stripes",
        "resnet8",
        "fashion_mnist",
        (1, 16, 16),
    )
    assert P.info.evaluated_on == "60 of 10,000 fashion_mnist test images"
    assert "--network resnet8 --epochs 8 --small-epochs 2 --batch 32 --lr 0.1" in P.info.recipe
    loaded = load_teacher(str(output))
    assert all(torch.equal(value, P.state_dict()[name]) for name, value in loaded.state_dict().items())
    captured = capfd.readouterr()
    assert "epoch 8/8: loss" in captured.err
    assert captured.out == ""


def test_each_epoch_is_a_new_shuffle_of_all_images(folder, monkeypatch):
    """Every epoch of three batches of 32 shows each of the 96 images once, each epoch in another order."""
    shown = []

    def note(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shown.extend(int(image) for image in images.long().mul(torch.arange(256).view(1, 1, 16, 16)).sum((1, 2, 3)))
        return augment(images, generator)

    monkeypatch.setattr(training_teachers, "augment", note)
    train_teacher(CONFIG, folder / "p.safetensors")
    epochs = [shown[start : start + 96] for start in range(0, len(shown), 96)]
    assert len(epochs) == CONFIG.epochs
    assert all(len(set(epoch)) == 96 and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == CONFIG.epochs


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_run_ends_in_the_same_bits(epoch, folder, monkeypatch):
    """Cut off after an epoch and started again with the same options, weights and facts are those of the uninterrupted run."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    whole = train_teacher(CONFIG, folder / "a" / "p.safetensors")
    output = folder / "b" / "p.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, epoch)
        train_teacher(CONFIG, output)
    assert sorted(path.name for path in output.parent.iterdir()) == ["p.resume"]
    torch.manual_seed(12345)  # whatever happened in between
    torch.rand(7)
    resumed = train_teacher(CONFIG, output)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert load_teacher(str(output)).info.sha256 == load_teacher(str(folder / "a" / "p.safetensors")).info.sha256
    assert sorted(path.name for path in output.parent.iterdir()) == ["p.safetensors"]


def test_a_run_of_other_options_is_not_continued(folder, monkeypatch):
    """What was begun with lr 0.1 is not continued with 0.2 or another seed; threads may differ. The file stays as it is."""
    output = folder / "p.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, 1)
        train_teacher(CONFIG, output)
    before = (folder / "p.resume").read_bytes()
    for change in ({"lr": 0.2}, {"seed": 4}, {"epochs": 5}):
        with pytest.raises(UserError, match="belongs to a run with another configuration; give the same options, or remove it"):
            train_teacher(TeacherConfig(**{**vars(CONFIG), **change}), output)
    assert (folder / "p.resume").read_bytes() == before
    assert not output.exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, 2)
        train_teacher(TeacherConfig(**{**vars(CONFIG), "threads": torch.get_num_threads()}), output)
    assert load_tensors(folder / "p.resume")[1]["epoch"] == 2


def test_a_damaged_or_foreign_resume_file_is_refused(folder):
    """What lies where a run would be continued from, and is none, is one line, and is not overwritten."""
    output, resume = folder / "p.safetensors", folder / "p.resume"
    resume.write_bytes(b"not a run")
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        train_teacher(CONFIG, output)
    save_tensors(resume, resnet8(10, 1).state_dict(), {"kind": "teacher"})
    with pytest.raises(UserError, match="belongs to a run with another configuration"):
        train_teacher(CONFIG, output)
    assert resume.exists()
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network": "resnet1202"}, "no network is called 'resnet1202'; choose from resnet20, resnet8"),
        ({"data": "mnist"}, "no data set is called 'mnist'"),
        ({"batch": 97}, "batch must be at most the 96 training images, not 97"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1 and less than"),
        ({"lr": -0.1}, "lr must be a number from 0 on, not -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay must be a number from 0 on, not nan"),
        ({"threads": -1}, "threads must be at least 0 and less than"),
    ],
)
def test_options_without_sense_are_refused_before_training(change, reason, folder):
    """One line, and no file."""
    with pytest.raises(UserError, match=reason):
        train_teacher(TeacherConfig(**{**vars(CONFIG), **change}), folder / "p.safetensors")
    assert not list(folder.glob("p.*"))


def test_a_folder_that_is_not_there_is_refused_before_training(folder):
    """Hours of training do not end in a file that cannot be written."""
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        train_teacher(CONFIG, folder / "nowhere" / "p.safetensors")
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        train_teacher(CONFIG, folder / "fashion_mnist_test.npz" / "p.safetensors")


def test_what_is_trained_is_a_teacher(folder):
    """The network comes back frozen, in eval mode, with a sha256 once it is loaded."""
    P = train_teacher(TeacherConfig(**{**vars(CONFIG), "epochs": 1}), Path(folder / "p.safetensors"))
    assert isinstance(P, Teacher)
    assert not any(p.requires_grad for p in P.parameters())
    assert len(load_teacher(str(folder / "p.safetensors")).info.sha256) == 64
