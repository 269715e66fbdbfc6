"""The table of networks: a network taken the whole way, what counts as passing, and the committed rows."""

import json
from pathlib import Path

import pytest

from adadfq_lab.authoring import zoo_table
from adadfq_lab.data.locations import stub_path

DOCUMENT = Path(__file__).parents[2] / "docs" / "supported_networks.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_a_network_passes_whole(name):
    """Every layer quantised, P in the game equal to P, played, exported on integers."""
    pytest.importorskip("onnxruntime")
    row = zoo_table.examine(f"torchvision:{name}")
    assert zoo_table.passes(row), row


def test_the_documentation_is_made_of_the_rows():
    """Of the convolutional networks nine in ten pass whole; a refusal is one line."""
    rows = json.loads(stub_path("networks.json").read_bytes())
    assert DOCUMENT.read_text(encoding="utf-8") == zoo_table.document(rows)
    convolutional = zoo_table.convolutional(rows)
    assert sum(map(zoo_table.passes, convolutional.values())) >= 0.9 * len(convolutional)
    assert not [name for name, row in rows.items() if "\n" in f"{row.get('refused')}{row.get('plays')}{row.get('exports')}"]


def test_what_differs_does_not_pass():
    row = {"plays": True, "exports": True, "teacher_differs": 1e-6, "unaccounted": [], "left_float": [], "float_convs": 0}
    assert zoo_table.passes(row)
    worse = {
        "plays": "no",
        "exports": "no",
        "teacher_differs": 0.1,
        "unaccounted": ["a"],
        "left_float": ["b"],
        "float_convs": 1,
    }
    assert not any(zoo_table.passes(row | {key: value}) for key, value in worse.items())
