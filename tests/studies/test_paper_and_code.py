"""Paper against code: the list is complete and well formed, and the page shows it with what was measured."""

import dataclasses
import json

from adadfq_lab.authoring.gallery import ROOT
from adadfq_lab.data.loading import load_data
from adadfq_lab.fidelity import FIDELITY, Fidelity
from adadfq_lab.studies import paper_and_code as discrepancies
from adadfq_lab.studies.paper_and_code import DISCREPANCIES, measure, page, switches, variants


def test_every_row_says_what_happens_and_what_it_changes():
    """Place, code, this package and an effect: in words, or measured where the row is a switch."""
    fields = {field.name for field in dataclasses.fields(Fidelity)}
    for row in DISCREPANCIES:
        assert row.place and row.released and row.here and (row.effect or row.switch), row.place
        assert not row.switch or row.switch in fields
    assert len({row.place for row in DISCREPANCIES}) == len(DISCREPANCIES)


def test_every_switch_that_adadfq_heeds_is_a_row():
    """AdaDFQ's own choices are those that no other method's name stands beside, and GDFQ's distillation."""
    others = {"kd_reduction", "cbn_mix", "embedding_norm", "use_dm", "gi_cap", "intra_calibration", "zaq_feature_loss"}
    named = {row.switch for row in DISCREPANCIES if row.switch}
    assert named == {field.name for field in dataclasses.fields(Fidelity)} - others


def test_variants_differ_from_the_default_in_one_answer():
    for choice, value in variants():
        assert value != getattr(FIDELITY["corrected"], choice.name)
        dataclasses.replace(FIDELITY["corrected"], **{choice.name: value})  # an answer the switch knows
    assert ("bns_reduction", "mean") in {(choice.name, value) for choice, value in variants()}


def test_the_page_is_the_list():
    """docs/paper_and_code.md is what `page` prints today, each row and each measured figure in it."""
    text = (ROOT / "docs" / "paper_and_code.md").read_text(encoding="utf-8")
    assert text == page()
    for row in DISCREPANCIES:
        assert f"| {row.place} |" in text
    for name, answers in switches().items():
        assert not name or all(f"`{value}`: {top1:.1f} %" in text for value, top1 in answers.items())


def test_what_was_measured_is_what_there_is_to_measure():
    """switches.json has the default and nothing but variants of today."""
    known = {(choice.name, str(value)) for choice, value in variants()} | {("", "")}
    assert {(name, value) for name, answers in switches().items() for value in answers} <= known


def test_a_switch_is_measured_by_playing_it():
    """Two rounds with another observer give another student; the same switch gives the same figure again."""
    data, usual = load_data("fashion_mnist", stub=True).take(100), FIDELITY["corrected"]
    blown = dataclasses.replace(usual, observer="ema_gdfq")
    first, again, other = (measure(f, data, rounds=4, teacher="fashion_mnist_resnet20") for f in (usual, usual, blown))
    assert first == again != other


def test_measuring_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """What switches.json has is not measured again, and each figure is on disk before the next is begun."""
    path = tmp_path / "switches.json"
    path.write_text(json.dumps({"top1": {"": {"": 80.0}}}))
    monkeypatch.setattr(discrepancies, "stub_path", lambda name: path)
    monkeypatch.setattr(discrepancies, "training_images", lambda: load_data("fashion_mnist", stub=True).take(10))
    monkeypatch.setattr(discrepancies, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    seen = []

    def pretend(f: Fidelity, data: object) -> float:
        seen.append((f, json.loads(path.read_text())["top1"]))
        return 50.0

    monkeypatch.setattr(discrepancies, "measure", pretend)
    discrepancies.main()
    assert len(seen) == len(variants()) and all(f != FIDELITY["corrected"] for f, _ in seen)
    assert [sum(map(len, before.values())) for _, before in seen] == list(range(1, len(seen) + 1))
    assert (tmp_path / "docs" / "paper_and_code.md").read_text() == page()
