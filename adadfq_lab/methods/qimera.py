"""Qimera: generate images between classes, where the teacher's decisions are made.

Q must learn the borders between P's classes, and noise around one class does not reach them. Some batches are therefore made
from superpositions of K class embeddings, with their weights as soft label. The embeddings may start as the rows of P's last
layer, and a linear map of its own lets G separate them again.

A class is a point in the space of P's last features, an embedding e_y. An image of one class is made from norm(e_y + z); an
image between classes from sum_k w_k norm(e_k + z_k), with soft label w. One tensor y says what is asked: `(N,)` labels, or
`(N, classes)` probabilities whose K largest are an image's slots, for K latents z `(N, K, latent)`. A class drawn twice for
one image becomes one slot with the weight of both.

Choi et al., Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples, NeurIPS 2021. `fidelity` decides
whether the map is there (`use_dm`), over what embeddings are normalised (`embedding_norm`), how class norms are mixed on
large images (`cbn_mix`), the eps of the generator's batch norms, and the same as for GDFQ.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.methods.gdfq import generator_loss, student_loss
from adadfq_lab.methods.generators import Generator, UpsampleConv2d, cropped, quarter
from adadfq_lab.methods.method import Method, noise_and_label
from adadfq_lab.teacher.teacher import Teacher

CbnMix = Literal["sum", "mean"]
EmbeddingNorm = Literal["per-sample", "per-slot"]


def last_layer(teacher: Teacher) -> Tensor:
    """The weight `(classes, features)` of the teacher's last layer, a Linear or a 1x1 convolution.

    Raises UserError if no layer has as many outputs as there are classes.
    """
    classes = len(teacher.info.classes)
    layers = [m.weight for m in teacher.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found = [w.detach() for w in layers if len(w) == classes and w[0].numel() == w.shape[1]]
    if not found:
        what = f"no Linear layer or 1x1 convolution with {classes} outputs"
        raise UserError(f"{type(teacher.network).__name__} has {what}, which qimera needs; play another method, such as gdfq")
    return found[-1].flatten(1)


class SuperposedEmbedding(nn.Module):
    """(z, y) to the latents `(N, latent)` of superpositions, for z `(N, latent)` or `(N, K, latent)` and y `(N, classes)`.

    norm: "per-sample" standardises each embedding over its features; "per-slot", as released for K > 1, each slot k over the
          batch and the features
    """

    def __init__(self, classes: int, latent: int, *, noise: float, norm: EmbeddingNorm) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, latent)
        self.noise, self.norm = noise, norm

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        z = z.unsqueeze(1) if z.dim() == 2 else z
        weights, slots = y.topk(z.shape[1], 1)
        e = self.table(slots) + self.noise * z
        over = (0, 2) if self.norm == "per-slot" and z.shape[1] > 1 else (2,)
        var, mean = torch.var_mean(e, over, correction=0, keepdim=True)
        latents: Tensor = (weights.unsqueeze(2) * (e - mean) * torch.rsqrt(var + 1e-5)).sum(1)
        return latents


class MixedBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are the classes', weighted with the probabilities y `(N, classes)`.

    mix: "sum"; or "mean" over the K slots, as released, which makes both K times smaller
    """

    def __init__(self, channels: int, classes: int, eps: float, mix: CbnMix) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.scale, self.shift = (nn.Parameter(torch.full((classes, channels), value)) for value in (1.0, 0.0))
        self.mix = mix

    def forward(self, x: Tensor, y: Tensor, slots: int) -> Tensor:
        y = y / slots if self.mix == "mean" else y
        scale, shift = (y @ table for table in (self.scale, self.shift))
        return torch.addcmul(shift[:, :, None, None], self.norm(x), scale[:, :, None, None])


class PlainBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that looks at no label."""

    def forward(self, x: Tensor, y: Tensor, slots: int) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class SuperposedGenerator(Generator):
    """G of Qimera: superposed embedding, a linear map to 100 (the disentanglement mapping), then as GDFQ's generators.

    latent: width of the embeddings, that of P's last features
    noise:  deviation of what is added to an embedding before it is normalised; 1, but 0 on ImageNet as released
    dm:     with the disentanglement mapping: 1,064,039 parameters for CIFAR-100 against 762,627 without
    mix:    how class norms are mixed, see `MixedBatchNorm2d`; only images of more than 64 pixels a side have class norms
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        latent: int,
        *,
        noise: float = 1.0,
        dm: bool = True,
        mix: CbnMix = "sum",
        norm: EmbeddingNorm = "per-sample",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()

        def batch_norm(channels: int, eps: float) -> nn.Module:
            return MixedBatchNorm2d(channels, classes, eps, mix) if max(shape[1:]) > 64 else PlainBatchNorm2d(channels, eps)

        self.latent, self.classes, self.shape, self.base = latent, classes, shape, quarter(shape)
        self.embedding = SuperposedEmbedding(classes, latent, noise=noise, norm=norm)
        self.mapping = nn.Linear(latent, 100) if dm else nn.Identity()
        self.linear = nn.Linear(100 if dm else latent, 128 * self.base[0] * self.base[1])
        self.norm0 = batch_norm(128, 1e-5)
        self.up1, self.norm1 = UpsampleConv2d(128, 128), batch_norm(128, eps)
        self.up2, self.norm2 = UpsampleConv2d(128, 64), batch_norm(64, eps)
        self.image = nn.Conv2d(64, shape[0], 3, padding=1)
        self.standardize = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        y = y if y.dim() == 2 else (y[:, None] == torch.arange(self.classes, device=y.device)).to(z.dtype)
        slots = z.shape[1] if z.dim() == 3 else 1
        x = self.linear(self.mapping(self.embedding(z, y)))
        x = x.view(len(z), 128, *self.base).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.norm1(self.up1(self.norm0(x, y, slots)), y, slots), 0.2, inplace=True)
        x = F.leaky_relu(self.norm2(self.up2(x), y, slots), 0.2, inplace=True)
        images: Tensor = self.standardize(torch.tanh(self.image(cropped(x, self.shape))))
        return images


def superposition(random: torch.Generator, n: int, latent: int, classes: int, K: int) -> tuple[Tensor, Tensor]:
    """z `(n, K, latent)` and soft labels `(n, classes)`: K classes a sample, with replacement, weighted by softmax(N(0, 1))."""
    K = min(K, classes)
    z = torch.randn(n, K, latent, generator=random)
    labels, weights = torch.randint(classes, (n, K), generator=random), torch.randn(n, K, generator=random).softmax(1)
    return z, torch.zeros(n, classes).scatter_add_(1, labels, weights)


def qimera(K: int | None = None, p: float = 0.4, *, extracted: bool | None = None, noise: float = 1.0) -> Method:
    """Qimera in which each batch is one of superpositions with probability p.

    K:         classes a superposition; by default 2 up to 10 classes, 10 up to 100, then 100
    extracted: whether embeddings start as the rows of P's last layer; by default from more than 10 classes on
    noise:     deviation of what is added to an embedding; the released code adds none on ImageNet
    """
    if not 0 <= p <= 1 or (K is not None and not (isinstance(K, int) and K >= 1)):
        raise UserError(f"qimera needs 0 <= p <= 1 and a whole number K >= 1, not p = {p} and K = {K}")

    def build_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
        info, rows, f = teacher.info, last_layer(teacher), fidelity
        generator = SuperposedGenerator(
            len(rows),
            info.input_shape,
            rows.shape[1],
            noise=noise,
            dm=f.use_dm,
            mix=f.cbn_mix,
            norm=f.embedding_norm,
            eps=f.generator_bn_eps,
        )
        if len(rows) > 10 if extracted is None else extracted:
            generator.embedding.table.weight.data.copy_(rows)
        return generator

    def sample(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
        if torch.rand((), generator=random) >= p:
            return noise_and_label(random, n, latent, classes)
        slots = K or (2 if classes <= 10 else 10 if classes <= 100 else 100)
        return superposition(random, n, latent, classes, slots)

    settings = {"K": K, "p": p, "extracted": extracted, "noise": noise}
    return Method("Qimera", generator_loss, student_loss, settings=settings, build_generator=build_generator, sample=sample)
