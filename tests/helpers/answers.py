"""Answers that learners could give, in the text files beside this one, as lines of `exercise: a lambda`.

answers_right.txt        right, in many forms
answers_wrong.txt        wrong
answers_equivalent.txt   mutants of right answers that compute the same, looked at one by one
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import adadfq_lab as lab
from adadfq_lab.integers import packing


def answers(kind: str) -> list[tuple[str, str]]:
    """(exercise, source of the lambda) of each line of a file: "right", "wrong" or "equivalent"."""
    lines = (Path(__file__).parent / f"answers_{kind}.txt").read_text(encoding="utf-8").splitlines()
    return [(name, source) for name, _, source in (line.partition(": ") for line in lines if line)]


def function(source: str) -> Callable[..., Any]:
    """The function of a source as above."""
    space = {"math": math, "np": np, "torch": torch, "F": F, "lab": lab, "pack": packing.pack_bits}
    return eval(source, space)  # type: ignore[no-any-return]
