"""A game small enough to play in milliseconds: a ResNet-8 with random weights on 8x8 images of 4 classes."""

import torch

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.networks import resnet8
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo

CLASSES = ("circle", "square", "triangle", "star")


def tiny_teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet8(classes=len(CLASSES), channels=1)
    return Teacher(network, TeacherInfo("tiny", "resnet8", "none", CLASSES, (1, 8, 8), (0.5,), (0.5,)))


def tiny_game(*, gains_every: int = 0, batch: int = 8, student_lr: float = 1e-4) -> Game:
    teacher = tiny_teacher()
    schedule = Schedule(batch=batch, warmup=2, observe=4, student_lr=student_lr)
    return Game(teacher, quantize(teacher, "3w3a"), adadfq(), schedule=schedule, gains_every=gains_every)


def tiny_images(count: int = 12) -> ImageSet:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), generator=random).to(torch.uint8)
    return ImageSet("tiny", "test", images, torch.arange(count) % len(CLASSES), CLASSES, f"{count} images of noise")
