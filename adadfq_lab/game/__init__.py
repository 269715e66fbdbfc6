"""The game: a stream of rounds in which G makes images and P and Q look at them."""
