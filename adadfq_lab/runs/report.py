"""report.html: a run in one file, with plotly inside and no network."""

import base64
import html
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.game.game import Game
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.runs.log import read_records
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.views.game_panels import accuracy_figure, band_figure, gains_figure, loss_figure

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
