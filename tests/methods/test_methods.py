"""Methods: each minimises what its paper says, term by term, and is nothing but data."""

import dataclasses
import math
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_games import OBSERVE, WARMUP, play, spy, tiny_game, tiny_teacher
from torch import Tensor

from adadfq_lab import equations
from adadfq_lab.equations import BatchStatistics, Bounds, Terms, generator_objective, loss_balance, loss_bns
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.game.game import Game
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.arc_ait import arc_ait
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.method import Method, Round
from adadfq_lab.methods.qimera import qimera
from adadfq_lab.methods.real import real
from adadfq_lab.methods.registry import METHODS, make_method, register
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.players import build_game

N, C = 6, 7
ADVERSARIAL = {"adasg", "adadfq", "zaq"}


def a_round(generator: torch.Generator, *, fidelity: str = "corrected", bounds: Bounds | None = None) -> Round:
    """A round of random logits and statistics of two layers, in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    statistics = [BatchStatistics(normal(c), normal(c).square(), normal(c), normal(c).square()) for c in (3, 5)]
    labels = torch.randint(C, (N,), generator=generator)
    logits = normal(N, C).requires_grad_(), (3 * normal(N, C)).requires_grad_()
    return Round(0, normal(N, 1, 4, 4), labels, *logits, statistics, bounds or Bounds(0.3, 0.6), FIDELITY[fidelity])


def with_features(r: Round, generator: torch.Generator) -> Round:
    """`r` with features of two stages and with what a bank of images knows, in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    r.teacher_features, r.student_features = ((normal(N, 3, 4, 4), normal(N, 5, 2, 2)) for _ in range(2))
    r.notes = {"target": torch.rand(N, generator=generator), "centre": normal(N, 5), "seen": torch.arange(N) % 3 > 0}
    return r


def cross_entropy(z: Tensor, labels: Tensor) -> float:
    """-log softmax(z)[y], averaged, with nothing but math."""
    rows = z.tolist()
    return sum(math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(rows, labels.tolist(), strict=True)) / len(
        rows
    )


def values(terms: Terms) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


# AdaDFQ


@pytest.mark.parametrize("fidelity", FIDELITY)
def test_the_generator_of_adadfq_minimises_eq_12(fidelity, generator):
    """Its terms add up to the hinges, beta L_bal and gamma L_BNS, whatever the weights."""
    r = a_round(generator, fidelity=fidelity)
    method = adadfq(alpha_ds=0.3, alpha_as=0.7, beta=1.5, gamma=0.25)
    balance = loss_balance(r.teacher_logits, r.student_logits, r.labels, alpha_ds=0.3, alpha_as=0.7)
    bns = loss_bns(r.statistics, reduction=r.fidelity.bns_reduction)
    expected = generator_objective(r.h_prime, balance, bns, r.bounds, beta=1.5, gamma=0.25)
    assert sum(values(method.generator_loss(r)).values()) == pytest.approx(float(expected.detach()), rel=1e-12)


def called(run: Callable[[], object]) -> set[CodeType]:
    """The code of every Python function that `run` calls."""
    seen: set[CodeType] = set()
    sys.setprofile(lambda frame, event, argument: seen.add(frame.f_code))
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


def test_what_is_taught_is_what_is_played(generator):
    """A round computes Eq. (1) to (3), (6) to (12) by the functions that also grade the exercises."""
    game = tiny_game(adadfq())
    played = called(lambda: next(game.play(1)))
    for function in ("disagreement_entropy", "normalized_entropy", "balance_terms", "loss_ds", "loss_as", "hinge", "loss_bns"):
        assert getattr(equations, function).__code__ in played, function
    r = a_round(generator)
    graded = called(lambda: loss_balance(r.teacher_logits, r.student_logits, r.labels))
    graded |= called(lambda: generator_objective(r.h_prime, r.h_prime.mean(), r.h_prime.mean(), r.bounds))
    for shared in (equations.balance_terms, equations.generator_terms, equations.total):
        assert shared.__code__ in played & graded, shared


def test_the_terms_of_adadfq_by_hand(generator):
    """Each named term, weighted, from sums of exponentials."""
    r = a_round(generator)
    d, s = (r.teacher_logits - r.student_logits).detach(), (r.teacher_logits + r.student_logits).detach()
    H = [-sum(p * math.log(p) for p in row) for row in torch.softmax(d, 1).tolist()]
    h = [(v - min(H)) / (math.log(C) - min(H)) for v in H]
    gaps = [sum(((a - b) ** 2).sum() for a, b in ((m.mean, m.running_mean), (m.var, m.running_var))) for m in r.statistics]
    assert values(adadfq().generator_loss(r)) == pytest.approx(
        {
            "band": sum(max(0.3 - v, 0) + max(v - 0.6, 0) for v in h) / N,
            "ds": 0.2 * cross_entropy(d, r.labels),
            "as": 0.1 * cross_entropy(s, r.labels),
            "bns": float(sum(gaps)),
        }
    )


