"""The exercises that answer back, the quizzes, and how both are judged."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("course", "authoring.build")
