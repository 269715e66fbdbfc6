"""The README's code runs as printed, and its commands exist."""

import re
from pathlib import Path

import pytest

from adadfq_lab.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:30])
def test_every_python_block_runs_as_printed(block, capsys):
    exec(compile(block.replace("play(20)", "play(2)"), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_command_named_is_one():
    named = set(re.findall(r"`?adadfq ([a-z-]+)", README)) - {"-"}
    assert named - set(COMMANDS) - {"--help"} == set()


def test_every_relative_link_leads_somewhere():
    root = Path(__file__).parents[2]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and [link for link in links if not (root / link).exists()] == []
