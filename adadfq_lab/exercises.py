"""Every graded exercise of the course, by name: what `lab.check` looks names up in. One module for a group of notebooks."""

from adadfq_lab.exercises_foundations import FOUNDATIONS
from adadfq_lab.exercises_game import GAME
from adadfq_lab.exercises_integers import INTEGERS
from adadfq_lab.exercises_training import TRAINING
from adadfq_lab.grading import Exercise

EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in (*FOUNDATIONS, *GAME, *TRAINING, *INTEGERS)}
