"""What `verify` reports against what was counted otherwise, and what it makes of files that are not as they should be."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.live_games import tiny_images, tiny_teacher
from helpers.networks import CHANNELS, SIDE, ThirdPartyResNet20, randomize
from helpers.students import WITH_INTEGERS
from helpers.students import student_of as observed_student
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adadfq_lab.cli.integers import verify as verify_command
from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.integers.export import Exported, export_onnx, sidecar
from adadfq_lab.integers.float_network import float_network
from adadfq_lab.integers.packing import pack
from adadfq_lab.integers.verification import verify
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher, wrap_teacher
from adadfq_lab.teacher.teacher_files import load_teacher

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def student_of(teacher: Teacher, bits: str = "3w3a") -> Student:
    return observed_student(teacher, bits, teacher.info.input_shape)


@pytest.fixture
def exported(tmp_path) -> Exported:
    P = tiny_teacher()
    return export_onnx(student_of(P), tmp_path / "q.onnx", P)


# The figures


@pytest.mark.parametrize("name", ["fashion_mnist_resnet20"])
@pytest.mark.parametrize("bits", ["3w3a", "8w8a"])
def test_a_resnet20_is_verified_on_real_images(name, bits, tmp_path):
    """No float convolution, top-1 within 0.3 points of Q's, 98 % agreement, a third of the size; each figure counted again."""
    P = load_teacher(name)
    Q = student_of(P, bits)
    done = export_onnx(Q, tmp_path / "q.onnx", P)
    data = load_data(P.info.data, stub=True)
    images = ImageSet(data.name, data.split, data.images[:400], data.labels[:400], data.classes, "400")
    found = verify(done.file, images, repeats=2)
    assert found.ok and found.float_convs == 0 and found.integer_convs >= found.convs == 21
    assert (found.integer_linears >= 1, found.float_linears) == (True, 0)
    assert found.top1_student == accuracy(Q, images, P.normalize).top1
    session = onnxruntime.InferenceSession(done.file)
    logits = torch.from_numpy(session.run(None, {"images": P.normalize(images.images).contiguous().numpy()})[0])
    with torch.no_grad(), Q.frozen():
        own = Q(P.normalize(images.images))
    assert found.top1_file == 100 * int((logits.argmax(1) == images.labels).sum()) / 400
    assert found.agreement == 100 * int((logits.argmax(1) == own.argmax(1)).sum()) / 400
    assert found.agreement >= 98 and abs(found.top1_file - found.top1_student) <= 0.3
    assert found.bytes == done.bytes and found.packed_bytes == done.packed_bytes
    assert found.float_bytes == sum(4 * t.numel() for k, t in P.network.state_dict().items() if "num_batches" not in k)
    assert found.packed_bytes <= 1.15 * found.ideal_bytes and found.bytes <= 0.3 * found.float_bytes
    assert found.ms_file > 0 and found.ms_float > 0 and found.images == 400


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4, 5, 8])
@pytest.mark.parametrize("name", ["fashion_mnist_resnet20", "cifar10_resnet20"])
def test_both_teachers_at_all_widths_on_two_thousand_images(name, bits, tmp_path):
    """The numbers the project promises, on a student that played a short game."""
    import os

    from adadfq_lab.game.schedule import Schedule
    from adadfq_lab.runs.config import RunConfig
    from adadfq_lab.runs.run import run

    fashion = name.startswith("fashion")
    if not fashion and not (Path(os.environ.get("ADADFQ_DATA", "")) / "cifar10_test.npz").exists():
        pytest.skip("needs cifar10_test.npz in the folder that ADADFQ_DATA names")
    config = RunConfig(
        teacher=name,
        stub=fashion,
        bits=f"{bits}w{bits}a",
        rounds=100,
        schedule=Schedule(warmup=50),
        evaluate_every=0,
        save_every=0,
        gains_every=0,
    )
    run(config, tmp_path / "run", quiet=True)
    from adadfq_lab.student.student_files import load_student

    P, Q = load_student(tmp_path / "run" / "student.safetensors")
    found = verify(export_onnx(Q, tmp_path / "q.onnx", P).file, load_data(P.info.data, stub=fashion).take(2000), repeats=5)
    assert found.images == 2000 and found.ok
    assert found.top1_file is not None and found.top1_student is not None
    assert found.agreement >= 98 and abs(found.top1_file - found.top1_student) <= 0.3
    assert found.bytes <= 0.3 * found.float_bytes and found.packed_bytes <= 1.15 * found.ideal_bytes


