"""Qimera: what superpositions are, and what the generator makes of them."""

import dataclasses

import pytest
import torch
from helpers.tiny_games import CLASSES, SHAPE, WARMUP, double, play, spy, state, tiny_game, tiny_teacher
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.qimera import (
    MixedBatchNorm2d,
    SuperposedEmbedding,
    SuperposedGenerator,
    last_layer,
    qimera,
    superposition,
)
from adadfq_lab.teacher.teacher import Teacher


def draws(method, n, classes, count, latent=6):
    random = torch.Generator().manual_seed(0)
    return [method.sample(random, n, latent, classes) for _ in range(count)]


# Labels


@pytest.mark.parametrize(("K", "classes"), [(1, 5), (2, 10), (10, 100), (7, 5), (100, 1000)])
def test_soft_labels_are_probabilities_of_at_most_k_classes(K, classes, generator):
    """Each row sums to 1 and has 1 to K classes, each class as likely as any other."""
    z, y = superposition(generator, 400, 3, classes, K)
    assert z.shape == (400, min(K, classes), 3)
    torch.testing.assert_close(y.sum(1), torch.ones(400))
    assert bool((y >= 0).all())
    assert set((y > 0).sum(1).tolist()) <= set(range(1, K + 1))
    # the mean of 400 labels of one class or more: deviation at most sqrt(1 / classes / 400)
    assert float((y.mean(0) - 1 / classes).abs().max()) < 5 * (1 / classes / 400) ** 0.5


def test_weights_of_two_classes_are_a_softmax_of_normal_numbers(generator):
    """w = 1/(1 + exp(a - b)) with a - b of variance 2: log(w/(1 - w)) has mean 0 and variance 2."""
    _, y = superposition(generator, 20_000, 1, 1000, 2)
    y = y[(y > 0).sum(1) == 2].topk(2, 1).values
    odds = (y[:, 0] / y[:, 1]).log()  # the larger over the smaller: the modulus
    assert float(odds.square().mean()) == pytest.approx(2, rel=0.05)


def test_whole_batches_are_mixed_with_probability_p():
    """p = 0: never, 1: always, 0.4: of 400 batches 160, give or take 4 deviations of 10; others are drawn as GDFQ's."""
    shares = {p: sum(y.dim() == 2 for _, y in draws(qimera(2, p), 3, 4, 400)) for p in (0.0, 0.4, 1.0)}
    assert shares[0.0] == 0
    assert shares[1.0] == 400
    assert abs(shares[0.4] - 160) < 40
    z, y = draws(qimera(2, 0.0), 3, 4, 1)[0]
    assert (z.shape, y.shape, y.dtype) == ((3, 6), (3,), torch.int64)


@pytest.mark.parametrize(("classes", "K"), [(10, 2), (11, 10), (100, 10), (1000, 100)])
def test_k_follows_the_number_of_classes(classes, K):
    """2, 10 and 100 as in the released scripts for CIFAR-10, CIFAR-100 and most of ImageNet."""
    assert draws(qimera(p=1.0), 2, classes, 1)[0][0].shape[1] == K


@pytest.mark.parametrize("wrong", [{"p": 1.5}, {"p": -0.1}, {"K": 0}])
def test_constants_that_make_no_sense_are_refused(wrong):
    """In one line."""
    with pytest.raises(UserError, match="0 <= p <= 1 and a whole number K >= 1"):
        qimera(**wrong)


# Latents


def standardized(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / (var + 1e-5) ** 0.5 for v in values]


@pytest.mark.parametrize("noise", [0.0, 1.0, 0.5])
def test_latents_of_superpositions_by_hand(noise, generator):
    """sum_k w_k norm(e_k + noise z_k), the largest weight with the first z."""
    made = SuperposedEmbedding(4, 5, noise=noise, norm="per-sample")
    y, z = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0]]), torch.randn(2, 3, 5, generator=generator)
    for i, slots in enumerate(([(2, 0.6), (3, 0.3), (0, 0.1)], [(1, 1.0)])):
        expected = [0.0] * 5
        for k, (label, weight) in enumerate(slots):
            e = standardized((made.table.weight[label] + noise * z[i, k]).tolist())
            expected = [a + weight * b for a, b in zip(expected, e, strict=True)]
        assert made(z, y)[i].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_per_slot_each_slot_is_standardised_over_batch_and_features(generator):
    """As released for superpositions; single labels are standardised over their features there too."""
    made = SuperposedEmbedding(4, 5, noise=1.0, norm="per-slot")
    z, y = torch.randn(3, 2, 5, generator=generator), torch.tensor([[0.75, 0.25, 0, 0], [0, 0.6, 0.4, 0], [0, 0, 0.1, 0.9]])
    slots = [(0, 1), (1, 2), (3, 2)]
    first, second = (
        torch.tensor(standardized([v for i in range(3) for v in (made.table.weight[slots[i][k]] + z[i, k]).tolist()])).view(
            3, 5
        )
        for k in (0, 1)
    )
    expected = torch.tensor([0.75, 0.6, 0.9])[:, None] * first + torch.tensor([0.25, 0.4, 0.1])[:, None] * second
    torch.testing.assert_close(made(z, y), expected)
    single = SuperposedEmbedding(4, 5, noise=1.0, norm="per-sample")
    single.load_state_dict(made.state_dict())
    assert torch.equal(made(z[:, 0], torch.eye(4)[:3]), single(z[:, 0], torch.eye(4)[:3]))


