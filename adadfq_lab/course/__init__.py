"""The exercises that answer back, the quizzes, and how both are judged."""
