"""The teacher P: its networks, its files, its training, and what can be read off it without data."""