@pytest.mark.parametrize(("K", "rms"), [(1, 1.0), (2, 0.80), (10, 0.45), (50, 0.23)])
def test_latents_of_many_classes_are_small(K, rms, generator):
    """Independent standardised embeddings add up in squares: E[sum w_k^2] is 1 for one class and falls with K."""
    torch.manual_seed(0)
    made = SuperposedEmbedding(1000, 64, noise=1.0, norm="per-sample")
    latents = made(*superposition(generator, 400, 64, 1000, K)).detach()
    assert float(latents.square().mean().sqrt()) == pytest.approx(rms, abs=0.02)


def test_mixed_batch_norm_by_hand():
    """A channel -1, 1 of scales 2, 3 and shifts 10, 20: with weights 1/4, 3/4 the scale is 2.75, the shift 17.5; the mean over
    two slots halves both."""
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    y = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    for mix, factor in (("sum", 1.0), ("mean", 0.5)):
        norm = MixedBatchNorm2d(1, 2, 1e-9, mix)
        with torch.no_grad():
            norm.scale.copy_(torch.tensor([[2.0], [3.0]]))
            norm.shift.copy_(torch.tensor([[10.0], [20.0]]))
        torch.testing.assert_close(norm(x, y, 2).flatten(), factor * torch.tensor([17.5 - 2.75, 10.0 + 2.0]))


# Images


@pytest.mark.parametrize(("dm", "count"), [(False, 762_627), (True, 1_064_039)])
def test_parameter_counts_of_the_cifar100_generator(dm, count):
    """762,627 without the disentanglement mapping, 1,064,039 with it."""
    with torch.device("meta"):
        made = SuperposedGenerator(100, (3, 32, 32), 64, dm=dm)
    assert sum(p.numel() for p in made.parameters()) == count


