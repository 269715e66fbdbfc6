"""The command `adadfq` as it starts: `--help` and `--version` at once, anything else by `main`, which imports torch."""

import sys
from importlib.metadata import version

from adadfq_lab.cli.listing import COMMANDS, DESCRIPTION, summary


def main() -> None:
    """Entry point of the command `adadfq`."""
    if sys.argv[1:] == ["--version"]:
        print(f"adadfq {version('adadfq-lab')}")
    elif sys.argv[1:] in (["--help"], ["-h"]):
        lines = [f"  {name:14} {summary(function)}" for name, function in COMMANDS.items()]
        closing = "adadfq COMMAND --help tells a command's options."
        text = ["usage: adadfq COMMAND [OPTIONS]", "", DESCRIPTION, "", *lines, "", closing]
        print("\n".join(text))
    else:
        from adadfq_lab.cli.main import main  # which imports torch

        main()
