"""Is it really integer, and does it still score the same? Questions to an exported file, answered by running it.

ONNX Runtime writes down the graph it executes after all its optimisations, and that graph is what counts: a convolution that a
runtime turned back into floats stands there as `Conv` or `FusedConv`. The file's predictions are compared with those of the
student it was made from, image by image; its time with that of the float network in torch, on one thread each, in turn.
"""

import copy
import dataclasses
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.data import ImageSet, load_data
from adadfq_lab.errors import UserError
from adadfq_lab.export import FORMAT, import_extra, sidecar
from adadfq_lab.layers import QuantConv2d, QuantLayer
from adadfq_lab.onnx_layers import IMAGES, LOGITS
from adadfq_lab.packing import ideal_bytes, pack
from adadfq_lab.quantizer import QuantActivation
from adadfq_lab.student import Student
from adadfq_lab.student_files import rebuild_student
from adadfq_lab.teachers import normalize

INTEGER_CONVS = ("ConvInteger", "QLinearConv")
INTEGER_PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul")
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedGemm", "FusedMatMul")
NOISE = 256  # standard-normal images to compare on where there are no others


@dataclass(frozen=True)
class Verification:
    """What running an exported file showed.

    convs:                          convolutions of the student
    integer_convs, float_convs:     convolutions in the graph that ONNX Runtime executes
    integer_linears, float_linears: matrix products in it
    top1_student, top1_file:        percent of the images, None where they have no labels
    agreement:                      percent of the images for which both predict the same class
    bytes, float_bytes:             of the file, and of the float32 network's weights and batch norms
    packed_bytes, ideal_bytes:      of the packed container, and of the weights alone at n bits each
    ms_file, ms_float:              median milliseconds an image takes on one thread; torch float32 for comparison
    operations:                     how often each operation stands in the executed graph
    """

    file: str
    bits: str
    convs: int
    integer_convs: int
    float_convs: int
    integer_linears: int
    float_linears: int
    top1_student: float | None
    top1_file: float | None
    agreement: float
    images: int
    source: str
    bytes: int
    float_bytes: int
    packed_bytes: int
    ideal_bytes: int
    ms_file: float
    ms_float: float
    cpu: str
    versions: dict[str, str]
    operations: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every convolution of the student is executed, and on integers."""
        return self.float_convs == 0 and self.integer_convs >= self.convs

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ok": self.ok}

    def table(self) -> str:
        """The same as a few lines of text."""
        verdict = (
            "every convolution is an integer convolution" if self.ok else "NOT every convolution is an integer convolution"
        )
        scores = "" if self.top1_file is None else f"top-1 {self.top1_file:.2f} %, the student's {self.top1_student:.2f} %; "
        rows = [
            ("convolutions", f"{self.integer_convs} integer, {self.float_convs} float, of the student's {self.convs}"),
            ("linear layers", f"{self.integer_linears} integer, {self.float_linears} float"),
            ("predictions", f"{scores}the same class for {self.agreement:.2f} % of {self.source}"),
            ("file", f"{self.bytes:,} bytes, {100 * self.bytes / self.float_bytes:.1f} % of float32's {self.float_bytes:,}"),
            ("packed", f"{self.packed_bytes:,} bytes, {self.packed_bytes / self.ideal_bytes:.2f} x the weights' bits alone"),
            ("one thread", f"{self.ms_file:.2f} ms an image, torch float32 {self.ms_float:.2f} ms"),
            ("measured with", ", ".join([self.cpu, *(f"{name} {number}" for name, number in self.versions.items())])),
            ("executed graph", ", ".join(f"{count} {name}" for name, count in self.operations.items())),
        ]
        return "\n".join([f"{self.file}, {self.bits}: {verdict}", *(f"{name:15} {text}" for name, text in rows)])


def verify(
    path: Path | str, data: ImageSet | Tensor | None = None, *, student: Student | None = None, repeats: int = 100
) -> Verification:
    """Runs the file `path`, which `export_onnx` wrote, beside its student.

    data:    test images with labels, or normalised images `(N, C, H, W)` without; by default the 2,000 shipped ones for
             Fashion-MNIST, otherwise the teacher's test set in the folder ADADFQ_DATA, otherwise standard-normal images
    student: the one the file was made from; by default the one stored beside it
    repeats: how often either network is timed

    Raises UserError where the file is missing, malformed, or none of `export_onnx`, or where its student is not to be had.
    """
    path = Path(path)
    facts = _facts(path)
    student = student or _stored_student(path, facts)
    session, executed = _session(path)
    labels, predictions, source = [], [], ""
    with torch.inference_mode(), student.frozen():
        for images, truth, source in _batches(data, facts):  # noqa: B007 (the source is the same for all)
            labels.append(truth)
            predictions.append(torch.stack((student(images).argmax(1), _run(session, path, images).argmax(1))))
            example = images[:1]
        by_student, by_file = torch.cat(predictions, 1)
        ms_file, ms_float = _times(lambda: _run(session, path, example), student, example, repeats)
    known = None if any(truth is None for truth in labels) else torch.cat([truth for truth in labels if truth is not None])
    integer = sum(executed[op] for op in INTEGER_CONVS)
    packed = sidecar(path, "packed")
    return Verification(
        file=path.name,
        bits=str(student.bits),
        convs=sum(isinstance(layer, QuantConv2d) for layer in student.layers().values()),
        integer_convs=integer,
        float_convs=sum(count for op, count in executed.items() if "Conv" in op) - integer,
        integer_linears=sum(executed[op] for op in INTEGER_PRODUCTS),
        float_linears=sum(executed[op] for op in FLOAT_PRODUCTS),
        top1_student=None if known is None else _percent(by_student == known),
        top1_file=None if known is None else _percent(by_file == known),
        agreement=_percent(by_student == by_file),
        images=len(by_file),
        source=source,
        bytes=path.stat().st_size,
        float_bytes=_float_bytes(student),
        packed_bytes=packed.stat().st_size if packed.exists() else _packed_bytes(student),
        ideal_bytes=ideal_bytes(student),
        ms_file=ms_file,
        ms_float=ms_float,
        cpu=_cpu(),
        versions={name: version(name) for name in ("onnxruntime", "onnx", "torch")},
        operations=dict(executed.most_common()),
    )


class _Float(nn.Module):
    """A quantised layer with its float weight, and its batch norm as a step of its own."""

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not isinstance(layer, QuantConv2d):
            return F.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
        out = layer.convolve(x, layer.weight, layer.bias)
        return out if layer.bn is None else layer.bn(out)


def float_network(student: Student) -> nn.Module:
    """The network `student` was made from, as far as it remembers: its float weights, batch norms and plain ReLUs."""
    network = copy.deepcopy(student.graph)
    for name, module in list(network.named_modules()):
        if isinstance(module, QuantLayer):
            network.set_submodule(name, _Float(module))
        elif isinstance(module, QuantActivation):
            network.set_submodule(name, {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}[module.relu]())
    return network.eval()


# The file


def _facts(path: Path) -> dict[str, Any]:
    """What `export_onnx` wrote down in the file about it and its student."""
    onnx, protobuf = import_extra("onnx"), import_extra("google.protobuf.message")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        facts = {
            p.key.removeprefix("adadfq."): json.loads(p.value) for p in model.metadata_props if p.key.startswith("adadfq.")
        }
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except (protobuf.DecodeError, ValueError):
        raise UserError(f"{path} is damaged or not an ONNX file") from None
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} was not written by adadfq export (no {FORMAT!r} in its metadata)")
    return facts


def _stored_student(path: Path, facts: dict[str, Any]) -> Student:
    beside = sidecar(path, "student")
    if not beside.exists():
        raise UserError(f"{path} has no {beside.name} beside it to compare with; export it again, or verify(path, student=Q)")
    try:
        _, student, sha256 = rebuild_student(beside)
    except UserError as error:
        raise UserError(f"{error}; or in Python: verify(path, student=Q)") from None
    if sha256 != facts.get("student"):
        raise UserError(f"{beside} is not the student that {path} was made from (sha256 differs); export it again")
    return student


def _session(path: Path) -> tuple[Any, Counter[str]]:
    """A session of one thread, and how often each operation stands in the graph it executes."""
    onnx, runtime = import_extra("onnx"), import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "executed.onnx")
        try:
            session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of a dozen types without a common base, whatever a malformed graph sets off
            raise UserError(f"ONNX Runtime does not load {path}: {_first_line(error)}") from None
        executed = onnx.load(options.optimized_model_filepath)
    return session, Counter(_op_types(executed.graph))


def _op_types(graph: Any) -> Iterator[str]:
    """The operation of every node, those in branches and loops too."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _op_types(inner)