def test_agreement_is_with_the_student_that_is_given(exported):
    """Beside a student with other weights the file agrees no more than chance has it."""
    other = student_of(tiny_teacher())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    x = 2 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 1
    assert verify(exported.file, x, repeats=1).agreement == 100.0
    assert verify(exported.file, x, student=other, repeats=1).agreement < 90


def test_json_has_the_promised_keys_and_the_table_the_same_figures(exported):
    found = verify(exported.file, tiny_images(50), repeats=1)
    plain = json.loads(json.dumps(found.as_json()))
    promised = {"integer_convs", "float_convs", "top1_student", "top1_file", "agreement", "bytes", "float_bytes"}
    assert promised | {"packed_bytes", "ms_file", "ms_float", "ok", "cpu", "versions", "operations"} <= set(plain)
    table = found.table()
    assert "every convolution is an integer convolution" in table and f"{found.integer_convs} integer, 0 float" in table
    assert f"{found.bytes:,} bytes" in table and "onnxruntime" in table and "50 images of noise" in table
    assert f"{found.operations['ConvInteger']} ConvInteger" in table


def test_without_images_there_is_noise_and_no_top1(exported):
    found = verify(exported.file, repeats=1)
    assert found.top1_file is None and found.top1_student is None and found.images == 256
    assert "not how good the student is" in found.table() and "top-1" not in found.table() and found.fault == ""


@pytest.mark.parametrize("kind", WITH_INTEGERS, ids=lambda kind: kind.__name__)
def test_the_float_network_is_the_one_the_student_was_made_from(kind, generator):
    """What the file is timed against has the teacher's weights, batch norms and ReLUs: the same logits."""
    network = randomize(kind(), generator)
    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=generator)
    with torch.no_grad():
        assert torch.allclose(float_network(quantize(network, "3w3a"))(x), network(x), atol=1e-5)


def test_a_network_of_your_own_is_verified_with_its_student(generator, tmp_path):
    """From `wrap_teacher` to a verified file; also by the file alone, since the student beside it can be rebuilt."""
    P = wrap_teacher(randomize(ThirdPartyResNet20(), generator), input_shape=(3, 32, 32))
    Q = student_of(P, "4w4a")
    done = export_onnx(Q, tmp_path / "q.onnx", P)
    assert verify(done.file, torch.randn(8, 3, 32, 32, generator=generator), student=Q, repeats=1).ok
    assert verify(done.file, repeats=1).ok


# Files that are not as they should be


def tampered(exported: Exported, change) -> Path:
    """The file with another graph or other metadata."""
    model = onnx.load(exported.file)
    change(model)
    exported.file.write_bytes(model.SerializeToString())
    return exported.file


def with_float_convolution(model) -> None:
    """Sends the images through a float convolution with the identity first: the numbers stay the same."""
    helper, identity = onnx.helper, onnx.numpy_helper.from_array(torch.ones(1, 1, 1, 1).numpy(), "identity")
    for node in model.graph.node:
        node.input[:] = ["copied" if name == "images" else name for name in node.input]
    model.graph.initializer.append(identity)
    model.graph.node.insert(0, helper.make_node("Conv", ["images", "identity"], ["copied"]))


