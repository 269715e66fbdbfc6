"""The ONNX file: its initialisers against the student's integers, its logits against the integer network's.

ONNX Runtime is the oracle for what the nodes mean; `run_integer`, which is proved elsewhere, for what they should compute.
"""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.live_games import tiny_teacher
from helpers.networks import (
    CHANNELS,
    SIDE,
    Grouped,
    LeftFloat,
    NoNorm,
    NormWithoutMemory,
    ResidualAdd,
    ThirdPartyResNet20,
    randomize,
)
from helpers.students import SHAPE, every_network, student_of
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.integers.export import Exported, export_onnx
from adadfq_lab.integers.inference import run_integer
from adadfq_lab.integers.layers import to_integers
from adadfq_lab.integers.packing import unpack
from adadfq_lab.integers.runtimes import load
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student_files import load_student
from adadfq_lab.teacher.teacher_files import load_teacher

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run_file(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.contiguous().numpy()})[0])


def near(actual: Tensor, expected: Tensor) -> float:
    """The largest error of the images that no rounding tie befell, which must be most: the 90th percentile of errors."""
    errors = (actual - expected).abs().amax(1) / expected.abs().max()
    return float(errors.quantile(0.9))


# What the file computes


@pytest.mark.parametrize(("kind", "bits"), every_network(["3w3a", "8w8a"], seldom=["2w2a", "5w8a", "8w3a"]))
def test_every_spelling_runs_on_integers(kind, bits, generator, tmp_path):
    """However a network is written, ONNX Runtime executes no float convolution of it and gives the integer network's logits."""
    Q = student_of(randomize(kind(), generator), bits)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE)
    x = torch.randn(40, *SHAPE, generator=generator)
    assert near(run_file(done.file, x), run_integer(Q, x)) < (1e-5 if bits != "8w8a" else 2e-2)
    executed = load(done.file).executed
    assert not [op for op in executed if "Conv" in op and op not in ("ConvInteger", "QLinearConv")]
    assert not {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"} & set(executed)


@pytest.mark.parametrize("bits", ["3w3a", "8w8a"])
@pytest.mark.parametrize("gammas", [(-1.3, 0.7, 0.0, 1e-9), (1.3, 0.7, 0.9, 0.5), (1e-30, 1.0, 1.0, 1.0)], ids=str)
def test_negative_and_vanishing_gammas(gammas, bits, generator, tmp_path):
    """A channel may be turned round, or be its bias alone, whatever form its convolution takes in the file."""
    network = randomize(ResidualAdd(), generator)
    with torch.no_grad():
        network.norm.weight.copy_(torch.tensor(gammas))
        network.second_norm.weight.copy_(torch.tensor(gammas))
    Q = student_of(network, bits, every_input=True)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE)
    x = torch.randn(40, *SHAPE, generator=generator)
    assert near(run_file(done.file, x), run_integer(Q, x)) < (1e-5 if bits == "3w3a" else 2e-2)


@pytest.mark.parametrize(
    ("make", "shape", "bits"),
    [
        (lambda: torchvision.models.resnet18(weights=None, num_classes=7), (3, 64, 64), "4w4a"),
        (lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=7), (3, 64, 64), "4w4a"),
        (lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=7), (3, 64, 64), "8w8a"),
        (ThirdPartyResNet20, (3, 32, 32), "3w3a"),
    ],
    ids=["resnet18", "mobilenet_v2", "mobilenet_v2 at 8", "third party"],
)
def test_networks_of_others_run_on_integers(make, shape, bits, generator, tmp_path):
    """Residual adds, depthwise convolutions, ReLU6 and shortcuts without parameters."""
    Q = student_of(randomize(make(), generator), bits, shape)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=shape)
    x = torch.randn(4, *shape, generator=generator)
    assert float((run_file(done.file, x) - run_integer(Q, x)).abs().amax(1).median()) < 0.02 * float(
        run_integer(Q, x).abs().max()
    )
    executed = load(done.file).executed
    assert sum(count for op, count in executed.items() if op in ("ConvInteger", "QLinearConv")) >= done.convs > 15
    assert not [op for op in executed if "Conv" in op and op not in ("ConvInteger", "QLinearConv")]


