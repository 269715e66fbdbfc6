"""A run: a configuration, a folder that survives a kill, a log, and what is said of it."""
