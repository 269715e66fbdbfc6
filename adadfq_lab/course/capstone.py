"""The capstone: your own functions play AdaDFQ, beside the library's game, from the same state and the same draws.

    lab.capstone()

Every function that a check accepted plays its part: p_ds, entropy and H', the hinge and G's objective, L_ds and L_as, L_BNS,
the quantizer (channel_range, qparams, codes, round_ste), the label in G, the value that Q lowers, Q's step, and the order of a
round. What was skipped is borrowed from the library, and the result says so. Both games compute in float64, so that they stay
equal to many digits over all rounds if both compute the same.

Both games follow the equations as printed, Eq. (12) and (13). While your side of the table plays, the names in `lab` are your
functions: if your `generator_objective` calls `lab.hinge`, it calls your hinge.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

import adadfq_lab
from adadfq_lab.course.check import Mine, own
from adadfq_lab.course.comparing import leaves
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.data.accuracy import Accuracy, accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import BatchStatistics, Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity, fidelity
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.environment import fast
from adadfq_lab.machine.optimizers import Adam
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.generators import LabelGenerator
from adadfq_lab.student.layers import QuantLayer
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher

PARTS = (
    "p_ds", "entropy", "normalized_entropy", "hinge", "loss_ds", "loss_as", "loss_balance", "loss_bns", "generator_objective",
    "game_value", "conditioned", "channel_range", "qparams", "codes", "round_ste", "student_step", "play_round",
)  # fmt: skip
"""The exercises whose functions play."""
CLOSE = 1e-4
"""Relative difference up to which two terms of a round count as equal."""
Terms = dict[str, float]
"""band, balance and bns, which G minimises, and student, Q's loss; generator in place of the three if they are unknown."""


@dataclass(frozen=True)
class Capstone:
    """How the two games went; shows itself as a table.

    rounds:   (yours, library's) loss of G, then of Q, of each round
    terms:    (yours, library's) terms of these losses, of each round
    accuracy: before, yours and the library's at the end
    borrowed: the functions that were the library's, each with the reason
    notes:    what had to be arranged so that both play the same game
    """

    rounds: list[tuple[tuple[float, float], tuple[float, float]]]
    terms: list[tuple[Terms, Terms]]
    accuracy: tuple[Accuracy, Accuracy, Accuracy]
    own: tuple[str, ...]
    borrowed: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> int:
        """The number of rounds, from the first, in which every term is equal."""
        same = [not _unequal(mine, theirs) for mine, theirs in self.terms]
        return same.index(False) if False in same else len(same)

    def lines(self) -> list[str]:
        """The result in sentences."""
        before, mine, theirs = self.accuracy
        whole = self.equal == len(self.rounds)
        ends = f"yours {mine.top1:.1f} %, the library's {theirs.top1:.1f} %"
        said = [
            f"Your own: {', '.join(self.own) or 'none yet'}.",
            "Borrowed from the library: "
            + (", ".join(f"{name} ({why})" for name, why in self.borrowed.items()) or "nothing")
            + ".",
            f"{self.equal} of {len(self.rounds)} rounds are equal."
            if whole
            else f"The games part in round {self.equal + 1}, in {' and '.join(_unequal(*self.terms[self.equal]))}: see which "
            "function of yours is only nearly right, or not smooth.",
            f"Accuracy of Q on {mine.images} test images: {before.top1:.1f} % before; at the end {ends}.",
        ]
        return [*said, *self.notes]

    def __repr__(self) -> str:
        return "\n".join([*(" ".join(row) for row in self._rows()), *self.lines()])

    def _rows(self) -> list[list[str]]:
        rows = [["round", "G_yours", "G_library", "Q_yours", "Q_library", "equal"]]
        for i, (g, q) in enumerate(self.rounds):
            if i < 5 or i >= len(self.rounds) - 2 or i == self.equal:
                rows.append([str(i + 1), *(f"{value:.6f}" for value in (*g, *q)), "yes" if i < self.equal else "no"])
        return rows

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        names = "".join(f"<th>{escape(cell.replace('_', ', '))}</th>" for cell in head)
        return f"<table><tr>{names}</tr>{cells}</table>" + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def capstone(
    rounds: int = 6, *, teacher: Teacher | None = None, data: ImageSet | None = None, bits: str = "3w3a", seed: int = 0
) -> Capstone:
    """Plays `rounds` rounds of AdaDFQ twice, with your functions and with the library's, and compares them round by round.

    teacher, data: the shipped Fashion-MNIST ResNet-20 and 300 test images, if not given

    In fast mode three rounds on 100 images. Raises UserError for less than 1 round.
    """
    if rounds < 1:
        raise UserError(f"a game has at least 1 round, not {rounds}")
    rounds, images = (min(rounds, 3), 100) if fast() else (rounds, 300)
    parts = {name: _usable(own(name)) for name in PARTS}
    teacher = teacher or load_teacher("fashion_mnist_resnet20")
    data = data or load_data("fashion_mnist").take(images)
    library, notes = _library_game(teacher, parts, bits, seed)
    table = _Table(library, parts)

    def measured(student: Student) -> Accuracy:
        return accuracy(student.float(), data, lambda raw: teacher.normalize(raw).float())  # float64 takes minutes here

    before, played, compared = measured(copy.deepcopy(library.student)), [], []
    for _ in range(rounds):
        state = library.random.get_state()
        z, y = library.draw()
        library.random.set_state(state)  # the library draws the same again
        with _names_are(table.names):
            mine, own_terms = table.round(z, y, library.bounds)
        (record,) = library.play(1)
        g = {name.removeprefix("generator."): float(term) for name, term in record.terms.items()}
        q = sum(g.pop(name) for name in list(g) if name.startswith("student."))
        played.append(((mine[0], sum(g.values())), (mine[1], q)))
        parts_of_g = {"band": g["band"], "balance": g["ds"] + g["as"], "bns": g["bns"]}
        whole = {"generator": sum(g.values())}
        compared.append((own_terms, (whole if "generator" in own_terms else parts_of_g) | {"student": q}))
    borrowed = {name: part.borrowed for name, part in parts.items() if part.borrowed}
    ends = (before, measured(table.student), measured(library.student))
    return Capstone(played, compared, ends, tuple(name for name in PARTS if name not in borrowed), borrowed, tuple(notes))


