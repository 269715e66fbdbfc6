"""The gallery of the README: a key figure of each notebook, drawn from what is shipped, committed in docs/gallery/.

`make gallery` (`python -m adadfq_lab.authoring.gallery`) draws all of them again and writes the part of the README between its
marks: a figure, its description as alt text, and a sentence that reads it. Charts are SVG in a grey that shows on light and
dark pages; images of G are PNG. Nothing is trained: recordings, results and the teacher in data_stubs/ are all it takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from adadfq_lab.authoring.marks import renewed
from adadfq_lab.authoring.pages import PAGES
from adadfq_lab.authoring.recording import TEACHER
from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.loading import load_data
from adadfq_lab.equations import Bounds, normalized_entropy
from adadfq_lab.game.recordings import load_population, load_recording
from adadfq_lab.integers.layers import to_integers
from adadfq_lab.integers.packing import pack
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.generators import conditional_generator
from adadfq_lab.student.quantize import quantize
from adadfq_lab.studies.table2 import PAPER
from adadfq_lab.studies.tables import difference, read_rows, shipped_results, summaries
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.views import game_panels
from adadfq_lab.views.charts import Bars, Line, Panel, Rule, chart, montage, standing_alone
from adadfq_lab.views.images import png
from adadfq_lab.views.style import BLUE, GREEN, GREY, ORANGE, PLAYER, PLAYER_DASH, PURPLE, TEXT, VERMILLION
from adadfq_lab.views.widgets import band_text

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- gallery -->", "<!-- /gallery -->"


@dataclass(frozen=True)
class Picture:
    """A figure to be written: its bytes, "svg" or "png", what it shows (alt) and a sentence that reads it."""

    data: bytes
    kind: str
    alt: str
    says: str


def _svg(panel: Panel, alt: str, says: str) -> Picture:
    """One panel as a file of its own: with the house's grey, since there is no page to take a colour from."""
    text = standing_alone(chart([panel], alt=alt, height=270), TEXT)
    return Picture(f"{text}\n".encode(), "svg", alt, says)


def welcome() -> Picture:
    """00: Q on real images over a recorded game."""
    history = load_recording("adadfq_3w3a").history
    says = "The game, 300 rounds: as soon as G's images set its ranges, Q is right again on real images, at 3 bits."
    return _svg(game_panels.panels(history, 100)[5], game_panels.describe(history), says)


def disagreement() -> Picture:
    """01: what the floor of H' does to a comparison of students."""
    people = load_population()
    bits = sorted(people.student_logits)
    zero = [float(normalized_entropy(torch.from_numpy(people.entropy(b)), 10, floor="zero").median()) for b in bits]
    batch = [float(np.median(people.h_prime(b))) for b in bits]
    lines = [
        Line("batch minimum, Eq. (3)", bits, batch, PURPLE, dots=True),
        Line("0", bits, zero, BLUE, "dash", dots=True),
    ]
    alt = (
        f"Median H' of students of 2 to 8 bits: with the batch's minimum as H_min from {batch[0]:.2f} to {batch[-1]:.2f}, "
        f"with 0 from {zero[0]:.2f} to {zero[-1]:.2f}."
    )
    panel = Panel("What H_min is, matters", "bits of Q", "median H′ (1: agreement)", lines, y_range=(0, 1.05))
    return _svg(panel, alt, "Measured against its own batch, as in Eq. (3), H′ stays far from 1 however well Q agrees with P.")


