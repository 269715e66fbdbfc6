"""Real images: what the student would reach if the data had not been taken away.

A baseline, not a method: the teacher's own training images, shifted and mirrored, replace G's, and Q learns from them as in
AdaDFQ. The result bounds what better images could gain within the same budget.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Terms
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method, Round
from adadfq_lab.teacher.teacher import Teacher

SHIFT = 4
"""The largest shift of an image in each direction, in pixels."""


class RealImages(Generator):
    """Training images in place of G's: y selects the class, z the image, its shift and whether it is mirrored."""

    latent = 4

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        data = load_data(teacher.info.data, "train")
        if data.images.shape[1:] != teacher.info.input_shape:
            raise UserError(
                f"{data.name} has {tuple(data.images.shape[1:])} images, the teacher takes {teacher.info.input_shape}"
            )
        order = data.labels.argsort(stable=True)
        self.images = data.images[order]  # not a buffer, so that checkpoints do not hold it
        self.count = data.labels.bincount(minlength=len(data.classes))
        self.first = self.count.cumsum(0) - self.count
        self.normalize = teacher.normalize
        self.unused = nn.Parameter(torch.zeros(()))  # an optimizer needs a parameter

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        u, y = torch.special.ndtr(z.cpu().double()), y.cpu()  # uniform on (0, 1)
        images = self.images[self.first[y] + (u[:, 0] * self.count[y]).long()]
        _, _, height, width = images.shape
        top, left = ((2 * SHIFT + 1) * u[:, 1:3]).long().unbind(1)
        columns = torch.arange(width).expand(len(y), -1)
        columns = left[:, None] + torch.where(u[:, 3:] < 0.5, columns, width - 1 - columns)
        rows = top[:, None] + torch.arange(height)
        picked = F.pad(images, [SHIFT] * 4)[torch.arange(len(y))[:, None, None], :, rows[:, :, None], columns[:, None]]
        return self.normalize(picked.permute(0, 3, 1, 2)) + 0 * self.unused  # a warm-up then changes nothing


def build(teacher: Teacher, fidelity: Fidelity) -> Generator:
    return RealImages(teacher)


def nothing(r: Round) -> Terms:
    return {"none": 0.0 * r.images.sum()}


def real() -> Method:
    """Q trained as in AdaDFQ, on the teacher's training images."""
    return Method("Real", nothing, adadfq().student_loss, build_generator=build, generator_stops=True, warmup=0)
