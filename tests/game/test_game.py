"""The game: a round is the round of the paper, a seed is a game, and looking changes nothing."""

import dataclasses
import gc
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_games import (
    BATCH,
    CLASSES,
    OBSERVE,
    SHAPE,
    WARMUP,
    changed,
    double,
    play,
    spy,
    state,
    tiny_game,
    tiny_teacher,
    twin,
    with_term,
)
from torch import Tensor, nn

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.game.game import Game, NonFiniteError
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.method import DrownedWarning, Method, Round
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher import Teacher, wrap_teacher

METHODS = {"gdfq": gdfq, "arc": arc, "adasg": adasg, "adadfq": adadfq}


# A round is the round of the paper


class ByHand:
    """The game in float64 as one would write it on paper: whole graphs, whole gradients, optimizers as formulas."""

    def __init__(self, game: Game) -> None:
        copied = twin(game)
        self.game, self.random = copied, copied.random
        self.P, self.G, self.Q = copied.teacher.network, copied.generator, copied.student
        self.schedule, self.rates, self.bounds = copied.schedule, copied.rates, copied.bounds
        self.seen: list[Tensor] = []
        for module in self.P.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda bn, inputs, _: self.seen.append(self.mismatch(bn, inputs[0])))
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.G.parameters()]
        self.momentum: list[Tensor | None] = [None for _ in self.Q.parameters()]

    @staticmethod
    def mismatch(bn: nn.BatchNorm2d, u: Tensor) -> Tensor:
        mean, var = u.mean((0, 2, 3)), u.var((0, 2, 3), correction=0)
        return ((mean - bn.running_mean) ** 2).sum() + ((var - bn.running_var) ** 2).sum()

    def generator_terms(self, z_p: Tensor, z_q: Tensor, y: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def student_terms(self, z_p: Tensor, z_q: Tensor, y: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def round(self, t: int) -> dict[str, Tensor]:
        """Plays round `t` and returns its loss terms."""
        factor = self.schedule.decay ** sum(t >= m for m in self.schedule.milestones)
        z = torch.randn(self.schedule.batch, 100, generator=self.random).double()
        y = torch.randint(CLASSES, (self.schedule.batch,), generator=self.random)
        self.seen.clear()
        x = self.G(z, y)
        z_p = self.P(x)
        self.Q.observing = t < self.schedule.observe
        terms = {f"generator.{k}": v for k, v in self.generator_terms(z_p, self.Q(x), y).items()}
        gradients = torch.autograd.grad(sum(terms.values()), list(self.G.parameters()))
        self.Q.observing = False
        if t >= self.schedule.warmup:
            of_q = self.student_terms(z_p.detach(), self.Q(x.detach()), y)
            self.sgd(torch.autograd.grad(sum(of_q.values()), list(self.Q.parameters())), self.rates.student_lr * factor)
            terms |= {f"student.{k}": v for k, v in of_q.items()}
        self.adam(gradients, self.rates.generator_lr * factor, t + 1)
        return terms

    @torch.no_grad()
    def adam(self, gradients: tuple[Tensor, ...], lr: float, t: int) -> None:
        for w, g, (m, v) in zip(self.G.parameters(), gradients, self.moments, strict=True):
            m.mul_(0.5).add_(0.5 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            w -= lr * (m / (1 - 0.5**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    @torch.no_grad()
    def sgd(self, gradients: tuple[Tensor, ...], lr: float) -> None:
        for i, (w, g) in enumerate(zip(self.Q.parameters(), gradients, strict=True)):
            g = g + 1e-4 * w
            before = self.momentum[i]
            self.momentum[i] = buffer = g if before is None else 0.9 * before + g
            w -= lr * (g + 0.9 * buffer)


class AdaByHand(ByHand):
    """AdaDFQ and AdaSG: Eq. (12) for G, T^2 (log C - H) at T = 20 for Q."""

    weight_ds, weight_as = 0.2, 0.1

    def generator_terms(self, z_p, z_q, y):
        p = torch.softmax(z_p - z_q, 1)
        H = -(p * p.log()).sum(1)
        low = H.min().detach()
        h = (H - low) / (math.log(CLASSES) - low)
        lower, upper = self.bounds.lower, self.bounds.upper
        rows = torch.arange(len(y))
        q = torch.softmax(z_p + z_q, 1)
        return {
            "band": (torch.relu(lower - h) + torch.relu(h - upper)).mean(),
            "ds": self.weight_ds * -p[rows, y].log().mean(),
            "as": self.weight_as * -q[rows, y].log().mean(),
            "bns": sum(self.seen),
        }

    def student_terms(self, z_p, z_q, y):
        p = torch.softmax((z_p - z_q) / 20, 1)
        return {"entropy": 400 * (math.log(CLASSES) + (p * p.log()).sum(1).mean())}


class AdasgByHand(AdaByHand):
    weight_ds = 0.1


class GdfqByHand(ByHand):
    """GDFQ: label and batch-norm statistics for G, label and distillation at T = 20 for Q."""

    def generator_terms(self, z_p, z_q, y):
        return {"label": self.cross_entropy(z_p, y), "bns": 0.1 * sum(self.seen)}

    def student_terms(self, z_p, z_q, y):
        p, q = torch.softmax(z_p / 20, 1), torch.softmax(z_q / 20, 1)
        return {"label": self.cross_entropy(z_q, y), "kd": 400 * (p * (p.log() - q.log())).sum(1).mean()}

    @staticmethod
    def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
        return -torch.softmax(z, 1)[torch.arange(len(y)), y].log().mean()


def far_apart(game: Game, hand: ByHand, record: Record, terms: dict[str, Tensor]) -> float:
    """The largest relative difference between the game and the round by hand, over loss terms and every tensor of G and Q."""
    assert record.terms.keys() == terms.keys()
    pairs = [(record.terms[name], value) for name, value in terms.items()]
    pairs += zip(game.generator.state_dict().values(), hand.G.state_dict().values(), strict=True)
    pairs += zip(game.student.state_dict().values(), hand.Q.state_dict().values(), strict=True)
    return max(
        float((a - b).detach().norm() / (b.detach().norm() + 1e-12)) for a, b in ((a.double(), b.double()) for a, b in pairs)
    )


BY_HAND = {"gdfq": GdfqByHand, "arc": GdfqByHand, "adasg": AdasgByHand, "adadfq": AdaByHand}


def start(name: str) -> tuple[Game, ByHand]:
    """A game in float64 of one warm-up round, two of observation and a milestone, and its like by hand."""
    game = double(tiny_game(METHODS[name](), warmup=1, observe=2, milestones=(3,), student_lr=1e-3))
    return game, BY_HAND[name](game)


@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_the_round_of_the_paper(name):
    """Losses, ranges, running statistics and both players' weights follow the formulas through warm-up, observation and decay.

    To 1e-7 in float64, not closer: a bias before a batch norm has no gradient but rounding, and Adam divides it by itself.
    """
    game, hand = start(name)
    for t in range(4):
        record = game.round()
        assert far_apart(game, hand, record, hand.round(t)) < 1e-7, t


@pytest.mark.parametrize("slip", ["beta1", "momentum", "biased variance", "learning rate", "weight of a term"])
def test_the_round_by_hand_notices_a_slip(slip, monkeypatch):
    """Each constant is seen: with one of them changed in the game, the two rounds part by far more than rounding."""
    game, hand = start("adadfq")
    match slip:
        case "beta1":
            game.generator_optimizer.param_groups[0]["betas"] = (0.9, 0.999)
        case "momentum":
            game.student_optimizer.param_groups[0]["momentum"] = 0.5
        case "biased variance":
            monkeypatch.setattr(Tensor, "var", lambda u, dims, correction: torch.var(u, dims, correction=1))
        case "learning rate":
            game.schedule = dataclasses.replace(game.schedule, generator_lr=1.01e-3)
        case "weight of a term":
            game.method = adadfq(alpha_ds=0.2001)
    worst = max(far_apart(game, hand, game.round(), hand.round(t)) for t in range(3))
    assert worst > 1e-6


# Seeds


def test_the_same_seed_is_the_same_game_bit_for_bit():
    """Every weight, statistic and random draw after four rounds; whatever torch's global generator stood at."""
    first = play(tiny_game(seed=3), 4)
    torch.manual_seed(999)
    assert changed(state(first), state(play(tiny_game(seed=3), 4))) == set()


def test_another_seed_is_another_game_from_the_first_weights_on():
    """G's first weights, z and y all depend on the seed; P and Q do not."""
    one, two = tiny_game(seed=0), tiny_game(seed=1)
    names = changed(state(one), state(two))
    assert {"random", "generator.linear.weight", "generator.up1.weight"} <= names
    assert not [name for name in names if name.startswith(("teacher", "student"))]
    assert not torch.equal(one.round().entropy, two.round().entropy)


def test_a_game_leaves_the_global_random_state_alone():
    """Building, playing and generating draw from the game's own generator only."""
    before = torch.get_rng_state()
    game = play(tiny_game(gains_every=1), 3)
    game.generate(torch.arange(CLASSES))
    assert torch.equal(torch.get_rng_state(), before)


def test_playing_in_two_parts_is_playing_in_one():
    """play(3) and play(3) end where play(6) ends."""
    assert changed(state(play(play(tiny_game(), 3), 3)), state(play(tiny_game(), 6))) == set()


def test_a_game_that_is_left_midway_goes_on_where_it_was():
    """A loop that is broken off has played exactly the rounds it saw."""
    game = tiny_game()
    for record in game.play(100):
        if record.index == 2:
            break
    assert game.index == 3
    assert changed(state(play(game, 1)), state(play(tiny_game(), 4))) == set()


# Records


@pytest.mark.parametrize("name", METHODS)
def test_a_record_says_what_happened(name):
    """Shapes, and values recomputed in float64 from the images the round was played on."""
    seen: list[Round] = []
    game = tiny_game(spy(METHODS[name](), seen))
    for t in range(OBSERVE + 1):
        student = twin(game).student
        record = game.round()
        r = seen[-1]
        assert (record.index, r.index, game.index) == (t, t, t + 1)
        assert record.phase == ("warm-up" if t < WARMUP else "play")
        assert record.observing == (t < OBSERVE)
        assert record.bounds == game.bounds
        assert record.entropy.shape == record.h_prime.shape == (BATCH,)
        assert {term.shape for term in record.terms.values()} == {torch.Size(())}
        assert not any(tensor.requires_grad for tensor in (record.entropy, record.h_prime, *record.terms.values()))
        assert r.images.shape == (BATCH, *SHAPE)
        assert r.labels.shape == (BATCH,)

        student.observing = t < OBSERVE
        with torch.no_grad():
            z_p, z_q = game.teacher(r.images), student(r.images)
        d = (z_p - z_q).double()
        entropy = torch.tensor([-sum(p * math.log(p) for p in row) for row in torch.softmax(d, 1).tolist()])
        torch.testing.assert_close(record.entropy, entropy, rtol=1e-4, atol=1e-5)
        low = record.entropy.min()
        torch.testing.assert_close(record.h_prime, (record.entropy - low) / (math.log(CLASSES) - low))
        agreed = sum(int(a == b) for a, b in zip(z_p.argmax(1).tolist(), z_q.argmax(1).tolist(), strict=True))
        assert float(record.agreement) == agreed / BATCH
        players = {"generator"} if t < WARMUP else {"generator", "student"}
        assert {term.split(".")[0] for term in record.terms} == players


def test_a_record_as_json_holds_the_same_numbers():
    """`as_json` is plain numbers under names that a report can read; gains stand there when they were measured."""
    game = tiny_game(gains_every=2)
    for record in game.play(4):
        plain = record.as_json()
        assert plain["round"] == record.index
        assert plain["phase"] == record.phase
        assert (plain["lower"], plain["upper"]) == (0.1, 0.8)
        assert plain["h_prime"] == pytest.approx(record.h_prime.tolist(), abs=1e-5)
        assert plain["entropy"] == pytest.approx(record.entropy.tolist(), abs=1e-5)
        assert {name: plain[name] for name in record.terms} == pytest.approx(
            {name: float(value) for name, value in record.terms.items()}, abs=1e-6
        )
        assert ("gain_g" in plain, "gain_q" in plain) == (record.index % 2 == 0,) * 2


# Who moves when


def moved(game: Game, rounds: int) -> set[str]:
    """What changed in `rounds` rounds: the first parts of the names of the tensors."""
    before = state(game)
    return {name.split(".")[0] for name in changed(before, state(play(game, rounds)))}


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_in_the_warm_up_only_the_generator_learns():
    """Every weight of G moves in every round, none of Q does until round `warmup`, and then Q's do."""
    game = tiny_game()
    for t in range(WARMUP + 1):
        before = weights(game.generator), weights(game.student)
        game.round()
        assert not any(torch.equal(a, b) for a, b in zip(before[0], weights(game.generator), strict=True))
        still = [torch.equal(a, b) for a, b in zip(before[1], weights(game.student), strict=True)]
        assert all(still) if t < WARMUP else not any(still)
    assert not tiny_game().student_optimizer.state


def test_ranges_move_while_observed_and_then_never_again():
    """Through round `observe - 1` each activation range takes in each batch, and counts it; after that it stays."""
    game = tiny_game()

    def ranges() -> dict[str, list[float]]:
        return {name: [float(a.range.low), float(a.range.high)] for name, a in game.student.activations().items()}

    for t in range(OBSERVE + 2):
        before = ranges()
        game.round()
        same = [before[name] == now for name, now in ranges().items()]
        assert not any(same) if t < OBSERVE else all(same)
    assert {float(a.range.batches) for a in game.student.activations().values()} == {OBSERVE}


def test_what_is_frozen_stays_frozen():
    """P's weights and memory and the memory of Q's batch norms never change, and no gradient accumulates on P."""
    game = tiny_game(gains_every=1)
    before = {
        **{f"P.{name}": t.clone() for name, t in game.teacher.network.state_dict().items()},
        **{f"P'.{name}": t.clone() for name, t in game.observed_teacher.state_dict().items()},
        **{f"Q.{name}": t.clone() for name, t in game.student.named_buffers() if "running" in name or "num_batches" in name},
    }
    assert sum(name.startswith("Q") for name in before) == 3 * 9
    play(game, OBSERVE + 1)
    after = {
        **{f"P.{name}": t for name, t in game.teacher.network.state_dict().items()},
        **{f"P'.{name}": t for name, t in game.observed_teacher.state_dict().items()},
        **{f"Q.{name}": t for name, t in game.student.named_buffers() if "running" in name or "num_batches" in name},
    }
    assert changed(before, after) == set()
    assert not any(module.training for module in game.teacher.modules())
    assert all(
        p.grad is None and not p.requires_grad for p in [*game.teacher.parameters(), *game.observed_teacher.parameters()]
    )


def test_the_game_plays_on_a_student_that_shares_nothing_with_the_teacher():
    """Playing moves Q, and not the network it was made from."""
    teacher = tiny_teacher()
    game = tiny_game(teacher=teacher, warmup=0)
    assert moved(game, 2) == {"index", "random", "generator", "student", "generator_optimizer", "student_optimizer"}


def test_bounds_count_from_the_next_round():
    """Setting `bounds` after a round changes nothing in it and everything after it."""
    seen: list[Round] = []
    game = tiny_game(spy(adadfq(0.1, 0.8), seen))
    new = Bounds(0.45, 0.55)
    for record in game.play(4):
        assert record.bounds == seen[-1].bounds == (Bounds(0.1, 0.8) if record.index < 2 else new)
        distance = torch.relu(record.bounds.lower - record.h_prime) + torch.relu(record.h_prime - record.bounds.upper)
        torch.testing.assert_close(record.terms["generator.band"], distance.mean())
        if record.index == 1:
            game.bounds = new


def test_learning_rates_follow_the_milestones():
    """factor = decay^(milestones passed), counted from the milestone's own round on; with decay 0 both players stop there."""
    schedule = Schedule(milestones=(3, 5), decay=0.1)
    assert [schedule.factor(t) for t in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    game = tiny_game(warmup=0, milestones=(2,), decay=0.0)
    play(game, 2)
    before = weights(game.generator) + weights(game.student)
    play(game, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(game.generator) + weights(game.student), strict=True))


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 17])
@pytest.mark.parametrize("name", ["gdfq", "adadfq"])
def test_any_batch_size_plays(name, batch):
    """One image, odd numbers, more than the 16 that the released hinge takes; of one image H' is 0 by definition."""
    game = tiny_game(METHODS[name](), batch=batch, warmup=1, gains_every=1)
    for record in game.play(2):
        assert record.h_prime.shape == (batch,)
        assert all(bool(term.isfinite()) for term in record.terms.values())
        assert float(record.h_prime.min()) == 0


# Gains


def disagreement(game: Game, student: Student, z: Tensor, y: Tensor) -> float:
    """Mean of log C - H_info on what G now makes of z and y, by hand."""
    generator = twin(game).generator
    with torch.no_grad(), student.frozen():
        x = generator(z, y)
        p = torch.softmax((game.teacher(x) - student(x)).double(), 1)
    return math.log(CLASSES) + float(torch.xlogy(p, p).sum(1).mean())


def test_gains_are_what_each_move_changed():
    """gain_g is the disagreement after G's step less before it, gain_q after Q's step less before it, on the same z and y."""
    game = tiny_game(gains_every=1, generator_lr=1e-2)
    for t in range(OBSERVE + 1):
        before = twin(game)
        record = game.round()
        z = torch.randn(BATCH, 100, generator=before.random)
        y = torch.randint(CLASSES, (BATCH,), generator=before.random)
        ranges = {name: value for name, value in game.student.state_dict().items() if ".range." in name}
        before.student.load_state_dict(before.student.state_dict() | ranges)  # as they were when both moved
        values = [
            disagreement(before, before.student, z, y),
            disagreement(game, before.student, z, y),
            disagreement(game, game.student, z, y),
        ]
        assert float(record.gain_g) == pytest.approx(values[1] - values[0], abs=2e-6)
        assert float(record.gain_q) == pytest.approx(values[2] - values[1], abs=2e-6)
        assert abs(values[1] - values[0]) > 1e-5
        assert (abs(values[2] - values[1]) > 1e-5) == (t >= WARMUP)


def test_gains_are_measured_in_the_rounds_asked_for():
    """Every third round from the first; None otherwise."""
    gains = [record.gain_g is not None for record in tiny_game(gains_every=3).play(5)]
    assert gains == [True, False, False, True, False]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_players_that_stand_still_gain_nothing(precision):
    """With learning rates of 0 both gains are 0 exactly, in any precision: before and after are computed alike."""
    game = tiny_game(gains_every=1, warmup=0, generator_lr=0.0, student_lr=0.0, precision=precision)
    for record in game.play(2):
        assert (float(record.gain_g), float(record.gain_q)) == pytest.approx((0, 0), abs=3e-7)


def test_looking_changes_nothing():
    """A game whose gains are measured, whose images are looked at and whose student is evaluated is the same game."""
    plain, watched = tiny_game(), tiny_game(gains_every=1)
    images = torch.randint(256, (6, *SHAPE), dtype=torch.uint8)
    test_set = ImageSet("noise", "test", images, torch.zeros(6, dtype=torch.long), tuple("abcde"), "noise")
    for _ in range(OBSERVE + 1):
        plain.round()
        watched.round()
        watched.generate(torch.arange(CLASSES), seed=5)
        accuracy(watched.student, test_set, watched.teacher.normalize)
        watched.check()
        assert watched.generator.training
        assert changed(state(plain), state(watched)) == set()


def test_generated_images_are_of_the_classes_and_the_seed():
    """The same labels and seed make the same images, other labels or another seed others."""
    game = play(tiny_game(), 1)
    labels = torch.arange(CLASSES)
    images = game.generate(labels, seed=1)
    assert images.shape == (CLASSES, *SHAPE)
    assert torch.equal(images, game.generate(labels, seed=1))
    assert not torch.equal(images, game.generate(labels, seed=2))
    assert not torch.equal(images, game.generate(labels.flip(0), seed=1))
    assert not images.requires_grad


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_memory_does_not_grow_with_rounds():
    """As many tensors are alive after forty rounds as after ten; a method that hoards its rounds would be noticed."""
    game = play(tiny_game(gains_every=5, batch=2, check_every=5, student_lr=1e-4), 10)
    before = live_tensors()
    assert live_tensors() == before
    play(game, 30)
    assert live_tensors() == before

    hoard: list[Round] = []
    game.method = spy(game.method, hoard)
    play(game, 2)
    assert live_tensors() > before


# When it goes wrong


def poisoned(player: str, at: int, value: float = math.nan) -> Method:
    """AdaDFQ, one of whose losses is `value` in round `at`."""
    return with_term(adadfq(), player, lambda r: (r.images.sum() + r.student_logits.sum()) * (value if r.index == at else 0.0))


@pytest.mark.parametrize("check_every", [1, 2, 3, 100])
@pytest.mark.parametrize(("player", "value"), [("generator", math.nan), ("student", math.nan), ("student", math.inf)])
def test_a_loss_that_is_no_number_is_named_with_its_round(player, value, check_every):
    """However seldom the game looks, it names the first round and the term that went wrong, not what followed from it."""
    game = tiny_game(poisoned(player, 3, value), check_every=check_every)
    with pytest.raises(NonFiniteError, match=rf"^round 3: {player}\.extra is not finite; there is no checkpoint yet") as caught:
        play(game, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("check_every", [1, 100])
def test_a_weight_that_is_no_number_is_named_with_its_round_and_the_last_checkpoint(tmp_path, check_every):
    """NaN in Q stops the round that it reaches; the message says whose logits, and where to go back to."""
    game = play(tiny_game(check_every=check_every), 3)
    path = tmp_path / "good.ckpt"
    game.save(path)
    play(game, 1)
    with torch.no_grad():
        next(game.student.parameters())[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"^round 4: z_q has \d+ NaN") as caught:
        play(game, 1)
    assert f"the last good checkpoint is {path}" in str(caught.value)
    assert game.index == 4


def test_a_measurement_of_gains_that_meets_no_number_stops_the_round_too():
    """A step of G that throws its weights to infinity is met first where the gains are measured."""
    game = tiny_game(gains_every=1, generator_lr=1e30)
    with pytest.raises(NonFiniteError, match=r"^round 0: z_[pq] has \d+ NaN"):
        play(game, 1)


def test_a_game_gone_wrong_is_not_saved(tmp_path):
    """Neither with a loss nor with a weight that is no number: the last checkpoint stays the last good one."""
    path = tmp_path / "bad.ckpt"
    game = tiny_game(poisoned("generator", 0), check_every=100)
    next(game.play(1))
    with pytest.raises(NonFiniteError, match=r"^round 0: generator\.extra is not finite"):
        game.save(path)
    game = tiny_game(warmup=0)
    assert all(bool(term.isfinite()) for record in game.play(1) for term in record.terms.values())
    with torch.no_grad():
        next(game.student.parameters())[0, 0, 0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"^round 0: its step left a weight that is not finite"):
        game.save(path)
    assert not path.exists()
    assert game.last_checkpoint is None


def test_a_mistake_in_a_method_is_not_called_a_number_gone_wrong():
    """A ValueError of a loss that has nothing to do with NaN comes through as it is."""

    def confused(r: Round) -> Tensor:
        return F.cross_entropy(r.teacher_logits, r.labels[:-1])

    with pytest.raises(ValueError, match="batch_size") as caught:
        tiny_game(with_term(adadfq(), "generator", confused)).round()
    assert not isinstance(caught.value, UserError)


def test_class_counts_that_disagree_are_refused():
    """Q of five classes cannot learn from P of four; nor can P have more classes than names."""
    with pytest.raises(UserError, match="classes disagree: P has 4, Q has 5, the teacher's class list has 4"):
        Game(tiny_teacher(classes=4), quantize(tiny_teacher(), "3w3a"), adadfq())
    teacher = tiny_teacher()
    teacher.info = dataclasses.replace(teacher.info, classes=("a", "b"))
    with pytest.raises(UserError, match="P has 5, Q has 5, the teacher's class list has 2"):
        Game(teacher, quantize(teacher, "3w3a"), adadfq())


def test_a_teacher_without_batch_norm_is_refused():
    """Nothing in it remembers the training data, so Eq. (11) has nothing to match."""
    network = nn.Sequential(nn.Conv2d(SHAPE[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    teacher = Teacher(network, tiny_teacher().info)
    with pytest.raises(UserError, match=r"^Sequential has no batch norm"):
        Game(teacher, quantize(teacher, "3w3a"), adadfq())


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"observe": 0},
        {"warmup": -1},
        {"batch": -4},
        {"student_lr": -1e-4},
        {"weight_decay": -1.0},
        {"generator_lr": float("nan")},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong):
    """In one line that names the field."""
    with pytest.raises(UserError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_images_whose_sides_four_does_not_divide_are_played():
    """The generator makes more and cuts: two rounds on 10 x 9 images."""
    teacher = tiny_teacher(shape=(1, 10, 9))
    game = play(tiny_game(teacher=teacher), 2)
    assert game.generate(torch.tensor([0, 1])).shape == (2, 1, 10, 9)


@pytest.mark.filterwarnings("error")  # this line too, which is ignored in other tests
def test_a_teacher_whose_l_bns_drowns_the_other_terms_is_said_once():
    """The same function with activations 30 times as large: L_BNS grows by 30^2 to 30^4, its normalised form does not."""
    P = tiny_teacher()
    x = torch.randn(4, *SHAPE)
    logits = P(x)
    for conv, norm in itertools.pairwise(P.network.modules()):
        if isinstance(norm, nn.BatchNorm2d):
            conv.weight.data *= 30
            norm.running_mean *= 30
            norm.running_var *= 30**2
            norm.eps *= 30**2
    assert torch.allclose(P(x), logits, atol=1e-4)
    game = tiny_game(teacher=P, warmup=25)
    with pytest.warns(DrownedWarning, match=r"^L_BNS is [\d,]{9,} in round 20, .* bns_reduction=.normalized") as said:
        play(game, 21)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    normalized = dataclasses.replace(FIDELITY["corrected"], bns_reduction="normalized")
    for options in ({}, {"teacher": P, "fidelity": normalized}):  # a warning is an error here
        play(tiny_game(warmup=25, **options), 21)


# Precision


@pytest.mark.parametrize("name", ["gdfq", "adadfq"])
def test_bf16_stays_close_to_float32(name):
    """From the same state, a round in bf16 has the same loss terms to a few percent; weights and terms stay float32.

    bf16 has 8 significant bits; grids of 8 bits keep its noise from becoming whole steps. Not so the band: on fine grids P and
    Q nearly agree, and H' divides by how little they do not.
    """
    game = play(tiny_game(METHODS[name](), bits="8w8a", batch=16), WARMUP)
    half = twin(game)
    half.precision = "bf16"
    exact, record = game.round(), half.round()
    assert exact.terms.keys() == record.terms.keys()
    assert {t.dtype for t in (*record.terms.values(), record.entropy, record.h_prime)} == {torch.float32}
    for term in exact.terms.keys() - {"generator.band"}:
        assert float(record.terms[term]) == pytest.approx(float(exact.terms[term]), rel=0.05, abs=0.01), term
    assert {p.dtype for p in (*half.generator.parameters(), *half.student.parameters())} == {torch.float32}
    assert changed(state(game), state(half))  # and bf16 it was


def test_a_few_rounds_in_bf16_are_finite():
    """Through warm-up, observation and after, of both kinds of loss."""
    for method in (gdfq(), adadfq()):
        for record in tiny_game(method, precision="bf16", gains_every=2).play(OBSERVE + 2):
            assert all(bool(term.isfinite()) for term in record.terms.values())


def test_a_game_on_the_cpu_leaves_the_precision_of_others_alone():
    """The switch "tf32" is CUDA's; on a CPU it is float32 and sets nothing globally."""
    before = torch.get_float32_matmul_precision()
    game = play(tiny_game(precision="tf32"), 2)
    assert torch.get_float32_matmul_precision() == before
    assert changed(state(game), state(play(tiny_game(), 2))) == set()


def test_a_network_that_gives_more_than_logits_is_refused():
    """A tuple of logits and features is no player's move."""

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny_teacher().network

        def forward(self, x):
            return self.network(x), x

    with pytest.raises(UserError, match="Both gives a tuple for 2 images, not one tensor of logits"):
        wrap_teacher(Both(), input_shape=SHAPE, classes=CLASSES, mean=(0.5, 0.5), std=(0.25, 0.25))
