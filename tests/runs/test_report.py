"""The report: what a figure draws is what the records say, and the page needs nothing but itself."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_games import OBSERVE, play, tiny_game, tiny_teacher
from PIL import Image

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.runs.report import image_grid, write_report
from adadfq_lab.views.game_panels import accuracy_figure, band_figure, gains_figure, loss_figure, smooth

ACCURACY = {"top1": 50.0, "low": 40.0, "high": 62.0, "images": 30}


def records(count: int) -> list[dict[str, Any]]:
    """Records of a made-up run: two rounds of warm-up, then terms of both players, gains and accuracies now and then."""
    lines: list[dict[str, Any]] = []
    for t in range(count):
        line = {"round": t, "phase": "play" if t >= 2 else "warm-up", "h_prime": [0.0, 0.1 * (t % 5), 0.5, 1.0]}
        line |= {"lower": 0.1, "upper": 0.8 if t < count // 2 else 0.7, "generator.bns": 2.0, "generator.band": 0.0}
        line |= {"student.entropy": 5.0 - t / count} if t >= 2 else {"calibrated": ACCURACY | {"top1": 45.0}} if t == 1 else {}
        line |= {"gain_g": 0.25, "gain_q": -0.5} if t % 2 == 0 else {"accuracy": ACCURACY} if t > 2 else {}
        lines.append(line)
    return lines


def lines_of(figure: Any) -> dict[str, Any]:
    return {line.name: line for line in figure.data if line.name}


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_smoothing_is_a_mean_over_known_neighbours(width):
    """Against a loop, with missing values in it; a stretch without any stays missing."""
    values = np.random.default_rng(0).normal(size=23)
    values[[0, 4, 5, 6, 7, 8, 9, 10, 22]] = np.nan
    out = smooth(values, width)
    assert out.shape == values.shape
    for i in range(len(values)):
        near = [v for j, v in enumerate(values) if -width / 2 <= i - j <= width / 2 and np.isfinite(v)]
        if width % 2:
            near = [v for j, v in enumerate(values) if abs(i - j) <= width // 2 and np.isfinite(v)]
            assert out[i] == pytest.approx(np.mean(near)) if near else np.isnan(out[i])
        elif near:
            assert np.isnan(out[i]) or min(near) - 1e-12 <= out[i] <= max(near) + 1e-12


def test_the_band_shows_quantiles_between_the_bounds():
    """Median and middle 80 % of H', and the bounds as they were in each round."""
    figure = band_figure(records(20))
    shown = lines_of(figure)
    h = np.array([np.quantile(line["h_prime"], [0.1, 0.5, 0.9]) for line in records(20)])
    assert shown["median H'"].y == pytest.approx(h[:, 1])
    assert shown["middle 80 %"].y == pytest.approx(h[:, 2])
    assert figure.data[0].y == pytest.approx(h[:, 0])
    assert list(shown["λ_l"].y) == [0.1] * 20
    assert list(shown["λ_u"].y) == [0.8] * 10 + [0.7] * 10
    assert "H'" in figure.layout.yaxis.title.text
    assert figure.layout.xaxis.title.text == "round"


def test_losses_show_every_term_of_both_players():
    """Each under its player's name; a term that starts after the warm-up is not drawn before; zeros fit a logarithmic axis."""
    shown = lines_of(loss_figure(records(20)))
    assert shown.keys() == {"G: bns", "G: band", "Q: entropy"}
    assert shown["G: bns"].y == pytest.approx([2.0] * 20)
    assert np.isnan(shown["Q: entropy"].y[:2]).all()
    assert np.isfinite(shown["Q: entropy"].y[2:]).all()
    assert min(shown["G: band"].y) > 0
    assert loss_figure(records(20)).layout.yaxis.type == "log"
    raised = [line | {"generator.output": -3.0} for line in records(20)]
    assert loss_figure(raised).layout.yaxis.type == "linear"
    assert lines_of(loss_figure(raised))["G: output"].y == pytest.approx(np.full(20, -3.0))


@pytest.mark.parametrize("count", [1, 2, 7, 2500])
def test_figures_of_any_length_keep_the_first_and_the_last_round(count):
    """A round alone can be drawn, and thousands are thinned to a thousand points."""
    for figure in (band_figure(records(count)), loss_figure(records(count))):
        for line in figure.data:
            assert len(line.x) == len(line.y) == min(count, 1000)
            assert (line.x[0], line.x[-1]) == (0, count - 1)


