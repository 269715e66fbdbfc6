"""ZAQ: both players' losses, five steps to one, and batch norms that follow the images while Q plays and only then."""

import pytest
import torch
from helpers.tiny_games import BATCH, CLASSES, SHAPE, changed, play, saved_teacher, spy, state, tiny_game, tiny_teacher
from torch import Tensor

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.game.game import Game
from adadfq_lab.integers.inference import run_integer
from adadfq_lab.methods.generators import LatentGenerator
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.registry import METHODS, make_method
from adadfq_lab.methods.zaq import attention_gap, relation_gap, zaq
from adadfq_lab.student.student_files import load_student, save_student

RATE = 1e-3  # at which a tiny game plays on


def norms(game: Game) -> dict[str, Tensor]:
    """What Q's batch norms remember."""
    return {n: b.clone() for n, b in game.student.named_buffers() if "running" in n or "num_batches" in n}


def ranges(game: Game) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in game.student.named_buffers() if ".range." in n}


# What it minimises


@pytest.mark.parametrize("fidelity", FIDELITY)
def test_the_terms_of_zaq_by_hand(fidelity):
    """G minimises -(mean |z_p - z_q|) - alpha gap - beta mean |f_p|, Q the first two with the other sign."""
    seen: list[Round] = []
    record = tiny_game(spy(zaq(alpha=0.5, beta=0.2), seen), fidelity=fidelity, warmup=0, student_lr=RATE).round()
    (r,) = seen
    gap = attention_gap if fidelity == "released" else relation_gap
    distance = sum(
        abs(a - b) for a, b in zip(r.teacher_logits.flatten().tolist(), r.student_logits.flatten().tolist(), strict=True)
    )
    with torch.no_grad():
        features = float(gap(r.teacher_features, r.student_features))
        strength = float(r.teacher_features[-1].abs().mean())
    expected = {
        "student.output": distance / (BATCH * CLASSES),
        "student.features": 0.5 * features,
        "generator.activation": -0.2 * strength,
    }
    expected |= {name.replace("student", "generator"): -v for name, v in expected.items() if name.startswith("student")}
    assert {name: float(value) for name, value in record.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert len(r.teacher_features) == len(r.student_features) == 3


def test_q_takes_five_steps_for_each_of_g():
    """G learns in rounds 0, 5, 10; Q in every one."""
    game = tiny_game(zaq(), warmup=0, student_lr=RATE)
    for t in range(11):
        before = state(game)
        game.round()
        moved = changed(before, state(game))
        assert any(n.startswith("generator_optimizer") for n in moved) == (t % 5 == 0)
        assert any(n.startswith("student_optimizer") for n in moved)


def test_its_optimizers_are_those_of_its_code():
    """Plain momentum for Q, with five times the weight decay; Adam with its usual betas for G; the published rate, by batch."""
    game = tiny_game(zaq(), student_lr=None)
    (q,), (g,) = game.student_optimizer.param_groups, game.generator_optimizer.param_groups
    assert (q["momentum"], q["nesterov"], q["weight_decay"]) == (0.9, False, 5e-4)
    assert (g["betas"], game.rates.generator_lr) == ((0.9, 0.999), 1e-3)
    assert game.rates.student_lr == 0.1 * 16 / 256


def test_its_generator_knows_no_labels(generator):
    """2,329,091 parameters at 32x32; any labels, the same images."""
    network = LatentGenerator((3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 2_329_091
    z = torch.randn(4, network.latent, generator=generator)
    assert torch.equal(network(z, torch.zeros(4, dtype=torch.long)), network(z, torch.arange(4)))


# Batch norms


@pytest.mark.parametrize("name", METHODS)
def test_only_zaq_moves_what_the_batch_norms_of_q_remember(name):
    """Once a round, also while gains are measured; every other method leaves them as P has them."""
    game = tiny_game(make_method(name), gains_every=1, warmup=1, student_lr=None)
    before = norms(game)
    play(game, 3)
    after = norms(game)
    assert changed(before, after) == (set(before) if name == "zaq" else set())
    if name == "zaq":
        assert {int(b - before[n]) for n, b in after.items() if n.endswith("num_batches_tracked")} == {3}


def test_running_statistics_are_those_of_the_images():
    """After one round: 0.9 of P's and 0.1 of the first convolution's output on the batch, with the unbiased variance."""
    seen: list[Round] = []
    game = tiny_game(spy(zaq(), seen), warmup=1)
    conv = next(iter(game.student.layers().values()))
    mean, var = conv.bn.running_mean.clone(), conv.bn.running_var.clone()
    game.round()
    with torch.no_grad():
        u = conv.convolve(seen[0].images, conv.quantized_weight(), None).transpose(0, 1).flatten(1)
    assert torch.allclose(conv.bn.running_mean, 0.9 * mean + 0.1 * u.mean(1), atol=1e-6)
    assert torch.allclose(conv.bn.running_var, 0.9 * var + 0.1 * u.var(1), atol=1e-5)


def test_evaluating_moves_neither_ranges_nor_batch_norms(generator):
    """Real images never calibrate: in the midst of observation nothing in Q changes, and it is in eval mode as before."""
    game = play(tiny_game(zaq(), warmup=0, student_lr=RATE), 2)
    assert game.index in game.schedule.observed(game.method)
    before = state(game)
    images = torch.randint(256, (20, *SHAPE), generator=generator).to(torch.uint8)
    data = ImageSet("noise", "test", images, torch.arange(20) % CLASSES, tuple("abcde"), "noise")
    accuracy(game.student, data, game.teacher.normalize)
    game.generate(torch.arange(CLASSES))
    assert changed(before, state(game)) == set()
    assert not any(m.training or not getattr(m, "track_running_stats", True) for m in game.student.modules())
    kept = ranges(game)
    play(game, 1)
    assert changed(kept, ranges(game))


def test_a_round_that_fails_leaves_the_batch_norms_in_eval_mode():
    """Whatever happens within it."""
    game = tiny_game(zaq())
    with pytest.raises(ZeroDivisionError), game.student.batch_statistics(follow=True):
        assert all(m.training for m in game.student.modules() if isinstance(m, torch.nn.BatchNorm2d))
        raise ZeroDivisionError
    assert not any(m.training for m in game.student.modules())


def test_gains_are_measured_as_q_plays():
    """Looking changes nothing in the game, with batch statistics as well."""
    watched, plain = (play(tiny_game(zaq(), gains_every=n, warmup=0, student_lr=RATE), 7) for n in (1, 0))
    assert changed(state(watched), state(plain)) == set()
    assert not any(record.gain_g for record in tiny_game(zaq(), gains_every=1, warmup=0).play(5) if record.index % 5)


def test_a_student_of_zaq_is_saved_and_becomes_integers(tmp_path, generator):
    """Its file, and the integers behind it, fold the statistics that Q has now, not P's."""
    teacher = saved_teacher(tmp_path / "teacher.safetensors")
    game = play(tiny_game(zaq(), teacher=teacher, warmup=0, student_lr=RATE), 6)
    save_student(game.student, teacher, tmp_path / "student.safetensors")
    _, loaded = load_student(tmp_path / "student.safetensors", teacher)
    x = torch.randn(8, *SHAPE, generator=generator)
    game.student.observing = False
    with torch.no_grad():
        logits = game.student(x)
        assert torch.equal(logits, loaded(x))
        assert torch.allclose(logits, run_integer(game.student, x), atol=1e-3 * float(logits.abs().max()))
        with game.student.batch_statistics(follow=False):
            assert not torch.allclose(logits, game.student(x), atol=1e-2)


def test_teachers_batch_norms_are_not_those_of_q():
    """P's memory stays what it was."""
    teacher = tiny_teacher()
    before = {n: b.clone() for n, b in teacher.named_buffers()}
    play(tiny_game(zaq(), teacher=teacher, student_lr=RATE), 4)
    assert changed(before, dict(teacher.named_buffers())) == set()
