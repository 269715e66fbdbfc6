"""Methods on one batch: terms, pulls and what is looked at, against differences of the loss and the methods' definitions."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.live_games import tiny_teacher

import adadfq_lab as lab
from adadfq_lab.errors import UserError
from adadfq_lab.game.method_comparison import SOURCES, compare_methods, ideas
from adadfq_lab.methods.method import Method
from adadfq_lab.methods.registry import METHODS
from adadfq_lab.teacher.statistics import WithStatistics


@pytest.fixture(scope="module")
def batch():
    """P, a Q with ranges, images and labels."""
    random = torch.Generator().manual_seed(0)
    P = tiny_teacher()
    Q = lab.quantize(P, "4w4a")
    x = torch.randn(8, *P.info.input_shape, generator=random)
    with torch.no_grad():
        Q(x)
    Q.observing = False
    return P, Q, x, torch.arange(8) % len(P.info.classes)


@pytest.fixture
def registered():
    """Registers a method of the test's own, for the test."""
    before = dict(METHODS)

    def add(name, generator_loss, student_loss, **more):
        lab.register(name, lambda: Method(name, generator_loss, student_loss, **more))

    yield add
    METHODS.clear()
    METHODS.update(before)


def test_every_registered_method_is_compared_and_described(batch):
    """Each of METHODS has terms for both players, looks at something, and has an idea of a sentence."""
    found = compare_methods(*batch)
    assert list(found.looks) == list(METHODS) == list(ideas())
    for name, look in found.looks.items():
        assert look.generator and look.student and look.generator_sees and look.student_sees, name
        assert look.generator_sees | look.student_sees <= set(SOURCES)
    assert all(len(idea) > 20 and "\n" not in idea for idea in ideas().values())


def test_what_methods_look_at_is_what_they_are(batch):
    """GDFQ's generator never asks Q, AdaDFQ's does; ARC+AIT's and AdaDFQ's students have no labels, GDFQ's has."""
    found = compare_methods(*batch, methods=["gdfq", "arc_ait", "adadfq"])
    assert found["gdfq"].generator_sees == {"labels", "P's logits", "P's batch norms"}
    assert found["adadfq"].generator_sees == {"labels", "P's logits", "P's batch norms", "Q's logits"}
    assert found["gdfq"].student_sees == {"labels", "P's logits", "Q's logits"}
    assert found["arc_ait"].student_sees == found["adadfq"].student_sees == {"P's logits", "Q's logits"}


def test_values_and_pulls_by_hand(batch):
    """GDFQ's label term is the cross-entropy of P on this batch, and its pull N times the mean length of dCE/dx; CE's pull at a
    logit of Q is the length of softmax(z_q) - onehot(y)."""
    P, Q, x, y = batch
    look = compare_methods(P, Q, x, y, methods=["gdfq"])["gdfq"]
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(P(x), y)
    (gradient,) = torch.autograd.grad(loss, x)
    assert look.generator["label"].value == pytest.approx(float(loss.detach()), rel=1e-5)
    assert look.generator["label"].pull == pytest.approx(len(x) * float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-4)
    with torch.no_grad():
        z_q = Q(x)
    by_hand = (z_q.softmax(1) - F.one_hot(y, z_q.shape[1])).norm(dim=1).mean()
    assert look.student["label"].pull == pytest.approx(float(by_hand), rel=1e-4)
    bns = 0.1 * lab.loss_bns(WithStatistics(P)(x.detach())[1])
    assert look.generator["bns"].value == pytest.approx(float(bns), rel=1e-4)


def test_averaging_divides_pulls_by_what_it_divides_losses(batch):
    """With PyTorch's default mean the distillation and its pull are C times smaller; the label term is as it was."""
    P, Q, x, y = batch
    averaged = replace(lab.fidelity.fidelity("corrected"), kd_reduction="mean")
    one = compare_methods(P, Q, x, y, methods=["gdfq"])["gdfq"].student
    other = compare_methods(P, Q, x, y, methods=["gdfq"], fidelity=averaged)["gdfq"].student
    C = len(P.info.classes)
    assert other["kd"].value == pytest.approx(one["kd"].value / C, rel=1e-5)
    assert other["kd"].pull == pytest.approx(one["kd"].pull / C, rel=1e-5)
    assert other["label"] == one["label"]


def test_shares_add_up(batch):
    """The shares of a player's terms are percentages of one whole."""
    for look in compare_methods(*batch, methods=["gdfq", "adadfq"]).looks.values():
        for player in ("generator", "student"):
            shares = look.shares(player)
            assert sum(shares.values()) == pytest.approx(100)
            assert all(share >= 0 for share in shares.values())


def test_each_source_is_found_out(batch, registered):
    """A loss of one source is said to look at that source and at nothing else, for each source there is without features."""
    sources = {
        "P's logits": lambda r: r.teacher_logits.square().mean(),
        "Q's logits": lambda r: r.student_logits.square().mean(),
        "P's batch norms": lambda r: lab.loss_bns(r.statistics),
        "labels": lambda r: r.labels[0] + 0 * r.images.sum(),
    }
    for source, loss in sources.items():
        one = lambda r, loss=loss: {"only": loss(r) + 0 * r.images.sum()}  # noqa: E731
        registered("one", one, lambda r: {"kd": lab.distillation(r.teacher_logits, r.student_logits)}, uses_student=True)
        assert compare_methods(*batch, methods=["one"])["one"].generator_sees == {source}


def test_nothing_is_changed(batch):
    """P, Q, their ranges and gradients, and torch's random state are as before."""
    P, Q, x, y = batch
    before = [copy.deepcopy(network.state_dict()) for network in (P, Q)]
    random = torch.get_rng_state()
    compare_methods(P, Q, x, y)
    for network, state in zip((P, Q), before, strict=True):
        now = network.state_dict()
        assert all(torch.equal(now[name], value) for name, value in state.items())
        assert all(parameter.grad is None for parameter in network.parameters())
    assert not Q.observing
    assert torch.equal(torch.get_rng_state(), random)


def test_an_unknown_method_is_a_users_mistake(batch):
    with pytest.raises(UserError, match="no method is called 'nosuch'"):
        compare_methods(*batch, methods=["nosuch"])


def test_a_comparison_shows_itself_in_text_and_html(batch, registered):
    """A line a player in text, a row a method in HTML; names are escaped."""
    registered("<b>", lambda r: {"x": r.teacher_logits.mean()}, lambda r: {"y": r.student_logits.mean()})
    found = compare_methods(*batch, methods=["gdfq", "<b>"])
    assert "GDFQ      G looks at labels, P's logits, P's batch norms" in repr(found)
    assert len(repr(found).splitlines()) == 4
    html = found._repr_html_()
    assert html.count("<tr>") == 3 and "<td><b></td>" not in html and "&lt;b&gt;" in html
