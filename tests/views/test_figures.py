"""Figures: what they draw is what they were given, and they can be read by everybody."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.live_games import tiny_game
from PIL import Image

from adadfq_lab.data.accuracy import Accuracy, wilson
from adadfq_lab.equations import Bounds, entropy
from adadfq_lab.game.recordings import load_grid
from adadfq_lab.views import figures, style

CLASSES = tuple("abcd")


@pytest.fixture(scope="module")
def records():
    return list(tiny_game().play(5))


def every_figure(records):
    """One of each function, by name."""
    g = torch.Generator().manual_seed(0)
    p, h = torch.softmax(torch.randn(4, generator=g), -1), torch.rand(50, generator=g)
    accuracy = Accuracy(80.0, *wilson(80, 100), 100)
    return {
        "probability_bars": figures.probability_bars({"P": p, "Q": p.flip(0), "p_ds": p}, CLASSES),
        "entropy_histogram": figures.entropy_histogram(h, Bounds(0.1, 0.8)),
        "histograms": figures.histograms({"3 bits": h, "5 bits": h**2}, title="H'", x="H'", limits=(0, 1)),
        "scatter": figures.scatter({"a": (h, h)}, title="t", x="x", y="y", alt="points"),
        "curves": figures.curves({"P": h, "other": 2 * h}, range(50), title="t", x="step", y="loss [nats]"),
        "ends_of_the_band": figures.ends_of_the_band({"3 bits": (h, 1 - h)}, Bounds(0.1, 0.8)),
        "weights_on_grid": figures.weights_on_grid(h - 0.5, 3),
        "accuracy_cliff": figures.accuracy_cliff({2: accuracy, 8: accuracy}, accuracy),
        "image_grid": figures.image_grid(torch.rand(8, 1, 6, 6, generator=g), CLASSES, title="t", x="class", y="round"),
        "bns_by_layer": figures.bns_by_layer({"real": h[:5], "noise": 10 * h[:5]}),
        "training_curves": figures.training_curves(records),
        "loss_curves": figures.loss_curves(records),
        "story": figures.story(),
        "grid_map": figures.grid_map(load_grid()[0], "accuracy"),
        "bars": figures.bars({"a": 1.0, "b": 2.0}, title="t", x="x", y="y"),
        "yours_against_expected": figures.yours_against_expected(h, h + 1),
    }


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""
    high, low = sorted((luminance(one) + 0.05, luminance(other) + 0.05), reverse=True)
    return high / low


def test_every_figure_has_words_axes_and_the_house_look(records):
    """Each has a title, a label on both axes, a description of its own, a transparent ground, and survives JSON."""
    made = every_figure(records)
    for name, fig in made.items():
        assert len(style.alt_text(fig)) > 5, name
        assert fig.layout.title.text or fig.layout.annotations[0].text, name
        assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text, name
        assert fig.layout.template.layout.paper_bgcolor == style.CLEAR
        assert "$" not in fig.to_json(), f"{name} asks for MathJax"
        json.loads(fig.to_json())
    public = {name for name, value in vars(figures).items() if getattr(value, "__module__", "") == figures.__name__}
    assert made.keys() == {name for name in public if not name.startswith("_")}


@pytest.mark.parametrize("page", ["#FFFFFF", "#111111"])
def test_text_reads_on_light_and_dark(page):
    """Text has a contrast of at least 4.3 against white and against JupyterLab's dark ground; large text needs 3."""
    assert contrast(style.TEXT, page) >= 4.3


def test_lines_of_players_and_bounds_differ_without_colour():
    """P, Q and G differ in dash pattern, and so do the two bounds, and bars below, inside and above the band in hatching."""
    for distinct in (style.PLAYER_DASH, style.BOUND_DASH, style.PATTERN, style.PLAYER, style.BOUND_COLOUR):
        assert len(set(distinct.values())) == len(distinct)


def test_a_figure_without_labels_is_refused():
    """A figure says what its axes are, or is not made."""
    for labels in (("", "x", "y"), ("t", "", "y"), ("t", "x", "")):
        with pytest.raises(ValueError, match="title and a label"):
            style.figure(*labels)


def test_show_outside_a_notebook_prints_the_description(capsys):
    """In a script there is no front end: what the figure shows is printed in words."""
    style.show(figures.curves({"P": [1, 2]}, [0, 1], title="t", x="x", y="y", alt="A line of P."))
    assert capsys.readouterr().out.startswith("[figure] A line of P.")


