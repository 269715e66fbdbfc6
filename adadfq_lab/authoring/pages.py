"""The pages beside the notebooks: the table of contents, and the generated tables of the instructor's guide."""

import json
from collections.abc import Sequence
from pathlib import Path

from adadfq_lab.authoring.marks import renewed
from adadfq_lab.course.exercises.catalogue import EXERCISES

FOLDER = Path(__file__).parents[2] / "notebooks"

# (file name, title, what the student does). All are in the table of contents.
PAGES = (
    ("00_welcome", "Welcome", "check the environment, see the story in one picture, play the whole game for three minutes"),
    ("01_disagreement", "Disagreement", "drag logits; write p_ds, H, H' and the adaptability by hand (Eq. 1-3)"),
    ("02_quantization", "Quantization", "Eq. 18: staircase, ranges, straight-through gradient; accuracy falls off a cliff"),
    ("03_imagining_data", "Imagining data", "the generator, Eq. 11, GDFQ; see what P's batch norms remember"),
    ("04_zero_sum_game", "The zero-sum game", "Eq. 4, 5, 13: moves and gains of both players, live; AdaSG"),
    ("05_two_kinds_of_sample", "Two kinds of sample", "Eq. 6-9: disagreement and agreement samples pull H' apart"),
    ("06_the_band", "The band", "Eq. 10, 12: move λ_l and λ_u during training; Fig. 4 replayed"),
    ("07_why_it_generalises", "Why it generalises", "Eq. 14-17 as an interactive bound; Fig. 1 measured"),
    ("08_eight_methods", "Eight methods, one protocol", "add a ninth method in forty lines; how published numbers mislead"),
    ("09_full_training", "Full training on CUDA", "estimate memory, train, watch, stop, resume"),
    ("10_is_it_integer", "Is it really integer?", "codes, scales, integer inference, ONNX; bring your own model"),
)
GENERATED = tuple((f"<!-- {part}: generated -->", f"<!-- {part}: end -->") for part in ("wrong answers", "minutes"))
"""Marks around the generated parts of the instructor's guide."""
MEASURED = ("seconds", "processor", "first_plot", "fast", "megabytes", "libraries", "load")
"""What `minutes.json` says of a notebook: columns of the guide's table."""


def fill_guide(text: str, folder: Path = FOLDER) -> str:
    """The instructor's guide with its two generated parts renewed: wrong answers of each check, minutes of each notebook."""
    for (begin, end), content in zip(GENERATED, (wrong_answers(), minutes(folder)), strict=True):
        if begin in text and end in text:
            text = renewed(text, begin, end, content)
    return text


def wrong_answers() -> str:
    """For each exercise its commonest wrong answers and its hints, in the words of the check."""
    parts = []
    for name, exercise in EXERCISES.items():
        lines = "\n".join(f"- {mistake.says}" for mistake in exercise.mistakes)
        nudge, formula, code = exercise.hints
        hints = f"Hints, one more after each failure: {nudge} / {formula} / `{code}`"
        parts.append(f"**{exercise.notebook} `check.{name}`**\n\n{lines}\n\n{hints}")
    return "\n\n".join(parts)


def minutes(folder: Path = FOLDER) -> str:
    """A table of `minutes.json`, or a line that says how to make that file."""
    path = folder / "minutes.json"
    if not path.exists():
        return "Not measured yet: `python -m adadfq_lab.authoring.minutes`."
    measured = json.loads(path.read_text(encoding="utf-8"))
    head = "all cells [s] | of a core [s] | first figure [s] | fast mode [s] | peak memory [MB] | libraries [MB] | load"
    rows = [f"| notebook | {head} |", "|---" * (1 + len(MEASURED)) + "|"]
    for name, row in sorted(measured["notebooks"].items()):
        rows.append("| " + " | ".join([name, *(str(row.get(key, "–")) for key in MEASURED)]) + " |")
    words = (
        "Seconds count from the start of the kernel, importing torch included. Where other programs ran too, as the load says\n"
        "(processes that wanted a core, this one included, on average), they are more than a quiet machine needs; the second\n"
        "column, seconds of one core that the kernel itself used, depends on that less. Memory is the kernel's, libraries the\n"
        "part of it that are files mapped into memory; kernels on one machine share them, and without CUDA's they are half as\n"
        "large. A dash: not measured."
    )
    return (
        f"Measured on {measured['machine']}, by `python -m adadfq_lab.authoring.minutes`:\n\n"
        + "\n".join(rows)
        + f"\n\n{words}"
    )


def index(existing: Sequence[str], *, handout: bool = False) -> str:
    """The table of contents: all eleven notebooks, of which those in `existing` are linked.

    handout: for students who get neither the solutions nor the guide
    """
    last = "" if handout else " solution |"
    rows = [f"| | notebook | what you do |{last}", "|---|---|---|" + "---|" * (not handout)]
    for name, title, what in PAGES:
        there = name in existing
        linked, solution = (f"[{title}]({name}.ipynb)", f"[solution](solutions/{name}.ipynb)") if there else (title, "")
        rows.append(f"| {name[:2]} | {linked} | {what} |" + ("" if handout else f" {solution} |"))
    intro = (
        "<!-- generated by adadfq course build -->\n# The course\n\n"
        "Eleven notebooks, in this order. Each `.ipynb` has a twin `.py` with the same cells. Those in this folder have\n"
        "exercises to fill in; those in `solutions/` have the answers, folded.\n\n"
    )
    outro = "\n\nFor whoever teaches it: [instructor's guide](instructor_guide.md).\n"
    if handout:
        intro, outro = intro.replace("; those in `solutions/` have the answers, folded", ""), "\n"
    return intro + "\n".join(rows) + outro
