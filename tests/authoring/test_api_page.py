"""docs/api.md is what its generator makes of the public names, and no name is without a line."""

import adadfq_lab as lab
from adadfq_lab.authoring.api_page import PAGE, api_page


def test_the_page_of_public_names_is_current():
    text = api_page()
    assert PAGE.read_text(encoding="utf-8") == text, "python -m adadfq_lab.authoring.api_page writes it again"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("|` ") for row in rows) == sorted(lab.__all__)
    assert all(row[1].strip() for row in rows)
