"""The game: a stream of rounds in which G makes images and P and Q look at them."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("game", "game.game", "machine.devices", "game.schedule")
