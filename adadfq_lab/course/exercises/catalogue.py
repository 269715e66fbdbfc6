"""Every graded exercise of the course, by name: what `lab.check` looks names up in. One module for a group of notebooks."""

from adadfq_lab.course.exercises.foundations import FOUNDATIONS
from adadfq_lab.course.exercises.game import GAME
from adadfq_lab.course.exercises.integers import INTEGERS
from adadfq_lab.course.exercises.methods import METHODS_COMPARED
from adadfq_lab.course.exercises.training import TRAINING
from adadfq_lab.course.grading import Exercise

_ALL = (*FOUNDATIONS, *GAME, *METHODS_COMPARED, *TRAINING, *INTEGERS)
EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in _ALL}
