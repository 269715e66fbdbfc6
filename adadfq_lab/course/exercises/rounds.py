"""The graded exercises in which a player moves: a step of Q (notebook 04), and a whole round of the game (notebook 07)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab import equations
from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake
from adadfq_lab.equations import BatchStatistics, Bounds
from adadfq_lab.machine.optimizers import SGD

# A step of Q


def student_step(
    weight: Tensor, gradient: Tensor, velocity: Tensor, rate: float, momentum: float, decay: float
) -> tuple[Tensor, Tensor]:
    """(weight, velocity) after one step of SGD with Nesterov momentum and weight decay, as torch.optim.SGD takes it."""
    g = gradient + decay * weight
    v = momentum * velocity + g
    return weight - rate * (g + momentum * v), v


def _steps(g: torch.Generator) -> list[Case]:
    def one(shape: tuple[int, ...], rate: float, momentum: float, decay: float) -> Case:
        return *(torch.randn(shape, generator=g) for _ in range(3)), rate, momentum, decay

    first = one((4, 3), 0.5, 0.9, 0.3)
    return [first, one((6,), 0.1, 0.5, 0.2), (*first[:2], torch.zeros(4, 3), *first[3:]), one((2, 3), 0.2, 0.0, 0.0)]


def _plain_momentum(w: Tensor, g: Tensor, v: Tensor, rate: float, m: float, decay: float) -> tuple[Tensor, Tensor]:
    v = m * v + g + decay * w
    return w - rate * v, v


# A whole round, on networks of a few weights


class _Maker(nn.Module):
    """G: z (N, 3) and y to two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.out(self.table(y) * z))


class _Teacher(nn.Module):
    """P: logits, and the statistics of its one batch norm, as `WithStatistics` gives them."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 4)
        self.register_buffer("running_mean", torch.full((2,), 0.3))
        self.register_buffer("running_var", torch.full((2,), 0.5))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
        seen = (x.mean(0), x.var(0, unbiased=False))
        return self.out(x), [BatchStatistics(*seen, self.running_mean, self.running_var)]


def _table(g: torch.Generator) -> list[Case]:
    """Three players, two optimizers that took a step already, a batch, bounds: what a round is played with."""
    cases: list[Case] = []
    for n, lower, upper in ((8, 0.1, 0.8), (5, 0.4, 0.6)):
        seed = int(torch.randint(10**6, (), generator=g))
        z, y = torch.randn(n, 3, generator=g), torch.randint(4, (n,), generator=g)
        cases.append((seed, z, y, Bounds(lower, upper)))
    return cases


def _players(seed: int) -> tuple[_Maker, _Teacher, nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        G, P, Q = _Maker(), _Teacher(), nn.Linear(2, 4)
    with torch.no_grad():
        P.out.weight.mul_(4)
        for parameter in (*G.parameters(), *Q.parameters()):  # what a careless pass before left behind
            parameter.grad = torch.full_like(parameter, 0.7)
    return G, P, Q


def play_round(
    G: nn.Module,
    P: nn.Module,
    Q: nn.Module,
    optimizer_g: torch.optim.Optimizer,
    optimizer_q: torch.optim.Optimizer,
    z: Tensor,
    y: Tensor,
    bounds: Bounds,
) -> tuple[Tensor, Tensor]:
    """One round of AdaDFQ with Eq. (12) and (13): both players step once; returns (loss of G, loss of Q), both 0-dim."""
    x = G(z, y)
    z_p, statistics = P(x)
    loss_g = _generator_loss(z_p, Q(x), y, statistics, bounds)
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()
    loss_q = equations.game_value(_h_prime(z_p.detach(), Q(x.detach())))
    optimizer_q.zero_grad()
    loss_q.backward()
    optimizer_q.step()
    return loss_g.detach(), loss_q.detach()


def _h_prime(z_p: Tensor, z_q: Tensor) -> Tensor:
    return equations.normalized_entropy(equations.disagreement_entropy(z_p, z_q), z_p.shape[1])


def _generator_loss(z_p: Tensor, z_q: Tensor, y: Tensor, statistics: list[BatchStatistics], bounds: Bounds) -> Tensor:
    balance, bns = equations.loss_balance(z_p, z_q, y), equations.loss_bns(statistics)
    return equations.generator_objective(_h_prime(z_p, z_q), balance, bns, bounds)


def _as_played(function: Callable[..., Any], seed: int, z: Tensor, y: Tensor, bounds: Bounds) -> tuple[Any, ...]:
    """(losses, how G moved, how Q moved, how P moved) when `function` plays a round."""
    players = _players(seed)
    before = [_weights(player) for player in players]
    G, P, Q = players
    optimizer_g, optimizer_q = SGD(G.parameters(), 0.1), SGD(Q.parameters(), 0.1)
    losses = function(G, P, Q, optimizer_g, optimizer_q, z, y, bounds)
    if not isinstance(losses, tuple | list) or len(losses) != 2:
        raise TypeError("return two numbers, the loss of G and the loss of Q")
    moved = [_weights(player) - was for player, was in zip(players, before, strict=True)]
    return *(torch.as_tensor(loss).detach() for loss in losses), moved[0], moved[2], moved[1]


def _weights(player: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in player.parameters()]).clone()


def _variant(
    *, clear: bool = True, detach: bool = True, again: bool = False, sign: int = 1, only: str = "gq", plain: bool = False
) -> Callable[..., Any]:
    """`play_round` with one thing done otherwise."""

    def play(G: Any, P: Any, Q: Any, optimizer_g: Any, optimizer_q: Any, z: Any, y: Any, bounds: Any) -> tuple[Tensor, Tensor]:
        x = G(z, y)
        z_p, statistics = P(x)
        loss_g = _generator_loss(z_p, Q(x), y, statistics, bounds)
        if plain:
            loss_g = F.cross_entropy(z_p, y) + equations.loss_bns(statistics)
        if clear:
            optimizer_g.zero_grad()
        loss_g.backward(retain_graph=True)
        if "g" in only and detach:
            optimizer_g.step()
        x = (G(z, y) if again else x).detach() if detach else x
        loss_q = sign * equations.game_value(_h_prime(P(x)[0], Q(x)))
        if clear:
            optimizer_q.zero_grad()
        loss_q.backward()
        if "g" in only and not detach:
            optimizer_g.step()
        if "q" in only:
            optimizer_q.step()
        return loss_g.detach(), loss_q.detach()

    return play


def _spilt(G: Any, P: Any, Q: Any, optimizer_g: Any, optimizer_q: Any, z: Any, y: Any, bounds: Any) -> tuple[Tensor, Tensor]:
    """Both losses first, then both backward passes: G's leaves a gradient in Q."""
    x = G(z, y)
    z_p, statistics = P(x)
    loss_g = _generator_loss(z_p, Q(x), y, statistics, bounds)
    loss_q = equations.game_value(_h_prime(z_p.detach(), Q(x.detach())))
    optimizer_g.zero_grad()
    optimizer_q.zero_grad()
    loss_g.backward()
    loss_q.backward()
    optimizer_g.step()
    optimizer_q.step()
    return loss_g.detach(), loss_q.detach()


