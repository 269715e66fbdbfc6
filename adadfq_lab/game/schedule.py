"""When what happens in a game, and how fast: the part of a configuration that every run, recipe and table has."""

import dataclasses
from dataclasses import dataclass

from adadfq_lab.errors import UserError
from adadfq_lab.machine.fields import check_rates
from adadfq_lab.methods.method import Method, Rates

SETTLED = 10
"""Rounds at the end of a bank's warm-up in which its images hardly change any more."""
FOLLOWED = 200
"""Default number of rounds after the warm-up in which activation ranges are still updated."""


@dataclass(frozen=True)
class Schedule:
    """When what happens, in rounds, and how fast.

    Attributes:
        batch: Images a round, N.
        warmup: Rounds in which only the generator learns; the student's first step is in round `warmup`. For `adadfq train`
            and `grid`, what serves the method, if not given: 1,600 for intraq, which makes 16 images in 100 of them, none for
            zaq.
        observe: Rounds, from the first, in which activation ranges are observed; then they stay. If not given, up to 200
            rounds after the warm-up. A method that optimises images once and for all observes from the end of its warm-up.
        generator_lr: Adam's learning rate for G; the method's own if not given, 1e-3 for most.
        student_lr: The learning rate for Q; the method's own if not given, 1e-4 for most.
        weight_decay: Of Q's parameters; the method's own if not given, 1e-4 for most.
        milestones: Rounds at which both learning rates are multiplied by `decay`.
        decay: That factor.
    """

    batch: int = 16
    warmup: int = 200
    observe: int | None = None
    generator_lr: float | None = None
    student_lr: float | None = None
    weight_decay: float | None = None
    milestones: tuple[int, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        for name in ("batch", "observe"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"{name} must be at least 1, not {count}")
        if self.warmup < 0:
            raise UserError(f"warmup must not be negative, as {self.warmup} is")
        if min(self.milestones, default=0) < 0:
            raise UserError(f"milestones must not be negative, as {min(self.milestones)} is")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay must lie between 0 and 1, which {self.decay} does not")
        check_rates(self, "generator_lr", "student_lr", "weight_decay")

    def rates(self, method: Method) -> Rates:
        """The rates of this schedule; the method's own for those that are not set."""
        named = {name: getattr(self, name) for name in ("generator_lr", "student_lr", "weight_decay")}
        return dataclasses.replace(method.rates, **{name: rate for name, rate in named.items() if rate is not None})

    def observed(self, method: Method) -> range:
        """The rounds in which the activation ranges of `method`'s student follow the batch.

        If images are optimised once and for all in the warm-up, ranges should fit only those of its last rounds.
        """
        begin, origin = (max(0, self.warmup - SETTLED), self.warmup) if method.generator_stops else (0, 0)
        end = self.warmup + FOLLOWED if self.observe is None else origin + self.observe
        return range(begin, self.warmup if self.warmup and method.ranges != "observed" else end)

    def factor(self, index: int) -> float:
        """The factor of the learning rates in round `index`."""
        return float(self.decay ** sum(index >= milestone for milestone in self.milestones))