def cliff() -> Picture:
    """02: accuracy of plainly rounded students, ranges from 128 real images that are not scored."""
    everything = load_data("fashion_mnist", stub=True)
    teacher, data, others = load_teacher(TEACHER), everything.take(500), everything.images[-128:]
    tops, widths = [], (2, 3, 4, 5, 6, 8)
    for width in widths:
        student = quantize(teacher, f"{width}w{width}a")
        with torch.no_grad():
            student(teacher.normalize(others))
        tops.append(accuracy(student, data, teacher.normalize).top1)
    top = accuracy(teacher, data, teacher.normalize).top1
    listed = ", ".join(f"{width} bits {value:.0f} %" for width, value in zip(widths, tops, strict=True))
    panel = Panel(
        "Rounded, nothing learned",
        "bits of weights and activations",
        "top-1 on 500 images [%]",
        [Line("Q", widths, tops, PLAYER["Q"], PLAYER_DASH["Q"], dots=True)],
        rules=[Rule(top, "P", PLAYER["P"], "y", "solid")],
        y_range=(0, 105),
    )
    alt = f"Accuracy of Q without training: {listed}; P has {top:.0f} %."
    return _svg(panel, alt, "Each bit less doubles the step of the grid, and at 2 bits accuracy falls off a cliff.")


def imagined() -> Picture:
    """03: what G imagines at the end of the three long games, a row each."""
    games = {
        how: load_recording(f"gdfq_long{end}") for how, end in (("averaged", ""), ("summed", "_sum"), ("left out", "_label"))
    }
    sheet = montage(np.stack([one.images[-1] for one in games.values()]))
    facts = "; ".join(f"{how}: P recognises {one.meta['recognised']:.0f} %" for how, one in games.items())
    alt = f"Three rows of ten imagined images, one of each class, after 1,200 rounds, by how L_BNS adds up. {facts}."
    says = "What P's batch norms remember: L_BNS averaged, summed, left out. Being recognised is easy, being typical is not."
    return Picture(png(sheet, scale=3), "png", alt, says)


def gains() -> Picture:
    """04: what both players' steps did to the disagreement, added up."""
    history = load_recording("adadfq_3w3a").history
    known = np.isfinite(history["gain_g"]) & (history["round"] >= 60)
    at = history["round"][known]
    sums = {f"Δ_{p}": np.cumsum(history[f"gain_{p.lower()}"][known]) for p in "GQ"}
    lines = [Line(name, at, total, PLAYER[name[-1]], PLAYER_DASH[name[-1]]) for name, total in sums.items()]
    ends = ", ".join(f"{name} {total[-1]:+.1f} nats" for name, total in sums.items())
    panel = Panel("Gains, added up", "round", "disagreement [nats]", lines, rules=[Rule(0, "", GREY, "y", "dot")])
    alt = f"Gains of every second round from 60 to 300, added up: {ends}."
    return _svg(
        panel, alt, "Is the game zero-sum? Both gains are small and of opposite sign; notebook 04 asks what that proves."
    )


def ablation() -> Picture:
    """05: testing loss without L_ds, without L_as and without L_BNS."""
    rows = {"all": "adadfq_3w3a", "no L_ds": "no_ds_3w3a", "no L_as": "no_as_3w3a", "no L_BNS": "no_bns_3w3a"}
    looks = ((BLUE, "solid"), (ORANGE, "dash"), (GREEN, "dot"), (VERMILLION, "dashdot"))
    lines = [_measured(name, file, "test.loss", *look) for (name, file), look in zip(rows.items(), looks, strict=True)]
    last = ", ".join(f"{line.name} {np.asarray(line.y)[-1]:.2f}" for line in lines)
    panel = Panel("Table 3 in miniature: testing loss of Q", "round", "cross-entropy [nats]", lines)
    says = "Without L_BNS Q is worse on real images; without a kind of sample nothing shows in 150 rounds of one seed."
    return _svg(panel, f"Cross-entropy of Q on real images over 150 rounds; it ends at: {last} nats.", says)


def _measured(name: str, recording: str, column: str, color: str, dash: str) -> Line:
    history = load_recording(recording).history.upto(150)
    at = np.isfinite(history[column]) & (history["round"] > 10)
    return Line(name, history["round"][at], history[column][at], color, dash, dots=True)


def band() -> Picture:
    """06: the histogram of the bounds explorer as it opens."""
    h_prime, bounds = load_population().h_prime(3), Bounds(0.1, 0.8)
    panel = game_panels.band_panel(h_prime, bounds, f"H′ of {len(h_prime)} imagined images, 3-bit Q")
    alt = f"Histogram of H' coloured by the band. {band_text(h_prime, bounds)}"
    return _svg(panel, alt, "The bounds explorer: drag λ_l and λ_u, also while the game is played.")


