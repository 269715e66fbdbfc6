"""IntraQ: optimise a fixed set of images that differ within a class, then learn from them.

In the warm-up, pixels are fitted to P's batch-norm statistics, to a target probability of their class (half of the targets
are below 1), and to a band of cosine distances from the mean features of the class. In half of the rounds they are cropped
at random, so that parts of an image are images too. The set then stays, and Q learns from crops of it by labels and, above
all, by P's logits.

The images are a bank in place of a generator; image i is of class i mod C. The warm-up optimises one batch after another,
each for `iterations` rounds. Each batch is a parameter of its own, so that Adam's moments are those of this batch and no
other image moves. Its learning rate falls along half a cosine: Adam's steps have constant size, and without the decay pixels
would not settle. A longer warm-up makes more images, not better ones.

A row of z holds normal numbers: the first selects one of the images of the class; `CROP` more, if present, say which part of
it is shown. All of it is drawn on the host and computed on the device.

Zhong et al., IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity, CVPR 2022. `fidelity` decides how L_BNS is
averaged. The released calibration on a second method's generator is not offered (`intra_calibration`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, softmax

from adadfq_lab.equations import Terms, distillation, loss_bns
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method, Rates, Round
from adadfq_lab.teacher.features import pooled_features
from adadfq_lab.teacher.teacher import Teacher

CROP = 5
"""Numbers that describe a crop: area, aspect ratio, vertical and horizontal position, and whether it is mirrored."""

SMALLEST, ASPECT = 0.5, 4 / 3
"""The smallest area of a crop as a share of the image, and its largest aspect ratio."""


def crop_boxes(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, height, width), each `(N,)` and in units of the image's sides, for `u` `(N, 4)` uniform in [0, 1).

    As in random resized crops: the area is uniform in [1/2, 1], the logarithm of the aspect ratio uniform in the part of
    [-log 4/3, log 4/3] for which such a crop fits into the image, and the position uniform over what is left.
    """
    area = SMALLEST + (1 - SMALLEST) * u[:, 0]
    widest = (-area.log()).clamp(max=math.log(ASPECT))
    ratio = torch.exp((2 * u[:, 1] - 1) * widest)
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)  # rounding may exceed 1
    return (1 - height) * u[:, 2], (1 - width) * u[:, 3], height, width


