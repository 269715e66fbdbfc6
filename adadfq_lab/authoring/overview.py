"""The results that come with the package on one page: a row a method, a column a question. It stands in docs/results.md.

`python -m adadfq_lab.authoring.overview` (or `make gallery`) writes it there, between the marks; `adadfq table` has every
figure in it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from adadfq_lab.authoring.marks import renewed
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.registry import BEYOND, METHODS, REFERENCES
from adadfq_lab.studies.table2 import PAPER
from adadfq_lab.studies.tables import Row, Summary, read_rows, shipped_results, summaries

BEGIN, END = "<!-- table -->", "<!-- /table -->"
HEADLINE = "<!-- headline -->", "<!-- /headline -->"
DATA = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}
ORDER = [
    *((data, budget, "corrected", "3w3a") for data in DATA for budget in ("short", "long")),
    *((data, "short", "corrected", bits) for data in DATA for bits in ("4w4a", "5w5a")),
    ("cifar10", "short", "released", "3w3a"),
]
"""The columns, each a (data set, budget, fidelity, bits), where there are results of it."""


def _cell(one: Summary | None) -> str:
    """The last round's accuracy, and the half-width of its interval or a mark for a single run."""
    if one is None:
        return ""
    return f"{one.last:.1f} ¹" if one.half is None else f"{one.last:.1f} ± {one.half:.1f}"


def _heading(data: str, budget: str, fidelity: str, bits: str) -> str:
    more = ", long" if budget == "long" else ", released losses" if fidelity == "released" else ""
    return f"{DATA[data]} {bits}{more}"


def overview(rows: Sequence[Row]) -> str:
    """Accuracy of the last round as a Markdown table: methods down, data sets, budgets and bit widths across."""
    found = {(s.dataset, s.budget, s.fidelity, s.bits, s.method): s for s in summaries(rows)}
    columns = [column for column in ORDER if any(key[:-1] == column for key in found)]
    paper = PAPER["cifar10"]["3w3a"]

    def first(column: tuple[str, str, str, str], figure: Callable[[Summary], float]) -> str:
        runs = [s for key, s in found.items() if key[:-1] == column]
        return f"{sum(map(figure, runs)) / len(runs):.1f}"

    lines = [("", *(_heading(*column) for column in columns), "*printed in the paper, CIFAR-10 3w3a*")]
    lines += [("teacher P", *(first(column, lambda s: s.teacher) for column in columns), "*93.89*")]
    lines += [("plainly quantised", *(first(column, lambda s: s.plain) for column in columns), "")]
    for name in (*METHODS, *BEYOND, *REFERENCES):
        cells = [_cell(found.get((*column, name))) for column in columns]
        if any(cells):
            lines.append((f"`{name}`", *cells, f"*{paper[name]:.2f}*" if name in paper else ""))
    rule = ("---", *("--:" for _ in lines[0][1:]))
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n\n" + NOTE


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
    "Top-1 in percent after the last round: the mean over seeds ± the half-width of its 95 % interval; ¹ a single run."
    " CIFAR-10: 9,979 of the 10,000 test images; Fashion-MNIST: the 2,000 shipped. 1,500 student updates of 16 images after a"
    " warm-up of 200 rounds (`intraq`: 1,600, in which it makes its images; `zaq`, whose paper has none: 0); long: 5,000, with"
    " learning rates divided by ten after 4,000. The paper's column is of 79,200 updates, another teacher, and the best epoch"
    " on the test set: no figure to compare to the tenth."
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
