"""Logits and batch-norm statistics from one forward, against hooks and torch.var_mean in float64."""

import copy

import pytest
import torch
from helpers.networks import CHANNELS, SIDE, HasANetwork, NoNorm, NormWithoutAffine, NormWithoutMemory, ResidualAdd, randomize
from torch import Tensor, nn
from torch.autograd import gradcheck

from adadfq_lab.equations import BatchStatistics, loss_bns
from adadfq_lab.errors import UserError
from adadfq_lab.teacher.networks import resnet8, resnet20
from adadfq_lab.teacher.statistics import MomentsBatchNorm, WithStatistics
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo


class EveryDimension(nn.Module):
    """Batch norm over (N, C), (N, C, L), (N, C, H, W) and (N, C, D, H, W); the last one's output is the logits'."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2d, self.norm1d, self.norm3d, self.norm0d = (
            nn.BatchNorm2d(4),
            nn.BatchNorm1d(4),
            nn.BatchNorm3d(4),
            nn.BatchNorm1d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2d(x).tanh()
        x = self.norm1d(x.flatten(2)).tanh()
        x = self.norm3d(x.unflatten(2, (4, 4, 4))).tanh()
        return self.norm0d(x.square().mean((2, 3, 4)))


NETWORKS = {
    "resnet8": lambda: (resnet8(), (4, 3, 16, 16)),
    "residual": lambda: (ResidualAdd(), (4, CHANNELS, SIDE, SIDE)),
    "without affine": lambda: (NormWithoutAffine(), (4, CHANNELS, SIDE, SIDE)),
    "every dimension": lambda: (EveryDimension(), (4, 4, 8, 8)),
}


def textbook(network: nn.Module, x: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
    """What the papers' code does: a hook on every batch norm, the mean and the biased variance of its input."""
    found = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (u,) = inputs
        axes = [axis for axis in range(u.dim()) if axis != 1]
        var, mean = torch.var_mean(u, axes, correction=0)
        found.append(BatchStatistics(mean, var, norm.running_mean, norm.running_var))

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    hooks = [module.register_forward_pre_hook(note) for module in network.modules() if isinstance(module, norms)]
    logits = network(x)
    for hook in hooks:
        hook.remove()
    return logits, found


