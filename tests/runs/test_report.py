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

from adadfq_lab.data.accuracy import Accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError
from adadfq_lab.runs.report import accuracy_figure, as_history, image_sheet, report, write_report
from adadfq_lab.views.game_panels import accuracy_panel, gains_panel, h_prime_panel, steps_panel, terms_panels

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


def lines_of(panel: Any) -> dict[str, Any]:
    return {line.name: line for line in panel.lines if line.name}


def test_a_log_becomes_a_history():
    """Columns hold what the lines say, NaN where a line says nothing; gains of the warm-up are left out."""
    history = as_history(records(8), classes=3)
    assert len(history) == 8 and history.classes == 3
    assert history["h_prime"].shape == (8, 4)
    assert np.isfinite(history["student.entropy"]).tolist() == [False, False, *[True] * 6]
    assert np.isfinite(history["gain_g"]).tolist() == [False, False, True, False, True, False, True, False]
    assert history["test.accuracy"][[1, 3]].tolist() == [45.0, 50.0]
    assert history["test.low"][[1, 3]].tolist() == [40.0, 40.0]


def test_the_band_shows_quantiles_between_the_bounds():
    """Mean and middle 80 % of H', and the bounds as they were in each round."""
    panel = h_prime_panel(as_history(records(20)))
    shown, (area,) = lines_of(panel), panel.areas
    h = np.array([line["h_prime"] for line in records(20)])
    assert shown["mean H′"].y == pytest.approx(h.mean(1))
    assert area.low == pytest.approx(np.quantile(h, 0.1, axis=1))
    assert area.high == pytest.approx(np.quantile(h, 0.9, axis=1))
    assert list(shown["λ_l"].y) == pytest.approx([0.1] * 20)
    assert list(shown["λ_u"].y) == pytest.approx([0.8] * 10 + [0.7] * 10)
    assert panel.x == "round" and "H′" in panel.y


def test_losses_show_every_term_of_both_players():
    """A panel a player and a look a term; a term that starts after the warm-up is not drawn before; a negative one is drawn."""
    g, q = terms_panels(as_history(records(20)))
    assert (lines_of(g).keys(), lines_of(q).keys()) == ({"bns", "band"}, {"entropy"})
    assert lines_of(g)["bns"].y == pytest.approx([2.0] * 20)
    assert np.isnan(lines_of(q)["entropy"].y[:2]).all()
    assert np.isfinite(lines_of(q)["entropy"].y[2:]).all()
    assert g.log and q.log
    raised = [line | {"generator.output": -3.0} for line in records(20)]
    g = terms_panels(as_history(raised))[0]
    assert not g.log
    assert lines_of(g)["output"].y == pytest.approx(np.full(20, -3.0))
    assert len({line.color for line in g.lines}) == len({line.dash for line in g.lines}) == 3


@pytest.mark.parametrize("count", [1, 2, 7, 2500])
def test_figures_of_any_length_are_drawn(count):
    """A round alone can be drawn, and thousands are averaged over stretches to 120 points."""
    history = as_history(records(count))
    for panel in (h_prime_panel(history), *terms_panels(history)):
        for line in panel.lines:
            assert len(line.x) == len(line.y) == min(count, 120)


def test_accuracies_stand_at_the_round_in_which_they_were_measured():
    """With their intervals, between the teacher's and the plain student's lines."""
    panel = accuracy_panel(as_history(records(8)), levels={"P": 90.0, "plainly quantised": 30.0})
    student = lines_of(panel)["correct (real)"]
    assert list(student.x) == [1, 3, 5, 7]
    assert list(student.y) == [45.0, 50.0, 50.0, 50.0]
    assert list(student.high) == [62.0] * 4 and list(student.low) == [40.0] * 4
    assert {rule.text: rule.value for rule in panel.rules} == {"P": 90.0, "plainly quantised": 30.0}


def test_calibration_and_learning_are_told_apart():
    """A bar for each step with what it adds, also if learning costs accuracy; what was not measured has no bar."""
    accuracies = {name: Accuracy(top1, top1 - 1, top1 + 1, 100) for name, top1 in (("plain", 30.0), ("calibrated", 92.6))}
    accuracies |= {"student": Accuracy(91.8, 90.0, 93.0, 100), "teacher": Accuracy(95.0, 94.0, 96.0, 100)}
    panel = steps_panel(accuracies)
    assert panel.x_names == ["plain", "+ calibration", "+ learning", "teacher P"]
    assert [max(bars.words, key=len) for bars in panel.bars] == ["30.0", "92.6 (+62.6)", "91.8 (-0.8)", "95.0"]
    assert [float(np.sum(bars.heights)) for bars in panel.bars] == pytest.approx([30.0, 92.6, 91.8, 95.0])
    assert len(steps_panel(accuracies | {"calibrated": None}).bars) == 3


def test_the_accuracy_figure_takes_a_result():
    """Without intervals, as a result of another version may be, the bars have none."""
    figure = accuracy_figure(records(8), {"teacher": 90.0, "plain": 30.0, "calibrated": None, "student": 80.0})
    assert "+ learning 80.0 (+50.0)" in figure.layout.meta["alt"]


def test_gains_are_drawn_where_both_players_moved():
    """From the end of the warm-up on, with their sum."""
    shown = lines_of(gains_panel(as_history(records(8)), total=True))
    assert list(shown["sum"].x) == [2, 4, 6]
    assert list(shown["sum"].y) == [-0.25] * 3


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_of_images_holds_each_pixel(channels):
    """The PNG decoded again: image i stands in row i // columns; gray is gray, and other than 3 channels are averaged."""
    images = torch.rand(5, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    page = image_sheet(images, 3, 'a "row" of <things>')
    assert 'alt="a &quot;row&quot; of &lt;things&gt;"' in page
    content = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert sheet.shape == (2 * 6 - 2, 3 * 8 - 2, 3)
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
    result = rows | {
        "intervals": {name: [1.25, 99.5] for name in rows},
        "rounds": OBSERVE,
        "seconds": 3.2,
        "seed": 7,
        "source": "some <images>",
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps({"bits": "3w3a", "seed": 7, "teacher": "<i>file</i>"}))
    classes = ("T-shirt/top", "<trouser>", "bag")
    data = ImageSet("d", "test", torch.zeros(1, 2, 8, 8), torch.zeros(1), classes, "some <images>")
    write_report(tmp_path, game, teacher, data)
    assert len((tmp_path / "report.html").read_bytes()) < 60_000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return Tags((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_report_needs_nothing_but_itself(page):
    """It has no script, and no image or link comes from anywhere else; every figure has words."""
    for tag, attributes in page.found:
        assert tag != "script"
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    figures = [attributes for tag, attributes in page.found if tag == "svg"]
    assert len(figures) == 4
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in figures)


def test_a_report_can_be_written_again_only_of_a_finished_run(tmp_path):
    """One line says what is missing."""
    with pytest.raises(UserError, match="no finished run"):
        report(tmp_path)


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