def test_a_float_convolution_is_found(exported):
    """One float convolution among the integer ones: the file still scores the same, and fails."""
    found = verify(tampered(exported, with_float_convolution), repeats=1)
    assert found.float_convs == 1 and not found.ok and found.agreement == 100.0
    assert "NOT every convolution is an integer convolution" in found.table() and found.as_json()["ok"] is False


def test_missing_integer_convolutions_are_found(exported):
    """A file of fewer convolutions than its student has fails, though none is float."""

    def shortcut(model) -> None:
        mean = onnx.helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0, noop_with_empty_axes=0)
        again = onnx.helper.make_node("Expand", ["mean", "size"], ["logits"])
        model.graph.initializer.append(onnx.numpy_helper.from_array(torch.tensor([1, 4]).numpy(), "size"))
        model.graph.ClearField("node")
        model.graph.node.extend([mean, again])

    path = tampered(exported, shortcut)
    assert not verify(path, torch.zeros(1, 1, 8, 8), repeats=1).ok


def with_zero_weights(model) -> None:
    for stored in model.graph.initializer:
        if stored.name.endswith(".weight"):
            stored.raw_data = bytes(len(stored.raw_data))


def test_a_file_that_no_longer_computes_the_student_fails_and_says_so_first(exported, capsys):
    """Weights set to 0: every convolution is on integers still. The command ends with status 1."""
    found = verify(tampered(exported, with_zero_weights), repeats=1)
    assert found.float_convs == 0 and found.integer_convs >= found.convs and not found.ok
    assert "does NOT compute what its student computes: at activation" in found.table().splitlines()[0]
    with pytest.raises(SystemExit) as status:
        verify_command(exported.file)
    assert status.value.code == 1 and "does NOT compute" in capsys.readouterr().out


def test_the_teacher_is_reported_beside_the_student(exported):
    """A student that learned nothing: its file has its own classes for all images, and the teacher's for few."""
    P = tiny_teacher()
    Q = student_of(P)  # as in the fixture
    x = 2 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 1
    assert "not at hand" in verify(exported.file, x, repeats=1).table()
    found = verify(exported.file, x, teacher=P, repeats=1)
    with torch.no_grad(), Q.frozen():
        classes = torch.from_numpy(onnxruntime.InferenceSession(exported.file).run(None, {"images": x.numpy()})[0]).argmax(1)
        assert found.agreement_teacher == 100 * float((P(x).argmax(1) == classes).double().mean())
        assert found.student_teacher == 100 * float((P(x).argmax(1) == Q(x).argmax(1)).double().mean())
    assert f"the teacher's class for {found.agreement_teacher:.2f} %" in found.table() and "not accuracy" in found.table()


def test_images_without_labels_or_with_classes_in_another_order_are_used_as_they_are_meant(exported):
    """Unlabelled images give agreement only; labels that number the same names otherwise give the same accuracy."""
    images = tiny_images(60)
    found = verify(exported.file, images, repeats=1)
    other = replace(images, labels=3 - images.labels, classes=images.classes[::-1])
    assert verify(exported.file, other, repeats=1).top1_file == found.top1_file
    bare = verify(exported.file, replace(images, classes=()), teacher=tiny_teacher(), repeats=1)
    assert bare.top1_file is None and bare.agreement == found.agreement and bare.student_teacher is not None


def test_images_normalised_in_another_way_are_said(exported):
    """Pixels that no image in [0, 1] has by the teacher's mean 0.5 and deviation: the file cuts them off."""
    x = torch.zeros(4, 1, 8, 8)
    x[0] = 50.0
    found = verify(exported.file, x, repeats=1)
    assert found.outside == 25.0 and "25 % of them HAVE PIXELS OUTSIDE [0, 1]" in found.table()
    assert "OUTSIDE" not in verify(exported.file, x[1:], repeats=1).table()


