"""What a game computes depends on nothing that a cell has set in torch, and sets nothing there."""

from contextlib import contextmanager

import pytest
import torch
from helpers.tiny_games import changed, play, state, tiny_game, tiny_teacher

from adadfq_lab.machine.torch_state import usual_torch
from adadfq_lab.teacher.teacher_files import load_teacher


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
        assert torch.empty(1).device.type == "meta"
    finally:
        torch.set_default_device(None)


@contextmanager
def products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


FOUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "dtype": default_dtype,
    "device": default_device,
    "products": products,
}


@pytest.mark.parametrize("found", FOUND)
def test_a_game_is_the_same_whatever_it_finds(found):
    """Built, played and measured within an autocast, without gradients, in inference mode, with other defaults."""
    teacher = tiny_teacher()
    wanted = state(play(tiny_game(teacher=teacher, gains_every=2), 4))
    with FOUND[found]():
        game = play(tiny_game(teacher=teacher, gains_every=2), 4)
        loaded = load_teacher("fashion_mnist_resnet20").state_dict()
    assert changed(wanted, state(game)) == set()
    assert changed(load_teacher("fashion_mnist_resnet20").state_dict(), loaded) == set()


def test_usual_torch_is_left_as_it_was_found_after_an_error():
    """Also where it is entered twice."""
    with default_dtype(), torch.no_grad():
        with pytest.raises(ZeroDivisionError), usual_torch(), usual_torch():
            assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
            raise ZeroDivisionError
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
