"""Writes a student as an ONNX file that computes on integers.

    export_onnx(Q, Path("q.onnx"), P)

writes three files: `q.onnx`, which ONNX Runtime runs; `q.student.safetensors`, the student itself, so that `verify` can
compare; and `q.packed.safetensors`, the weights at n bits each. `onnx_file.graph` tells how the integers are laid out.

On a CPU a 3-bit network runs at int8 speed, since its integers are bytes. Three bits pay in storage and on hardware that is
built for them.
"""

import dataclasses
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from adadfq_lab.errors import UserError
from adadfq_lab.integers.layers import Integers, snapshot, to_integers
from adadfq_lab.integers.onnx_file.graph import OnnxGraph
from adadfq_lab.integers.onnx_file.layers import IMAGES, LOGITS, Form, write_operations
from adadfq_lab.integers.operations import Operation, operations
from adadfq_lab.integers.packing import pack
from adadfq_lab.integers.runtimes import available
from adadfq_lab.integers.trial import trial
from adadfq_lab.machine.environment import INSTALL, import_extra
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.student.student import Student
from adadfq_lab.student.student_files import save_student
from adadfq_lab.teacher.teacher import Teacher

FORMAT = "adadfq onnx 1"


OPSET, IR_VERSION = 21, 10


@dataclass(frozen=True)
class Exported:
    """What `export_onnx` wrote.

    file, student, packed: paths; student is None if there was no teacher to describe it with
    convs, linears:        layers written, each as an integer operation
    bytes, packed_bytes:   sizes of the ONNX file and of the packed container
    notes:                 what a user should know of this file, a sentence each
    """

    file: Path
    student: Path | None
    packed: Path
    bits: str
    convs: int
    linears: int
    bytes: int
    packed_bytes: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        return plain | {name: str(plain[name]) if plain[name] else None for name in ("file", "student", "packed")}

    def __str__(self) -> str:
        files = [f"{self.file} ({self.bytes:,} bytes)", f"{self.packed} ({self.packed_bytes:,} bytes)", str(self.student or "")]
        head = f"{self.bits}: convolutions {self.convs}, linear layers {self.linears}, all on integers"
        return "\n".join([head, "wrote " + ", ".join(f for f in files if f), *self.notes])


