"""Dials: settings of an AdaDFQ game that may change between two rounds.

The band of Eq. (10) moves samples only as far as the rest of the game allows. Three other dials decide that: what H_min is in
Eq. (3), how much the other terms of Eq. (12) weigh beside the hinge, and whether Q learns. With the floor at zero, no other
terms and a fixed Q, samples follow the bounds; each dial turned towards the paper's setting weakens that.
"""

import dataclasses
from dataclasses import dataclass

from adadfq_lab.equations import Bounds, Floor
from adadfq_lab.game.game import Game
from adadfq_lab.methods.adadfq import adadfq


@dataclass(frozen=True)
class Dials:
    """A setting of all dials.

    bounds:         lambda_l and lambda_u. Eq. (10)
    floor:          H_min of Eq. (3): "batch" as in the paper, or "zero", with which H' is H / log C
    others:         beta and gamma of Eq. (12), the weight of L_bal and L_BNS beside the hinge; 1 in the paper
    student_learns: whether Q takes its steps
    """

    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    floor: Floor = "batch"
    others: float = 1.0
    student_learns: bool = True

    def turn(self, game: Game) -> None:
        """Sets an AdaDFQ game to these dials from the next round on; waits for the end of a running round."""
        settings = game.method.settings | {"beta": self.others, "gamma": self.others}
        losses = adadfq(**settings)
        with game.turns.look():
            game.bounds = self.bounds
            game.fidelity = dataclasses.replace(game.fidelity, entropy_floor=self.floor)
            game.method = dataclasses.replace(
                game.method, generator_loss=losses.generator_loss, student_loss=losses.student_loss, settings=settings
            )
            game.schedule = dataclasses.replace(game.schedule, student_lr=None if self.student_learns else 0.0)


FREE = Dials(Bounds(0.5, 0.7), floor="zero", others=0.0, student_learns=False)
"""The setting in which the band alone decides where samples go."""

PAPER = Dials()
"""The paper's setting."""
