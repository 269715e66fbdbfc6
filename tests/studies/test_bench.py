"""The benchmark: what it times is the same mathematics, and its floor is the convolutions of a round and nothing else."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_games import BATCH, play, tiny_teacher
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from adadfq_lab.game.game import Game
from adadfq_lab.studies import bench
from adadfq_lab.studies.bench import Bench, Floor, Textbook, relative_difference
from adadfq_lab.teacher.networks import resnet8


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("bits", ["3w3a", "5w4a"])
def test_the_round_is_the_textbook_round(bits, careful):
    """Every loss term and every weight after the step, in float64."""
    assert relative_difference(tiny_teacher(), BATCH, bits, careful=careful) < 1e-5


def unbiased(self: Textbook, module: Any, inputs: Any, output: Any) -> None:
    statistics = bench.BatchStatistics(
        inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)), module.running_mean, module.running_var
    )
    self.statistics.append(statistics)


def floored(self: Any, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    q = torch.clamp(torch.floor(x / scale + zero_point), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return x + ((q - zero_point) * scale - x).detach()


def bilinear(conv: Any, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear"), conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [(Textbook, "_observe", unbiased), (bench._Ste, "grid", floored), (bench, "_direct_upsample", bilinear)],
    ids=["variance", "quantizer", "upsampling"],
)
def test_a_round_that_is_another_is_noticed(owner, name, wrong, monkeypatch):
    """With one piece of the textbook round replaced, the comparison fails: it looks."""
    monkeypatch.setattr(owner, name, wrong)
    assert relative_difference(tiny_teacher(), BATCH, "3w3a") > 1e-4


def test_comparing_leaves_the_teacher_alone():
    """It plays in float64 on a copy."""
    teacher = tiny_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    relative_difference(teacher, 2, "3w3a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


class Counter(TorchDispatchMode):
    """Counts the floating-point operations of convolutions, forward and backward; torch knows how many each takes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {torch.ops.aten.convolution: 0, torch.ops.aten.convolution_backward: 0}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if packet in self.counts:
            self.counts[packet] += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def convolutions(work: Any) -> list[int]:
    """Operations of the convolutions in `work()`, [forward, backward]."""
    with Counter() as counter:
        work()
    return list(counter.counts.values())


def a_game() -> Game:
    return play(bench._game(tiny_teacher(), BATCH, "3w3a"), 4)


def by_hand() -> int:
    """Multiply-adds, twice, of the forward convolutions: P and Q each, and G with its doubling as 4x4 kernels on small maps."""
    macs, side = 0, 8
    for conv in (m for m in resnet8(5, 2).modules() if isinstance(m, torch.nn.Conv2d)):
        if conv.stride == (2, 2) and conv.kernel_size == (3, 3):
            side //= 2
        macs += 2 * conv.weight.numel() * side**2
    small = 2
    macs += 16 * 128 * 128 * small**2 + 16 * 128 * 64 * (2 * small) ** 2 + 9 * 64 * 2 * 8**2
    return 2 * macs * BATCH


def test_the_floor_is_the_convolutions_of_a_round():
    """As many operations forward as counted by hand, and forward and backward as many as a round really does: none left out.

    The textbook round does more: Q's forward again, gradients to P's weights, and the doubled maps in full.
    """
    game = a_game()
    floor = convolutions(Floor(game))
    assert floor[0] == by_hand()
    assert convolutions(game.round) == floor
    textbook = convolutions(lambda: Textbook(game).round(*game.draw()))
    assert all(more > least for more, least in zip(textbook, floor, strict=True))


def test_a_floor_changes_nothing():
    """It runs on notes of a forward; neither player's weights or statistics move, and no hook stays."""
    game = a_game()
    floor = Floor(game)
    before = [tensor.clone() for m in (game.generator, game.student) for tensor in m.parameters()]
    floor()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (t for m in (game.generator, game.student) for t in m.parameters()), strict=True)
    )
    assert not [m for n in (game.generator, game.student, game.teacher) for m in n.modules() if m._forward_hooks]


def test_the_benchmark_measures_everything():
    """Medians above 0, and the agreement that makes them comparable."""
    found = bench.bench(tiny_teacher(), batch=2, rounds=1)
    assert isinstance(found, Bench)
    assert all(value > 0 for value in dataclasses.asdict(found).values())
    assert found.textbook_ratio == pytest.approx(found.textbook_ms / found.round_ms)
    assert found.floor_ratio == pytest.approx(found.round_ms / found.floor_ms)
    assert found.max_relative_difference < 1e-5
    assert found.threads == torch.get_num_threads()
