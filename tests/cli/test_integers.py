"""`adadfq export` and `adadfq verify`: what they print, what they write, and how they end."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_games import saved_teacher

from adadfq_lab.cli import main as cli
from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student_files import save_student

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

KEYS = {"integer_convs", "float_convs", "top1_student", "top1_file", "agreement", "bytes", "float_bytes", "packed_bytes"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a run called `run` and a file that was exported from it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "run").mkdir()
    P = saved_teacher(folder / "run" / "teacher.safetensors", classes=10, data="nothing")
    Q = quantize(P, "3w3a")
    observe_noise(Q, P.info.input_shape, batches=2)
    save_student(Q, P, folder / "run" / "student.safetensors")
    config = {"teacher": str(folder / "run" / "teacher.safetensors")}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    say("export", folder / "run", "--output", folder / "q.onnx")
    return folder


def say(*arguments: object, status: int = 0) -> str:
    """What `adadfq ARGUMENTS` prints; it ends with `status`, and for 2 with one line on standard error."""
    out, err = io.StringIO(), io.StringIO()
    ended = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            ended = int(stop.code or 0)
    assert ended == status, err.getvalue()
    if status == 2:
        assert out.getvalue() == "" and err.getvalue().startswith("adadfq: ") and err.getvalue().count("\n") == 1
        return err.getvalue()
    return out.getvalue()


def last_line(out: str) -> Any:
    return json.loads(out.rstrip("\n").split("\n")[-1])


@pytest.mark.parametrize("run", ["run", "run/student.safetensors"])
def test_export_writes_three_files_and_says_what_they_are(run, made, tmp_path):
    out = say("export", made / run, "--output", tmp_path / "mine.onnx", "--json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.onnx", "mine.packed.safetensors", "mine.student.safetensors"]
    found = last_line(out)
    assert found["bytes"] == (tmp_path / "mine.onnx").stat().st_size and (found["convs"], found["linears"]) == (9, 1)
    assert "at the speed of int8, not of 3 bits" in out and f"{found['packed_bytes']:,} bytes" in out
    assert (tmp_path / "mine.onnx").read_bytes() == (made / "q.onnx").read_bytes()


def test_verify_prints_a_table_and_then_json(made):
    out = say("verify", made / "q.onnx", "--json")
    found = last_line(out)
    assert found.keys() >= KEYS | {"ms_file", "ms_float"}
    assert found["float_convs"] == 0 and found["integer_convs"] >= 9 and found["agreement"] >= 98
    assert "every convolution is an integer convolution" in out
    assert "{" not in say("verify", made / "q.onnx")


def test_verify_measures_on_the_data_that_is_named(made, tmp_path, monkeypatch):
    """--data takes the name of a data set; top-1 is of its labels."""
    import numpy as np

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", x=images, y=np.arange(40) % 10)
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    found = last_line(say("verify", made / "q.onnx", "--data", "cifar10", "--json"))
    assert found["images"] == 40 and 0 <= found["top1_file"] <= 100 and found["top1_student"] is not None


def test_a_float_convolution_is_exit_status_1(made, tmp_path):
    """The table still stands on standard output, and says so."""
    for name in ("q.onnx", "q.student.safetensors"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    model = onnx.load(tmp_path / "q.onnx")
    for node in model.graph.node:
        node.input[:] = ["copied" if name == "images" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(torch.eye(2).view(2, 2, 1, 1).numpy(), "identity"))
    model.graph.node.insert(0, onnx.helper.make_node("Conv", ["images", "identity"], ["copied"]))
    (tmp_path / "q.onnx").write_bytes(model.SerializeToString())
    out = say("verify", tmp_path / "q.onnx", "--json", status=1)
    assert last_line(out)["float_convs"] == 1 and "NOT every convolution" in out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("export nothing --output HERE/q.onnx", "there is no file nothing"),
        ("export MADE --output HERE/q.onnx", "there is no file"),
        ("export MADE/run --output HERE/q.pt", "must end in .onnx"),
        ("export MADE/run --output HERE/none/q.onnx", "lie in a folder that exists"),
        ("export MADE/q.onnx --output HERE/q.onnx", "damaged or not a safetensors file"),
        ("verify HERE/q.onnx", "there is no file"),
        ("verify MADE", "is a folder; give a file"),
        ("verify MADE/run/config.json", "damaged or not an ONNX file"),
        ("verify MADE/q.packed.safetensors", "damaged or not an ONNX file"),
        ("verify MADE/q.onnx --data mnist", "no data set is called 'mnist'"),
        ("verify MADE/q.onnx --data fashion_mnist", "takes images of shape (2, 8, 8)"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, what, made, tmp_path):
    words = arguments.replace("HERE", str(tmp_path)).replace("MADE", str(made)).split()
    assert what in say(*words, status=2)
    assert not list(tmp_path.iterdir())
