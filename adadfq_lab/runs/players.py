"""The players of a run: a configuration turned into teacher, student and game."""

import dataclasses

import torch

from adadfq_lab.data.class_names import in_order_of, named
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity, fidelity
from adadfq_lab.game.game import Game
from adadfq_lab.machine.devices import pick_device
from adadfq_lab.methods.registry import make_method
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher


def observe_noise(student: Student, shape: tuple[int, int, int], *, batches: int = 20, batch: int = 16, seed: int = 0) -> None:
    """Observes Q's activation ranges on standard-normal images: plain quantization without data."""
    generator = torch.Generator().manual_seed(seed)
    device = next(student.parameters()).device
    student.observing = True
    with torch.no_grad():
        for _ in range(batches):
            student(torch.randn(batch, *shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last))
    student.observing = False


def fidelity_of(config: RunConfig) -> Fidelity:
    """The preset that `config` names, with its own answer on L_BNS if it has one."""
    f = fidelity(config.fidelity)
    return dataclasses.replace(f, bns_reduction=config.bns_reduction) if config.bns_reduction else f


def build_student(teacher: Teacher, config: RunConfig) -> Student:
    """Q before the first round, as `config` asks."""
    f = fidelity_of(config)
    return quantize(teacher, config.bits, ste=f.ste, rule=f.observer, zero_point=f.zero_point, every_input=config.every_input)


def build_game(config: RunConfig, teacher: Teacher) -> Game:
    """The game of a run before its first round."""
    method = make_method(config.method, **config.settings)
    if config.lower is not None or config.upper is not None:
        bounds = Bounds(
            method.bounds.lower if config.lower is None else config.lower,
            method.bounds.upper if config.upper is None else config.upper,
        )
        method = dataclasses.replace(method, bounds=bounds)
    return Game(
        teacher,
        build_student(teacher, config),
        method,
        seed=config.seed,
        schedule=config.schedule,
        fidelity=fidelity_of(config),
        gains_every=config.gains_every,
        precision=config.precision,
        compile=config.compile,
        device=pick_device(config.device),
    )


def images_of(teacher: Teacher, config: RunConfig) -> ImageSet | None:
    """The images that a run of `config` measures on, as the teacher takes them; None if there are to be none.

    There are none if the configuration says "none", or names none for a teacher that does not know its data.
    """
    if config.data == "none" or not (config.data or teacher.info.data):
        return None
    try:
        data = load_data(config.data or teacher.info.data, "test", stub=config.stub)
    except UserError as error:
        if config.data:
            raise
        raise UserError(f"{error}; or play without images: --data none") from None
    return fitting_data(teacher, data)


def fitting_data(teacher: Teacher, data: ImageSet) -> ImageSet:
    """`data` in the shape that the teacher takes, its labels in the order of the teacher's classes.

    Raises UserError if it has another shape, another number of classes, or classes of other names.
    """
    data, info = data.of_shape(teacher.info.input_shape), teacher.info
    shape = tuple(data.images.shape[1:])
    others = len(data.classes) > len(info.classes) or not named(data.classes) or not named(info.classes)
    if shape != info.input_shape or (data.labelled and others and len(data.classes) != len(info.classes)):
        raise UserError(
            f"teacher {info.name} takes {info.input_shape} images of {len(info.classes)} classes; "
            f"{data.name} has {shape}" + (f" of {len(data.classes)}" if data.labelled else ", without labels")
        )
    return in_order_of(data, info.classes, f"teacher {info.name}")
