"""The table of choices and the presets that are its columns."""

from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import CHOICES, FIDELITY, Fidelity, fidelity, fidelity_table


def test_table_has_one_row_for_each_switch():
    """CHOICES and the fields of Fidelity are the same names in the same order, each once, each with a question and a reason."""
    assert [choice.name for choice in CHOICES] == [field.name for field in fields(Fidelity)]
    assert all(choice.question.endswith("?") and choice.why.endswith(".") for choice in CHOICES)


@pytest.mark.parametrize("name", ["paper", "released", "corrected"])
def test_presets_are_the_columns_of_the_table(name):
    """fidelity(name) holds exactly what the table's column of that name says."""
    assert asdict(fidelity(name)) == {choice.name: getattr(choice, name) for choice in CHOICES}


def test_presets_say_what_the_paper_prints_what_the_code_does_and_what_we_recommend():
    """The three presets, spelled out: Eq. (11), (13), (3), (18) and Adam as printed; the code's; the default."""
    own = {
        "intra_calibration": "own",
        "zaq_feature_loss": "crm",
        "use_dm": True,
        "cbn_mix": "sum",
        "embedding_norm": "per-sample",
    }
    assert asdict(fidelity("paper")) == own | {
        "bns_reduction": "sum",
        "kd_reduction": "batchmean",
        "student_objective": "eq13",
        "entropy_floor": "batch_grad",
        "observer": "minmax",
        "zero_point": "real",
        "ste": "identity",
        "adam_beta1": 0.9,
        "generator_bn_eps": 1e-5,
        "gi_cap": None,
    }
    assert asdict(fidelity("released")) == {
        "bns_reduction": "mean",
        "kd_reduction": "mean",
        "student_objective": "entropy",
        "entropy_floor": "batch_grad",
        "observer": "ema_gdfq",
        "zero_point": "rounded",
        "ste": "identity",
        "adam_beta1": 0.5,
        "generator_bn_eps": 0.8,
        "cbn_mix": "mean",
        "embedding_norm": "per-slot",
        "use_dm": False,
        "gi_cap": None,
        "intra_calibration": "generator",
        "zaq_feature_loss": "scrm",
    }
    assert asdict(fidelity("corrected")) == own | {
        "bns_reduction": "sum",
        "kd_reduction": "batchmean",
        "student_objective": "entropy",
        "entropy_floor": "batch",
        "observer": "ema",
        "zero_point": "rounded",
        "ste": "identity",
        "adam_beta1": 0.5,
        "generator_bn_eps": 1e-5,
        "gi_cap": 100.0,
    }


def test_unknown_names_and_values_are_one_sentence():
    """A preset or an answer that does not exist is the user's mistake, and the sentence lists what does."""
    with pytest.raises(UserError, match=r"^fidelity must be paper, released or corrected, not 'original'$"):
        fidelity("original")
    with pytest.raises(UserError, match=r"^observer must be ema or ema_gdfq or minmax, not 'emma'$"):
        replace(fidelity("corrected"), observer="emma")
    for wrong in ({"adam_beta1": 1.0}, {"generator_bn_eps": 0.0}, {"gi_cap": 0.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            replace(fidelity("corrected"), **wrong)


def test_one_choice_can_be_studied_alone():
    """replace() changes one answer of a preset and leaves the preset itself alone; nothing changes it in place."""
    studied = replace(fidelity("corrected"), entropy_floor="batch_grad")
    assert asdict(studied) == asdict(FIDELITY["corrected"]) | {"entropy_floor": "batch_grad"}
    assert fidelity("corrected").entropy_floor == "batch"
    with pytest.raises(FrozenInstanceError):
        studied.observer = "minmax"


def test_markdown_has_one_row_for_each_choice():
    """The table as Markdown: a header, a rule, then for each switch its name, question, three answers and reason."""
    header, rule, *rows = fidelity_table().splitlines()
    assert header == "| switch | question | paper | released | corrected | why |"
    assert set(rule) == set("| -")
    for choice, row in zip(CHOICES, rows, strict=True):
        cells = row.strip("|").split(" | ")
        assert len(cells) == 6
        answers = [f"`{answer}`" for answer in (choice.paper, choice.released, choice.corrected)]
        assert cells[0].strip() == f"`{choice.name}`"
        assert cells[2:5] == answers
