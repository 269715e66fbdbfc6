"""`adadfq quantize`: from a stranger's model.py and weights to a verified file, and what it says to mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adadfq_lab.cli import main as cli
from adadfq_lab.teacher.own_network import build_own, load_weights
from adadfq_lab.teacher.teacher_files import load_teacher

MODEL = """
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def build():
    return Net()


def upsampled():
    parts = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(144, 4))


def broken():
    return Nett()


NUMBER = 3
"""
OPTIONS = ["--input", "3x8x8", "--mean", "0.5", "--std", "0.25", "--device", "cpu", "--no-estimate"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with model.py, the weights of a DataParallel checkpoint, and images in class folders' stead: an array."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    torch.manual_seed(0)
    network = build_own("model.py:build")
    with torch.no_grad():
        network.train()(torch.randn(64, 3, 8, 8))
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, "w.pt")
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez("photos.npz", x=x, y=np.arange(40) % 4)
    np.savez("bare.npz", x=x)
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    cli.main(list(arguments))
    said = capsys.readouterr()
    return said.out, said.err


def test_from_code_and_weights_to_a_verified_file(here, capsys):
    """Without an image: agreement on generated ones; the run's teacher is a file that every command takes."""
    pytest.importorskip("onnxruntime")
    command = ["quantize", "model.py:build", "--weights", "w.pt", *OPTIONS, "--rounds", "6", "--output", "q.onnx", "--json"]
    out, err = say(capsys, *command)
    found = json.loads(out.splitlines()[-1])
    assert "executing model.py:build" in err
    assert "loaded 14 tensors of w.pt, under 'state_dict', without the prefix 'module.'" in err
    assert found["teacher"] is None and found["agreement"].keys() == {"generated"}
    assert found["verification"]["ok"] and found["verification"]["agreement"] == 100
    assert "held-out generated images" in out and "is not accuracy" in out
    assert all(Path(name).exists() for name in ("q.onnx", "q.packed.safetensors", "q/report.html", "q/teacher.safetensors"))
    assert load_teacher("q/teacher.safetensors").info.mean == (0.5, 0.5, 0.5)
    out, _ = say(capsys, "evaluate", "q", "--data", "bare.npz")
    assert out.startswith("the class that P predicts for ") and "40 unlabelled images in bare.npz" in out
    train = "train --teacher q/teacher.safetensors --data photos.npz --rounds 3 --warmup 1 --device cpu --name again --json"
    out, _ = say(capsys, *train.split())
    again = json.loads(out.splitlines()[-1])
    assert again["teacher"] is not None and again["agreement"]["generated"]["images"] == 1024
    out, _ = say(capsys, "quantize", "--resume", "--run", "q", "--output", "second.onnx", "--json")
    assert json.loads(out.splitlines()[-1])["agreement"] == found["agreement"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("quantize", "which network? as in: adadfq quantize model.py:build"),
        ("quantize model.py --input 3x8x8", "'model.py' does not name a network; write FILE.py:NAME"),
        ("quantize model.py:build", "--input takes channels x height x width, as in 3x32x32, not ''"),
        ("quantize model.py:nothing --input 3x8x8", "model.py:nothing: module 'adadfq_own_model' has no attribute 'nothing'"),
        ("quantize model.py:broken --input 3x8x8", "model.py:broken fails: NameError: name 'Nett' is not defined"),
        ("quantize model.py:NUMBER --input 3x8x8", "model.py:NUMBER fails: TypeError: 'int' object is not callable"),
        ("quantize absent.py:build --input 3x8x8", "there is no file absent.py"),
        ("quantize model.py:build --input 1x8x8", "the network cannot take an image of shape (1, 8, 8)"),
        ("quantize model.py:build --input 3x8x8 --weights model.py", "model.py is damaged or not a file of weights"),
        ("quantize model.py:build --input 3x8x8 --weights object.pt", "holds more than tensors"),
        ("quantize model.py:build --input 3x8x8 --weights other.pt", "does not fit the network: of 14 tensors, 11 are missing"),
        ("quantize model.py:build --input 3x8x8 --classes a b", "the network gives 4 logits, --classes names 2"),
        ("quantize model.py:build --input 3x8x8 --output q.txt --no-estimate", "q.txt must end in .onnx"),
        ("quantize model.py:upsampled --input 3x8x8 --no-estimate", "3 (Upsample) has no integer form here; replace it"),
        ("quantize model.py:build --input 3x8x8 --bits 9w9a", "9w9a is not a bit width"),
        ("quantize --resume --run nowhere", "nowhere holds no run to resume"),
        ("train --teacher model.py:build", "model.py:build is code, not a teacher; adadfq quantize model.py:build"),
    ],
)
def test_mistakes_are_one_line(arguments, what, here, capsys):
    torch.save(build_own("model.py:build"), "object.pt")
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3), "head": torch.zeros(1)}, "other.pt")
    before = set(here.iterdir())
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and what in said[-1]
    assert all(line.startswith("adadfq: ") for line in said)
    assert {path for path in here.iterdir() if path.name != "__pycache__"} == before


def test_means_of_another_scale_are_taken_for_what_they_are(here, capsys):
    """127.5 is a mean of pixels from 0 to 255."""
    from adadfq_lab.cli.own import _teacher

    P = _teacher("model.py:build", None, "3x8x8", (127.5,), (63.75,), ())
    assert P.info.mean == (0.5, 0.5, 0.5) and P.info.std == (0.25, 0.25, 0.25)
    assert "of pixels from 0 to 255; divided by 255" in capsys.readouterr().err


def test_weights_with_nan_are_refused_by_name(here):
    network = build_own("model.py:build")
    network.fc.bias.data[0] = float("nan")
    torch.save(network.state_dict(), "nan.pt")
    with pytest.raises(Exception, match=r"nan.pt holds a NaN or an infinity in fc.bias"):
        load_weights(network, Path("nan.pt"))