def fitting() -> Picture:
    """07: the testing side of Fig. 1 in small: both methods at 3 and 5 bits."""
    looks = {("AdaDFQ", 3): (VERMILLION, "solid"), ("GDFQ", 3): (ORANGE, "dash"), ("AdaDFQ", 5): (BLUE, "solid")}
    looks |= {("GDFQ", 5): (GREEN, "dash")}
    lines = [
        _measured(f"{name} {bits}", f"{name.lower()}_{bits}w{bits}a", "test.loss", *look)
        for (name, bits), look in looks.items()
    ]
    ends = ", ".join(f"{line.name} bits {np.asarray(line.y)[0]:.2f} to {np.asarray(line.y)[-1]:.2f}" for line in lines)
    panel = Panel("Fig. 1 in small: testing loss at 3 and 5 bits", "round", "cross-entropy of Q [nats]", lines)
    says = "AdaDFQ's student ends lower on real images at both widths. One seed; the first 150 rounds only."
    return _svg(panel, f"Testing loss over 150 rounds, in nats: {ends}.", says)


def table() -> Picture:
    """08: the shipped table of CIFAR-10 at three bits: last rounds, their intervals, the teacher, and what the paper prints."""
    wanted = ("cifar10", "short", "3w3a", "corrected")
    rows = [one for one in read_rows(shipped_results()) if (one.dataset, one.budget, one.bits, one.fidelity) == wanted]
    cells = summaries(rows)
    by, height, color = {one.method: one for one in cells}, len(cells) - 1, PLAYER["Q"]
    lines = [Line("" if i else "last round", [one.last], [height - i], color, dots=True) for i, one in enumerate(cells)]
    for i, one in enumerate(cells):
        half = one.half or 0.0
        lines.append(Line("", [one.last - half, one.last + half], [height - i] * 2, color))
    printed = [(one.paper, height - i) for i, one in enumerate(cells) if one.paper is not None]
    lines.append(Line("printed", [paper for paper, _ in printed], [at for _, at in printed], GREY, rings=True))
    title, rule = f"CIFAR-10, 3 bits, {cells[0].updates:,} updates", Rule(cells[0].teacher, "P", PLAYER["P"], "x", "solid")
    panel = Panel(
        title,
        "top-1 on 9,979 test images [%]",
        "method",
        lines,
        rules=[rule],
        x_range=(max(min(one.last - (one.half or 0) for one in cells) - 3, 0), cells[0].teacher + 3),
        y_range=(-0.6, height + 0.6),
        y_names=[one.method for one in reversed(cells)],
    )
    listed = ", ".join(f"{one.method} {one.last:.1f}" for one in cells)
    alt = f"Accuracy in percent after the last round, by method: {listed}; P has {cells[0].teacher:.1f}."
    gap = difference(*([one.last for one in rows if one.method == name] for name in ("adadfq", "gdfq")))
    here = f"{gap[0]:.1f} ± {gap[1]:.1f}" if gap else f"{by['adadfq'].last - by['gdfq'].last:.1f}"
    there = PAPER["cifar10"]["3w3a"]["adadfq"] - PAPER["cifar10"]["3w3a"]["gdfq"]
    says = f"AdaDFQ is {here} points ahead of GDFQ after equal updates, {there:.1f} in print (rings): another protocol."
    return _svg(panel, alt, says)


