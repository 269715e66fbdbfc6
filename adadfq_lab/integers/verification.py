"""Is it really integer, and does it still score the same? Questions to an exported file, answered by running it.

What a runtime executes is counted after all its optimisations (`runtimes`). The file's predictions are compared with
those of the student it was made from, image by image; its time with that of the float network in torch, on one thread each, in
turn.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.data.class_names import in_order_of
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.integers.export import FORMAT, declares_range, sidecar
from adadfq_lab.integers.float_network import float_network, median_times
from adadfq_lab.integers.layers import snapshot, to_integers
from adadfq_lab.integers.operations import operations
from adadfq_lab.integers.packing import ideal_bytes, pack, unpack
from adadfq_lab.integers.runtimes import FLOAT_PRODUCTS, INTEGER_CONVS, INTEGER_PRODUCTS, Runtime, available, load
from adadfq_lab.integers.trial import trial
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.machine.reading import check_regular
from adadfq_lab.machine.timing import cpu
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.student import Student
from adadfq_lab.student.student_files import rebuild_student
from adadfq_lab.teacher.teacher import Teacher, normalize
from adadfq_lab.teacher.teacher_files import SHIPPED, load_teacher

LARGEST_IMAGE = 2**26  # numbers; a file that says more was tampered with


NOISE = 256  # images of random pixels to compare on if there are no others


@dataclass(frozen=True)
class Verification:
    """What running an exported file showed.

    convs:                          convolutions of the student
    integer_convs, float_convs:     convolutions in the graph that the runtime executes
    integer_linears, float_linears: matrix products in it
    top1_student, top1_file:        percent of the images, None if they have no labels
    agreement:                      percent of the images for which the file and the student predict the same class
    agreement_teacher:              the same for the file and the teacher; None if the teacher is not at hand
    student_teacher:                the same for the student and the teacher
    outside:                        percent of the images with pixels that the file's normalisation does not allow, and so cuts
    fault:                          where the file first computes something else than its student, "" if nowhere
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
    agreement_teacher: float | None
    student_teacher: float | None
    outside: float
    fault: str
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
        """Whether every convolution of the student is executed, on integers, and the file computes what the student does."""
        return self.float_convs == 0 and self.integer_convs >= self.convs and not self.fault

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ok": self.ok}

    def table(self) -> str:
        """The same as a few lines of text."""
        integer = self.float_convs == 0 and self.integer_convs >= self.convs
        verdict = f"{'every' if integer else 'NOT every'} convolution is an integer convolution"
        verdict += f"; it does NOT compute what its student computes: {self.fault}" if self.fault else ""
        scores = "" if self.top1_file is None else f"top-1 {self.top1_file:.2f} %, the student's {self.top1_student:.2f} %; "
        teacher = "not at hand; give it with teacher=P, or --teacher FILE"
        if self.agreement_teacher is not None:
            teacher = f"the file has the teacher's class for {self.agreement_teacher:.2f} %, "
            teacher += f"the student for {self.student_teacher:.2f} %"
            if self.top1_file is None:
                teacher += "; this ranks students of one teacher and is not accuracy, which takes labelled images"
        rows = [
            (
                "convolutions",
                f"{self.integer_convs} integer, {self.float_convs} float; the student has {self.convs}, some take several",
            ),
            ("linear layers", f"{self.integer_linears} integer, {self.float_linears} float"),
            ("predictions", f"{scores}the file has the student's class for {self.agreement:.2f} % of {self.source}{self._cut}"),
            ("teacher", teacher),
            ("file", f"{self.bytes:,} bytes, {100 * self.bytes / self.float_bytes:.1f} % of float32's {self.float_bytes:,}"),
            ("packed", f"{self.packed_bytes:,} bytes, {self.packed_bytes / self.ideal_bytes:.2f} x the weights' bits alone"),
            ("one thread", f"{self.ms_file:.2f} ms an image, torch float32 {self.ms_float:.2f} ms"),
            ("measured with", ", ".join([self.cpu, *(f"{name} {number}" for name, number in self.versions.items())])),
            ("executed graph", ", ".join(f"{count} {name}" for name, count in self.operations.items())),
        ]
        return "\n".join([f"{self.file}, {self.bits}: {verdict}", *(f"{name:15} {text}" for name, text in rows)])

    @property
    def _cut(self) -> str:
        if not self.outside:
            return ""
        return (
            f"; {self.outside:.0f} % of them HAVE PIXELS OUTSIDE [0, 1] by the teacher's mean and std, and the file cuts those "
            "off: were they normalised in another way?"
        )