def test_fewer_input_bits_are_fewer_convolutions_and_coarser(generator, tmp_path):
    """The image takes a convolution for each eight bits, and the logits move the less, the more there are."""
    Q = student_of(randomize(ResidualAdd(), generator), "4w4a")
    x = torch.randn(40, *SHAPE, generator=generator)
    convs, errors = [], []
    for bits in (8, 16, 24):
        done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, input_bits=bits)
        convs.append(load(done.file).executed["ConvInteger"])
        errors.append(near(run_file(done.file, x), run_integer(Q, x)))
    assert convs == [2, 3, 4] and errors[0] > errors[2] < 1e-5


@pytest.mark.parametrize("form", ["exact", "qcdq"])
@pytest.mark.parametrize("bits", ["7w8a", "8w8a"])
@pytest.mark.parametrize("layer", [nn.Conv2d(CHANNELS, 6, 3), nn.Linear(CHANNELS * SIDE * SIDE, 6)], ids=["conv", "linear"])
def test_sums_of_the_largest_codes_are_exact(layer, bits, form, generator, tmp_path):
    """255 * 127 + 255 * 127 leaves the 16 bits in which a processor without a dot product of bytes adds two products: bright
    images on channels of one sign give no other sums for that."""
    with torch.no_grad():  # from lo to hi, mostly near hi: the codes are mostly the largest
        layer.weight.copy_(1 - 0.1 * torch.rand(layer.weight.shape, generator=generator))
        layer.weight[1::2] *= -1
    linear = isinstance(layer, nn.Linear)
    network = nn.Sequential(nn.ReLU(), *([nn.Flatten(), layer] if linear else [layer, nn.ReLU(), nn.Flatten()]))
    x = 1 - 0.1 * torch.rand(40, *SHAPE, generator=generator)
    Q = quantize(network, bits)
    Q(x)
    done, expected = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, form=form), run_integer(Q, x)
    step = float(expected.abs().max()) * (1e-5 if linear else 1.001 / 255)  # a convolution's bias is a rounded integer here
    assert float((run_file(done.file, x) - expected).abs().max()) <= step


# What stands in the file


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", [ResidualAdd, Grouped])
def test_initialisers_are_the_students_codes_raw_and_int8(kind, bits, generator, tmp_path):
    """For every layer one int8 initialiser holds Q's own codes, one byte each; activations are uint8."""
    Q = student_of(randomize(kind(), generator), f"{bits}w{bits}a")
    path = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE).file
    stored = {i.name: i for i in onnx.load(path).graph.initializer}
    for name, layer in to_integers(Q).layers.items():
        weight = stored[f"{name}.weight"]
        assert weight.data_type == onnx.TensorProto.INT8 and len(weight.raw_data) == layer.codes.numel()
        assert torch.equal(torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()), layer.codes)
    types = {i.type.tensor_type.elem_type for i in onnx.shape_inference.infer_shapes(onnx.load(path)).graph.value_info
             if i.name.endswith((".codes", ".clipped"))}  # fmt: skip
    assert types == {onnx.TensorProto.UINT8}
    used = {name for node in onnx.load(path).graph.node for name in node.input}
    assert set(stored) <= used  # nothing is carried along for nothing


def test_clips_are_on_integers_and_at_the_bits(generator, tmp_path):
    """Three bits are a Clip of uint8 at 7, eight bits need none."""
    for bits, largest in (("3w3a", [7]), ("8w8a", [])):
        Q = student_of(randomize(NoNorm(), generator), bits)
        graph = onnx.load(export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE).file).graph
        stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        limits = [stored[node.input[2]] for node in graph.node if node.op_type == "Clip"]
        assert [int(limit) for limit in limits] == largest and all(limit.dtype == "uint8" for limit in limits)


