"""The results that come with the package on one page: a row a method, a column a question. It stands in docs/results.md.

`python -m adadfq_lab.authoring.overview` (or `make gallery`) writes it there, between the marks; `adadfq table` has every
figure in it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from adadfq_lab.authoring.marks import renewed
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.registry import BEYOND, METHODS, REFERENCES
from adadfq_lab.studies.table2 import FULL_PRECISION, PAPER
from adadfq_lab.studies.tables import Row, Summary, read_rows, shipped_results, summaries

BEGIN, END = "<!-- table -->", "<!-- /table -->"
HEADLINE = "<!-- headline -->", "<!-- /headline -->"
DATA = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}
"""The data sets, each a table of its own."""
UPDATES = {"quick": "180", "short": "1,500", "long": "5,000"}
Column = tuple[str, str, str]
"""Bit widths, fidelity and budget."""


def _order(column: Column) -> tuple[str, bool, int]:
    bits, fidelity, budget = column
    return bits, fidelity != "corrected", list(UPDATES).index(budget)


def _cell(one: Summary | None) -> str:
    """What the last rounds gave, with a mark for a single run."""
    if one is None:
        return ""
    return f"{one.ended} ¹" if one.half is None else one.ended


def _heading(bits: str, fidelity: str, budget: str) -> str:
    return f"{bits}, {UPDATES[budget]}" + (f", {fidelity} losses" if fidelity != "corrected" else "")


def _table(dataset: str, rows: Sequence[Row]) -> str:
    """Methods down, bit widths and budgets across."""
    found = {((s.bits, s.fidelity, s.budget), s.method): s for s in summaries(rows)}
    columns = sorted({column for column, _ in found}, key=_order)
    paper = PAPER.get(dataset, {}).get("3w3a", {})

    def mean(column: Column, figure: Callable[[Row], float]) -> str:
        """Over the seeds: methods have the same teacher, and the same plain student for the same seed."""
        seeds = {row.seed: figure(row) for row in rows if (row.bits, row.fidelity, row.budget) == column}
        return f"{sum(seeds.values()) / len(seeds):.1f}"

    printed = ["*3w3a, in the paper*"] if paper else []
    lines = [["", *(_heading(*column) for column in columns), *printed]]
    lines += [
        [
            "teacher P",
            *(mean(column, lambda row: row.teacher) for column in columns),
            *(f"*{FULL_PRECISION[dataset]:.2f}*" for _ in printed),
        ]
    ]
    lines += [["plainly quantised", *(mean(column, lambda row: row.plain) for column in columns), *("" for _ in printed)]]
    for name in (*METHODS, *BEYOND, *REFERENCES):
        cells = [_cell(found.get((column, name))) for column in columns]
        if any(cells):
            lines.append([f"`{name}`", *cells, *(f"*{paper[name]:.2f}*" if name in paper else "" for _ in printed)])
    rule = ["---", *("--:" for _ in lines[0][1:])]
    return "\n".join(["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])])


def overview(rows: Sequence[Row]) -> str:
    """Accuracy of the last round in Markdown: a table for each data set, of its shipped teacher."""
    parts = []
    for dataset, title in DATA.items():
        if of := [row for row in rows if row.dataset == dataset and not row.players]:
            parts += [f"### {title}", _table(dataset, of)]
    return "\n\n".join([*parts, NOTE])


def headline(rows: Sequence[Row]) -> str:
    """Three methods at 3 bits on CIFAR-10, for the README."""
    found = {(s.budget, s.method): s for s in summaries(rows) if (s.dataset, s.fidelity, s.bits) == (*HEADLINED, "3w3a")}
    names = {"gdfq": "GDFQ", "adadfq": "AdaDFQ", "adadfq+": "AdaDFQ+ (activation ranges that clip)"}
    usual = found["short", "adadfq"]
    lines = [f"teacher {usual.teacher:.1f} %, plainly quantised {usual.plain:.1f} %:", ""]
    lines += ["| | after 1,500 updates | after 5,000 updates |", "|---|--:|--:|"]
    for name, words in names.items():
        lines.append(f"| {words} | {_cell(found.get(('short', name)))} | {_cell(found.get(('long', name)))} |")
    return "\n".join(lines)


HEADLINED = ("cifar10", "corrected")
NOTE = (
    "Top-1 in percent after the last round: the mean over seeds ± the half-width of its 95 % interval; ¹ a single run; each"
    " seed's figure where that interval would reach 0 %. Headings name the bits and the student's updates, of 16 images each:"
    " 180 after a warm-up of 20 rounds, at a student rate of 3e-4; 1,500 after 200 rounds; 5,000 after 200, with learning rates"
    " divided by ten after 4,000 (`intraq` warms up for 1,600 rounds, in which it makes its images; `zaq`, whose paper has no"
    " warm-up, for none). CIFAR-10: 9,979 of the 10,000 test images; Fashion-MNIST: the 2,000 shipped. The paper's column is of"
    " 79,200 updates, another teacher, and the best epoch on the test set: no figure to compare to the tenth."
)


def main(root: Path = Path(__file__).parents[2]) -> None:
    """Writes the overview of the shipped results into docs/results.md and three of them into the README."""
    rows = read_rows(shipped_results())
    for name, marks, content in (
        ("docs/results.md", (BEGIN, END), overview(rows)),
        ("README.md", HEADLINE, headline(rows)),
    ):
        text = renewed((root / name).read_text(encoding="utf-8"), *marks, content)
        write_atomically(root / name, text.encode())


if __name__ == "__main__":
    main()