def _sampling(start: Tensor, length: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """Bilinear weights `(N, size, size)`: of pixel j in output pixel i of a crop from `start`, `length` long, in pixels."""
    i = torch.arange(size, device=start.device, dtype=start.dtype)
    offset = ((i + 0.5) * (length[:, None] / size) - 0.5).clamp(min=0).minimum(length[:, None] - 1)
    where = start[:, None] + torch.where(mirrored[:, None], offset.flip(1), offset)
    return (1 - (where[:, :, None] - i).abs()).clamp(min=0)


def resized_crop(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, mirrored: Tensor) -> Tensor:
    """The boxes of `x` `(N, C, H, W)`, in pixels and one each, bilinearly enlarged to H x W, mirrored if asked.

    As cropping and resizing with half-pixel centres, but boxes need not lie on pixels; linear in x, so gradients pass.
    """
    rows = _sampling(top, height, x.shape[2], torch.zeros_like(mirrored))
    columns = _sampling(left, width, x.shape[3], mirrored)
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


class ImageBank(Generator):
    """Pixels as parameters, with a target probability and, class by class, what finished images look like to P.

    features:   from images `(N, C, H, W)` to the features of P `(N, D)` that class centres are means of
    iterations: rounds of the warm-up that a batch is worked on
    easiest:    an image's target probability of its class is 1, or as likely, uniform between this and 1
    """

    targets: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        features: Callable[[Tensor], Tensor],
        width: int,
        *,
        iterations: int,
        easiest: float,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise UserError(f"iterations must be at least 1, not {iterations}")
        self.latent, self.classes, self.shape, self.features = 1, classes, shape, features
        self.iterations, self.easiest = iterations, easiest
        self.register_buffer("sums", torch.zeros(classes, width))
        self.register_buffer("counts", torch.zeros(classes))

    def plan(self, batch: int, warmup: int) -> None:
        """As many batches of noise as the warm-up has time for, and at least one image a class."""
        batches = max(warmup // self.iterations, math.ceil(self.classes / batch))
        self.batch, self.warmup, self.images = batch, warmup, batches * batch
        self.batches = nn.ParameterList(torch.randn(batch, *self.shape) for _ in range(batches))
        soft = self.easiest + (1 - self.easiest) * torch.rand(self.images)
        self.register_buffer("targets", torch.where(torch.rand(self.images) < 0.5, 1.0, soft))

    def bench(self, index: int) -> tuple[int, float]:
        """The batch that round `index` of the warm-up works on, and how far through its rounds it is, in [0, 1)."""
        done = index * len(self.batches) / self.warmup
        return int(done), done % 1

    def turn(self, index: int, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """In the warm-up the images on the bench, cropped in every other round; afterwards crops of whatever was drawn."""
        if index >= self.warmup:
            return z, y
        k, _ = self.bench(index)
        if k and self.bench(index - 1)[0] != k:
            self._remember(k - 1)
        for i, pixels in enumerate(self.batches):
            pixels.requires_grad_(i == k)
        numbers = torch.arange(k * self.batch, (k + 1) * self.batch)
        y = numbers % self.classes
        rank = (numbers // self.classes + 0.5) / self._per_class(y)
        crop = z[:, 1:] if z[0, 0] > 0 else z[:, :0]  # one coin for the batch
        return torch.cat((torch.special.ndtri(rank)[:, None], crop), dim=1), y

    def rate(self, index: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * self.bench(index)[1])) if index < self.warmup else 1.0

    def choose(self, z: Tensor, y: Tensor) -> Tensor:
        """The indices `(N,)` of the images that z and y select, uniform over the images of the class."""
        count = self._per_class(y)
        rank = (torch.special.ndtr(z[:, 0]) * count).long().minimum(count - 1)
        numbers: Tensor = rank * self.classes + y
        return numbers

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = torch.cat(list(self.batches))[self.choose(z, y)]
        if z.shape[1] == 1:
            return x
        u = torch.special.ndtr(z[:, 1:])
        top, left, height, width = crop_boxes(u)
        rows, columns = self.shape[1:]
        return resized_crop(x, rows * top, columns * left, rows * height, columns * width, u[:, 4] < 0.5)

    def notes(self, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        """target: the probability that P should give an image's class; centre: the mean features `(N, D)` of its class; seen:
        whether finished images of the class exist, from which the mean is taken."""
        counts = self.counts[y]
        return {
            "target": self.targets[self.choose(z, y)],
            "centre": self.sums[y] / counts.clamp(min=1)[:, None],
            "seen": counts > 0,
        }

    def _per_class(self, y: Tensor) -> Tensor:
        """How many images there are of the classes y."""
        return (self.images - 1 - y) // self.classes + 1

    @torch.no_grad()
    def _remember(self, k: int) -> None:
        """Adds the features of batch `k`, now finished, to the class centres."""
        y = (torch.arange(k * self.batch, (k + 1) * self.batch) % self.classes).to(self.sums.device)
        self.sums.index_add_(0, y, self.features(self.batches[k]).to(self.sums.dtype))
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=self.counts.dtype))


def soft_inception(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """E[(p_y - t)^2] of P's probability p of the label and each image's target t `(N,)`; a scalar."""
    p = softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return (p - target).square().mean()


def marginal_distance(f: Tensor, centre: Tensor, seen: Tensor, lower: float, upper: float) -> Tensor:
    """How far 1 - cos(f, centre) is outside [lower, upper], the mean over the images whose class was `seen`; a scalar.

    f, centre: features and the class's mean, `(N, D)`; seen: `(N,)`. 0 where no class was seen.
    """
    distance = 1 - cosine_similarity(f, centre, dim=1)
    outside = (lower - distance).clamp(min=0) + (distance - upper).clamp(min=0)
    return (outside * seen).sum() / seen.sum().clamp(min=1)


def crops(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
    """z `(n, latent + CROP)` from N(0, 1), and y `(n,)`, uniform over the classes."""
    return torch.randn(n, latent + CROP, generator=random), torch.randint(classes, (n,), generator=random)


def intraq(
    lower: float = 0.05,
    upper: float = 0.8,
    *,
    easiest: float = 0.95,
    alpha: float = 20.0,
    gamma: float = 1.0,
    iterations: int = 100,
) -> Method:
    """IntraQ with its constants for CIFAR-10, at a tenth of its 1,000 iterations a batch.

    Q's learning rate is the published one for batches of 256, scaled to 16; unscaled it ends in NaN at 3 bits, because alpha
    T^2 = 8,000 multiplies the divergence. gamma weights L_BNS; summed, as in Eq. (11), it outweighs the other terms.
    """

    def bank(teacher: Teacher, fidelity: Fidelity) -> ImageBank:
        if fidelity.intra_calibration == "generator":
            raise UserError("IntraQ's released calibration on a GDFQ generator is not offered; use fidelity corrected or paper")
        features, width = pooled_features(teacher)
        classes, shape = len(teacher.info.classes), teacher.info.input_shape
        return ImageBank(classes, shape, features, width, iterations=iterations, easiest=easiest)

    def generator_loss(r: Round) -> Terms:
        f, notes = r.teacher_features[-1].mean((2, 3)), r.notes
        return {
            "bns": gamma * loss_bns(r.statistics, reduction=r.fidelity.bns_reduction),
            "sil": soft_inception(r.teacher_logits, r.labels, notes["target"]),
            "mdc": marginal_distance(f, notes["centre"], notes["seen"], lower, upper),
        }

    def student_loss(r: Round) -> Terms:
        kd = distillation(r.teacher_logits, r.student_logits, T=20, reduction="batchmean")
        return {"label": cross_entropy(r.student_logits, r.labels), "kd": alpha * kd}

    return Method(
        "IntraQ",
        generator_loss,
        student_loss,
        settings={"lower": lower, "upper": upper, "easiest": easiest, "alpha": alpha, "gamma": gamma, "iterations": iterations},
        build_generator=bank,
        sample=crops,
        rates=Rates(generator_lr=0.5, student_lr=1e-4 * 16 / 256, adam_beta1=0.9),
        features=True,
        generator_stops=True,
        warmup=16 * iterations,
    )
