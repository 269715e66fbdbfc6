"""What the commands share: where runs are, JSON on the last line, progress on the terminal."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

RUNS = Path("runs")
"""Where runs go that are not told where."""
Json = Annotated[bool, tyro.conf.arg(help="Also print the result as JSON, in one line, the last.")]
Changes = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="Change an option, or a setting of the method such as alpha_ds=0.3."),
]


def say(result: dict[str, Any] | list[dict[str, Any]], text: str, as_json: bool) -> None:
    """Prints what a command found, for people and, where asked, for programs."""
    try:
        print(text)
        if as_json:
            print(json.dumps(result))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in: adadfq table | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what would be flushed on leaving
        sys.exit(141)
