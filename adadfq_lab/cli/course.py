"""`adadfq course`: build, check and badge the notebooks."""

from typing import Literal

import tyro

from adadfq_lab.authoring.build import FOLDER, build, masters, set_badges

# What the command line calls: adadfq course build | check | badges


def build_command() -> None:
    """Builds the notebooks from their masters and says which files changed."""
    changed = build()
    print("\n".join(f"wrote {path.relative_to(FOLDER.parent)}" for path in changed) or "nothing to do: all copies are current")


def badges_command(target: str) -> None:
    """Points badges and install cells to OWNER/REPO@TAG and says how many files changed."""
    print(f"{len(set_badges(target))} files now point to {target}")


def check_command() -> None:
    """Checks the course and prints what is wrong, a line each; exits with status 1 if anything is."""
    from adadfq_lab.authoring.rules import problems

    found = problems()
    print("\n".join(found) or f"{len(masters())} notebooks, nothing to complain about")
    if found:
        raise SystemExit(1)


def course(action: tyro.conf.Positional[Literal["build", "check", "badges"]], target: tyro.conf.Positional[str] = "") -> None:
    """Make the notebooks from their masters, check them, or point their Colab badges at a fork.

    For example: adadfq course badges octocat/adadfq_lab@v0.1.0

    Args:
        action: What to do.
        target: For badges: OWNER/REPO@TAG.
    """

    if action == "badges":
        badges_command(target)
    else:
        {"build": build_command, "check": check_command}[action]()
