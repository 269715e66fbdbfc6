"""Every graded exercise of the course, by name: what `lab.check` looks names up in. One module for a group of notebooks."""

from adadfq_lab.course.exercises.disagreement import DISAGREEMENT
from adadfq_lab.course.exercises.game import GAME
from adadfq_lab.course.exercises.imagining import IMAGINING
from adadfq_lab.course.exercises.integers import INTEGERS
from adadfq_lab.course.exercises.methods import METHODS_COMPARED
from adadfq_lab.course.exercises.quantization import QUANTIZATION
from adadfq_lab.course.exercises.rounds import ROUNDS
from adadfq_lab.course.exercises.training import TRAINING
from adadfq_lab.course.grading import Exercise

_ALL = (*DISAGREEMENT, *QUANTIZATION, *IMAGINING, *GAME, *ROUNDS, *METHODS_COMPARED, *TRAINING, *INTEGERS)
EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in sorted(_ALL, key=lambda exercise: exercise.notebook)}