def test_without_a_normalisation_no_image_is_cut(generator, tmp_path):
    """A teacher wrapped without mean and std, since the loader normalises: images of any range give what Q gives."""
    P = wrap_teacher(randomize(ThirdPartyResNet20(), generator), input_shape=(3, 32, 32))
    Q = quantize(P, "6w6a")
    x = 4 * torch.randn(16, 3, 32, 32, generator=generator) - 2
    with torch.no_grad():
        Q(x)
    found = verify(export_onnx(Q, tmp_path / "q.onnx", P).file, x, student=Q, repeats=1)
    assert found.ok and found.outside == 0 and found.agreement >= 90


def test_two_exports_have_the_same_sha256(tmp_path):
    """All three files, whatever the order of their headers' entries in memory."""
    P = tiny_teacher()
    Q = student_of(P)
    for name in "ab":
        (tmp_path / name).mkdir()
        export_onnx(Q, tmp_path / name / "q.onnx", P)
    for first in (tmp_path / "a").iterdir():
        assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes()


LOOKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    fprintf(stderr, "LOOKED UP %s\\n", node ? node : "");
    return EAI_FAIL;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nothing_is_looked_up_while_a_file_is_verified(exported, tmp_path):
    """A library in front of libc's getaddrinfo tells of every look-up of a host; the runtime's telemetry makes none."""
    (tmp_path / "looks.c").write_text(LOOKS)
    library = tmp_path / "looks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "looks.c"], check=True)
    script = f"from adadfq_lab.integers.verification import verify; import time; verify({str(exported.file)!r}, repeats=1)"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"LD_PRELOAD": str(library)}
    probe = (
        f"import socket\ntry:\n    socket.getaddrinfo('probe.invalid', 1)\nexcept OSError:\n    pass\n{script}; time.sleep(1)"
    )
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.split("LOOKED UP ")[1:] == ["probe.invalid\n"]


def meta(key: str, value: str | None):
    def change(model) -> None:
        kept = [p for p in model.metadata_props if p.key != f"adadfq.{key}"]
        texts = {p.key: p.value for p in kept} | ({} if value is None else {f"adadfq.{key}": value})
        model.ClearField("metadata_props")
        onnx.helper.set_model_props(model, texts)

    return change


def without_output(model) -> None:
    model.graph.output[0].name = "nothing"


def elsewhere(model) -> None:
    model.graph.initializer[0].data_location = model.graph.initializer[0].EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")


def unknown_operation(model) -> None:
    model.graph.node[0].op_type = "Conjure"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (meta("format", None), "was not written by adadfq export"),
        (meta("format", '"other"'), "was not written by adadfq export"),
        (meta("format", "{"), "damaged or not an ONNX file"),
        (meta("shape", None), "metadata of .* are damaged"),
        (meta("shape", "[1, 8]"), "metadata of .* are damaged"),
        (meta("shape", "[0, 8, 8]"), "metadata of .* are damaged"),
        (meta("shape", "[1, 100000, 100000]"), "metadata of .* are damaged"),
        (meta("shape", '"abc"'), "metadata of .* are damaged"),
        (meta("mean", "[1, 2, 3, 4]"), "metadata of .* are damaged"),
        (meta("mean", "7"), "metadata of .* are damaged"),
        (meta("mean", "[Infinity]"), "metadata of .* are damaged"),
        (meta("std", "[0]"), "metadata of .* are damaged"),
        (meta("shape", "[Infinity, 8, 8]"), "metadata of .* are damaged"),
        (meta("shape", "[1, 8, 1e999]"), "metadata of .* are damaged"),
        (elsewhere, "keeps tensors in other files"),
        (meta("student", '"0"'), "is not the student that"),
        (meta("shape", "[1, 9, 9]"), "does not run on images of shape"),
        (without_output, "ONNX Runtime does not load"),
        (unknown_operation, "ONNX Runtime does not load"),
    ],
)
def test_a_tampered_file_is_one_line(change, message, exported):
    with pytest.raises(UserError, match=message) as refused:
        verify(tampered(exported, change), repeats=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08", b"{}\n", bytes(range(256))], ids=repr)
def test_what_is_no_onnx_file_is_one_line(content, tmp_path):
    path = tmp_path / "q.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged or not an ONNX file|was not written by adadfq export"):
        verify(path)