def test_accuracies_stand_at_the_round_after_which_they_were_measured():
    """With their intervals, between the teacher's and the plain student's lines."""
    shown = lines_of(accuracy_figure(records(8), {"teacher": 90.0, "plain": 30.0}))
    student = shown["student Q"]
    assert list(student.x) == [2, 4, 6, 8]
    assert list(student.y) == [45.0, 50.0, 50.0, 50.0]
    assert list(student.error_y.array) == [17.0, 12.0, 12.0, 12.0]
    assert list(student.error_y.arrayminus) == [5.0, 10.0, 10.0, 10.0]
    assert list(shown["teacher P"].y) == [90.0, 90.0]
    assert list(shown["plainly quantised"].x) == [0, 8]


def test_gains_are_drawn_where_both_players_moved():
    """From the end of the warm-up on, with their sum; a run without them has no such figure."""
    figure = gains_figure(records(8))
    assert figure is not None
    shown = lines_of(figure)
    assert list(shown["sum"].x) == [2, 4, 6]
    assert list(shown["sum"].y) == [-0.25] * 3
    assert gains_figure(records(2)) is None


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_of_images_holds_each_pixel(channels):
    """The PNG decoded again: image i stands in row i // columns; gray is gray, and other than 3 channels are averaged."""
    images = torch.rand(5, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    page = image_grid(images, 3, 'a "row" of <things>')
    assert 'alt="a &quot;row&quot; of &lt;things&gt;"' in page
    content = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    assert sheet.shape == (2 * 6, 3 * 8, 3)
    expected = (images if channels == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)).mul(255).round().byte()
    for i in range(5):
        top, left = i // 3 * 6, i % 3 * 8
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], expected[i].permute(1, 2, 0).numpy())


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path):
    """The report of a short game of a teacher with an awkward name."""
    teacher = tiny_teacher(classes=3)
    teacher.info = SimpleNamespace(**(vars(teacher.info) | {"name": "<b>bold & co</b>"}))
    game = play(tiny_game(teacher=teacher, gains_every=1), OBSERVE)
    lines = [record.as_json() for record in tiny_game(teacher=teacher, gains_every=1).play(OBSERVE)]
    (tmp_path / "records.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    rows = {"teacher": 90.5, "plain": 30.25, "calibrated": None, "student": 80.0, "best": 81.0}
    result = rows | {"intervals": {name: [1.25, 99.5] for name in rows}, "rounds": OBSERVE, "seconds": 3.2, "seed": 7}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps({"bits": "3w3a", "seed": 7, "teacher": "<i>file</i>"}))
    classes = ("T-shirt/top", "<trouser>", "bag")
    data = ImageSet("d", "test", torch.zeros(1, 2, 8, 8), torch.zeros(1), classes, "some <images>")
    write_report(tmp_path, game, teacher, data)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return Tags((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_report_needs_nothing_but_itself(page):
    """No script, style, image or link comes from anywhere else; plotly is inside, once."""
    for _, attributes in page.found:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert page.text.count("plotly.js v") == 1
    assert sum("plotly-graph-div" in (attributes.get("class") or "") for _, attributes in page.found) == 4


def test_the_report_says_what_became_of_the_run(page):
    """The table with its intervals, the seed, the classes, what was quantised, the configuration; a missing row is left out."""
    for words in ("90.50 %", "30.25 %", "80.00 %", "[1.25, 99.50]", "seed 7", "T-shirt/top, <trouser>, bag", "3w3a: 10 layers"):
        assert words in page.text
    assert "calibrated on G's images" not in page.text
    assert "AdaDFQ, 3w3a, <b>bold & co</b>, seed 7" in page.text
    tags = [tag for tag, _ in page.found]
    assert tags.count("tr") == 1 + 4
    assert not {"b", "i", "trouser", "images"} & set(tags)
    (image,) = (attributes for tag, attributes in page.found if tag == "img")
    assert image["alt"] == "generated images, one row for each of ('T-shirt/top', '<trouser>', 'bag')"
