"""report.html: a run in one small file without scripts; with `--interactive`, plotly figures to hover and zoom, some 5 MB."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Column, History, Thinned
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import read_json
from adadfq_lab.runs.agreement import CAUTION
from adadfq_lab.runs.config import read_config
from adadfq_lab.runs.folder import last_checkpoint
from adadfq_lab.runs.log import iterate_records, number, numbers
from adadfq_lab.runs.players import images_of
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.charts import Panel, chart
from adadfq_lab.views.game_panels import (
    accuracy_panel,
    describe_bars,
    describe_lines,
    gains_panel,
    h_prime_panel,
    steps_panel,
    terms_panels,
)
from adadfq_lab.views.images import image, montage, pixels
from adadfq_lab.views.pages import page
from adadfq_lab.views.plotly_charts import plotly_figure

LABELS = {
    "teacher": "teacher P",
    "plain": "plainly quantised (ranges from noise)",
    "calibrated": "calibrated on G's images, untrained",
    "student": "student Q after the last round",
    "best": "best round (chosen on these images: not a result)",
}


def as_history(records: Iterable[dict[str, Any]], classes: int = 10) -> History:
    """The lines of a records.jsonl as a `History` of at most 256 rows; accuracies are "test.accuracy", "test.low", "test.high".

    The records may come one at a time, so that a log of any length takes the same memory.
    """
    thinned = Thinned(classes)
    for record in records:
        thinned.add(_row(record))
    return thinned.history()


def _row(record: dict[str, Any]) -> dict[str, float | Column]:
    """The numbers of a line, without the gains of the warm-up, in which Q does not move."""
    found: dict[str, float | Column] = {name: value for name, v in record.items() if (value := number(v)) is not None}
    if record.get("phase") == "warm-up":
        found = {name: value for name, value in found.items() if not name.startswith("gain_")}
    for name in ("h_prime", "entropy"):
        if samples := numbers(record.get(name)):
            found[name] = np.asarray(samples, np.float32)
    measured = record.get("accuracy") or record.get("calibrated")
    if isinstance(measured, dict):
        for name, key in (("test.accuracy", "top1"), ("test.low", "low"), ("test.high", "high")):
            if (value := number(measured.get(key))) is not None:
                found[name] = value
    return found


def steps(result: Mapping[str, Any]) -> dict[str, Accuracy | None]:
    """The accuracies of a result.json, with their intervals if it has them, as `steps_panel` takes them."""
    found: dict[str, Accuracy | None] = {}
    for name in ("plain", "calibrated", "student", "teacher"):
        top1 = result.get(name)
        low, high = result.get("intervals", {}).get(name, (top1, top1))
        found[name] = None if top1 is None else Accuracy(top1, low, high, int(result.get("images", 0)))
    return found


def accuracy_figure(records: list[dict[str, Any]], result: dict[str, Any]) -> Any:
    """The student's accuracy over rounds, and what calibration and what learning adds: a plotly figure."""
    panels = _accuracy(as_history(records), result)
    return plotly_figure(panels, alt=_words(panels))


def _accuracy(history: History, result: Mapping[str, Any]) -> list[Panel]:
    levels = {"P": result["teacher"], "plainly quantised": result["plain"]}
    return [accuracy_panel(history, levels=levels), steps_panel(steps(result))]


def _words(panels: Sequence[Panel]) -> str:
    return " ".join(describe_bars(panel) if panel.bars else describe_lines([panel]) for panel in panels)


def sample_images(game: Game, teacher: Teacher, per_class: int, classes: tuple[int, ...]) -> Tensor:
    """Pixel values `(len(classes) * per_class, C, H, W)` in [0, 1] of generated images, class by class."""
    labels = torch.tensor(classes).repeat_interleave(per_class)
    return teacher.denormalize(game.generate(labels, seed=game.seed)).cpu()


def image_sheet(images: Tensor, columns: int, alt: str) -> str:
    """Images `(N, C, H, W)` in [0, 1] as one HTML image, `columns` a row, with alternative text; grey unless C is 3."""
    tiles = pixels(images)
    missing = -len(tiles) % columns
    tiles = np.concatenate([tiles, np.full((missing, *tiles.shape[1:]), 255, np.uint8)])
    return image(montage(tiles.reshape(-1, columns, *tiles.shape[1:]), ground=255), alt=alt)