def test_the_student_of_adadfq_minimises_eq_13_as_printed_or_the_entropy_as_released(generator):
    """ "paper": E[1 - H']; else T^2 (log C - E[H at temperature 20])."""
    r = a_round(generator, fidelity="paper")
    H = [-sum(p * math.log(p) for p in row) for row in torch.softmax((r.teacher_logits - r.student_logits), 1).tolist()]
    adaptability = sum(1 - (v - min(H)) / (math.log(C) - min(H)) for v in H) / N
    assert values(adadfq().student_loss(r)) == pytest.approx({"adaptability": adaptability})
    for fidelity in ("released", "corrected"):
        r = a_round(generator, fidelity=fidelity)
        p = torch.softmax((r.teacher_logits - r.student_logits) / 20, 1).tolist()
        entropy = sum(-v * math.log(v) for row in p for v in row) / N
        assert values(adadfq().student_loss(r)) == pytest.approx({"entropy": 400 * (math.log(C) - entropy)}, rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "dropped"),
    [
        ({"alpha_ds": 0.0}, {"ds"}),
        ({"alpha_as": 0.0}, {"as"}),
        ({"beta": 0.0}, {"ds", "as"}),
        ({"gamma": 0.0}, {"bns"}),
        ({"alpha_ds": 0.0, "alpha_as": 0.0, "gamma": 0.0}, {"ds", "as", "bns"}),
    ],
)
@pytest.mark.parametrize("make", [adadfq, adasg])
def test_a_weight_of_0_drops_its_term(make, weights, dropped, generator):
    """The row of Table 3 without it: the term is not there, and the others are what they were."""
    r = a_round(generator)
    all_terms, left = values(make().generator_loss(r)), values(make(**weights).generator_loss(r))
    assert left == {name: value for name, value in all_terms.items() if name not in dropped}


def test_weights_scale_their_terms(generator):
    """beta and gamma multiply what they are printed before."""
    r = a_round(generator)
    once, twice = values(adadfq().generator_loss(r)), values(adadfq(beta=2, gamma=2).generator_loss(r))
    assert twice == pytest.approx({name: value * (1 if name == "band" else 2) for name, value in once.items()})


def test_adasg_is_adadfq_with_other_constants(generator):
    """lambda_l = 0.3 and alpha_ds = 0.1 against 0.1 and 0.2: with these, every term is the same to the bit."""
    paper = {"lower": 0.1, "upper": 0.8, "alpha_ds": 0.2, "alpha_as": 0.1, "beta": 1.0, "gamma": 1.0, "temperature": 20.0}
    assert adadfq().settings == paper
    assert adasg().settings == paper | {"lower": 0.3, "alpha_ds": 0.1}
    assert (adasg().name, adadfq().name) == ("AdaSG", "AdaDFQ")
    assert adasg().bounds == Bounds(0.3, 0.8)
    r = a_round(generator)
    like = adadfq(**adasg().settings)
    assert values(like.generator_loss(r)) == values(adasg().generator_loss(r))
    assert values(like.student_loss(r)) == values(adasg().student_loss(r))
    assert values(adadfq().generator_loss(r)) != values(adasg().generator_loss(r))


def test_games_of_adasg_and_of_adadfq_with_its_constants_are_one_game():
    """Bit for bit, through the warm-up and after."""
    like = adadfq(0.3, 0.8, alpha_ds=0.1, alpha_as=0.1)
    records = [[r.as_json() for r in tiny_game(method).play(WARMUP + 2)] for method in (adasg(), like)]
    assert records[0] == records[1]


def test_bounds_of_a_method_are_bounds():
    """lambda_l >= lambda_u is no method."""
    with pytest.raises(UserError, match=r"0 <= lower < upper <= 1, not 0\.8 and 0\.8"):
        adadfq(0.8, 0.8)


# GDFQ


