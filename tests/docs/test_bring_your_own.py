"""docs/bring_your_own_model.md runs as printed, with fewer rounds; with real weights too if they are at hand."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adadfq_lab as lab
from adadfq_lab.cli import main as cli
from adadfq_lab.cli.main import COMMANDS
from adadfq_lab.teacher.own_network import build_own

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = (Path(__file__).parents[2] / "docs" / "bring_your_own_model.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODEL = """
from torch import nn

def build():
    body = [nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 10))
"""
DATA = Path(os.environ.get("ADADFQ_DATA", "nowhere"))


@pytest.fixture(scope="module")
def after(tmp_path_factory) -> dict[str, Any]:
    """The page's names after each of its blocks ran, in a folder of its own; and what they wrote there."""
    names: dict[str, Any] = {"blocks": 0, "folder": tmp_path_factory.mktemp("page")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(names["folder"])
        for block in BLOCKS[1:]:  # the first plays a whole run
            exec(compile(block, "bring_your_own_model.md", "exec"), names)
            names["blocks"] += 1
    return names


def test_every_block_runs_and_three_networks_are_integer(after):
    """A ResNet-18, a MobileNetV2 and a ResNet-20 of others: each leaves a file without a float convolution."""
    assert after["blocks"] == len(BLOCKS) - 1 == 6
    assert after["found"].convs == 20 and after["found"].ok
    assert {p.name for p in after["folder"].glob("*.onnx")} == {"mine.onnx", "mobilenet.onnx", "resnet20.onnx"}
    again = lab.verify(after["folder"] / "resnet20.onnx", after["x"], student=after["Q"], repeats=1)
    assert again.ok and again.convs == 19


def test_every_command_and_flag_named_exists():
    assert set(re.findall(r"adadfq ([a-z-]+) ", PAGE)) <= set(COMMANDS)
    assert {"train", "export", "verify"} <= set(re.findall(r"adadfq ([a-z-]+) ", PAGE))


@pytest.mark.skipif(
    not (DATA / "third_party_resnet20_cifar10.pt").exists() or not (DATA / "cifar10_test.npz").exists(),
    reason="needs third_party_resnet20_cifar10.pt and cifar10_test.npz in the folder that ADADFQ_DATA names",
)
@pytest.mark.parametrize("bits", ["4w4a", "8w8a"])
def test_the_page_with_weights_of_others_scores_what_its_student_scores(bits, after, tmp_path):
    """The page's ResNet-20 with weights trained elsewhere, on 1,000 real images: integer, 98 % agreement, 0.3 points."""
    network = after["ResNet20"]()
    network.load_state_dict(torch.load(DATA / "third_party_resnet20_cifar10.pt", weights_only=True))
    moments = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    P = lab.wrap_teacher(network, input_shape=(3, 32, 32), **moments)
    Q = lab.quantize(P, bits)
    for _ in lab.Game(P, Q, lab.adadfq(), schedule=lab.Schedule(warmup=20)).play(20):
        pass
    data = lab.load_data("cifar10").take(1000)
    found = lab.verify(lab.export_onnx(Q, tmp_path / "q.onnx", P).file, data, student=Q, repeats=2)
    assert found.ok and found.agreement >= 98
    assert found.top1_file is not None and found.top1_student is not None
    assert abs(found.top1_file - found.top1_student) <= 0.3


@pytest.mark.slow
def test_the_commands_and_the_three_lines_run(tmp_path, monkeypatch, capsys):
    """Every command and block, in their order, in one folder."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    network = build_own("model.py:build").eval()
    torch.save({"state_dict": network.state_dict()}, "w.pt")
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    np.savez("photos.npz", x=x, y=np.arange(40) % 10)
    commands = re.findall(r"^adadfq (.*)$", PAGE, re.MULTILINE)[:5]
    assert [command.split()[0] for command in commands] == ["quantize", "quantize", "train", "evaluate", "export"]
    for command in commands:
        few = ["--rounds", "4"] if "model.py" in command or command.startswith("train") else []
        cli.main([*command.split(), *few, *(["--no-estimate"] if "model.py" in command else [])])
    exec(BLOCKS[0].replace('bits="4w4a"', 'bits="4w4a", rounds=4, quiet=True'), {"network": network})
    assert "held-out generated images" in capsys.readouterr().out
    assert all(Path(name).exists() for name in ("q.onnx", "again.onnx", "q_python.onnx", "q/report.html"))
    assert lab.load_teacher("q/teacher.safetensors").info.std == pytest.approx((0.25, 0.24, 0.26))
