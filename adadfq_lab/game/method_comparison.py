"""Methods side by side on one batch: their losses, how hard each term pulls, and what each loss depends on.

Each method gets the same images, labels, teacher and student, and `Game` itself computes the losses from them, so
what is compared is what is played, Q's batch norms and features included. Nothing about a method is written here: a term's pull
is the gradient it sends, and what a loss depends on is found by changing it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.equations import BatchStatistics, Terms
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method, Round
from adadfq_lab.methods.registry import METHODS, description, make_method
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher

Player = Literal["generator", "student"]
SOURCES = ("labels", "P's logits", "P's batch norms", "Q's logits", "features")
"""What a loss may depend on."""


@dataclass(frozen=True)
class Term:
    """One term of a loss. value: weighted, as minimised; pull: see `compare_methods`."""

    value: float
    pull: float


@dataclass(frozen=True)
class Look:
    """One method on the batch: the terms of both players' losses, and which of SOURCES each loss depends on."""

    name: str
    generator: dict[str, Term]
    student: dict[str, Term]
    generator_sees: frozenset[str]
    student_sees: frozenset[str]

    def shares(self, player: Player) -> dict[str, float]:
        """Each term's part of all pulls of that player's loss, in percent; 0 if nothing pulls."""
        terms: dict[str, Term] = getattr(self, player)
        total = sum(term.pull for term in terms.values())
        return {name: 100 * term.pull / total if total else 0.0 for name, term in terms.items()}


@dataclass(frozen=True)
class Comparison:
    """The methods on one batch, by the names they are registered under; a notebook shows it as a table."""

    looks: dict[str, Look]

    def __getitem__(self, name: str) -> Look:
        return self.looks[name]

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("method", *(f"{player}: {source}" for player in "GQ" for source in SOURCES))
        rows = [
            (
                look.name,
                *("×" if source in sees else "" for sees in (look.generator_sees, look.student_sees) for source in SOURCES),
            )
            for look in self.looks.values()
        ]
        return [head, *rows]

    def __repr__(self) -> str:
        lines = []
        for look in self.looks.values():
            for player, sees in (("G", look.generator_sees), ("Q", look.student_sees)):
                name = look.name if player == "G" else ""
                lines.append(f"{name:9} {player} looks at {', '.join(s for s in SOURCES if s in sees) or 'nothing'}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        top = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{top}</tr>{body}</table>"


def ideas() -> dict[str, str]:
    """What each registered method does, in a sentence without its name: see `methods.description`."""
    return {name: description(make).split(": ", 1)[-1] for name, make in METHODS.items()}


def compare_methods(
    teacher: Teacher,
    student: Student,
    images: Tensor,
    labels: Tensor,
    *,
    methods: Sequence[str] = (),
    fidelity: str | Fidelity = "corrected",
) -> Comparison:
    """Both players' loss terms of `methods` (all that are registered, if none is named) on one batch; changes nothing.

    images: (N, C, H, W), normalised; labels: (N,)

    The pull of a term is the length of its gradient at one sample, times N so that it does not depend on the batch, the mean
    over samples: of G's terms at the image, of Q's at Q's logits (a term of features has none there). Raises UserError for an
    unknown method.
    """
    names = tuple(methods) or tuple(METHODS)
    return Comparison({n: _look(make_method(n), teacher, student, images, labels, fidelity) for n in names})


def _look(method: Method, teacher: Teacher, student: Student, x: Tensor, y: Tensor, fidelity: str | Fidelity) -> Look:
    found: list[Look] = []

    def generator_loss(r: Round) -> Terms:
        found.append(_examine(method, r))
        return method.generator_loss(r)

    def build_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
        """The method's own generator, which may know facts about images, but its output is always these images."""
        own = method.build_generator(teacher, fidelity)
        own.forward = lambda z, y: x + 0 * next(own.parameters()).sum()  # type: ignore[method-assign]
        return own

    def sample(random: torch.Generator, n: int, latent: int, classes: int) -> tuple[Tensor, Tensor]:
        return method.sample(random, n, latent, classes)[0], y

    watched = replace(
        method,
        generator_loss=generator_loss,
        build_generator=build_generator,
        sample=sample,
        generator_every=1,
        generator_stops=False,
    )
    schedule = Schedule(batch=len(x), warmup=0, observe=1)
    game = Game(teacher, copy.deepcopy(student), watched, schedule=schedule, fidelity=fidelity)
    game.index = 1  # past the rounds in which ranges are observed
    game.round()
    return found[0]


def _examine(method: Method, r: Round) -> Look:
    terms_g, terms_q = method.generator_loss(r), method.student_loss(r)
    return Look(
        method.name,
        {name: _term(value, r.images) for name, value in terms_g.items()},
        {name: _term(value, r.student_logits) for name, value in terms_q.items()},
        _sees(method.generator_loss, r),
        _sees(method.student_loss, r),
    )


def _term(value: Tensor, at: Tensor) -> Term:
    gradient = _gradients(value, [at])[0]
    pull = 0.0 if gradient is None else float(len(at) * gradient.flatten(1).norm(dim=1).mean())
    return Term(float(value.detach()), pull)


def _gradients(value: Tensor, at: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not (at and value.requires_grad):
        return (None,) * max(1, len(at))
    return torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)


def _sees(loss: Callable[[Round], Terms], r: Round) -> frozenset[str]:
    """Which of SOURCES `loss` depends on at `r`: those with a gradient, and the labels, if others give another loss."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    z_p, z_q = leaf(r.teacher_logits), leaf(r.student_logits)
    statistics = [BatchStatistics(leaf(s.mean), leaf(s.var), s.running_mean, s.running_var) for s in r.statistics]
    f_p, f_q = tuple(map(leaf, r.teacher_features)), tuple(map(leaf, r.student_features))
    parts: dict[str, Any] = {
        "images": r.images.detach(),
        "teacher_logits": z_p,
        "student_logits": z_q,
        "statistics": statistics,
        "teacher_features": f_p,
        "student_features": f_q,
    }
    value = torch.stack(list(loss(replace(r, **parts)).values())).sum()
    others = torch.stack(list(loss(replace(r, labels=r.labels.roll(1, 0), **parts)).values())).sum()
    places = {
        "P's logits": [z_p],
        "P's batch norms": [tensor for s in statistics for tensor in (s.mean, s.var)],
        "Q's logits": [z_q],
        "features": [*f_p, *f_q],
    }
    seen = {source for source, at in places.items() if any(g is not None and bool(g.any()) for g in _gradients(value, at))}
    return frozenset(seen | ({"labels"} if bool(others.detach() != value.detach()) else set()))