def players() -> Picture:
    """09: weights, gradients and optimizers of both players, by recipe."""
    recipes = {"ResNet-20": ("resnet20", 10, 32), "ResNet-18": ("resnet18", 1000, 224), "ResNet-50": ("resnet50_v1", 1000, 224)}
    held = []
    for network, classes, size in recipes.values():
        with torch.device("meta"):
            sizes = [_weights(conditional_generator(classes, (3, size, size))), _weights(build_network(network, classes))]
        held.append([4 * numbers * weights / 2**20 for numbers, weights in zip((4, 3), sizes, strict=True)])
    edges, what = [i - 0.5 for i in range(len(held) + 1)], "network (ResNet-20: CIFAR-10; the others: ImageNet)"
    bars = [Bars(p, edges, [one[i] for one in held], PLAYER[p], hatch) for i, (p, hatch) in enumerate((("G", ""), ("Q", "/")))]
    panel = Panel("What both players hold, before any image", what, "memory [MB]", bars=bars, x_names=list(recipes))
    listed = "; ".join(f"{name}: G {g:.0f}, Q {q:.0f}" for name, (g, q) in zip(recipes, held, strict=True))
    alt = f"Weights, gradients and optimizer state in MB. {listed}."
    return _svg(panel, alt, "Before an hour is spent: on ImageNet the generator is the larger player, by one linear layer.")


def _weights(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def sizes() -> Picture:
    """10: the weights of a 3-bit student as floats, as bytes, and packed."""
    teacher = load_teacher(TEACHER)
    student = quantize(teacher, "3w3a")
    with torch.no_grad():
        student(torch.randn(16, *teacher.info.input_shape, generator=torch.Generator().manual_seed(0)))
    table = to_integers(student)
    weights = sum(layer.codes.numel() for layer in table.layers.values())
    with TemporaryDirectory() as folder:
        packed = pack(student, Path(folder) / "packed.safetensors", table).stat().st_size
    kilobytes = {"float32": 4 * weights / 1e3, "int8": weights / 1e3, "packed": packed / 1e3, "3 bits each": 3 * weights / 8e3}
    edges = [i - 0.5 for i in range(len(kilobytes) + 1)]
    bars = [Bars("", edges, list(kilobytes.values()), PLAYER["Q"])]
    panel = Panel("A 3-bit ResNet-20 on disk", "form", "size of the weights [kB]", bars=bars, x_names=list(kilobytes))
    alt = f"Size in kB: {', '.join(f'{name} {size:.0f}' for name, size in kilobytes.items())}."
    share = kilobytes["packed"] / kilobytes["float32"]
    return _svg(panel, alt, f"Three bits are three bits: the packed file, scales included, is {share:.0%} of the floats.")


PICTURES: dict[str, Callable[[], Picture]] = {
    "00_welcome": welcome,
    "01_disagreement": disagreement,
    "02_quantization": cliff,
    "03_imagining_data": imagined,
    "04_zero_sum_game": gains,
    "05_two_kinds_of_sample": ablation,
    "06_the_band": band,
    "07_why_it_generalises": fitting,
    "08_eight_methods": table,
    "09_full_training": players,
    "10_is_it_integer": sizes,
}
"""Name of a notebook: what draws its key figure."""


def part(pictures: dict[str, Picture]) -> str:
    """The README's gallery, two notebooks a row."""
    titles = {name: title for name, title, _ in PAGES}
    cells = [
        f'<td width="50%" valign="top"><a href="notebooks/{name}.ipynb"><b>{name[:2]} · {titles[name]}</b></a><br>'
        f'<img src="docs/gallery/{name}.{one.kind}" alt="{escape(one.alt)}" width="100%"><br>{escape(one.says)}</td>'
        for name, one in pictures.items()
    ]
    rows = ["<tr>\n" + "\n".join(cells[i : i + 2]) + "\n</tr>" for i in range(0, len(cells), 2)]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def main(root: Path = ROOT) -> None:
    """Draws every picture into docs/gallery/ and renews the README's gallery."""
    pictures = {name: draw() for name, draw in PICTURES.items()}
    (root / "docs" / "gallery").mkdir(parents=True, exist_ok=True)
    for name, one in pictures.items():
        write_atomically(root / "docs" / "gallery" / f"{name}.{one.kind}", one.data)
    readme = root / "README.md"
    write_atomically(readme, renewed(readme.read_text(encoding="utf-8"), BEGIN, END, part(pictures)).encode())


if __name__ == "__main__":
    main()
