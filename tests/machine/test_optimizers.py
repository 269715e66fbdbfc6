"""Optimizers without torch's compiler: the same arithmetic as torch's own, and no import of what a kernel need not carry."""

import subprocess
import sys

import pytest
import torch

from adadfq_lab.machine import optimizers

KINDS = {
    "Adam": (optimizers.Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.999), "fused": True}),
    "SGD": (optimizers.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
}


def play(kind, options, generator, steps=5):
    """(parameters, state) after some steps on a quadratic, with gradients from a seed."""
    generator.manual_seed(3)
    parameters = [torch.randn(4, 3, generator=generator).requires_grad_(), torch.randn(2, generator=generator).requires_grad_()]
    optimizer = kind(parameters, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(((p - torch.rand(p.shape, generator=generator)) ** 2).sum() for p in parameters).backward()
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("name", KINDS)
def test_same_bits_as_torch(name, generator):
    """Parameters and state after five steps are torch's, bit for bit, and no gradient is recorded through a step."""
    mine, theirs, options = KINDS[name]
    (ours, optimizer), (wanted, reference) = play(mine, options, generator), play(theirs, options, generator)
    assert all(torch.equal(a, b) and a.is_leaf for a, b in zip(ours, wanted, strict=True))
    state, expected = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert state.keys() == expected.keys()
    for i in state:
        assert all(torch.equal(state[i][k], v) if v is not None else state[i][k] is None for k, v in expected[i].items())


@pytest.mark.parametrize("name", KINDS)
def test_state_is_loaded_from_torch(name, generator):
    """A state dict of torch's optimizer goes on where it stopped."""
    mine, theirs, options = KINDS[name]
    _, reference = play(theirs, options, generator)
    _, optimizer = play(mine, options, generator, steps=0)
    optimizer.load_state_dict(reference.state_dict())
    assert str(optimizer.state_dict()) == str(reference.state_dict())


def test_backward_is_torch_backward(generator):
    """The gradient reaches the parameters bit for bit as y.backward(gradient) brings it, an infinite entry included."""
    w = torch.randn(3, 4, generator=generator)
    gradient = torch.randn(5, 4, generator=generator)
    gradient[0, 0] = float("inf")
    x = torch.randn(5, 3, generator=generator)
    one, other = (w.clone().requires_grad_() for _ in range(2))
    optimizers.backward((x @ one).tanh(), gradient)
    (x @ other).tanh().backward(gradient)
    assert torch.equal(one.grad.nan_to_num(7), other.grad.nan_to_num(7))


def test_a_game_imports_no_compiler():
    """After a few rounds of a game torch's compiler, sympy and triton are not in the process."""
    code = """
import sys
sys.path.insert(0, "tests")
from helpers.live_games import tiny_game
list(tiny_game().play(3))
sys.exit(", ".join(name for name in ("torch._dynamo", "sympy", "triton", "torchvision") if name in sys.modules) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