def verify(
    path: Path | str,
    data: ImageSet | Tensor | None = None,
    *,
    student: Student | None = None,
    teacher: Teacher | None = None,
    source: str = "",
    runtime: Runtime = "onnxruntime",
    repeats: int = 100,
) -> Verification:
    """Runs the file `path`, which `export_onnx` wrote, beside its student and its teacher.

    Verify only files you trust: a runtime is native code that was not made for files of strangers.

    data:    test images with labels, or normalised images `(N, C, H, W)` without; by default the 2,000 shipped ones for
             Fashion-MNIST, otherwise the teacher's test set in the folder ADADFQ_DATA, otherwise images of random pixels
    student: the one the file was made from; by default the one stored beside it
    teacher: the student's; by default the shipped one of that name
    source:  which images `data` is, in words, if it is a tensor
    runtime: what runs the file; "openvino" for a second opinion
    repeats: how often either network is timed

    Raises UserError if the file is missing, malformed or not written by `export_onnx`, or if its student is missing.
    """
    path = Path(path)
    facts = read_facts(path)
    stored = student is None
    student = _stored_student(path, facts) if student is None else snapshot(student)
    run, teacher = load(path, runtime), teacher or _shipped_teacher(facts)
    labels, predictions, outside, first = [], [], [], None
    with torch.inference_mode(), student.frozen():
        for images, truth, shown in _batches(data, source, facts):  # noqa: B007 (`shown` is the same for all)
            labels.append(truth)
            by: list[Callable[[Tensor], Tensor]] = [student, run, *([] if teacher is None else [teacher])]
            predictions.append(torch.stack([model(images).argmax(1) for model in by]))
            outside.append(_outside(images, facts))
            first = images[:8] if first is None else first
        assert first is not None
        ms_file, ms_float = median_times(lambda: run(first[:1]), student, first[:1], repeats)
    by_student, by_file, *by_teacher = torch.cat(predictions, 1)
    known = None if any(truth is None for truth in labels) else torch.cat([truth for truth in labels if truth is not None])
    return Verification(
        file=path.name,
        bits=str(student.bits),
        convs=sum(isinstance(layer, QuantConv2d) for layer in student.layers().values()),
        integer_convs=run.count(INTEGER_CONVS),
        float_convs=run.float_convs,
        integer_linears=run.count(INTEGER_PRODUCTS),
        float_linears=run.count(FLOAT_PRODUCTS),
        top1_student=None if known is None else _percent(by_student == known),
        top1_file=None if known is None else _percent(by_file == known),
        agreement=_percent(by_student == by_file),
        agreement_teacher=_percent(by_teacher[0] == by_file) if by_teacher else None,
        student_teacher=_percent(by_teacher[0] == by_student) if by_teacher else None,
        outside=_percent(torch.cat(outside)),
        fault=_fault(path, student, facts, first.clone()),
        images=len(by_file),
        source=shown,
        bytes=path.stat().st_size,
        float_bytes=_float_bytes(student),
        packed_bytes=_packed_bytes(path, student, stored),
        ideal_bytes=ideal_bytes(student),
        ms_file=ms_file,
        ms_float=ms_float,
        cpu=cpu(),
        versions={name: version(name) for name in (runtime, "onnx", "torch")},
        operations=dict(run.executed.most_common()),
    )


# The file


@dataclass(frozen=True)
class Facts:
    """What `export_onnx` wrote down in the file; classes, data, mean, std and what names its players only with a teacher.

    student, teacher: their sha256; name: of the teacher; exact: whether the file's codes must be the student's but for ties
    """

    shape: tuple[int, int, int]
    exact: bool = True
    name: str = ""
    teacher: str = ""
    classes: tuple[str, ...] = ()
    data: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    student: str = ""


def read_facts(path: Path) -> Facts:
    """The facts in the file's metadata; raises UserError if it is missing, damaged or not written by `export_onnx`."""
    onnx, protobuf = import_extra("onnx"), import_extra("google.protobuf.message")
    try:
        check_regular(path)
        model = onnx.load_model_from_string(path.read_bytes())
        if _external(model):
            raise UserError(f"{path} keeps tensors in other files, which no export does; it is not read")
        plain = {
            p.key.removeprefix("adadfq."): json.loads(p.value) for p in model.metadata_props if p.key.startswith("adadfq.")
        }
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except UserError:
        raise
    except (protobuf.DecodeError, ValueError, TypeError, RecursionError):  # text that is no UTF-8 comes as bytes
        raise UserError(f"{path} is damaged or not an ONNX file") from None
    if plain.get("format") != FORMAT:
        raise UserError(f"{path} was not written by adadfq export (no {FORMAT!r} in its metadata)")
    try:
        height, width, channels = (int(plain["shape"][i]) for i in (1, 2, 0))
        numbers = {k: tuple(float(v) for v in plain.get(k, ())) for k in ("mean", "std")}
        words = {k: str(plain.get(k, "")) for k in ("data", "student", "name", "teacher")}
        if (
            min(channels, height, width) < 1
            or channels * height * width > LARGEST_IMAGE
            or any(len(v) not in (0, channels) or not all(map(math.isfinite, v)) for v in numbers.values())
            or not all(v > 0 for v in numbers["std"])
        ):
            raise ValueError("impossible shape")
        exact = (plain.get("form", "exact"), plain.get("input_bits", 24)) == ("exact", 24)
        classes = tuple(map(str, plain.get("classes", ())))
        return Facts((channels, height, width), exact, classes=classes, **words, **numbers)  # type: ignore[arg-type]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise UserError(f"the metadata of {path} are damaged; export it again") from None