def _tables(result: Mapping[str, Any]) -> list[str]:
    """Accuracy, if there were labels, and agreement with P, as HTML."""
    spent = f"{result['rounds']} rounds, {result['seconds']:.0f} s, seed {result['seed']}"
    agreement = result.get("agreement", {})
    parts = []
    if result["teacher"] is not None:
        source = f"Measured on {html.escape(result['source'])}; " if "source" in result else ""
        parts += [_table(result, "top-1"), f'<p class="small">{source}{spent}.</p>']
    for found in agreement.values():
        parts += [_table(found, "same as P"), f'<p class="small">On {html.escape(found["source"])}; {spent}.</p>']
    if "generated" in agreement:
        parts.append(f'<p class="small">Agreement with P on generated images: {CAUTION}.</p>')
    return parts + ([f"<p><strong>{html.escape(result['note'])}</strong></p>"] if result.get("note") else [])


def _table(found: Mapping[str, Any], head: str) -> str:
    rows = "".join(
        f'<tr><td>{label}</td><td class="n">{found[key]:.2f} %</td><td>[{low:.2f}, {high:.2f}]</td></tr>'
        for key, label in LABELS.items()
        if found.get(key) is not None
        for low, high in [found["intervals"][key]]
    )
    return f"<table><tr><th></th><th>{head}</th><th>95 % interval</th></tr>{rows}</table>"


def write_report(folder: Path, game: Game, teacher: Teacher, data: ImageSet | None, *, interactive: bool = False) -> Path:
    """Writes report.html into a finished run's folder, from its records and its generator; returns its path.

    interactive: plotly figures instead of SVG; plotly is then part of the file
    """
    classes = data.classes if data is not None and data.labelled else teacher.info.classes
    history = as_history(iterate_records(folder / "records.jsonl"), len(classes))
    result = read_json(folder / "result.json")
    config = read_json(folder / "config.json")
    parts: list[Any] = _tables(result)
    for title, panels, reading in _figures(history, result):
        alt = f"{title}. {_words(panels)}"
        size = (470, 300) if len(panels) > 1 else (700, 300)
        drawn = plotly_figure(panels, alt=alt) if interactive else chart(panels, alt=alt, width=size[0], height=size[1])
        parts += [f"<h2>{html.escape(title)}</h2>", drawn, f"<p>{typeset(reading)}</p>"]
    per_class, shown = 8, range(0, len(classes), -(-len(classes) // 100))  # ImageNet's 8,000 would fill the memory
    if math.prod(teacher.info.input_shape[1:]) > 2**14:
        per_class, shown = 4, shown[::10]
    names = {i: classes[i] for i in shown}
    sheet = image_sheet(
        sample_images(game, teacher, per_class, tuple(shown)),
        per_class,
        f"generated images, one row for each of {tuple(names.values())}",
    )
    parts.append(f"<h2>What G made, a row for each class</h2>{sheet}<p>{html.escape(', '.join(names.values()))}.</p>")
    parts.append(f"<h2>The student</h2><pre>{html.escape(game.student.report())}</pre>")
    parts.append(f"<h2>The configuration</h2><pre>{html.escape(json.dumps(config, indent=1))}</pre>")
    title = f"{game.method.name}, {config['bits']}, {teacher.info.name}, seed {config['seed']}"
    write_atomically(folder / "report.html", page(title, parts).encode())
    return folder / "report.html"


def _figures(history: History, result: Mapping[str, Any]) -> list[tuple[str, list[Panel], str]]:
    """Title, panels and a sentence that reads them, for each figure of a report."""
    made: list[tuple[str, list[Panel], str]] = []
    if result["teacher"] is not None:
        made.append(
            (
                "What the student gains",
                _accuracy(history, result),
                "Left: points are measurements on real images. Right: calibration sets the ranges of Q from G's images, "
                "learning trains its weights on them. Intervals are 95 % over the images, not over seeds.",
            )
        )
    made += [
        (
            "Disagreement of the generated samples",
            [h_prime_panel(history)],
            "G is penalised for samples below λ_l (Q cannot learn them) and above λ_u (nothing to learn).",
        ),
        (
            "What the players minimise",
            terms_panels(history),
            "Terms as weighted in the loss; long runs are averaged over equal stretches of rounds.",
        ),
    ]
    if np.isfinite(history["gain_g"]).any():
        reading = "Positive: the move raised the disagreement of P and Q on this round's latents (Fig. 3 of the paper)."
        made.append(("The players' gains", [gains_panel(history, total=True)], reading))
    return made


def report(folder: Path, *, interactive: bool = False) -> Path:
    """Writes the report of a finished run again, from its folder; raises UserError if there is no finished run."""
    if not (folder / "result.json").exists():
        raise UserError(f"{folder} holds no finished run; give the folder of one, as runs/NAME")
    config = read_config(folder / "config.json")
    teacher = load_teacher(config.teacher)
    data = images_of(teacher, config)
    game = Game.resume(last_checkpoint(folder), teacher=teacher, device="cpu")
    return write_report(folder, game, teacher, data, interactive=interactive)
