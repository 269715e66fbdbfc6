"""The graded exercises of notebook 09: what a schedule comes to, how long it takes, what its players hold in memory."""

from collections.abc import Callable

import torch

from adadfq_lab.course.exercises.hints import HINTS
from adadfq_lab.course.grading import Case, Exercise, Mistake

MB = 2**20


def counts(rounds: int, warmup: int, batch: int) -> tuple[int, int]:
    """(images drawn, student updates)."""
    return rounds * batch, rounds - warmup


def total_seconds(rounds: int, warmup: int, warm_round: float, play_round: float, every: int, look: float) -> float:
    """Of all rounds, and of a look at the test images after every `every`-th round past the warm-up."""
    looks = rounds // every - warmup // every
    return warmup * warm_round + (rounds - warmup) * play_round + looks * look


def state_megabytes(generator: int, student: int) -> float:
    """Weights, gradients and optimizer state in float32, in MB of 2^20 bytes: Adam keeps two numbers a weight, SGD one."""
    return 4 * (4 * generator + 3 * student) / MB


def _draw(g: torch.Generator) -> Callable[[int, int], int]:
    return lambda low, high: int(torch.randint(low, high, (), generator=g))


def _schedules(g: torch.Generator) -> list[Case]:
    draw = _draw(g)
    return [(80_000, 800, 16), (300, 0, 8)] + [(draw(500, 9000), draw(10, 400), draw(4, 200)) for _ in range(2)]


def _timings(g: torch.Generator) -> list[Case]:
    draw = _draw(g)

    def one() -> Case:
        warm = draw(10, 80) / 1000
        return draw(2000, 9000), draw(100, 900), warm, 1.4 * warm, draw(10, 90), draw(1, 30) / 2

    warm = draw(10, 80) / 1000
    pace = warm, 1.4 * warm
    edges = [(1000, 100, *pace, 50, 2.5), (120, 0, *pace, 40, 1.5), (90, 30, *pace, 100, 3.0), (12, 5, *pace, 1, 0.5)]
    return [one(), one(), *edges]  # looks at the last round of the warm-up and of all, from the first, none, always


def _players(g: torch.Generator) -> list[Case]:
    draw = _draw(g)
    return [(1_052_139, 272_474), (draw(10**5, 10**7), draw(10**5, 10**7))]


TRAINING = (
    Exercise(
        "counts",
        "09",
        counts,
        _schedules,
        HINTS["counts"],
        (
            Mistake(lambda r, w, b: (r * b, r), "In the warm-up only G learns: Q makes no step there."),
            Mistake(lambda r, w, b: ((r - w) * b, r - w), "G draws images in the warm-up too; that is what it learns on."),
            Mistake(lambda r, w, b: (r * b, (r - w) * b), "A step of Q is one update, however many images it is made from."),
        ),
    ),
    Exercise(
        "total_seconds",
        "09",
        total_seconds,
        _timings,
        HINTS["total_seconds"],
        (
            Mistake(
                lambda r, w, a, b, e, s: r * b + (r // e - w // e) * s,
                "The warm-up has a pace of its own: Q does not step there.",
            ),
            Mistake(
                lambda r, w, a, b, e, s: w * a + (r - w) * b + (r // e) * s,
                "In the warm-up nothing is measured: take off the multiples of `every` up to `warmup`.",
            ),
            Mistake(
                lambda r, w, a, b, e, s: w * a + (r - w) * b + (r - w) // e * s,
                "The looks are at multiples of `every`, counted from the first round, not from the end of the warm-up.",
            ),
            Mistake(
                lambda r, w, a, b, e, s: w * a + (r - w) * b + s * sum(k >= w for k in range(e, r + 1, e)),
                "A look after the last round of the warm-up is counted; the first is past it.",
            ),
            Mistake(
                lambda r, w, a, b, e, s: w * a + (r - w) * b + s * sum(k > w for k in range(e, r, e)),
                "The look after the very last round is missing.",
            ),
            Mistake(lambda r, w, a, b, e, s: w * a + (r - w) * b, "The looks at the test images are missing."),
        ),
    ),
    Exercise(
        "state_megabytes",
        "09",
        state_megabytes,
        _players,
        HINTS["state_megabytes"],
        (
            Mistake(lambda g, q: 4 * (g + q) / MB, "Those are the weights alone: gradients and optimizer state are missing."),
            Mistake(
                lambda g, q: 4 * (2 * g + 2 * q) / MB, "The optimizers' state is missing: Adam keeps two numbers, SGD one."
            ),
            Mistake(lambda g, q: 4 * (3 * g + 2 * q) / MB, "Every weight has a gradient beside it as well."),
            Mistake(lambda g, q: (4 * g + 3 * q) / MB, "A float32 has four bytes."),
            Mistake(lambda g, q: 4 * (4 * g + 3 * q) / 10**6, "An MB here has 2^20 bytes, not 10^6."),
        ),
    ),
)
