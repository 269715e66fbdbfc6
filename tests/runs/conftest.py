"""What the tests of whole runs share."""

from pathlib import Path

import pytest
from helpers.tiny_games import images_for, saved_teacher


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a teacher of ten classes and 150 images to measure it on."""
    folder = tmp_path_factory.mktemp("place")
    saved_teacher(folder / "teacher.safetensors", classes=10, data="cifar10")
    images_for(folder, "cifar10", count=150)
    return folder


@pytest.fixture
def images(place, monkeypatch) -> None:
    """These images are found."""
    monkeypatch.setenv("ADADFQ_DATA", str(place))
