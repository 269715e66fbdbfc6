"""Features of stages: the same places in P and Q, nothing left behind, and relations as sums over channels and places say."""

import math

import pytest
import torch
from helpers.networks import ThirdPartyResNet20
from helpers.tiny_games import CLASSES, SHAPE, tiny_game, tiny_teacher
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.methods.zaq import attend, attention_gap, relation_gap, relation_map, unit, zaq
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.features import pooled_features, stages, with_features
from adadfq_lab.teacher.networks import resnet20
from adadfq_lab.teacher.teacher import Teacher, wrap_teacher
from adadfq_lab.teacher.tracing import traced


def features(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).clamp(min=-0.3).add(0.3)


def teacher_of(network: nn.Module) -> Teacher:
    return wrap_teacher(network, input_shape=(3, 32, 32), classes=10)


# Places


@pytest.mark.parametrize("network", [resnet20, ThirdPartyResNet20])
def test_the_stages_of_resnet20_end_where_its_three_modules_do(network, generator):
    """Whoever wrote it: 16, 32 and 64 channels at 32, 16 and 8 pixels, each just before the size changes."""
    teacher = teacher_of(network())
    places = stages(teacher)
    x = torch.randn(2, 3, 32, 32, generator=generator)
    _, maps = with_features(traced(teacher.network), places)(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    if network is resnet20:
        seen: list[Tensor] = []
        for stage in (teacher.network.stage1, teacher.network.stage2, teacher.network.stage3):
            stage.register_forward_hook(lambda _, args, out: seen.append(out))
        teacher(x)
        assert all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))


def test_resnet20_has_19_places_for_a_quantiser():
    """One after every ReLU, and the ends of the three stages are among them."""
    teacher = teacher_of(resnet20())
    names = quantize(teacher, "3w3a").activations()
    assert len(names) == 19
    assert [list(names).index(place) for place in stages(teacher)] == [6, 12, 18]


def test_p_and_q_are_looked_at_in_the_same_places(generator):
    """Q's features are what its quantisers there give out; logits and statistics are those of the plain forward."""
    game = tiny_game(zaq())
    x = torch.randn(3, *SHAPE, generator=generator)
    places = game.observed_teacher.stages
    seen: list[Tensor] = []
    hooks = [game.student.activations()[p].register_forward_hook(lambda _, args, out: seen.append(out)) for p in places]
    logits, maps = game._student_logits(x)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))
    with game.student.frozen():
        assert torch.equal(logits, game.student(x))
    z_p, statistics, f_p = game.observed_teacher.look(x)
    plain, expected = tiny_game().observed_teacher(x)
    assert torch.equal(z_p, plain)
    assert all(torch.equal(a, b) for m, n in zip(statistics, expected, strict=True) for a, b in zip(m, n, strict=True))
    assert [a.shape for a in f_p] == [b.shape for b in maps]


def test_looking_at_features_leaves_no_hook_and_no_second_copy():
    """The graph with features runs on the same modules; neither player has a hook, nor has Q more parameters in its file."""
    game, plain = tiny_game(zaq()), tiny_game()
    own = {id(p) for p in game.student.parameters()}
    assert {id(p) for p in game._observed_student.parameters()} == own
    assert list(game.student.state_dict()) == list(plain.student.state_dict())
    game.round()
    for player in (game.teacher, game.observed_teacher, game.student):
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in player.modules())


