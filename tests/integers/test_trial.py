"""The guard of an export: a file that computes something else than its student is found, named and not left behind."""

import math
from pathlib import Path

import pytest
import torch
from helpers.networks import ResidualAdd, randomize
from helpers.students import SHAPE, student_of
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.integers import export
from adadfq_lab.integers.export import export_onnx
from adadfq_lab.integers.layers import to_integers
from adadfq_lab.integers.onnx_file import operations as onnx_operations
from adadfq_lab.integers.operations import forward_values, operations
from adadfq_lab.integers.trial import Trial, trial
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def student(generator) -> Student:
    return student_of(randomize(ResidualAdd(), generator), "4w4a")


def tried(path: Path, Q: Student, x: Tensor) -> Trial:
    return trial(path.read_bytes(), Q, operations(Q, SHAPE), to_integers(Q), x, exact=True)


def test_a_file_is_its_student_but_for_ties(student, generator, tmp_path):
    done = export_onnx(student, tmp_path / "q.onnx", shape=SHAPE)
    found = tried(done.file, student, torch.randn(8, *SHAPE, generator=generator))
    assert found.fault == "" and found.codes > 1000 and found.differing <= 2
    assert "each layer computes what the student's does" in done.notes[0]


@pytest.mark.parametrize("layer", ["conv", "second", "linear"])
def test_one_weight_changed_by_one_is_found(layer, student, generator, tmp_path):
    """Whichever layer it is in: by the activation after it, or by the logits."""
    path = export_onnx(student, tmp_path / "q.onnx", shape=SHAPE).file
    model = onnx.load(path)
    for stored in model.graph.initializer:
        if stored.name == f"{layer}.weight":
            codes = onnx.numpy_helper.to_array(stored).copy()
            codes.flat[5] += 1 if codes.flat[5] < 7 else -1
            stored.raw_data = codes.tobytes()
    path.write_bytes(model.SerializeToString())
    found = tried(path, student, torch.randn(8, *SHAPE, generator=generator))
    assert ("logits" if layer == "linear" else "at activation") in found.fault


def test_a_wrong_file_is_refused_and_nothing_is_left(student, tmp_path, monkeypatch):
    """A writer that drops what it should add: an export over an earlier one leaves that as it was."""
    path = tmp_path / "q.onnx"
    before = export_onnx(student, path, shape=SHAPE).file.read_bytes()
    monkeypatch.setitem(onnx_operations.WRITERS, "arithmetic", lambda graph, step, inputs: inputs[0])
    with pytest.raises(UserError, match="does not compute what the student computes: at activation") as refused:
        export_onnx(student, path, shape=SHAPE)
    assert "\n" not in str(refused.value) and path.read_bytes() == before
    with pytest.raises(UserError):
        export_onnx(student, tmp_path / "new.onnx", shape=SHAPE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.onnx", "q.packed.safetensors"]


def test_a_file_that_does_not_load_is_refused_and_nothing_is_left(student, tmp_path, monkeypatch):
    def unknown(graph, step, inputs):
        return onnx_operations.Value(graph.node("Relu", [graph.floats(inputs[0]), *[step.name] * 3], step.name))

    monkeypatch.setitem(onnx_operations.WRITERS, "arithmetic", unknown)
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)
    with pytest.raises(UserError, match="ONNX Runtime does not load the file"):
        export_onnx(student, tmp_path / "q.onnx", shape=SHAPE)
    assert not list(tmp_path.iterdir())


def test_without_the_runtime_the_file_is_said_not_to_have_been_run(student, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "available", lambda: False)
    done = export_onnx(student, tmp_path / "q.onnx", shape=SHAPE)
    assert "has not been run" in done.notes[0] and done.file.exists()


@pytest.mark.parametrize(("form", "input_bits"), [("qcdq", 24), ("qcdq", 8), ("exact", 8)])
def test_forms_that_round_more_are_said_to(form, input_bits, student, tmp_path):
    done = export_onnx(student, tmp_path / "q.onnx", shape=SHAPE, form=form, input_bits=input_bits)
    assert "codes differ, by rounding" in done.notes[0]


@pytest.mark.parametrize(("input_bits", "expected"), [(8, range(1, 200)), (16, range(3)), (24, range(3))])
def test_an_image_of_few_bits_flips_the_codes_that_its_error_reaches(input_bits, expected, student, generator, tmp_path):
    """An image of k planes of 8 bits is off by half a step, (max - min)/255/254^(k-1)/2, and y by sum |w| times that.

    So of 4,096 codes 16 bits change none that is not on a tie, and 8 bits some dozens.
    """
    path = export_onnx(student, tmp_path / "q.onnx", shape=SHAPE, input_bits=input_bits).file
    x = torch.randn(8, *SHAPE, generator=generator)
    steps, table = operations(student, SHAPE), to_integers(student)
    found = trial(path.read_bytes(), student, steps, table, x, exact=False)
    first = next(step for step in steps if step.kind == "activation")  # the pieces after it start from Q's own codes
    layer, grid = student.layers()["conv"], table.activations[first.target.removeprefix("activations.")]
    slope = layer.quantized_weight().abs().sum((1, 2, 3)) * layer.affine()[0].abs()
    error = float(x.max() - x.min()) / 255 / 254 ** (input_bits // 8 - 1) / 2 * slope / grid.scale
    y = (forward_values(student, x)[first.inputs[0]] / grid.scale).double()
    reached = ((y - y.floor() - 0.5).abs() <= error.view(1, -1, 1, 1) + 1e-4).sum()
    assert found.fault == "" and found.differing in expected and found.differing <= reached


def test_a_student_without_activations_is_compared_by_its_logits(generator, tmp_path):
    Q = quantize(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 3)), "4w4a")
    assert "0 of 0 codes differ" in export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE).notes[0]