def _external(message: Any) -> bool:
    """Whether a tensor anywhere in an ONNX message names another file that holds its numbers."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data) or message.data_location == message.EXTERNAL
    parts = (value for field, value in message.ListFields() if field.message_type is not None)
    return any(_external(m) for part in parts for m in (part if hasattr(part, "__len__") else [part]))


def _fault(path: Path, student: Student, facts: Facts, x: Tensor) -> str:
    """Where the file first computes something else than `student`; "" if nowhere, or if ONNX Runtime is not there to see."""
    if not available():
        return ""
    steps, table = operations(student, facts.shape), to_integers(student)
    return trial(path.read_bytes(), student, steps, table, x, exact=facts.exact).fault


def _shipped_teacher(facts: Facts) -> Teacher | None:
    """The teacher that the file's student was made from, if it is one of those shipped."""
    if facts.name not in SHIPPED:
        return None
    teacher = load_teacher(facts.name)
    return teacher if facts.teacher in ("", teacher.info.sha256) else None


def _outside(images: Tensor, facts: Facts) -> Tensor:
    """For each normalised image whether its pixels leave what the file takes, by more than half of an 8-bit step."""
    if not declares_range(facts.mean, facts.std):
        return torch.zeros(len(images), dtype=torch.bool)
    mean, std = (torch.tensor(moments).view(1, -1, 1, 1) for moments in (facts.mean, facts.std))
    pixels = (images * std + mean).flatten(1)
    return (pixels.amin(1) < -0.5 / 255) | (pixels.amax(1) > 1 + 0.5 / 255)


def _stored_student(path: Path, facts: Facts) -> Student:
    beside = sidecar(path, "student")
    if not beside.exists():
        raise UserError(f"{path} has no {beside.name} beside it to compare with; export it again, or verify(path, student=Q)")
    try:
        _, student, sha256 = rebuild_student(beside)
    except UserError as error:
        raise UserError(f"{error}; or in Python: verify(path, student=Q)") from None
    if sha256 != facts.student:
        raise UserError(f"{beside} is not the student that {path} was made from (sha256 differs); export it again")
    return student


# The images


def _batches(data: ImageSet | Tensor | None, source: str, facts: Facts) -> Iterator[tuple[Tensor, Tensor | None, str]]:
    """(normalised images, labels or None, which images these are), a batch at a time."""
    if data is None:
        data = _default_data(facts.data)
    mean, std = (torch.tensor(moments).view(1, -1, 1, 1) for moments in (facts.mean or (0.0,), facts.std or (1.0,)))
    if data is None:
        pixels = torch.randint(256, (NOISE, *facts.shape), generator=torch.Generator().manual_seed(0))
        data, source = (
            normalize(pixels, mean, std),
            f"{NOISE} images of random pixels, which test the file, not how good the student is",
        )
    data = data if isinstance(data, Tensor) else data.of_shape(facts.shape)
    images = data if isinstance(data, Tensor) else data.images
    if tuple(images.shape[1:]) != facts.shape or not len(images):
        raise UserError(f"the file takes images of shape {facts.shape}, not {len(images)} of {tuple(images.shape[1:])}")
    size = max(1, min(250, 2**18 // math.prod(facts.shape[1:])))
    if isinstance(data, Tensor):
        for batch in data.split(size):
            yield batch, None, source or f"{len(data)} images without labels"
        return
    if not facts.mean or not facts.std:
        raise UserError(
            "the file does not say how images are normalised; export it with its teacher, or give normalised images"
        )
    data = in_order_of(data, facts.classes, "the file")
    for pixels, labels in data.batches(size):
        yield normalize(pixels, mean, std), labels if data.labelled else None, data.source


def _default_data(name: str) -> ImageSet | None:
    """The shipped images of data set `name`, or its test set if ADADFQ_DATA has it; nothing is downloaded."""
    if name == "fashion_mnist":
        return load_data(name, stub=True)
    folder = os.environ.get("ADADFQ_DATA")
    return load_data(name) if name and folder and (Path(folder) / f"{name}_test.npz").exists() else None


# The figures


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


def _float_bytes(student: Student) -> int:
    state = float_network(student).state_dict()
    return sum(4 * tensor.numel() for name, tensor in state.items() if not name.endswith("num_batches_tracked"))


def _packed_bytes(path: Path, student: Student, stored: bool) -> int:
    """Of the container beside the file, which is read to see that it is intact; where there is none, of one made for this.

    stored: whether `student` is the one stored beside the file, whose weights the container must then hold
    """
    packed = sidecar(path, "packed")
    if packed.exists():
        theirs, own = unpack(packed).layers, to_integers(student).layers
        same = theirs.keys() == own.keys() and all(torch.equal(theirs[name].codes, own[name].codes) for name in own)
        if stored and not same:
            raise UserError(f"{packed} holds the weights of another student than {path}; export it again")
        return packed.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        return pack(student, Path(folder) / "packed.safetensors").stat().st_size