def _run(session: Any, path: Path, images: Tensor) -> Tensor:
    try:
        return torch.from_numpy(session.run([LOGITS], {IMAGES: images.contiguous().numpy()})[0])
    except Exception as error:  # as above: a file that was tampered with, or images of another shape
        raise UserError(f"{path} does not run on images of shape {tuple(images.shape[1:])}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# The images


def _batches(data: ImageSet | Tensor | None, facts: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor | None, str]]:
    """(normalised images, labels or None, which images these are), a batch at a time."""
    if data is None:
        data = _default_data(str(facts.get("data", "")))
    if data is None:
        noise = torch.randn(NOISE, *facts["shape"], generator=torch.Generator().manual_seed(0))
        for batch in noise.split(_batch_size(noise)):
            yield batch, None, f"{NOISE} standard-normal images, for want of test images"
    elif isinstance(data, Tensor):
        for batch in data.split(_batch_size(data)):
            yield batch, None, f"{len(data)} images without labels"
    elif "mean" not in facts:
        raise UserError(
            "the file does not say how images are normalised; export it with its teacher, or give normalised images"
        )
    else:
        mean, std = (torch.tensor(facts[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        for images, labels in data.batches(_batch_size(data.images)):
            yield normalize(images, mean, std), labels, data.source


def _batch_size(images: Tensor) -> int:
    return max(1, min(250, 2**18 // math.prod(images.shape[2:])))


def _default_data(name: str) -> ImageSet | None:
    """The shipped images of data set `name`, or its test set where ADADFQ_DATA has it; nothing is downloaded."""
    if name == "fashion_mnist":
        return load_data(name, stub=True)
    at_hand = Path(os.environ.get("ADADFQ_DATA", "")) / f"{name}_test.npz"
    return load_data(name) if name and at_hand.exists() else None


# The figures


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


def _times(file: Callable[[], Any], student: Student, example: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds of the file and of torch in float32, whichever of torch's memory layouts is faster; interleaved."""
    layouts = {
        layout: float_network(student).to(memory_format=layout) for layout in (torch.channels_last, torch.contiguous_format)
    }
    inputs = {layout: example.contiguous(memory_format=layout) for layout in layouts}
    calls = [file, *(lambda layout=layout: layouts[layout](inputs[layout]) for layout in layouts)]
    spent: list[list[float]] = [[] for _ in calls]
    with _one_thread():
        for i in range(repeats + 3):
            for call, times in zip(calls, spent, strict=True):
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            if i >= 10 and sum(map(sum, spent)) > 20_000:
                break
    medians = [statistics.median(times[3:]) for times in spent]  # the first three warm up
    return medians[0], min(medians[1:])


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _float_bytes(student: Student) -> int:
    state = float_network(student).state_dict()
    return sum(4 * tensor.numel() for name, tensor in state.items() if not name.endswith("num_batches_tracked"))


def _packed_bytes(student: Student) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return pack(student, Path(folder) / "packed.safetensors").stat().st_size


def _cpu() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