@pytest.mark.parametrize("bits", ["3w3a", "8w8a"])
def test_a_resnet20_takes_less_than_30_percent_of_float32(bits, tmp_path):
    P = load_teacher("fashion_mnist_resnet20")
    done = export_onnx(student_of(P, bits, P.info.input_shape), tmp_path / "q.onnx", P)
    float_bytes = sum(4 * t.numel() for k, t in P.network.state_dict().items() if "num_batches" not in k)
    assert done.bytes == done.file.stat().st_size < 0.30 * float_bytes
    assert (done.convs, done.linears) == (21, 1)


def test_three_files_are_written_and_each_is_whole(tmp_path):
    """The ONNX file names its teacher's facts; the student and the packed container beside it are read back."""
    P = tiny_teacher()
    Q = student_of(P, "3w4a", P.info.input_shape)
    done = export_onnx(Q, tmp_path / "mine.onnx", P)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.onnx", "mine.packed.safetensors", "mine.student.safetensors"]
    facts = {p.key: json.loads(p.value) for p in onnx.load(done.file).metadata_props}
    assert (
        facts["adadfq.classes"] == list(P.info.classes) and facts["adadfq.shape"] == [1, 8, 8] and facts["adadfq.mean"] == [0.5]
    )
    x = torch.randn(2, *P.info.input_shape, generator=torch.Generator().manual_seed(0))
    again = load_student(done.student, P)[1]
    with torch.no_grad():
        assert torch.equal(again(x), Q(x))
    assert torch.equal(run_integer(Q, x, table=unpack(done.packed)), run_integer(Q, x))
    plain = json.loads(json.dumps(done.as_json()))
    assert plain["bytes"] == done.bytes and plain["packed_bytes"] == done.packed.stat().st_size and plain["bits"] == "3w4a"


def test_the_same_student_gives_the_same_bytes(tmp_path):
    P = tiny_teacher()
    Q = student_of(P, "3w3a", P.info.input_shape)
    first, second = (export_onnx(Q, tmp_path / f"{name}.onnx", P).file.read_bytes() for name in "ab")
    assert first == second


# What is said


def said(done: Exported) -> str:
    return "\n".join(done.notes)


def test_the_notes_say_what_a_user_should_know(generator, tmp_path):
    """Speed of int8, what Q leaves float and the switch that does not, what computes in float32 between layers."""
    network = randomize(ResidualAdd(), generator)
    text = said(export_onnx(student_of(network), tmp_path / "q.onnx", shape=SHAPE))
    assert "at the speed of int8, not of 3 bits" in text and "every_input=True" in text and "conv, linear" in text
    assert "scale, bias, add, average pool are float32" in text
    text = said(export_onnx(student_of(network, "8w8a", every_input=True), tmp_path / "q.onnx", shape=SHAPE))
    assert "speed" not in text and "every_input" not in text


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("q.txt", {"shape": SHAPE}, r"must end in \.onnx"),
        ("none/q.onnx", {"shape": SHAPE}, "lie in a folder that exists"),
        ("q.onnx", {}, "which images the student takes is not known"),
        ("q.onnx", {"shape": SHAPE, "input_bits": 12}, "input_bits must be 8, 16 or 24, not 12"),
        ("q.onnx", {"shape": (1, 8, 8)}, "does not take images of shape"),
    ],
)
def test_mistakes_are_a_line_and_leave_nothing(name, options, message, generator, tmp_path):
    Q = student_of(randomize(NoNorm(), generator))
    with pytest.raises(UserError, match=message) as refused:
        export_onnx(Q, tmp_path / name, **options)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "message"), [(LeftFloat, "ConvTranspose2d"), (NormWithoutMemory, "the batch's own")])
def test_networks_without_integers_are_refused_and_leave_nothing(kind, message, generator, tmp_path):
    Q = student_of(randomize(kind(), generator))
    with pytest.raises(UserError, match=message):
        export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE)
    assert not list(tmp_path.iterdir())


def test_without_the_package_onnx_there_is_a_line_on_what_to_install(generator, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r'the package onnx is missing; pip install "\.\[export\]"'):
        export_onnx(student_of(randomize(NoNorm(), generator)), tmp_path / "q.onnx", shape=SHAPE)


