"""`python -m adadfq_lab`: the command `adadfq`, for launchers that start modules, as torchrun does."""

from adadfq_lab.cli.front import main

main()