def test_the_terms_of_gdfq_by_hand(generator):
    """CE + 0.1 L_BNS for G, CE + T^2 KL at T = 20 for Q; as released, KL is divided by C too."""
    r = a_round(generator)
    bns = float(loss_bns(r.statistics))
    assert values(gdfq().generator_loss(r)) == pytest.approx(
        {"label": cross_entropy(r.teacher_logits.detach(), r.labels), "bns": 0.1 * bns}
    )
    p, q = (torch.softmax(z / 20, 1).tolist() for z in (r.teacher_logits, r.student_logits))
    kl = sum(a * math.log(a / b) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / N
    expected = {"label": cross_entropy(r.student_logits.detach(), r.labels), "kd": 400 * kl}
    assert values(gdfq().student_loss(r)) == pytest.approx(expected, rel=1e-6)
    r.fidelity = FIDELITY["released"]
    assert values(gdfq().student_loss(r)) == pytest.approx(expected | {"kd": 400 * kl / C}, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_images_through_the_players_that_the_method_looks_at(name):
    """GDFQ's images hear of P alone: Q's logits have no gradient to them. AdaSG's and AdaDFQ's hear of both."""
    heard: list[tuple[bool, bool]] = []
    method = make_method(name)

    def generator_loss(r: Round) -> Terms:
        def reaches(z: Tensor) -> bool:
            if not z.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(z.square().sum(), r.images, retain_graph=True, allow_unused=True)
            return gradient is not None and bool(gradient.any())

        heard.append((reaches(r.teacher_logits), reaches(r.student_logits)))
        return method.generator_loss(r)

    game = play(tiny_game(dataclasses.replace(method, generator_loss=generator_loss), student_lr=None), WARMUP + 1)
    learned = sum(method.steps_generator(i, WARMUP) for i in range(game.index))
    assert heard == [(True, method.uses_student)] * learned
    assert method.uses_student == (name in ADVERSARIAL)


def test_in_gdfq_the_student_has_no_say_in_what_is_generated():
    """Games that differ in Q only make the same images, in the warm-up and after; games of AdaDFQ do not."""
    images: dict[str, list[Tensor]] = {}
    for make in (gdfq, adadfq):
        for bits in ("2w2a", "5w5a"):
            seen: list[Round] = []
            play(tiny_game(spy(make(), seen), bits=bits), WARMUP + 2)
            images[f"{make.__name__} {bits}"] = [r.images.detach() for r in seen]
    for name, same in {"gdfq": True, "adadfq": False}.items():
        pairs = zip(images[f"{name} 2w2a"][1:], images[f"{name} 5w5a"][1:], strict=True)
        assert all(torch.equal(a, b) == same for a, b in pairs)


# ARC, Qimera, ARC+AIT: GDFQ's losses


def test_arc_qimera_and_ait_minimise_what_gdfq_minimises(generator):
    """The same terms to the bit; ARC+AIT drops the label from Q's."""
    r = a_round(generator)
    for method in (arc(), qimera(), arc_ait()):
        assert values(method.generator_loss(r)) == values(gdfq().generator_loss(r))
    for method in (arc(), qimera()):
        assert values(method.student_loss(r)) == values(gdfq().student_loss(r))
    assert values(arc_ait().student_loss(r)) == {"kd": values(gdfq().student_loss(r))["kd"]}
    assert (arc().name, qimera().name, arc_ait().name, arc_ait().rates.weight_decay) == ("ARC", "Qimera", "ARC+AIT", 0)


def test_soft_labels_weigh_the_cross_entropy(generator):
    """-sum_c t(c) log softmax(z)(c), averaged, for G and for Q; a soft label of one class is that class."""
    r = a_round(generator)
    hard = values(qimera().generator_loss(r))["label"], values(qimera().student_loss(r))["label"]
    y, r.labels = r.labels, torch.eye(C, dtype=torch.float64)[r.labels]
    assert (values(qimera().generator_loss(r))["label"], values(qimera().student_loss(r))["label"]) == pytest.approx(hard)
    r.labels = 0.25 * r.labels + 0.75 * torch.eye(C, dtype=torch.float64)[(y + 1) % C]
    for z, terms in ((r.teacher_logits, qimera().generator_loss(r)), (r.student_logits, qimera().student_loss(r))):
        expected = 0.25 * cross_entropy(z.detach(), y) + 0.75 * cross_entropy(z.detach(), (y + 1) % C)
        assert values(terms)["label"] == pytest.approx(expected)


# All of them


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fidelity", FIDELITY)
def test_every_method_plays_at_every_fidelity(name, fidelity):
    """Finite terms before and after the warm-up; where the paper is followed, Q minimises E[1 - H'] of the very round."""
    schedule = dataclasses.replace(tiny_game().schedule, student_lr=None)
    config = RunConfig(method=name, fidelity=fidelity, schedule=schedule, gains_every=2, device="cpu")
    if (name, fidelity) == ("intraq", "released"):
        with pytest.raises(UserError, match="calibration on a GDFQ generator is not offered; use fidelity corrected or paper"):
            build_game(config, tiny_teacher())
        return
    game = build_game(config, tiny_teacher())
    assert game.fidelity == FIDELITY[fidelity]
    minimises_eq_13 = fidelity == "paper" and name in ("adasg", "adadfq")
    for record in game.play(OBSERVE + 1):
        assert all(bool(term.isfinite()) for term in record.terms.values())
        assert ("student.adaptability" in record.terms) == (record.phase == "play" and minimises_eq_13)
        if "student.adaptability" in record.terms:
            assert float(record.terms["student.adaptability"]) == pytest.approx(1 - float(record.h_prime.mean()), abs=1e-6)


SETTINGS: dict[str, dict[str, Any]] = {
    "gdfq": {},
    "arc": {"cells": "resnet50"},
    "qimera": {"K": 3, "p": 0.5, "extracted": True, "noise": 0.5},
    "arc_ait": {"cells": "resnet18", "share": 0.01},
    "adasg": {"lower": 0.2, "gamma": 0.5},
    "adadfq": {"lower": 0.2, "gamma": 0.5},
    "zaq": {"alpha": 0.5, "beta": 0.2},
    "intraq": {"lower": 0.1, "upper": 0.7, "easiest": 0.6, "alpha": 10.0, "iterations": 7},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_again_from_its_name_and_settings(name, generator):
    """What a checkpoint stores is enough, whatever the case of the name."""
    settings = SETTINGS[name]
    method = make_method(name.upper(), **settings)
    assert settings.items() <= method.settings.items()
    again = make_method(method.name, **method.settings)
    r = with_features(a_round(generator), generator)
    assert (again.name, again.settings, again.bounds) == (method.name, method.settings, method.bounds)
    assert values(again.generator_loss(r)) == values(method.generator_loss(r))


def test_unknown_methods_and_settings_are_refused():
    """In one line that lists what there is, or names what is too much."""
    with pytest.raises(
        UserError, match="no method is called 'genie'; choose from zaq, intraq, arc_ait, gdfq, arc, qimera, adasg, adadfq"
    ):
        make_method("genie")
    with pytest.raises(UserError, match=r"gdfq has no setting .lower") as caught:
        make_method("gdfq", lower=0.1)
    assert "\n" not in str(caught.value)


def test_a_method_of_ones_own_takes_a_few_lines(monkeypatch):
    """Two functions and a name are a method: registered, it plays."""
    monkeypatch.setattr("adadfq_lab.methods.registry.METHODS", dict(METHODS))

    def look_away(r: Round) -> Terms:
        return {"quiet": r.images.square().mean()}

    def imitate(r: Round) -> Terms:
        return {"logits": (r.teacher_logits - r.student_logits).square().mean()}

    register("Imitation", lambda: Method("Imitation", look_away, imitate))
    game = tiny_game(make_method("imitation"))
    assert isinstance(game, Game)
    terms = [set(record.terms) for record in game.play(WARMUP + 1)]
    assert terms == [{"generator.quiet"}] * WARMUP + [{"generator.quiet", "student.logits"}]


def test_rounds_measure_disagreement_once(generator):
    """entropy and H' of a round are Eq. (2) and (3) of its logits, computed once and shared by both losses."""
    r = a_round(generator)
    assert r.entropy is r.entropy
    assert r.h_prime is r.h_prime
    assert r.h_prime.shape == (N,)


# References


def test_real_images_are_the_training_images(tmp_path, monkeypatch):
    """Class y's own images, each shifted by at most 4 pixels over black and mirrored in half the cases, normalised."""
    images = np.arange(20, dtype=np.uint8).repeat(2 * 8 * 8).reshape(20, 2, 8, 8) + 1  # image i is i + 1 everywhere
    images[:, :, :, :4] += 100  # ... and brighter on its left
    np.savez(tmp_path / "cifar10_train.npz", x=images, y=np.tile(np.arange(10), 2))
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    teacher = tiny_teacher(10)
    generator, y = real().build_generator(teacher, FIDELITY["corrected"]), torch.arange(10).repeat(40)
    made = generator(torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), y)
    pixels = (255 * teacher.denormalize(made)).round().long()
    row = pixels[:, 0, 4]
    bright = row.amax(1) > 100  # not shifted out of sight
    index = row.amax(1)[bright] - 101
    assert (index % 10 == y[bright]).all() and set(index.tolist()) == set(range(20))
    assert 0.3 < (row[:, 0] < row[:, 7]).float().mean() < 0.7  # mirrored


def test_a_game_with_real_images_leaves_nothing_to_g(tmp_path, monkeypatch):
    """No warm-up, no generator term, and the student moves."""
    np.savez(tmp_path / "cifar10_train.npz", x=np.zeros((20, 2, 8, 8), np.uint8), y=np.tile(np.arange(5), 4))
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    records = list(tiny_game(real(), warmup=0).play(3))
    assert all(set(record.terms) == {"student.entropy"} for record in records)
    records = list(tiny_game(real(), warmup=2).play(4))  # a warm-up does nothing
    assert [set(record.terms) for record in records] == [{"generator.none"}] * 2 + [{"student.entropy"}] * 2