def export_onnx(
    student: Student,
    path: Path | str,
    teacher: Teacher | None = None,
    *,
    shape: tuple[int, int, int] | None = None,
    form: Form = "exact",
    input_bits: int = 24,
) -> Exported:
    """Writes `student` to `path` as ONNX in which every convolution and linear layer is an integer operation.

    The file takes normalised float32 images "images" `(N, C, H, W)` and gives "logits" `(N, classes)`. Its first integers
    cover pixel values in [0, 1] after the teacher's normalisation; values beyond are clipped. Without a teacher, or
    if it declares no normalisation (mean 0, deviation 1), they cover the range of each batch.

    Before anything is written, the file is run in ONNX Runtime, if installed, on a few images: see `trial`.

    teacher:    the student's; its image shape, normalisation and classes go into the file, and `verify` needs them
    shape:      (C, H, W) of the images, needed only without a teacher
    form:       "exact" has sums in int32 and the logits of `run_integer`; "qcdq" rounds each convolution's output to 8 bits:
                several times as fast, for other runtimes, and at few bits no longer exactly Q
    input_bits: integers for what Q leaves float at a layer's input, in planes of eight: 24 bits are what a float32
                holds; 16 and 8 are faster, and coarser

    Raises UserError if the student has no integers (see `integers`), an operation of it has no integer form (naming it), the
    path cannot be written, or the package onnx is missing.
    """
    onnx, path = import_extra("onnx"), Path(path)
    shape = shape or (teacher.info.input_shape if teacher else None)
    if shape is None:
        raise UserError("which images the student takes is not known; give its teacher, or shape=(channels, height, width)")
    if input_bits not in (8, 16, 24):
        raise UserError(f"input_bits must be 8, 16 or 24, not {input_bits}")
    if path.suffix != ".onnx" or not path.parent.is_dir():
        raise UserError(f"{path} must end in .onnx and lie in a folder that exists")
    student = snapshot(student)
    table, steps = to_integers(student), operations(student, shape)
    graph = OnnxGraph(student, table, input_bits)
    write_operations(graph, steps, _image_bounds(teacher), form)
    beside = sidecar(path, "student")
    facts: dict[str, Any] = {
        "format": FORMAT,
        "bits": str(student.bits),
        "form": form,
        "input_bits": input_bits,
        "shape": shape,
    }
    packed = sidecar(path, "packed")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            if teacher is not None:
                facts["student"] = save_student(student, teacher, sidecar(draft, "student"))
                facts |= {k: getattr(teacher.info, k) for k in ("name", "data", "classes", "mean", "std")}
                facts["teacher"] = teacher.info.sha256
            pack(student, sidecar(draft, "packed"), table)
            content = _model(onnx, graph, steps, shape, facts)
            tried = _try(content, student, steps, table, teacher, shape, exact=form == "exact" and input_bits == 24)
            write_atomically(draft, content)
            if teacher is not None:
                os.replace(sidecar(draft, "student"), beside)
            os.replace(sidecar(draft, "packed"), packed)
            os.replace(draft, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another --output") from None
    layers = [table.layers[step.target].kind for step in steps if step.kind in ("conv", "linear")]
    return Exported(
        path,
        beside if teacher else None,
        packed,
        str(student.bits),
        layers.count("conv"),
        layers.count("linear"),
        path.stat().st_size,
        packed.stat().st_size,
        (tried, *notes(student, graph.left, steps, form, input_bits)),
    )


def _try(
    content: bytes,
    student: Student,
    steps: list[Operation],
    table: Integers,
    teacher: Teacher | None,
    shape: tuple[int, ...],
    *,
    exact: bool,
) -> str:
    """One line on what running the file showed; raises UserError if it does not run, or computes something else than Q."""
    images = max(2, min(16, 2**16 // math.prod(shape)))
    pixels = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    mean, std = (
        (0.5, 0.25) if teacher is None else (torch.tensor(v).view(-1, 1, 1) for v in (teacher.info.mean, teacher.info.std))
    )
    x = ((pixels - mean) / std).to(next(student.parameters()).dtype)
    if not available():
        return f"The file has not been run, since ONNX Runtime is not installed: {INSTALL}, then adadfq verify FILE."
    found = trial(content, student, steps, table, x, exact=exact)
    if found.fault:
        raise UserError(
            f"ONNX Runtime does not compute what the student computes: {found.fault}; nothing was written. The fault is "
            "in adadfq_lab: please report the network"
        )
    why = "" if not found.differing else ", all rounding ties" if exact else ", by rounding"
    ties = f"{found.differing:,} of {found.codes:,} codes differ{why}"
    return f"Run in ONNX Runtime on {images} images of random pixels, each layer computes what the student's does: {ties}."


def notes(student: Student, left: list[str], steps: list[Operation], form: Form, input_bits: int) -> tuple[str, ...]:
    """What a user should know of an exported file: its speed, what Q leaves float, what computes in floats between layers."""
    said = []
    weights, activations = student.bits.weights, student.bits.activations
    if min(weights, activations) < 8:
        said.append(
            f"On a CPU this runs at the speed of int8, not of {weights} bits: integers lie in bytes. "
            f"The {weights} bits pay in storage (the packed file) and on hardware built for them."
        )
    if form == "qcdq":
        said.append(
            "Convolutions put out 8 bits here, which flips codes of Q where bits are few: see what verify says of agreement; "
            "the form exact does not."
        )
    if left:
        first = ", ".join(left[:5]) + (f" and {len(left) - 5} more layers" if len(left) > 5 else "")
        said.append(
            f"Q leaves the input of {first} float; here it is {input_bits}-bit integers. "
            f"every_input=True (--every-input) puts it on {activations} bits."
        )
    between = sorted({spoken(step) for step in steps if step.kind in _FLOAT_KINDS})
    said.append(
        "Between the integers of two layers, scale, bias"
        + "".join(f", {kind}" for kind in between)
        + " are float32, elementwise."
    )
    return tuple(said)


_FLOAT_KINDS = (
    "arithmetic",
    "average_pool",
    "adaptive_pool",
    "batch_norm",
    "elementwise",
    "layer_norm",
    "reduce_mean",
    "reduce_sum",
)


def spoken(step: Operation) -> str:
    """The name of an operation or of its function as a user writes it."""
    return str(step.options.get("function", step.kind)).removesuffix("_kernel").strip("_").replace("_", " ")


def sidecar(path: Path, kind: str) -> Path:
    """`q.student.safetensors` beside `q.onnx`."""
    return path.with_name(f"{path.stem}.{kind}.safetensors")


def declares_range(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether a normalisation tells the range of the images, as that of pixel values in [0, 1] does.

    Mean 0 and deviation 1 do not: a user whose own loader normalises leaves the two out.
    """
    return bool(mean) and bool(std) and (set(mean), set(std)) != ({0.0}, {1.0})


def _image_bounds(teacher: Teacher | None) -> tuple[float, float] | None:
    """The range of every possible normalised image; None if it is not known."""
    if teacher is None or not declares_range(teacher.info.mean, teacher.info.std):
        return None
    both = list(zip(teacher.info.mean, teacher.info.std, strict=True))
    return min(-m / s for m, s in both), max((1 - m) / s for m, s in both)


def _model(onnx: ModuleType, graph: OnnxGraph, steps: list[Operation], shape: tuple[int, ...], facts: dict[str, Any]) -> bytes:
    """The file's bytes."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info(IMAGES, number, ["N", *shape])
    logits = helper.make_tensor_value_info(LOGITS, number, ["N", *steps[-1].shape])
    # from_array stores raw bytes; make_tensor would store each int8 as a number of up to ten.
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    whole = helper.make_graph(graph.nodes, "student", [images], [logits], constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "adadfq"
    helper.set_model_props(model, {f"adadfq.{key}": json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
