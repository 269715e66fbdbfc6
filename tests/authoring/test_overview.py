"""The table of docs/results.md: what it shows are the results that come with the package."""

from pathlib import Path

from helpers.rows import a_row

from adadfq_lab.authoring import overview
from adadfq_lab.studies.tables import read_rows, shipped_results

ROOT = Path(__file__).parents[2]


def cells(text: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_columns_are_protocols_and_a_single_run_is_marked():
    """Two seeds give a mean and its interval, one a mark; budgets, bits and fidelities never share a column."""
    rows = [a_row(), a_row(seed=1, last=87.0), a_row(method="gdfq", last=70.0), a_row(budget="long", last=88.0)]
    rows += [a_row(fidelity="released", last=60.0), a_row(bits="4w4a", last=91.0, plain=80.0), a_row(budget="quick", last=84.0)]
    found = cells(overview.overview(rows))
    heads = ["3w3a, 180", "3w3a, 1,500", "3w3a, 5,000", "3w3a, 1,500, released losses", "4w4a, 1,500"]
    assert found[""] == [*heads, "*3w3a, in the paper*"]
    assert found["`adadfq`"] == ["84.0 ¹", "86.5 ± 6.4", "88.0 ¹", "60.0 ¹", "91.0 ¹", "*84.89*"]
    assert found["`gdfq`"] == ["", "70.0 ¹", "", "", "", "*75.11*"] and "`zaq`" not in found
    assert found["plainly quantised"] == ["12.0", "12.0", "12.0", "12.0", "80.0", ""]
    assert found["teacher P"][-1] == "*93.89*"


def test_the_plain_student_is_averaged_over_seeds_and_not_over_methods():
    rows = [a_row(seed=0, plain=10.0), a_row(seed=1, plain=20.0), a_row(seed=0, plain=10.0, method="gdfq")]
    assert cells(overview.overview(rows))["plainly quantised"][0] == "15.0"


def test_an_interval_that_would_reach_zero_gives_way_to_its_seeds():
    rows = [a_row(seed=seed, last=last) for seed, last in enumerate((9.2, 23.0, 16.6))]
    assert cells(overview.overview(rows))["`adadfq`"][0] == "9.2, 23.0, 16.6"


def test_each_data_set_has_a_table_of_its_shipped_teacher():
    rows = [a_row(), a_row(dataset="fashion_mnist", teacher_name="fashion_mnist_resnet20"), a_row(teacher_name="mine", seed=3)]
    shown = overview.overview(rows)
    assert [line for line in shown.splitlines() if line.startswith("#")] == ["### CIFAR-10", "### Fashion-MNIST"]
    assert shown.count("`adadfq`") == 2 and "±" not in shown.partition("Top-1")[0]


def test_the_page_shows_the_shipped_results():
    """What stands between the marks is what `make gallery` would write there."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = page.partition(overview.BEGIN)[2].partition(overview.END)[0]
    assert shown.strip() == overview.overview(read_rows(shipped_results()))


def test_the_readme_shows_three_of_them():
    """Its small table is of the same rows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = overview.HEADLINE
    assert readme.partition(begin)[2].partition(end)[0].strip() == overview.headline(read_rows(shipped_results()))