def test_a_network_without_feature_maps_is_refused():
    """In one line: there is nothing to compare."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(UserError, match="Sequential has no ReLU on feature maps") as caught:
        stages(wrap_teacher(network, input_shape=SHAPE, classes=CLASSES))
    assert "\n" not in str(caught.value)


def test_pooled_features_are_what_the_last_layer_sees(generator):
    """Of a ResNet: its logits are the linear layer of them."""
    teacher = tiny_teacher()
    pooled, width = pooled_features(teacher)
    x = torch.randn(4, *SHAPE, generator=generator)
    assert width == 64
    assert torch.allclose(teacher.network.linear(pooled(x)), teacher(x), atol=1e-5)


# Relations


def test_relation_maps_are_cosines_between_channels(generator):
    """By loops over samples and pairs of channels; the diagonal is 1."""
    f = features(generator, 2, 4, 3, 5)
    R = relation_map(f)
    for n in range(2):
        for i in range(4):
            for j in range(4):
                a, b = f[n, i].flatten().tolist(), f[n, j].flatten().tolist()
                dot = sum(u * v for u, v in zip(a, b, strict=True))
                cosine = dot / math.sqrt(sum(u * u for u in a) * sum(v * v for v in b))
                assert float(R[n, i, j]) == pytest.approx(cosine, rel=1e-12)


def test_relation_gaps_are_means_over_pairs_summed_over_stages(generator):
    """By hand: channels along the same axis have cosine 1, at right angles 0; two stages of 2x2 maps."""
    same = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]])
    apart = torch.tensor([[[[1.0, 0.0]], [[0.0, 3.0]]]])
    assert float(relation_gap((same,), (apart,))) == 0.5  # two of four pairs differ, by 1
    assert float(relation_gap((same, same), (apart, same))) == 0.5
    assert float(relation_gap((same, apart), (apart, same))) == 1.0
    maps = (features(generator, 2, 3, 4, 4), features(generator, 2, 5, 2, 2))
    assert float(relation_gap(maps, maps)) == 0.0


def test_a_dead_channel_has_no_direction_and_no_huge_gradient(generator):
    """At 3 bits channels round to zero; dividing by a small eps instead of their length would make gradients of 1e6."""
    f = features(generator, 2, 3, 4, 4)
    f[:, 1] = 0
    f.requires_grad_()
    R = relation_map(f)
    assert not R[:, 1].any()
    (gradient,) = torch.autograd.grad(relation_gap((features(generator, 2, 3, 4, 4),), (f,)), f)
    assert gradient.isfinite().all()
    assert float(gradient.abs().max()) < 1
    assert torch.equal(unit(torch.zeros(2, 3), 1), torch.zeros(2, 3))


def test_attention_by_loops(generator):
    """Both outputs of `attend`, entry by entry, from exponentials."""
    f = features(generator, 1, 3, 2, 2) + 0.1
    x = f[0].flatten(1)
    x = [[float(x[c, p]) / math.sqrt(sum(float(x[k, p]) ** 2 for k in range(3))) for p in range(4)] for c in range(3)]
    over_places, over_channels = (a[0] for a in attend(f))

    def softmax(row: list[float]) -> list[float]:
        e = [math.exp(v) for v in row]
        return [v / sum(e) for v in e]

    A = [softmax([sum(x[c][p] * x[c][q] for c in range(3)) for q in range(4)]) for p in range(4)]
    L = [[sum(x[i][p] * x[j][p] for p in range(4)) for j in range(3)] for i in range(3)]
    B = [softmax([max(row) - v for v in row]) for row in L]
    for c in range(3):
        for p in range(4):
            places = x[c][p] + 0.1 * sum(A[p][q] * x[c][q] for q in range(4))
            channels = x[c][p] + 0.1 * sum(B[c][k] * x[k][p] for k in range(3))
            assert float(over_places[c, p]) == pytest.approx(places, rel=1e-12)
            assert float(over_channels[c, p]) == pytest.approx(channels, rel=1e-12)
    other = features(generator, 1, 3, 2, 2) + 0.1
    expected = sum(float((a - b).abs().mean()) for a, b in zip(attend(f), attend(other), strict=True))
    assert float(attention_gap((f, f), (other, f))) == pytest.approx(expected)


@pytest.mark.parametrize("gap", [relation_gap, attention_gap])
def test_gradients_of_gaps_are_finite_differences(gap, generator):
    """In float64, with respect to both players' features."""
    p, q = (features(generator, 2, 3, 2, 3).add(0.05).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: gap((a,), (b,)), (p, q))
