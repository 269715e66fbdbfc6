"""Inline SVG: well-formed, described, to scale."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from adadfq_lab.views.charts import Bars, Line, Panel, Rule, chart, image, log_ticks, ticks

SVG = "{http://www.w3.org/2000/svg}"


def parsed(panels, **more):
    return ElementTree.fromstring(chart(panels, alt="what it shows", **more))


def numbers(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+),([\d.]+)", path)]


def test_a_chart_is_an_image_with_words():
    """The element has role img, the description as its label, and escapes what would break it."""
    text = chart([Panel("a < b & c", "x", "y")], alt='says "so" & <more>')
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'says "so" & <more>'
    assert "a < b & c" in [node.text for node in root.iter(f"{SVG}text")]
    assert "<script" not in text


def test_a_straight_line_is_drawn_straight_and_to_scale():
    """Points of y = 2x lie on one line, equally far apart, rising: screen y falls as y rises."""
    x = np.arange(5)
    root = parsed([Panel("t", "x", "y", [Line("l", x, 2 * x, "#000000")], x_range=(0, 4), y_range=(0, 8))])
    path = next(node.get("d") for node in root.iter(f"{SVG}path") if node.get("stroke") == "#000000")
    points = np.array(numbers(path))
    assert points.shape == (5, 2)
    steps = np.diff(points, axis=0)
    assert np.allclose(steps, steps[0], atol=0.11)
    assert steps[0, 0] > 0 > steps[0, 1]


def test_a_missing_value_interrupts_a_line_and_dots_bridge_it():
    """NaN begins a new stroke; with dots, known points are joined and each gets a circle."""
    y = [1.0, float("nan"), 3.0, 4.0]
    for dots, strokes, circles in ((False, 2, 0), (True, 1, 3)):
        root = parsed([Panel("t", "x", "y", [Line("l", range(4), y, "#000000", dots=dots)])])
        path = next(node.get("d") for node in root.iter(f"{SVG}path") if node.get("stroke") == "#000000")
        assert path.count("M") == strokes
        assert len(list(root.iter(f"{SVG}circle"))) == circles


def test_rings_are_rings_and_not_joined():
    """A ring at each known point, no line through them, and one in the legend."""
    root = parsed([Panel("t", "x", "y", [Line("printed", range(3), [1.0, float("nan"), 3.0], "#000000", rings=True)])])
    assert not [node for node in root.iter(f"{SVG}path") if node.get("stroke") == "#000000"]
    assert [node.get("fill") for node in root.iter(f"{SVG}circle")] == ["none"] * 3


def test_a_log_axis_makes_equal_ratios_equally_long():
    """1, 10, 100 lie on a straight line, beside their own names; what has no logarithm interrupts it."""
    root = parsed([Panel("t", "x", "y", [Line("l", range(5), [1, 10, 100, 0, -1], "#000000")], log=True)])
    path = next(node.get("d") for node in root.iter(f"{SVG}path") if node.get("stroke") == "#000000")
    points = np.array(numbers(path))
    assert len(points) == 3 and np.allclose(np.diff(points, axis=0), points[1] - points[0], atol=0.11)
    heights = {node.text: float(node.get("y")) - 4 for node in root.iter(f"{SVG}text") if node.text in ("1", "10", "100")}
    assert [heights[word] for word in ("1", "10", "100")] == pytest.approx(points[:, 1], abs=0.11)
    wide = parsed([Panel("t", "x", "y", [Line("l", range(2), [100, 20_000], "#000000")], log=True)])
    assert {"100", "1000", "10000"} <= {node.text for node in wide.iter(f"{SVG}text")}


@pytest.mark.parametrize(("low", "high", "marks"), [(0.3, 150, (1, 10, 100)), (2, 30, (2, 5, 10, 20)), (1e-9, 1e9, 5)])
def test_ticks_of_a_log_axis(low, high, marks):
    """Powers of ten, at most five; with fewer than two of them inside, 1, 2 and 5 times powers of ten."""
    found = 10 ** np.array(log_ticks(np.log10(low), np.log10(high)))
    assert (len(found) <= marks) if isinstance(marks, int) else np.allclose(found, marks)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_an_axis_may_have_names(axis):
    """They stand at 0, 1, 2 in place of the numbers, left to right or from the bottom up, and both axes keep their labels."""
    ends = {"x_range": (-0.5, 2.5), "y_range": (-0.5, 2.5), f"{axis}_names": ["one", "two", "three"]}
    texts = {node.text: node for node in parsed([Panel("t", "across", "up", **ends)]).iter(f"{SVG}text")}
    assert {"across", "up"} <= texts.keys()
    at = [float(texts[word].get(axis)) for word in ("one", "two", "three")]
    assert at == sorted(at, reverse=axis == "y")
    assert at[1] == pytest.approx((at[0] + at[2]) / 2, abs=0.11)


def test_bars_stand_on_each_other():
    """Two groups of bars over the same edges: heights add up, areas are in proportion, the second stands on the first."""
    panel = Panel("t", "x", "y", bars=[Bars("a", [0, 1], [3], "#111111"), Bars("b", [0, 1], [6], "#222222", "/")])
    boxes = {node.get("fill"): node for node in parsed([panel]).iter(f"{SVG}rect") if float(node.get("width")) > 50}
    first, second = boxes["#111111"], boxes["#222222"]
    assert float(second.get("height")) == pytest.approx(2 * float(first.get("height")), abs=0.2)
    assert float(second.get("y")) + float(second.get("height")) == pytest.approx(float(first.get("y")), abs=0.2)
    assert any("adadfq-up" in fill for fill in boxes), "the second group is hatched"


def test_a_rule_outside_the_axes_is_left_out():
    """A line across the panel is drawn where its value lies within the range, with its word, and not elsewhere."""
    rules = [Rule(0.5, "here", "#123456"), Rule(2.0, "there", "#123456")]
    root = parsed([Panel("t", "x", "y", [Line("l", [0, 1], [0, 1], "#000000")], rules=rules, x_range=(0, 1))])
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert "here" in words
    assert "there" not in words


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.07), (-3, 12), (0, 1e5), (2.2, 2.3)])
def test_ticks_are_round_and_within(low, high):
    """Two to seven ticks, equally spaced by 1, 2 or 5 times a power of ten, inside the range."""
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 7
    assert low - 1e-9 <= marks[0] <= marks[-1] <= high + 1e-9
    step = marks[1] - marks[0]
    assert np.allclose(np.diff(marks), step)
    assert f"{step:.0e}"[0] in "125"


def test_an_image_carries_its_pixels():
    """The PNG within the element decodes to the pixels it was made of."""
    import base64
    import io

    from PIL import Image

    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    text = image(pixels, alt="twelve greys")
    data = re.search(r"base64,([^\"]+)", text)
    assert data
    assert 'alt="twelve greys"' in text
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as read:
        assert np.array_equal(np.asarray(read), pixels)
