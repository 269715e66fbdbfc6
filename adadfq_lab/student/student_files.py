"""A student on disk: its float weights, its ranges and how it was quantised, in one safetensors file.

The file names the teacher it was made from and carries that teacher's facts (classes, normalisation, network), so that the
student can be rebuilt without the teacher's weights.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import load_tensors, save_tensors, snapshot
from adadfq_lab.machine.reading import read_json
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import BitWidths
from adadfq_lab.student.student import Quantization, Student
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.teacher_files import SHIPPED, described, load_teacher, network_of
from adadfq_lab.teacher.zoo import ZOO


def save_student(student: Student, teacher: Teacher, path: Path, **extra: Any) -> str:
    """Writes `student`, made from `teacher`, to `path` with the JSON values `extra`; returns the file's sha256.

    Waits for the end of the round that another thread plays with it.
    """
    try:
        info, _ = described(teacher)
    except UserError:  # the network cannot be rebuilt from a file; the student then needs its teacher to be loaded
        info = teacher.info
    with student.turns.look():
        tensors = snapshot(student.state_dict())
    meta = {"kind": "student", "teacher": info.as_json(), "quantization": quantization_json(student)}
    return save_tensors(path, tensors, meta | extra)


def load_student(path: Path, teacher: Teacher | None = None) -> tuple[Teacher, Student]:
    """The student that `save_student` wrote to `path`, and its teacher; the student's ranges no longer move.

    teacher: needed if it is neither shipped nor in the zoo nor named by the `config.json` of the file's run folder

    Raises UserError if the file is missing, damaged, holds no student, or was made from another teacher.
    """
    tensors, info, quantization, _ = _read(path)
    teacher = teacher or _find_teacher(path, info)
    if teacher.info.sha256 != info.sha256:
        raise UserError(f"{path} was made from another teacher than {teacher.info.name} (sha256 differs)")
    return teacher, _rebuild(path, teacher.network, teacher.info, tensors, quantization)


def rebuild_student(path: Path) -> tuple[TeacherInfo, Student, str]:
    """The teacher's facts, the student, and the file's sha256; needs no weights of the teacher.

    Raises UserError as `load_student` does, and for a network that the file cannot rebuild.
    """
    tensors, info, quantization, sha256 = _read(path)
    return info, _rebuild(path, network_of(info), info, tensors, quantization), sha256


def _read(path: Path) -> tuple[dict[str, Tensor], TeacherInfo, dict[str, Any], str]:
    if not path.exists():
        raise UserError(f"there is no file {path}; give the folder of a run that has finished, or its student.safetensors")
    tensors, meta, sha256 = load_tensors(path)
    if meta.get("kind") != "student":
        raise UserError(f"{path} holds no student")
    try:
        info, how = build(TeacherInfo, meta.get("teacher")), quantization_from_json(meta.get("quantization"))
    except UserError as error:
        raise UserError(f"{path} does not describe its student ({error})") from None
    return tensors, info, how, sha256


def quantization_json(student: Student) -> dict[str, Any]:
    """The student's quantization as JSON; `quantize(P, **json)` quantises P in the same way."""
    return dataclasses.asdict(student.quantization) | {"bits": str(student.bits)}


def quantization_from_json(plain: Any) -> dict[str, Any]:
    """The arguments of `quantize` from a file; raises UserError if they are not valid."""
    bits = plain.get("bits") if isinstance(plain, dict) else None
    if not isinstance(bits, str):
        raise UserError("it does not say how the student was quantised")
    how = build(Quantization, plain | {"bits": dataclasses.asdict(BitWidths.parse(bits))})
    return {field.name: getattr(how, field.name) for field in dataclasses.fields(how)}


def _find_teacher(path: Path, info: TeacherInfo) -> Teacher:
    config, own = path.parent / "config.json", path.parent / "teacher.safetensors"
    if own.exists():
        return load_teacher(str(own))
    name = info.name
    known = name in SHIPPED or name in ZOO
    if not known and config.exists():
        try:
            name = str(read_json(config)["teacher"])
        except (UserError, KeyError, TypeError):
            raise UserError(f"{config} does not name the teacher of {path}") from None
    if not known and not Path(name).exists():
        raise UserError(f"{path} was made from teacher {info.name}, which is not shipped; give the teacher's file")
    return load_teacher(name)


def _rebuild(
    path: Path, network: nn.Module, info: TeacherInfo, tensors: dict[str, Tensor], quantization: dict[str, Any]
) -> Student:
    try:
        student = quantize(network, input_shape=info.input_shape, **quantization)
        student.load_state_dict(tensors)
    except (TypeError, RuntimeError, UserError) as error:
        raise UserError(f"{path} does not fit its network: {first_line(error)}") from None
    student.observing = False
    return student