@given(kept=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20)
def test_a_file_cut_off_anywhere_is_one_line(whole, kept):
    """However much of it is left."""
    path = whole.with_name("cut.onnx")
    path.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    with pytest.raises(UserError) as refused:
        verify(path, repeats=1)
    assert "\n" not in str(refused.value)


@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])  # capfd is emptied at each example
@example(position=0.999, change=128)  # text that is no UTF-8
def test_a_byte_changed_anywhere_ends_well(whole, capfd, position, change):
    """Another byte somewhere either ends in one line or is verified like any other file; the runtime prints nothing."""
    path, content = whole.with_name("changed.onnx"), bytearray(whole.read_bytes())
    content[int(position * len(content))] ^= change
    path.write_bytes(content)
    sidecar(path, "student").write_bytes(sidecar(whole, "student").read_bytes())
    try:
        verify(path, torch.zeros(2, 1, 8, 8), repeats=1)
    except UserError as refused:
        assert "\n" not in str(refused)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    P = tiny_teacher()
    return export_onnx(student_of(P), tmp_path_factory.mktemp("whole") / "whole.onnx", P).file


def test_files_that_are_not_there_are_one_line(exported, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        verify(tmp_path / "none.onnx")
    os.mkfifo(tmp_path / "fifo.onnx")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "fifo.onnx", "a FIFO")):
        with pytest.raises(UserError, match=f"is {kind}; give a file"):
            verify(path)
    assert exported.student is not None
    damaged = bytearray(exported.packed.read_bytes())
    damaged[-1] ^= 1
    exported.packed.write_bytes(damaged)
    with pytest.raises(UserError, match=r"packed\.safetensors is damaged"):
        verify(exported.file, repeats=1)
    exported.packed.unlink()
    assert verify(exported.file, repeats=1).packed_bytes == exported.packed_bytes  # made for the occasion
    exported.student.unlink()
    with pytest.raises(UserError, match=r"has no q\.student\.safetensors beside it"):
        verify(exported.file)


def test_weights_of_another_student_beside_the_file_are_one_line(exported):
    """A packed container that is whole, but another network's."""
    other = student_of(tiny_teacher())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    pack(other, exported.packed)
    with pytest.raises(UserError, match="holds the weights of another student"):
        verify(exported.file, repeats=1)


def test_a_foreign_onnx_file_is_one_line(tmp_path):
    """A sound file that somebody else wrote."""
    helper = onnx.helper
    infos = [helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph), tmp_path / "q.onnx")
    with pytest.raises(UserError, match="was not written by adadfq export"):
        verify(tmp_path / "q.onnx")


def test_images_that_do_not_fit_are_one_line(exported, tmp_path):
    with pytest.raises(UserError, match=r"takes images of shape \(1, 8, 8\), not 2 of \(3, 8, 8\)"):
        verify(exported.file, torch.zeros(2, 3, 8, 8))
    more = tiny_images(4)
    with pytest.raises(UserError, match=r"classes apart; more has 2|are not those of the file"):
        verify(exported.file, ImageSet("more", "test", more.images, more.labels % 2, ("a", "b"), "4"))
    P = tiny_teacher()
    Q = student_of(P)
    bare = export_onnx(Q, tmp_path / "bare.onnx", shape=(1, 8, 8))
    with pytest.raises(UserError, match="does not say how images are normalised"):
        verify(bare.file, more, student=Q)


def test_without_onnx_runtime_there_is_a_line_on_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'the package onnxruntime is missing; pip install "\.\[export\]"'):
        verify(exported.file)
