"""Commands about integer files: write one, see whether it is one."""

import sys
from pathlib import Path
from typing import Literal

import tyro

from adadfq_lab.cli.output import Json, say


def export(
    run: tyro.conf.Positional[str],
    output: Path,
    form: Literal["exact", "qcdq"] = "exact",
    input_bits: Literal[8, 16, 24] = 24,
    json: Json = False,
) -> None:
    """Write a run's student as an ONNX file that computes on integers, and its weights packed at n bits each beside it.

    For example: adadfq export runs/mine --output q.onnx

    Args:
        run: A run folder, or its student.safetensors.
        output: Where to write it, ending in .onnx.
        form: exact has sums in int32; qcdq rounds each convolution's output to 8 bits: faster, and at few bits less faithful.
        input_bits: Integers that stand for what the student leaves float at a layer's input.
    """
    from adadfq_lab.integers.export import export_onnx
    from adadfq_lab.student.student_files import load_student

    path = Path(run)
    teacher, student = load_student(path / "student.safetensors" if path.is_dir() else path)
    done = export_onnx(student, output, teacher, form=form, input_bits=input_bits)
    say(done.as_json(), str(done), json)


def verify(
    file: tyro.conf.Positional[Path],
    data: str = "",
    teacher: str = "",
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    json: Json = False,
) -> None:
    """Run an exported file and see: is it integer, is it the student, how near to the teacher, how large and how fast is it?

    Exit status 1 if a convolution is not computed on integers, or the file computes something else than its student. Verify
    only files you trust: a runtime is native code. For example: adadfq verify q.onnx

    Args:
        file: What `adadfq export` wrote.
        data: fashion_mnist, cifar10, cifar100, NAME for NAME_test.npz in the folder ADADFQ_DATA, or a folder of images, with
            a folder a class or unlabelled.
            If empty, what the teacher was trained on: its shipped images, or those in ADADFQ_DATA.
        teacher: The teacher to compare with, by name or file. If empty, the shipped one that the student was made from.
        runtime: What runs the file.
    """
    from adadfq_lab.data.loading import load_data
    from adadfq_lab.integers.verification import verify as run_it
    from adadfq_lab.teacher.teacher_files import load_teacher

    images, P = load_data(data, "test") if data else None, load_teacher(teacher) if teacher else None
    found = run_it(file, images, teacher=P, runtime=runtime)
    say(found.as_json(), found.table(), json)
    if not found.ok:
        sys.exit(1)
