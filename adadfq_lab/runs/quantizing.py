"""From a network to a verified integer file in one call: play, export, verify, report.

    P = lab.wrap_teacher(network, input_shape=(3, 32, 32), classes=10, mean=mean, std=std)
    done = lab.quantize_and_export(P, "q.onnx", bits="4w4a")
    print(done.table())

The run is an ordinary run in a folder, which holds the teacher too: `adadfq train`, `watch`, `evaluate` and `export` take it,
and an interrupted one is resumed.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.integers.export import Exported, declares_range, export_onnx
from adadfq_lab.integers.operations import operations
from adadfq_lab.integers.verification import Verification, verify
from adadfq_lab.machine.environment import import_extra
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.runs.agreement import BATCH, count_of, held_out
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.folder import last_checkpoint
from adadfq_lab.runs.players import build_student, images_of
from adadfq_lab.runs.recipes import usual_run
from adadfq_lab.runs.run import Result, run
from adadfq_lab.student.student_files import load_student
from adadfq_lab.teacher.teacher import Teacher

METHOD = "adadfq+"
"""The method of the highest accuracy at the short budget of `adadfq table`, at 3 bits and at 4."""
MOST_VERIFIED = 2000
"""Images, at most, on which the file is compared with the student."""


@dataclass(frozen=True)
class Quantized:
    """What `quantize_and_export` made. `verification` is None if ONNX Runtime is not installed.

    mostly_float: one line if most weights of the student stay float, "" otherwise
    """

    result: Result
    exported: Exported
    verification: Verification | None
    report: Path
    mostly_float: str = ""

    def as_json(self) -> dict[str, Any]:
        checked = self.verification.as_json() if self.verification else None
        exported = self.exported.as_json()
        return self.result.as_json() | {"exported": exported, "verification": checked, "report": str(self.report)}

    def table(self) -> str:
        """The result, the file, and what running it showed, as a few lines of text."""
        if self.verification:
            v = self.verification
            verdict = "every convolution is computed on integers" if v.ok else "NOT every convolution is computed on integers"
            with_p = "" if v.agreement_teacher is None else f" and as P for {v.agreement_teacher:.2f} %"
            checked = f"{v.file}: {verdict}; the same class as Q for {v.agreement:.2f} %{with_p} of {v.source}; "
            checked += f"{v.bytes:,} bytes, {100 * v.bytes / v.float_bytes:.0f} % of float32"
        else:
            checked = f"{self.exported.file} was not run, since onnxruntime is not installed"
        lines = [self.mostly_float, self.result.table(), "", str(self.exported), checked, f"report: {self.report}"]
        return "\n".join(lines if self.mostly_float else lines[1:])


def own_config(bits: str = "4w4a", *, method: str = METHOD, rounds: int = 0, data: str = "", **options: Any) -> RunConfig:
    """The run of `quantize_and_export`: the method's usual one; `rounds` in all, 0 for the usual number."""
    config = usual_run(method, RunConfig(bits=bits, data=data or "none", evaluate_every=500, gains_every=0))
    if rounds:
        warmup = min(config.schedule.warmup, max(1, rounds // 5))
        config = dataclasses.replace(config, rounds=rounds, schedule=dataclasses.replace(config.schedule, warmup=warmup))
    return dataclasses.replace(config, **options)


def quantize_and_export(
    teacher: Teacher,
    output: Path | str,
    *,
    bits: str = "4w4a",
    data: str = "",
    method: str = METHOD,
    rounds: int = 0,
    folder: Path | str = "",
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Quantized:
    """Plays `method` on `teacher` without data, writes the student to `output` as integers, and runs that file.

    data:    images to measure on, as for `load_data`: a folder, a file .npz, a name; empty for the data-free case
    rounds:  in all; 0 for the method's usual number
    folder:  of the run; by default `output` without its suffix, beside it. It holds P, Q, the log and the report
    resume:  continue the run in `folder`
    options: other fields of RunConfig, such as seed=1, device="cuda" or every_input=True

    Raises UserError before any round if an option is wrong, the images are not the teacher's, a part of the network has no
    integer form (which), or onnx is missing.
    """
    output = Path(output)
    if output.suffix != ".onnx" or not output.resolve().parent.is_dir():
        raise UserError(f"{output} must end in .onnx and lie in a folder that exists")
    folder = Path(folder) if folder else output.with_suffix("")
    import_extra("onnx")
    config = own_config(bits, method=method, rounds=rounds, data=data, **options)
    operations(build_student(teacher, config), teacher.info.input_shape)  # what has no integer form is named before the run
    result = run(config, folder, teacher=teacher, resume=resume, quiet=quiet)
    return finish(folder, output, result)


def finish(folder: Path, output: Path, result: Result) -> Quantized:
    """Exports and verifies the student of the finished run in `folder`."""
    teacher, student = load_student(folder / "student.safetensors")
    exported = export_onnx(student, output, teacher)
    images = images_of(teacher, RunConfig.from_json(json.loads((folder / "config.json").read_bytes())))
    checked: Verification | None = None
    try:
        import_extra("onnxruntime")
    except UserError:
        pass
    else:
        sample, source = _sample(folder, teacher, images)
        checked = verify(output, sample, student=student, teacher=teacher, source=source, repeats=20)
    done = Quantized(result, exported, checked, folder / "report.html", student.mostly_float)
    write_atomically(folder / "quantized.json", json.dumps(done.as_json(), indent=1).encode())
    return done


@torch.no_grad()
def _sample(folder: Path, teacher: Teacher, images: ImageSet | None) -> tuple[ImageSet | Tensor, str]:
    """Images to compare the file with the student on, and what they are: those of the run, else new ones of its generator.

    Generated ones are cut to what pixels can be, if the teacher's mean and std say what that is.
    """
    if images is not None and images.labelled:
        return images.take(MOST_VERIFIED), ""
    game = Game.resume(last_checkpoint(folder), teacher=teacher)
    count = count_of(game)
    if images is not None:
        some = images.take(count)
        return torch.cat([teacher.normalize(x) for x, _ in some.batches(BATCH)]), some.source
    made = torch.cat([held_out(game, i) for i in range(count // BATCH)])
    if declares_range(teacher.info.mean, teacher.info.std):
        made = (teacher.denormalize(made) - teacher.mean) / teacher.std
    return made, f"{len(made):,} held-out generated images"