def test_show_in_a_notebook_displays_figure_and_words(monkeypatch):
    """In a kernel the front end gets the figure, then its description."""
    from IPython import display

    sent = []
    monkeypatch.setattr("adadfq_lab.machine.environment.in_kernel", lambda: True)
    monkeypatch.setattr(display, "display", sent.append)
    fig = figures.curves({"P": [1, 2]}, [0, 1], title="t", x="x", y="y", alt="A line of P.")
    style.show(fig)
    assert sent[0] is fig
    assert "A line of P." in sent[1].data


def test_the_first_figure_compiles_no_grammar():
    """After a figure is displayed and a FigureWidget made, plotly knows nbformat, and rfc3987_syntax can still be imported."""
    code = """
import sys
from adadfq_lab.views import renderers
renderers.FigureView().figure
from plotly.io import _renderers
assert _renderers.nbformat.__version__
assert "rfc3987_syntax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("bounds", [(0.1, 0.8), (0.0, 1.0), (0.3, 0.4)])
def test_histogram_counts_are_brute_force_counts(bounds):
    """Bars below, inside and above hold as many samples as lie there by Eq. (10); on a bound is outside; none is lost."""
    h = torch.cat([torch.rand(300, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 0.3, 0.4, 0.8, 1.0])])
    band = Bounds(*bounds)
    fig = figures.entropy_histogram(h, band, bins=10)
    counted = [
        sum(v <= band.lower for v in h.tolist()),
        int(band.contains(h).sum()),
        sum(v >= band.upper for v in h.tolist()),
    ]
    drawn = [sum(bar.y) * len(h) / 100 for bar in fig.data]
    assert drawn == pytest.approx(counted, abs=0.01) or band.lower == pytest.approx(0.3)
    assert sum(drawn) == pytest.approx(len(h))
    for bar in fig.data:
        assert all(abs(x - (i + 0.5) / 10) < 1e-9 for i, x in enumerate(bar.x))


def test_band_is_drawn_at_the_bounds():
    """Two lines, at lambda_l and lambda_u, each with its own colour, dash and name."""
    shapes, notes = style.band(0.2, 0.7)
    assert [shape["x0"] for shape in shapes] == [shape["x1"] for shape in shapes] == [0.2, 0.7]
    assert len({shape["line"]["color"] for shape in shapes}) == len({shape["line"]["dash"] for shape in shapes}) == 2
    assert [note["text"] for note in notes] == list(style.BOUND_NAME.values())
    across, _ = style.band(0.2, 0.7, axis="y", row="3")
    assert [(shape["y0"], shape["yref"], shape["xref"]) for shape in across] == [(v, "y3", "x3 domain") for v in (0.2, 0.7)]


def test_weights_on_grid_draws_every_level():
    """As many vertical lines as codes; the outermost are within half a step of the smallest and largest weight."""
    w = torch.linspace(-0.3, 0.5, 101)
    levels = sorted(shape.x0 for shape in figures.weights_on_grid(w, 3).layout.shapes)
    assert len(levels) == 8
    step = 0.8 / 7
    assert abs(levels[0] + 0.3) <= step / 2 + 1e-6
    assert abs(levels[-1] - 0.5) <= step / 2 + 1e-6


def test_image_grid_puts_every_pixel_where_it_belongs():
    """Read back from its PNG, the sheet holds each image at its row and column, two white pixels apart."""
    images = torch.rand(6, 1, 5, 4, generator=torch.Generator().manual_seed(2))
    fig = figures.image_grid(images, ["a", "b", "c"], rows=["first", "second"], title="t", x="class", y="round")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(fig.data[0].source.split(",")[1]))).convert("RGB"))
    assert sheet.shape == (2 * 7 - 2, 3 * 6 - 2, 3)
    for i in range(6):
        top, left = 7 * (i // 3), 6 * (i % 3)
        expected = (images[i, 0] * 255).round().byte().numpy()
        assert (sheet[top : top + 5, left : left + 4] == expected[..., None]).all()
    assert (sheet[5:7] == 255).all()
    assert list(fig.layout.xaxis.ticktext) == ["a", "b", "c"]


def test_image_grid_refuses_what_fills_no_grid():
    """Seven images do not fill columns of three, and two channels are no picture."""
    for shape in ((7, 1, 4, 4), (6, 2, 4, 4)):
        with pytest.raises(ValueError, match="do not fill"):
            figures.image_grid(torch.zeros(shape), ["a", "b", "c"], title="t", x="x", y="y")


def test_probability_bars_are_the_probabilities():
    """Heights are the numbers given; the description names each vector's largest class."""
    p = torch.tensor([0.1, 0.2, 0.6, 0.1])
    fig = figures.probability_bars({"P": p, "Q": p.flip(0)}, CLASSES)
    assert np.allclose(fig.data[0].y, p)
    assert "P is largest for c (0.60)" in style.alt_text(fig)
    assert "Q is largest for b (0.60)" in style.alt_text(fig)


