"""The check of a card: without one it says so, a part that fails fails alone, and it finds every test that needs a card."""

import json
from pathlib import Path

import pytest
import torch

from adadfq_lab.authoring import gpu_check


def test_without_a_card_it_is_one_line(monkeypatch, capsys):
    """Exit status 2, nothing written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--output", "/nowhere/at/all.json"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and "no CUDA device here" in said


def test_a_part_that_fails_fails_alone(tmp_path, monkeypatch, capsys):
    """The others are done, all of it stands in the file, and the exit status is 1."""
    monkeypatch.setitem(gpu_check.PARTS, "cifar", lambda check: {"ok": True, "rounds": 3})
    monkeypatch.setitem(gpu_check.PARTS, "imagenet", lambda check: {}["absent"])
    arguments = ["--device", "cpu", "--quick", "--output", str(tmp_path / "found.json"), "--parts", "imagenet", "cifar"]
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(arguments)
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(capsys.readouterr().out) == found and caught.value.code == 1
    assert not found["imagenet"]["ok"] and "KeyError" in found["imagenet"]["error"] and found["cifar"]["ok"] and not found["ok"]


def test_every_test_that_needs_a_card_is_found():
    """As many as the condition stands before a test."""
    tests = Path(__file__).parents[1]
    condition = "skipif(not torch.cuda.is_available()"
    expected = sum(path.read_text().count(f"\n@pytest.mark.{condition}") for path in tests.rglob("test_*.py"))
    assert len(gpu_check.card_tests(tests)) == expected > 1


def test_a_method_on_another_device_is_compared_with_the_cpu():
    """Here with itself: no difference; another loss is one."""
    a, b = (gpu_check._records("adadfq", torch.device("cpu"), 4) for _ in range(2))
    assert [gpu_check._difference(x, y) for x, y in zip(a, b, strict=True)] == [0, 0]
    assert gpu_check._difference(a[0], a[1]) > gpu_check.TOLERANCE[0]
