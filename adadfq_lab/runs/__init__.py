"""A run: a configuration, a folder that survives a kill, a log, and what is said of it."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("runs", "runs.run", "runs.config", "runs.players", "machine.devices")
