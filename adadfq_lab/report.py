"""report.html: a run in one file, with plotly inside and no network."""

import base64
import html
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.game.game import Game
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.records import read_records
from adadfq_lab.style import BOUND, BOUND_COLOUR, BOUND_DASH, GENERATOR, STUDENT, TEACHER, figure
from adadfq_lab.teacher.teacher import Teacher

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
 h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.5rem; }}
 table {{ border-collapse: collapse; }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left; }}
 td.n {{ text-align: right; font-variant-numeric: tabular-nums; }} p.small, pre {{ font-size: .85rem; color: #555; }}
 img {{ image-rendering: pixelated; width: 100%; max-width: 44rem; }} pre {{ white-space: pre-wrap; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over `width` rounds; shorter at either end. Missing values are left out of it."""
    kernel = np.ones(max(1, min(width, len(values))))
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([record.get(name, np.nan) for record in records], dtype=float)


def _thin(count: int, most: int = 1000) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def band_figure(records: list[dict[str, Any]]) -> go.Figure:
    """H' of the samples of each round between lambda_l and lambda_u: median, and the range of the middle 80 %."""
    h = np.array([np.quantile(record["h_prime"], [0.1, 0.5, 0.9]) for record in records])
    width = max(1, len(records) // 60)
    low, middle, high = (smooth(h[:, i], width) for i in range(3))
    keep = _thin(len(records))
    rounds = _column(records, "round")[keep]
    fig = figure("Disagreement of the generated samples", "round", "H' (1: P and Q agree)")
    fig.add_scatter(x=rounds, y=low[keep], mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=rounds, y=high[keep], fill="tonexty", mode="lines", line={"width": 0}, name="middle 80 %")
    fig.data[-1].fillcolor = "rgba(0,158,115,0.2)"
    fig.add_scatter(x=rounds, y=middle[keep], mode="lines", line={"color": GENERATOR, "width": 2}, name="median H'")
    for name, key in (("λ_l", "lower"), ("λ_u", "upper")):
        line = {"color": BOUND_COLOUR[key], "dash": BOUND_DASH[key]}
        fig.add_scatter(x=rounds, y=_column(records, key)[keep], mode="lines", line=line, name=name)
    fig.update_yaxes(range=[0, 1.02])
    return fig


def loss_figure(records: list[dict[str, Any]]) -> go.Figure:
    """Every loss term of both players, smoothed, on a logarithmic axis; a linear one where a term is negative, as with ZAQ."""
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith(("generator.", "student."))))
    columns = {name: _column(records, name) for name in names}
    log = not any((column < 0).any() for column in columns.values())
    fig = figure("What the players minimise", "round", f"weighted loss term{' (log scale)' if log else ''}")
    keep, dashes = _thin(len(records)), ("solid", "dash", "dot", "dashdot", "longdash")
    rounds = _column(records, "round")[keep]
    for i, (name, column) in enumerate(columns.items()):
        player, term = name.split(".")
        values = smooth(column, max(1, len(records) // 60))[keep]
        colour = GENERATOR if player == "generator" else STUDENT
        label = f"{'G' if player == 'generator' else 'Q'}: {term}"
        values = np.maximum(values, 1e-5) if log else values
        fig.add_scatter(x=rounds, y=values, mode="lines", name=label, line={"color": colour, "dash": dashes[i % 5]})
    fig.update_yaxes(type="log" if log else "linear")
    return fig


def accuracy_figure(records: list[dict[str, Any]], result: dict[str, Any]) -> go.Figure:
    """Accuracy of the student where it was measured, between the teacher's and the plainly quantised student's."""
    fig = figure("What the student gains", "round", "top-1 accuracy (%)")
    points = [(r["round"] + 1, r[k]) for r in records for k in ("calibrated", "accuracy") if k in r]
    last = records[-1]["round"] + 1
    for name, key, colour, dash in (("teacher P", "teacher", TEACHER, "solid"), ("plainly quantised", "plain", BOUND, "dot")):
        fig.add_scatter(x=[0, last], y=[result[key]] * 2, mode="lines", name=name, line={"color": colour, "dash": dash})
    x, y = [p[0] for p in points], [p[1]["top1"] for p in points]
    error = {"array": [p[1]["high"] - p[1]["top1"] for p in points], "arrayminus": [p[1]["top1"] - p[1]["low"] for p in points]}
    fig.add_scatter(x=x, y=y, mode="lines+markers", name="student Q", line={"color": STUDENT}, error_y=error)
    return fig


def gains_figure(records: list[dict[str, Any]]) -> go.Figure | None:
    """The players' gains Δ_G and Δ_Q and their sum, as in Fig. 3; None where none were measured."""
    found = [r for r in records if "gain_g" in r and r["phase"] == "play"]
    if not found:
        return None
    fig = figure("The players' gains", "round", "change of disagreement in one move (nats)")
    rounds, g, q = (np.array([r[k] for r in found]) for k in ("round", "gain_g", "gain_q"))
    for values, name, colour, dash in (
        (g, "Δ_G", GENERATOR, "solid"),
        (q, "Δ_Q", STUDENT, "solid"),
        (g + q, "sum", BOUND, "dot"),
    ):
        fig.add_scatter(x=rounds, y=values, mode="lines", name=name, line={"color": colour, "dash": dash})
    return fig


def sample_images(game: Game, teacher: Teacher, per_class: int, classes: tuple[int, ...]) -> Tensor:
    """Pixel values `(len(classes) * per_class, C, H, W)` in [0, 1] of generated images, class by class."""
    labels = torch.tensor(classes).repeat_interleave(per_class)
    return teacher.denormalize(game.generate(labels, seed=game.seed)).cpu()


def image_grid(images: Tensor, columns: int, alt: str) -> str:
    """Images `(N, C, H, W)` in [0, 1] as one HTML image, `columns` a row, with alternative text; grey unless C is 3."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    colours = images if channels == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    pixels = colours.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = image
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG", optimize=True)
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def write_report(folder: Path, game: Game, teacher: Teacher, data: ImageSet) -> None:
    """Writes report.html into a finished run's folder, from its records and its generator."""
    records = read_records(folder / "records.jsonl")
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    labels = {
        "teacher": "teacher P",
        "plain": "plainly quantised (ranges from noise)",
        "calibrated": "calibrated on G's images, untrained",
        "student": "student Q after the last round",
        "best": "best round (chosen on these images: not a result)",
    }
    rows = "".join(
        f'<tr><td>{label}</td><td class="n">{result[key]:.2f} %</td><td>[{low:.2f}, {high:.2f}]</td></tr>'
        for key, label in labels.items()
        if result[key] is not None
        for low, high in [result["intervals"][key]]
    )
    body = f"<table><tr><th></th><th>top-1</th><th>95 % interval</th></tr>{rows}</table>"
    body += f'<p class="small">Measured on {html.escape(data.source)}; {result["rounds"]} rounds, {result["seconds"]:.0f} s, '
    body += f"seed {result['seed']}.</p>"
    figures = [
        (accuracy_figure(records, result), "Error bars are 95 % intervals over the images, not over seeds."),
        (band_figure(records), "G is penalised for samples below λ_l (Q cannot learn them) and above λ_u (nothing to learn)."),
        (loss_figure(records), "Terms as weighted in the loss; smoothed over neighbouring rounds."),
    ]
    if (gains := gains_figure(records)) is not None:
        figures.append(
            (gains, "Positive: the move raised the disagreement of P and Q on this round's latents (Fig. 3 of the paper).")
        )
    for i, (fig, reading) in enumerate(figures):
        body += f"<h2>{html.escape(fig.layout.title.text)}</h2>"
        fig.update_layout(title=None)
        body += fig.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False}) + f"<p>{reading}</p>"
    per_class, shown = 8, range(0, len(data.classes), -(-len(data.classes) // 100))  # ImageNet's 8,000 would fill the memory
    if math.prod(teacher.info.input_shape[1:]) > 2**14:
        per_class, shown = 4, shown[::10]
    names = {i: data.classes[i] for i in shown}
    sheet = image_grid(
        sample_images(game, teacher, per_class, tuple(shown)),
        per_class,
        f"generated images, one row for each of {tuple(names.values())}",
    )
    body += f"<h2>What G made, a row for each class</h2>{sheet}<p>{html.escape(', '.join(names.values()))}.</p>"
    body += f"<h2>The student</h2><pre>{html.escape(game.student.report())}</pre>"
    body += f"<h2>The configuration</h2><pre>{html.escape(json.dumps(config, indent=1))}</pre>"
    title = f"{game.method.name}, {config['bits']}, {teacher.info.name}, seed {config['seed']}"
    write_atomically(folder / "report.html", PAGE.format(title=html.escape(title), body=body).encode())