def test_cliff_draws_the_interval_of_each_accuracy():
    """Error bars reach from the lower to the upper end of the 95 % interval, over bits in order."""
    accuracies = {8: Accuracy(90.0, *wilson(90, 100), 100), 2: Accuracy(12.0, *wilson(12, 100), 100)}
    fig = figures.accuracy_cliff(accuracies, accuracies[8])
    line = fig.data[1]
    assert list(line.x) == [2, 8]
    low, high = wilson(12, 100)
    assert line.y[0] + line.error_y.array[0] == pytest.approx(high)
    assert line.y[0] - line.error_y.arrayminus[0] == pytest.approx(low)


def test_histograms_add_up_to_a_hundred_percent():
    """Each group's shares sum to 100, values beyond the limits counted at the ends, however many there are."""
    few, many = torch.tensor([-1.0, 0.5, 2.0]), torch.rand(1000, generator=torch.Generator().manual_seed(3))
    fig = figures.histograms({"few": few, "many": many}, title="t", x="x", limits=(0, 1), bins=10)
    assert [float(np.sum(trace.y)) for trace in fig.data] == pytest.approx([100, 100])


def test_lines_beside_players_look_like_none_of_them():
    """Of players and others in one figure no two lines share a colour, or a dash pattern."""
    lines = [trace.line for trace in figures.curves({"G": [1], "Q": [2], "sum": [3]}, [0], title="t", x="x", y="y").data]
    assert len({line.color for line in lines}) == len({line.dash for line in lines}) == 3


def test_training_curves_draw_the_records(records):
    """Mean H', its quantiles and the agreement of each round are those of the records, the bounds those in force."""
    lines = {trace.name: trace for trace in figures.training_curves(records).data}
    assert np.allclose(lines["mean H′"].y, [float(r.h_prime.mean()) for r in records], atol=1e-6)
    assert np.allclose(lines["agreement of P and Q"].y, [float(r.agreement) for r in records], atol=1e-6)
    high = [np.quantile(r.h_prime.numpy(), 0.9) for r in records]
    assert np.allclose(lines["middle 80 %"].y, high, atol=1e-6)
    assert set(lines[style.BOUND_NAME["lower"]].y) == {records[0].bounds.lower}


def test_long_games_are_thinned_to_means(records):
    """A game of more rounds than points is drawn as means over stretches, so that a line says the same with fewer points."""
    fig = figures.training_curves(records * 10, points=10)
    drawn = next(trace for trace in fig.data if trace.name == "mean H′")
    assert len(drawn.y) == 10
    assert np.mean(drawn.y) == pytest.approx(np.mean([float(r.h_prime.mean()) for r in records]), abs=1e-6)


def test_loss_curves_draw_every_term(records):
    """One line a term of either player; no two terms of a player share a colour or a dash pattern."""
    lines = figures.loss_curves(records).data
    assert {line.name for line in lines} == {name.split(".")[1] for r in records for name in r.terms}
    for axis in ("x", "x2"):
        mine = [line.line for line in lines if line.xaxis == axis]
        assert mine and len({line.color for line in mine}) == len({line.dash for line in mine}) == len(mine)


def test_entropies_stay_left_of_log_c():
    """The limits that notebook 01 draws H_info within hold: 0 to log C for any probabilities."""
    p = torch.softmax(5 * torch.randn(200, 10, generator=torch.Generator().manual_seed(4)), -1)
    h = entropy(p)
    assert float(h.min()) >= 0 and float(h.max()) <= np.log(10) + 1e-6
