"""Things to drag: real ipywidgets, no kernel. Setting a slider is what dragging does."""

import re
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers.live_games import tiny_game

import adadfq_lab as lab
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.recordings import load_population
from adadfq_lab.views import charts as svg
from adadfq_lab.views import widgets
from adadfq_lab.views.live import LiveRun

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ipywidgets")


def charts(control):
    """The svg elements of a control's output, parsed."""
    found = re.findall(r"<svg.*?</svg>", control.output.value, re.DOTALL)
    return [ElementTree.fromstring(text) for text in found]


def percent(text, word):
    """The number before `% word` in a sentence."""
    match = re.search(rf"(\d+) % {word}", text)
    assert match, text
    return int(match[1])


def explorer_of_methods():
    """Two methods on one small batch, with L_BNS summed and averaged."""
    game = tiny_game()
    labels = torch.arange(8) % game.classes
    batch = game.teacher, game.student, game.generate(labels), labels
    truth = lab.fidelity.fidelity("corrected")
    cases = {"summed": truth, "averaged": replace(truth, bns_reduction="mean")}
    return widgets.method_explorer(
        {name: lab.compare_methods(*batch, methods=["gdfq", "adadfq"], fidelity=how) for name, how in cases.items()}
    )


ALL = {
    "bounds_explorer": widgets.bounds_explorer,
    "logit_playground": widgets.logit_playground,
    "quantizer_staircase": widgets.quantizer_staircase,
    "sample_gallery": widgets.sample_gallery,
    "replay": widgets.replay,
    "error_bound_explorer": widgets.error_bound_explorer,
    "method_explorer": explorer_of_methods,
}


@pytest.mark.parametrize("name", ALL)
def test_every_control_is_labelled_described_and_small(name):
    """Each input has a text label; what is drawn has a description; an update stays below 60 kB and runs no script."""
    control = ALL[name]()
    assert control.inputs
    assert all(one.description for one in control.inputs.values())
    value = control.output.value
    assert "<script" not in value
    assert len(value) < 60_000
    described = [svg.get("aria-label") for svg in charts(control)] + re.findall(r'<img[^>]* alt="([^"]+)"', value)
    assert described
    assert all(described)


def test_the_explorer_counts_the_recorded_samples():
    """Shares below, inside and above are those of the population; another band and other bits give other shares."""
    people = load_population()
    control = widgets.bounds_explorer(population=people)
    for bits, band in ((3, (0.1, 0.8)), (3, (0.4, 0.6)), (8, (0.4, 0.6))):
        control.inputs["bits"].value = bits
        control.inputs["bounds"].value = band
        h = people.h_prime(bits)
        assert percent(control.output.value, "below") == pytest.approx(100 * (h <= band[0]).mean(), abs=0.51)
        assert percent(control.output.value, "above") == pytest.approx(100 * (h >= band[1]).mean(), abs=0.51)
        hinge = np.maximum(band[0] - h, 0).mean() + np.maximum(h - band[1], 0).mean()
        assert f"Mean hinge {hinge:.3f}" in control.output.value


def test_handles_on_each_other_keep_the_bounds():
    """λ_l = λ_u is told in words, and a running game's bounds stay."""
    run = LiveRun(tiny_game(), 5, backend="none", blocking=False)
    control = widgets.bounds_explorer(run)
    control.inputs["bounds"].value = (0.5, 0.5)
    assert "pull the two handles apart" in control.output.value
    assert run.game.bounds == Bounds(0.1, 0.8)


