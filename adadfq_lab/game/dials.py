"""Dials: settings of an AdaDFQ game that may change between two rounds.

The band of Eq. (10) moves samples only as far as the rest of the game allows. Three other dials decide that: what H_min is in
Eq. (3), how much the other terms of Eq. (12) weigh beside the hinge, and whether Q learns. With the floor at zero, no other
terms and a fixed Q, samples follow the bounds; each dial turned towards the paper's setting weakens that.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adadfq_lab.equations import Bounds, Floor
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.methods.adadfq import adadfq


@dataclass(frozen=True)
class Dials:
    """A setting of all dials.

    bounds:         lambda_l and lambda_u. Eq. (10)
    floor:          H_min of Eq. (3): "batch" as in the paper, or "zero", with which H' is H / log C
    beta, gamma:    weights of L_bal and of L_BNS beside the hinge in Eq. (12); 1 in the paper
    student_learns: whether Q takes its steps
    """

    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    floor: Floor = "batch"
    beta: float = 1.0
    gamma: float = 1.0
    student_learns: bool = True

    def turn(self, game: Game) -> int:
        """Sets `game`, one of AdaDFQ, to these dials from the next round on, and returns the number of that round.

        Waits for the end of the round that is played.
        """
        settings = game.method.settings | {"beta": self.beta, "gamma": self.gamma}
        losses = adadfq(**settings)
        with game.turns.look():
            game.bounds = self.bounds
            game.fidelity = dataclasses.replace(game.fidelity, entropy_floor=self.floor)
            rate = game.schedule.student_lr or game.method.rates.student_lr  # the schedule has 0 while Q is held
            game.method = dataclasses.replace(
                game.method,
                generator_loss=losses.generator_loss,
                student_loss=losses.student_loss,
                settings=settings,
                rates=dataclasses.replace(game.method.rates, student_lr=rate),
            )
            game.schedule = dataclasses.replace(game.schedule, student_lr=None if self.student_learns else 0.0)
            return game.index

    def changes(self, before: "Dials") -> str:
        """What is set differently than `before`, in a few words: "λ_l 0.2, Q learns"."""
        words = {
            f"λ_l {self.bounds.lower:g}": self.bounds.lower != before.bounds.lower,
            f"λ_u {self.bounds.upper:g}": self.bounds.upper != before.bounds.upper,
            "H_min of the batch" if self.floor == "batch" else "H_min zero": self.floor != before.floor,
            f"β {self.beta:g}": self.beta != before.beta,
            f"γ {self.gamma:g}": self.gamma != before.gamma,
            "Q learns" if self.student_learns else "Q held": self.student_learns != before.student_learns,
        }
        return ", ".join(word for word, changed in words.items() if changed)


def play_turns(game: Game, turns: Sequence[tuple[int, Dials]], rounds: int) -> Iterator[Record]:
    """Plays `rounds` rounds of a new game and turns its dials as noted, (round, dials): same seed and notes, same bits."""
    noted = dict(turns)
    for _ in range(rounds):
        if game.index in noted:
            noted[game.index].turn(game)
        yield from game.play(1)


FREE = Dials(Bounds(0.5, 0.7), floor="zero", beta=0.0, gamma=0.0, student_learns=False)
"""The setting in which the band alone decides where samples go."""

PAPER = Dials()
"""The paper's setting."""
