"""Pickles that prove that somebody opened them."""

from pathlib import Path


class Trap:
    """Unpickling one of these writes the file `proof`."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)