def test_the_slider_steers_a_running_game():
    """Dragging sets the bounds of the game; its next rounds play by them and the histogram follows."""
    run = LiveRun(tiny_game(), 100_000, backend="none", blocking=False)
    control = widgets.bounds_explorer(run)
    assert "No round" in control.output.value
    run.start()
    wait_until(lambda: "<svg" in control.output.value)
    control.inputs["bounds"].value = (0.3, 0.6)
    wait_until(lambda: run.history.marks)
    run.stop()
    history = run.wait(30)
    assert history.bounds() == Bounds(0.3, 0.6)
    assert f"last {len(history.last_samples())} samples" in control.output.value


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_the_playground_computes_eq_1_to_3():
    """Equal logits give a uniform p_ds, H = log C and H' = 1; a gap of log 2 gives p_ds = (1/2, 1/4, 1/4)."""
    control = widgets.logit_playground((2.0, 1.0, 0.0), (2.0, 1.0, 0.0))
    assert "p_ds = (0.333, 0.333, 0.333); H = 1.099" in control.output.value
    assert "H′ = 1.000, adaptability 0.000" in control.output.value
    control.inputs["z_p, class 0"].step = 0.0001
    control.inputs["z_p, class 0"].value = 2.0 + np.log(2)
    assert "p_ds = (0.500, 0.250, 0.250)" in control.output.value
    with pytest.raises(UserError, match="as many logits"):
        widgets.logit_playground((1.0, 2.0), (1.0,))


def test_the_staircase_has_so_many_steps():
    """n bits: 2^n levels; the error within the range is at most half a step for a real zero point."""
    control = widgets.quantizer_staircase(-1.0, 1.0)
    control.inputs["zero_point"].value = "real"
    for bits in (2, 4, 8):
        control.inputs["bits"].value = bits
        text = control.output.value
        assert f"{bits} bits: {2**bits} levels" in text
        found = re.search(r"range (\d\.\d+); half a step: (\d\.\d+)", text)
        assert found
        assert float(found[1]) <= float(found[2]) + 1e-4


def test_the_montage_is_its_images():
    """Images stand where they belong, a gap apart."""
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    page = svg.montage(images, gap=1)
    assert page.shape == (2 * 5 - 1, 3 * 6 - 1)
    assert np.array_equal(page[5:9, 6:11], images[1, 1])
    assert (page[4] == 128).all()


def test_the_gallery_scrubs():
    """Another run, snapshot or class shows other pixels. (At round 0 all runs have the same G.)"""
    control = widgets.sample_gallery()
    seen = {control.output.value}
    for name, value in (("run", 1), ("step", 0), ("class", 3)):
        control.inputs[name].value = value
        assert control.output.value not in seen
        seen.add(control.output.value)


def test_a_replay_shows_the_rounds_until_then():
    """Dragged to round k, the chart describes k rounds; the play button belongs to the slider."""
    control = widgets.replay("adadfq_3w3a")
    control.inputs["rounds"].value = 70
    assert charts(control)[0].get("aria-label", "").startswith("70 rounds played")
    assert control.inputs["play"].max == control.inputs["rounds"].max
    assert control.inputs["play"] in control.box.children


def test_the_bound_is_eq_17():
    """The numbers in words are those of theory.decompose_bound: 8/n^0.6 + 8/n^0.8 and 0.1 + 0.05."""
    control = widgets.error_bound_explorer()
    n = 1e4
    assert f"estimation {8 / n**0.6 + 8 / n**0.8:.3f}, approximation 0.150" in control.output.value


def test_methods_are_toggled():
    """Another method shows its own terms; other averaging moves L_BNS's share and no label term; shares are of one whole."""
    control = explorer_of_methods()
    assert control.inputs["method"].description and "label" in control.output.value and "band" not in control.output.value
    summed = [float(share) for share in re.findall(r"([\d.]+) % of the pull", control.output.value)]
    control.inputs["case"].value = "averaged"
    averaged = [float(share) for share in re.findall(r"([\d.]+) % of the pull", control.output.value)]
    assert averaged != summed
    control.inputs["method"].value = "adadfq"
    assert "band" in control.output.value and "just enough" in control.output.value
    assert len(charts(control)) == 1


def test_a_widget_without_ipywidgets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(UserError, match=r'ipywidgets is missing; pip install "\.\[notebooks\]"'):
        widgets.bounds_explorer()
