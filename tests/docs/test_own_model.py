"""docs/own_model.md runs as printed, with fewer rounds and a network of 16 x 16 images' speed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import adadfq_lab as lab
from adadfq_lab.cli import main as cli
from adadfq_lab.teacher.own_network import build_own

PAGE = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text(encoding="utf-8")
MODEL = """
from torch import nn

def build():
    body = [nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 10))
"""


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    """Every command and block, in their order, in one folder."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    network = build_own("model.py:build").eval()
    torch.save({"state_dict": network.state_dict()}, "w.pt")
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    np.savez("photos.npz", x=x, y=np.arange(40) % 10)
    commands = re.findall(r"^adadfq (.*)$", PAGE, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["quantize", "quantize", "train", "evaluate", "export"]
    for command in commands:
        few = ["--rounds", "4"] if "model.py" in command or command.startswith("train") else []
        cli.main([*command.split(), *few, *(["--no-estimate"] if "model.py" in command else [])])
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block.replace('bits="4w4a"', 'bits="4w4a", rounds=4, quiet=True'), {"network": network})
    assert "held-out generated images" in capsys.readouterr().out
    assert all(Path(name).exists() for name in ("q.onnx", "again.onnx", "q_python.onnx", "q/report.html"))
    assert lab.load_teacher("q/teacher.safetensors").info.std == (0.25, 0.24, 0.26)