def image_deviation(K: int, mix: str) -> float:
    """Of a channel of new images of 72 pixels, with the released eps; the largest of three."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    made = SuperposedGenerator(1000, (3, 72, 72), 512, mix=mix, dm=False, noise=0.0, eps=0.8)
    z, y = superposition(random, 4, 512, 1000, K)
    return float(made(z, y).detach().std((0, 2, 3)).max())


@pytest.mark.parametrize("K", [1, 2, 100, 500])
def test_a_sum_of_class_norms_keeps_images_of_deviation_1(K):
    """Of one class or of five hundred."""
    assert image_deviation(K, "sum") == pytest.approx(1, abs=0.05)


def test_a_mean_of_class_norms_blanks_images_of_many_classes():
    """The released mean makes scale and shift K times smaller, three times over: of 100 classes nothing is left to see."""
    assert image_deviation(1, "mean") == pytest.approx(1, abs=0.05)
    assert image_deviation(2, "mean") == pytest.approx(0.97, abs=0.02)
    assert image_deviation(100, "mean") == pytest.approx(3e-5, rel=0.2)
    assert image_deviation(500, "mean") == pytest.approx(4e-7, rel=0.5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 72, 68)])
@pytest.mark.parametrize("mix", ["sum", "mean"])
def test_a_label_is_a_superposition_of_one(shape, mix, generator):
    """Hard labels and their one-hot rows make the same images, small or large."""
    torch.manual_seed(0)
    made = SuperposedGenerator(5, shape, 16, mix=mix)
    z, y = torch.randn(4, 16, generator=generator), torch.tensor([4, 0, 2, 2])
    images = made(z, y)
    assert images.shape == (4, *shape)
    assert torch.equal(images, made(z, torch.eye(5)[y]))
    torch.testing.assert_close(images, made(z[:, None], torch.eye(5)[y]))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 72, 72)])
def test_every_parameter_moves_the_image(shape, generator):
    """Embeddings, mapping and class tables included; only a constant added before a batch norm does not."""
    torch.manual_seed(0)
    made = SuperposedGenerator(4, shape, 16)
    images = made(*superposition(generator, 6, 16, 4, 3))
    (images * torch.randn(images.shape, generator=generator)).sum().backward()
    for name, parameter in made.named_parameters():
        cancels = name in ("up1.bias", "up2.bias")
        assert parameter.grad is not None
        assert cancels or float(parameter.grad.abs().max()) > 1e-6, name


def test_sides_that_are_no_multiples_of_four_are_cut(generator):
    """It makes 32 x 32 and cuts 30 x 31 out of them."""
    made = SuperposedGenerator(5, (3, 30, 31), 16)
    assert made(torch.randn(4, 16, generator=generator), torch.arange(4)).shape == (4, 3, 30, 31)


# The teacher's part


def convolutional_teacher() -> Teacher:
    """A teacher whose classifier is a 1x1 convolution, as MobileNetV2's is here."""
    network = nn.Sequential(
        nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Teacher(network, tiny_teacher().info)


def test_embeddings_may_start_as_the_teachers_last_layer():
    """Row y is P's weight for class y, for a Linear and for a 1x1 convolution; a copy, which leaves P alone when it learns."""
    for teacher, rows in (
        (tiny_teacher(), tiny_teacher().network.linear.weight),
        ((other := convolutional_teacher()), other.network[2].weight.flatten(1)),
    ):
        made = qimera(extracted=True).build_generator(teacher, FIDELITY["corrected"])
        assert torch.equal(made.embedding.table.weight, rows)
        assert made.embedding.table.weight.requires_grad
        assert made.embedding.table.weight.data_ptr() != last_layer(teacher).data_ptr()
        assert made.latent == rows.shape[1]
        random = qimera(extracted=False).build_generator(teacher, FIDELITY["corrected"])
        assert not torch.equal(random.embedding.table.weight, rows)
        assert random.latent == rows.shape[1]


def test_a_teacher_without_such_a_layer_is_refused():
    """Its network is named."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(UserError, match="Sequential has no Linear layer or 1x1 convolution with 5 outputs"):
        tiny_game(qimera(), teacher=Teacher(network, tiny_teacher().info))


def test_fidelity_decides_the_mapping_the_norms_and_their_mixing():
    """Each switch alone changes the one thing it names."""
    f, teacher = FIDELITY["corrected"], tiny_teacher(shape=(2, 68, 68))

    def made(**choice: object) -> SuperposedGenerator:
        return qimera().build_generator(teacher, dataclasses.replace(f, **choice))

    assert isinstance(made(use_dm=True).mapping, nn.Linear)
    assert isinstance(made(use_dm=False).mapping, nn.Identity)
    assert {made(cbn_mix=mix).norm1.mix for mix in ("sum", "mean")} == {"sum", "mean"}
    assert {made(embedding_norm=n).embedding.norm for n in ("per-sample", "per-slot")} == {"per-sample", "per-slot"}
    eps = made(generator_bn_eps=0.8)
    assert [norm.norm.eps for norm in (eps.norm0, eps.norm1, eps.norm2)] == [1e-5, 0.8, 0.8]


# The game


def test_a_game_plays_single_and_mixed_batches_and_makes_images_of_labels():
    """Both kinds occur, P and Q hear of the soft label, and `generate` takes classes."""
    seen: list[Round] = []
    game = play(tiny_game(spy(qimera(p=0.5), seen), student_lr=1e-4), 8)
    assert {r.labels.dim() for r in seen} == {1, 2}
    assert all(r.labels.shape == (4, CLASSES) for r in seen if r.labels.dim() == 2)
    before = state(game)
    images = game.generate(torch.arange(CLASSES))
    assert images.shape == (CLASSES, *SHAPE)
    assert all(torch.equal(v, state(game)[k]) for k, v in before.items())


def test_a_game_in_float64_plays_superpositions():
    """Soft labels have the game's precision; the soft cross-entropy is that of the formula."""
    seen: list[Round] = []
    game = double(tiny_game(spy(qimera(p=1.0), seen)))
    record = play_one(game, WARMUP + 1)
    r = seen[-1]
    assert r.labels.dtype == torch.float64
    expected = -(r.labels * r.student_logits.log_softmax(1)).sum(1).mean()
    assert float(record["student.label"]) == pytest.approx(float(expected.detach()), rel=1e-12)


def play_one(game, rounds: int) -> dict[str, Tensor]:
    return list(game.play(rounds))[-1].terms