def _unequal(mine: Terms, theirs: Terms) -> list[str]:
    """The terms that differ. Each is compared on its own: beside L_BNS, a wrong hinge would be within the tolerance."""
    return [name for name, value in theirs.items() if not abs(mine[name] - value) <= CLOSE * abs(value) + 1e-9]


@contextmanager
def _names_are(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within, `lab.NAME` is the function given here for that name."""
    before = {name: getattr(adadfq_lab, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(adadfq_lab, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(adadfq_lab, name, function)


SMOOTH = ("p_ds", "entropy", "normalized_entropy", "game_value", "conditioned")
"""Exercises that also accept an answer without a gradient; to play, a function must have one."""


def _usable(part: Mine) -> Mine:
    """`part`, or the library's function if a gradient has to pass and none does."""
    exercise = EXERCISES[part.name]
    if part.borrowed or part.name not in SMOOTH or _passes_gradient(part.function, part.name):
        return part
    return Mine(part.name, exercise.reference, "yours has no gradient: numpy, float() or .item() cut it")


def _passes_gradient(function: Callable[..., Any], name: str) -> bool:
    case = copy.deepcopy(list(EXERCISES[name].cases(torch.Generator().manual_seed(1))[0]))
    for tensor in leaves(case):
        tensor.requires_grad_()
    try:
        return bool(function(*case).requires_grad)
    except Exception:  # numpy refuses tensors that need a gradient
        return False


def _library_game(teacher: Teacher, parts: dict[str, Mine], bits: str, seed: int) -> tuple[Game, list[str]]:
    """The library's game after its warm-up, in float64, by the fidelity that plays what the exercises say."""
    truth: Fidelity = dataclasses.replace(
        fidelity("corrected"), student_objective="eq13", entropy_floor=_floor(parts["normalized_entropy"])
    )
    notes = []
    if truth.entropy_floor == "batch_grad":
        notes.append(
            "Your H' lets the gradient through its minimum, as the released code does; the library's game does so too."
        )
    schedule = Schedule(batch=8, warmup=2, observe=2, student_lr=2e-4)
    game = Game(teacher, quantize(teacher, bits), adadfq(), seed=seed, schedule=schedule, fidelity=truth)
    for module in (game.teacher, game.student, game.generator):
        module.double()
    game.observed_teacher = WithStatistics(game.teacher, game.observed_teacher.stages)
    for _ in game.play(schedule.warmup):  # G learns, and the ranges of Q are observed
        pass
    game.student.observing = False
    return game, notes


def _floor(h_prime: Mine) -> Any:
    """Whether the gradient of this H' passes through the batch's minimum: "batch_grad", or "batch" if it is held constant."""
    entropy = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    out = h_prime.function(entropy, 10)
    (gradient,) = torch.autograd.grad(out[1], entropy)
    return "batch_grad" if float(gradient[0]) != 0 else "batch"


# Your side of the table


class _Label(nn.Module):
    """Stands in G where the label is looked up; `conditioned` does look-up and product together."""

    def __init__(self, table: Tensor, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(table), function

    def forward(self, y: Tensor) -> "_Row":
        return _Row(self, y)


class _Row:
    def __init__(self, label: _Label, y: Tensor) -> None:
        self.label, self.y = label, y

    def __mul__(self, z: Tensor) -> Tensor:
        return self.label.function(z, self.y, self.label.weight)


class _Step:
    """Q's optimizer made of `student_step`."""

    def __init__(self, parameters: list[nn.Parameter], function: Callable[..., Any], rate: float, decay: float) -> None:
        self.parameters, self.function, self.rate, self.decay = parameters, function, rate, decay
        self.velocity = [torch.zeros_like(parameter) for parameter in parameters]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                new = self.function(parameter.detach().clone(), parameter.grad, self.velocity[i], self.rate, 0.9, self.decay)
                parameter.copy_(new[0])
                self.velocity[i] = torch.as_tensor(new[1])


class _Table:
    """Copies of P, Q and G, in which the learner's functions compute. names: what `lab.NAME` is while they play."""

    def __init__(self, game: Game, parts: Mapping[str, Mine]) -> None:
        own = {name: part.function for name, part in parts.items()}
        self.names = _names(parts)
        self._objective, self._seen = self.names["generator_objective"], list[Terms]()
        self.names["generator_objective"] = self._watched
        self.play_round = None if parts["play_round"].borrowed else own["play_round"]
        self.teacher = copy.deepcopy(game.observed_teacher)
        self.student: Student = copy.deepcopy(game.student)
        if not isinstance(game.generator, LabelGenerator):
            raise UserError("the capstone plays on small images, where G multiplies z by the label's vector")
        self.generator: Any = copy.deepcopy(game.generator)
        table: Any = game.generator.label.weight
        self.generator.label = _Label(table.detach().clone(), own["conditioned"])
        for layer in self.student.modules():
            if isinstance(layer, QuantLayer):
                layer.quantized_weight = _quantized(layer, own)  # type: ignore[method-assign]
        old = game.generator_optimizer
        self.optimizer_g = Adam(self.generator.parameters(), game.rates.generator_lr, betas=old.param_groups[0]["betas"])
        for mine, theirs in zip(self.generator.parameters(), game.generator.parameters(), strict=True):
            self.optimizer_g.state[mine] = copy.deepcopy(old.state[theirs])
        learning = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimizer_q = _Step(learning, own["student_step"], game.rates.student_lr, game.rates.weight_decay)

    def _watched(self, h_prime: Tensor, balance: Tensor, bns: Tensor, bounds: Bounds) -> Any:
        """`generator_objective`, with a note of its terms: the band is what it adds to the two others."""
        result = self._objective(h_prime, balance, bns, bounds)
        whole, second, third = (float(torch.as_tensor(term).detach()) for term in (result, balance, bns))
        self._seen.append({"band": whole - second - third, "balance": second, "bns": third})
        return result

    def round(self, z: Tensor, y: Tensor, bounds: Bounds) -> tuple[tuple[float, float], Terms]:
        """One round; the losses of G and Q, and their terms if G's was computed by one `lab.generator_objective`."""
        players = (self.generator, self.teacher, self.student, self.optimizer_g, self.optimizer_q)
        self._seen.clear()
        losses = (self.play_round or _borrowed_round)(*players, z, y, bounds)
        g, q = (float(torch.as_tensor(loss).detach()) for loss in losses)
        terms = self._seen[0] if len(self._seen) == 1 else {"generator": g}
        return (g, q), terms | {"student": q}


def _borrowed_round(
    G: Any, P: Any, Q: Any, optimizer_g: Any, optimizer_q: Any, z: Tensor, y: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """`play_round` by the names in `lab`, so that the learner's smaller functions play where this one is borrowed."""
    lab: Any = adadfq_lab
    x = G(z, y)
    z_p, statistics = P(x)
    z_q = Q(x)
    h_prime = lab.normalized_entropy(lab.disagreement_entropy(z_p, z_q), z_p.shape[1])
    loss_g = lab.generator_objective(h_prime, lab.loss_balance(z_p, z_q, y), lab.loss_bns(statistics), bounds)
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()
    entropy = lab.disagreement_entropy(z_p.detach(), Q(x.detach()))
    loss_q = lab.game_value(lab.normalized_entropy(entropy, z_p.shape[1]))
    optimizer_q.zero_grad()
    loss_q.backward()
    optimizer_q.step()
    return loss_g.detach(), loss_q.detach()


def _names(parts: Mapping[str, Mine]) -> dict[str, Callable[..., Any]]:
    """What `lab.NAME` is at the learner's side: their functions, and those of the library that are made of them."""
    own = {name: part.function for name, part in parts.items()}

    def normalized_entropy(entropy: Tensor, num_classes: int, *, floor: str = "batch") -> Any:
        return own["normalized_entropy"](entropy, num_classes)

    def loss_bns(statistics: Sequence[BatchStatistics], *, reduction: str = "sum") -> Any:
        if reduction == "mean":
            return own["loss_bns"](statistics)
        return sum(len(layer.mean) * own["loss_bns"]([layer]) for layer in statistics)  # a layer's sum is c times its mean

    def loss_balance(z_p: Tensor, z_q: Tensor, y: Tensor) -> Any:
        return 0.2 * own["loss_ds"](z_p, z_q, y) + 0.1 * own["loss_as"](z_p, z_q, y)

    def generator_objective(h_prime: Tensor, balance: Tensor, bns: Tensor, bounds: Bounds) -> Any:
        return own["hinge"](h_prime, bounds).mean() + balance + bns

    return {
        **{name: own[name] for name in ("p_ds", "entropy", "hinge", "loss_ds", "loss_as", "game_value")},
        "student_objective": own["game_value"],
        "disagreement_entropy": lambda z_p, z_q: own["entropy"](own["p_ds"](z_p, z_q)),
        "normalized_entropy": normalized_entropy,
        "loss_bns": loss_bns,
        "loss_balance": loss_balance if parts["loss_balance"].borrowed else own["loss_balance"],
        "generator_objective": generator_objective if parts["generator_objective"].borrowed else own["generator_objective"],
    }


def _quantized(layer: QuantLayer, parts: dict[str, Callable[..., Any]]) -> Callable[[], Tensor]:
    """A layer's weight on its grid by the learner's `channel_range`, `qparams`, `codes`, with the gradient of `round_ste`."""

    def weight() -> Tensor:
        w = layer.weight
        low, high = parts["channel_range"](w.detach())
        scale, zero = parts["qparams"](torch.as_tensor(low), torch.as_tensor(high), layer.bits)
        shape = (-1, *(1,) * (w.ndim - 1))
        scale, zero = torch.as_tensor(scale).view(shape), torch.as_tensor(zero).view(shape)
        q = torch.as_tensor(parts["codes"](w.detach(), scale, zero, layer.bits))
        passed = scale * parts["round_ste"](w / scale)
        on_grid: Tensor = passed + ((q - zero) * scale - passed).detach()
        return on_grid

    return weight
