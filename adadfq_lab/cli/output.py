"""What the commands share: where runs are, JSON on the last line, progress on the terminal."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from adadfq_lab.errors import printable

RUNS = Path("runs")
"""Where runs go that are not told where."""
Json = Annotated[bool, tyro.conf.arg(help="Also print the result as JSON, in one line, the last.")]
Changes = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="Change an option, or a setting of the method such as alpha_ds=0.3."),
]


def say(result: dict[str, Any] | list[dict[str, Any]], text: str, as_json: bool) -> None:
    """Prints what a command found, for people and, if asked, for programs. What a terminal would act on is escaped."""
    print(printable(text, lines=True))
    if as_json:
        print(json.dumps(result))
    sys.stdout.flush()
