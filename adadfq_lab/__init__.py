"""Adaptive Data-Free Quantization, interactively: a teacher P, a generator G, a student Q, and the game they play.

    import adadfq_lab as lab

    P = lab.load_teacher("fashion_mnist_resnet20")
    Q = lab.quantize(P, "3w3a")
    for record in lab.Game(P, Q, lab.adadfq(), seed=0).play(100):
        print(record.index, record.h_prime.mean())

Every name below is imported from its module when it is first used, so that `import adadfq_lab` is immediate.
"""

from importlib import import_module
from typing import Any

_MODULES: dict[str, str] = {
    # the course
    "check_env": "machine.environment",
    "fast": "machine.environment",
    "live_backend": "machine.environment",
    "progress": "course.check",
    "quiz": "course.quizzes",
    "show": "views.style",
    # data and players
    "load_data": "data.loading",
    "ImageSet": "data.image_sets",
    "load_teacher": "teacher.teacher_files",
    "wrap_teacher": "teacher.teacher",
    "save_teacher": "teacher.teacher_files",
    "Teacher": "teacher.teacher",
    "quantize": "student.quantize",
    "Student": "student.student",
    "accuracy": "data.accuracy",
    "Accuracy": "data.accuracy",
    "wilson": "data.accuracy",
    "conditional_generator": "methods.generators",
    "Generator": "methods.generators",
    "WithStatistics": "teacher.statistics",
    # equations
    "p_ds": "equations",
    "p_as": "equations",
    "entropy": "equations",
    "disagreement_entropy": "equations",
    "normalized_entropy": "equations",
    "adaptability": "equations",
    "game_value": "equations",
    "loss_ds": "equations",
    "loss_as": "equations",
    "loss_balance": "equations",
    "Bounds": "equations",
    "hinge": "equations",
    "hinge_lower": "equations",
    "hinge_upper": "equations",
    "BatchStatistics": "equations",
    "loss_bns": "equations",
    "generator_objective": "equations",
    "student_objective": "equations",
    "student_entropy_loss": "equations",
    "distillation": "equations",
    # theory
    "is_equilibrium": "theory",
    "bound_student_label": "theory",
    "bound_teacher_label": "theory",
    "bound_student_teacher": "theory",
    "bound_total": "theory",
    "decompose_bound": "theory",
    # the quantizer
    "BitWidths": "student.quantizer",
    "Range": "student.quantizer",
    "QuantActivation": "student.quantizer",
    "quant_range": "student.quantizer",
    "qparams": "student.quantizer",
    "weight_qparams": "student.quantizer",
    "codes": "student.quantizer",
    "dequantize": "student.quantizer",
    "fake_quantize": "student.quantizer",
    "quantize_linear": "student.quantizer",
    # methods and the game
    "METHODS": "methods.registry",
    "Method": "methods.method",
    "Round": "methods.method",
    "gdfq": "methods.gdfq",
    "arc": "methods.arc",
    "qimera": "methods.qimera",
    "arc_ait": "methods.arc_ait",
    "adasg": "methods.adasg",
    "adadfq": "methods.adadfq",
    "make_method": "methods.registry",
    "register": "methods.registry",
    "ideas": "game.method_comparison",
    "compare_methods": "game.method_comparison",
    "Fidelity": "fidelity",
    "CHOICES": "fidelity",
    "Game": "game.game",
    "Schedule": "game.schedule",
    "UserError": "errors",
    # whole runs
    "RunConfig": "runs.config",
    "build_game": "runs.players",
    "run": "runs.run",
    "read_records": "runs.log",
    "estimate": "runs.estimates",
    "largest_that_fits": "runs.estimates",
    "Watch": "runs.watch",
    # integers that run
    "integers": "integers.layers",
    "run_integer": "integers.inference",
    "compare_layers": "integers.inference",
    "pack": "integers.packing",
    "unpack": "integers.packing",
    "export_onnx": "integers.export",
    "verify": "integers.verification",
    # what was played, live and before
    "Record": "game.history",
    "History": "game.history",
    "Recorder": "game.history",
    "LiveRun": "views.live",
    "load_recording": "game.recordings",
    "load_population": "game.recordings",
    "load_grid": "game.recordings",
    # things to drag
    "bounds_explorer": "views.widgets",
    "logit_playground": "views.widgets",
    "quantizer_staircase": "views.widgets",
    "sample_gallery": "views.widgets",
    "replay": "views.widgets",
    "error_bound_explorer": "views.widgets",
    "method_explorer": "views.widgets",
    "grid_map": "views.figures",
    "bars": "views.figures",
    "table_figure": "studies.tables",
}
"""Public name: the module of this package that defines it."""

_WHOLE = ("check", "fidelity", "figures", "recipes", "report", "style", "tables")
"""Modules that are public as such: `lab.check.p_ds(...)`, `lab.figures.staircase(...)`."""

__all__ = [*_MODULES, *_WHOLE]


def __getattr__(name: str) -> Any:
    if name in _WHOLE:
        return import_module(f"adadfq_lab.{name}")
    if name not in _MODULES:
        raise AttributeError(f"adadfq_lab has no public name {name!r}")
    value = getattr(import_module(f"adadfq_lab.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