# The form for other runtimes


@pytest.mark.parametrize(("kind", "bits"), every_network(["3w3a", "8w8a"], seldom=["2w2a", "8w3a"]))
def test_qcdq_is_fused_whatever_the_spelling(kind, bits, generator, tmp_path):
    """No float convolution is left, and the file is near the integer network: as near as outputs of 8 bits are."""
    Q = student_of(randomize(kind(), generator), bits)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, form="qcdq")
    x = torch.randn(40, *SHAPE, generator=generator)
    expected = run_integer(Q, x)
    error = (run_file(done.file, x) - expected).abs().amax(1).median() / expected.abs().max()
    assert float(error) < (0.05 if bits == "8w8a" else 0.3)
    assert load(done.file).float_convs == 0
    assert "Convolutions put out 8 bits here" in said(done)


@pytest.mark.parametrize("gammas", [(-1.3, 0.7, 0.0, 1e-9), (1e-30, 1.0, -1.0, 1.0)], ids=str)
@pytest.mark.parametrize("bits", ["3w3a", "8w8a"])
def test_qcdq_with_negative_and_vanishing_gammas(bits, gammas, generator, tmp_path):
    """Scales in the file are positive: a negative gamma is in the stored integers, a vanishing one leaves the bias."""
    network = randomize(ResidualAdd(), generator)
    with torch.no_grad():
        network.norm.weight.copy_(torch.tensor(gammas))
        network.second_norm.weight.copy_(torch.tensor(gammas))
    Q = student_of(network, bits, every_input=True)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, form="qcdq")
    x = torch.randn(40, *SHAPE, generator=generator)
    expected = run_integer(Q, x)
    assert float((run_file(done.file, x) - expected).abs().amax(1).median() / expected.abs().max()) < 0.1
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(done.file).graph.initializer}
    assert all((value > 0).all() for name, value in stored.items() if name.endswith(".weight.scale"))


def test_qcdq_of_a_single_layer_rounds_its_bias_only(generator, tmp_path):
    """A convolution with an activation on either side: its codes are those of Q but where the integer bias decides, and then by
    one; float inputs of 8 bits make one convolution of one."""
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(CHANNELS, 6, 3), nn.ReLU(), nn.Flatten())
    Q = student_of(randomize(network, generator), "3w3a")
    x = torch.randn(40, *SHAPE, generator=generator)
    done = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, form="qcdq")
    with torch.no_grad():
        steps = (run_file(done.file, x) - Q(x)) / to_integers(Q).activations["_2"].scale
    assert float(steps.abs().max()) < 1.001 and float((steps.abs() > 0.5).float().mean()) < 0.01
    image = student_of(randomize(NoNorm(), generator))
    executed = load(export_onnx(image, tmp_path / "q.onnx", shape=SHAPE, form="qcdq", input_bits=8).file).executed
    assert executed["QLinearConv"] == 1 and executed["ConvInteger"] == 0


def test_openvino_computes_the_same_on_integers(generator, tmp_path):
    """A second runtime: it finds the same convolutions to be integer, and predicts the same."""
    pytest.importorskip("openvino")
    Q = student_of(randomize(ResidualAdd(), generator), "4w4a")
    path = export_onnx(Q, tmp_path / "q.onnx", shape=SHAPE, form="qcdq", input_bits=8).file
    x = torch.randn(40, *SHAPE, generator=generator)
    first, second = load(path), load(path, "openvino")
    assert second.float_convs == 0 and second.executed["Convolution u8"] == 2
    assert int((first(x).argmax(1) != second(x).argmax(1)).sum()) <= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_student_on_a_gpu_is_written_like_any_other(tmp_path):
    P = tiny_teacher()
    Q = student_of(P, "3w3a", P.info.input_shape)
    there = export_onnx(Q, tmp_path / "a.onnx", P).file.read_bytes()
    assert export_onnx(Q.cuda(), tmp_path / "b.onnx", P).file.read_bytes() == there
