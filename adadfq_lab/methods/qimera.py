"""Qimera: generate images between classes, where the teacher's decisions are made.

What Q must learn lies at the borders between P's classes, and noise around one class does not reach them: so some batches are
made from superpositions of K class embeddings, with the weights as soft label. The embeddings may start as the rows of P's
last layer, and a linear map of its own lets G take them apart again.

Choi et al., Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples, NeurIPS 2021. `fidelity` decides whether
the map is there (`use_dm`), over what embeddings are normalised (`embedding_norm`), how class norms are mixed on large images
(`cbn_mix`), the eps of the generator's batch norms, and what it does for GDFQ.
"""

import torch
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.generators import Generator
from adadfq_lab.methods.gdfq import generator_loss, student_loss
from adadfq_lab.methods.method import Method, noise_and_label
from adadfq_lab.qimera_generator import SuperposedGenerator, last_layer
from adadfq_lab.teacher.teacher import Teacher


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