def functional(logits: Tensor, statistics: list[BatchStatistics], generator: torch.Generator) -> Tensor:
    """A scalar in which every logit, mean and variance has a weight of its own."""
    total = logits.new_zeros(())
    for value in (logits.log_softmax(1), *(part for layer in statistics for part in layer[:2])):
        total = total + (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
        total = total + value.square().mean()
    return total


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_statistics_are_those_of_hooks(name, generator):
    """One forward gives P's logits and, layer by layer, the mean and biased variance of each batch norm's input."""
    network, shape = NETWORKS[name]()
    network = randomize(network, generator).double().requires_grad_(False)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits, statistics = WithStatistics(network)(x)
    expected_logits, expected = textbook(network, x)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
    assert len(statistics) == len(expected)
    for layer, other in zip(statistics, expected, strict=True):
        for one, two in zip(layer, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_any_functional_is_that_of_hooks(name, generator):
    """The gradient with respect to the images of a functional of all logits, means and variances is float64 autograd's."""
    network, shape = NETWORKS[name]()
    network = randomize(network, generator).double().requires_grad_(False)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = generator.get_state()
    (ours,) = torch.autograd.grad(functional(*WithStatistics(network)(x), generator), x)
    generator.set_state(weights)
    (theirs,) = torch.autograd.grad(functional(*textbook(network, x), generator), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_gradient_of_bns_alone_is_that_of_hooks(generator):
    """L_BNS by itself, which the last batch norm's output has no part in, has the same gradient too."""
    network = randomize(resnet8(), generator).double().requires_grad_(False)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(loss_bns(WithStatistics(network)(x)[1]), x)
    (theirs,) = torch.autograd.grad(loss_bns(textbook(network, x)[1]), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 5), (3, 3, 2, 4), (2, 3, 2, 2, 2)])
def test_gradients_are_finite_differences(shape, generator):
    """d(value, mean, variance)/du of one batch norm equals central differences in float64, for inputs of any dimension."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    norm = MomentsBatchNorm(randomize(kind(3), generator).double())
    u = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def outputs(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = norm(u)
        assert norm.moments is not None
        return y, norm.moments.mean, norm.moments.var

    assert gradcheck(outputs, (u,))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1000.0, 1.0), (1e-4, 1e-6), (-3e4, 50.0), (0.0, 1e4)])
def test_variance_does_not_cancel_where_the_batch_is_as_the_training_data(mean, deviation, generator):
    """In float32, with running mean and deviation (mean, deviation), a batch 3 deviations off has its variance to 1e-5."""
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(deviation**2)
    u = mean + deviation * (3 + torch.randn(16, 4, 8, 8, generator=generator))
    exact_var, exact_mean = torch.var_mean(u.double(), (0, 2, 3), correction=0)
    moments_norm = MomentsBatchNorm(norm)
    moments_norm(u)
    torch.testing.assert_close(moments_norm.moments.var.double(), exact_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(moments_norm.moments.mean.double(), exact_mean, rtol=1e-6, atol=1e-6 * deviation)


@pytest.mark.parametrize("k", [1, 3, 10, 30, 100])
def test_variance_far_from_the_training_data_loses_digits_as_predicted(k, generator):
    """A batch k deviations from the running mean has its float32 variance within 8 k^2 2^-24: half a percent for k = 100."""
    norm = MomentsBatchNorm(nn.BatchNorm2d(4).eval())
    u = k + torch.randn(16, 4, 8, 8, generator=generator)
    norm(u)
    exact = u.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.moments.var.double(), exact, rtol=8 * k * k * 2**-24, atol=0)


def test_the_teacher_itself_is_left_alone(generator):
    """P keeps its batch norms, weights and modes, and the copy has no parameter that requires a gradient."""
    network = randomize(resnet8(), generator)
    before = copy.deepcopy(network.state_dict())
    both = WithStatistics(network)
    both(torch.randn(4, 3, 8, 8, generator=generator))
    assert not any(isinstance(module, MomentsBatchNorm) for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in both.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_statistics_belong_to_their_forward(generator):
    """Each call returns its own statistics, and keeps none: memory does not grow with rounds."""
    both = WithStatistics(randomize(resnet8(), generator))
    x = torch.randn(4, 3, 8, 8, generator=generator, requires_grad=True)
    first, second = both(x)[1], both(2 * x)[1]
    assert len(first) == len(second) == 9
    torch.testing.assert_close(second[0].mean, 2 * first[0].mean)
    assert all(module.moments is None for module in both.modules() if isinstance(module, MomentsBatchNorm))


def test_a_resnet20_has_21_layers_of_statistics():
    """M = 21 batch norms of widths 16, 32 and 64: 688 channels in all."""
    with torch.device("meta"):
        statistics = WithStatistics(resnet20())(torch.empty(2, 3, 32, 32))[1]
    assert len(statistics) == 21
    assert sum(len(layer.mean) for layer in statistics) == 7 * 16 + 7 * 32 + 7 * 64
    assert {len(part) for layer in statistics for part in layer} == {16, 32, 64}


def test_only_a_teacher_is_unwrapped(generator):
    """A Teacher's statistics are its network's; another module with an attribute `network` is taken whole."""
    network = randomize(resnet8(), generator).requires_grad_(False)
    info = TeacherInfo("t", "resnet8", "d", ("a",) * 10, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    x = torch.randn(4, 3, 8, 8, generator=generator)
    torch.testing.assert_close(WithStatistics(Teacher(network, info))(x)[0], network(x))
    whole = randomize(HasANetwork(), generator)
    whole.network, whole.norm = nn.Sequential(nn.BatchNorm2d(CHANNELS)), nn.BatchNorm2d(CHANNELS)
    x = torch.randn(2, CHANNELS, SIDE, SIDE, generator=generator)
    logits, statistics = WithStatistics(whole)(x)
    assert len(statistics) == 1  # its batch norm `norm` is never called
    torch.testing.assert_close(logits, whole.eval()(x))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (NoNorm(), "NoNorm has no batch norm"),
        (NormWithoutMemory(), "keeps no running statistics"),
    ],
    ids=["none", "no memory"],
)
def test_a_teacher_that_remembers_nothing_is_refused(network, reason):
    """Without batch norm, or without its running statistics, there is no L_BNS: one line says so."""
    with pytest.raises(UserError, match=reason) as error:
        WithStatistics(network)
    assert len(str(error.value).splitlines()) == 1