ROUNDS = (
    Exercise(
        "student_step",
        "04",
        student_step,
        _steps,
        HINTS["student_step"],
        (
            Mistake(_plain_momentum, "This is plain momentum; Nesterov's step is g + momentum * v, not v."),
            Mistake(lambda w, g, v, rate, m, decay: student_step(w, g, v, rate, m, 0.0), "The weight decay is missing."),
            Mistake(
                lambda w, g, v, rate, m, decay: student_step(w, g, v, -rate, m, decay),
                "The step goes uphill: Q minimises, so the step is subtracted.",
            ),
            Mistake(
                lambda w, g, v, rate, m, decay: (w - rate * (g + decay * w), m * v + g + decay * w),
                "The velocity is kept but not used: the step has no momentum.",
            ),
            Mistake(
                lambda w, g, v, rate, m, decay: student_step(w, g, v, rate, m, -decay),
                "The decay is subtracted from the gradient; then weights grow.",
            ),
        ),
    ),
    Exercise(
        "play_round",
        "07",
        play_round,
        _table,
        HINTS["play_round"],
        (
            Mistake(_variant(clear=False), "Old gradients were added to: call zero_grad() before each backward()."),
            Mistake(
                _variant(detach=False),
                "Q's loss pulled at G as well: detach x for Q, or step G before Q's backward pass.",
            ),
            Mistake(_spilt, "G's backward pass left a gradient in Q: clear Q's gradients between the two backward passes."),
            Mistake(_variant(again=True), "Q learned from images made anew after G's step; it learns from x as it was."),
            Mistake(_variant(sign=-1), "Q raises the value of the game; it is G that raises it, and Q lowers it."),
            Mistake(_variant(only="q"), "G did not step."),
            Mistake(_variant(only="g"), "Q did not step."),
            Mistake(_variant(plain=True), "This is GDFQ's kind of loss: G never looks at Q. Eq. (12) does."),
        ),
        observe=_as_played,
    ),
)
"""The graded exercises in which a player moves."""
