"""How fast is a round, and how fast could it be? `adadfq bench` answers in one process, interleaved.

Four things are timed on the same state and the same draws:

* `Game.round`, as played;
* a *textbook* round, straight from the paper in the obvious way: contiguous layout, gradients to everything, Q run twice,
  quantizers out of separate elementwise operations, statistics by hooks;
* a *careful* round, the same as a competent engineer writes it: P frozen, channels last, fused optimizers, Q run once;
* the *floor*: only the convolutions that any such round must do, with the generator's upsampling in its cheap form.

Before anything is timed, the rounds are played in float64 from one state and must agree in every loss and every weight: the
fast round is the same mathematics, or it does not count.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.equations import BatchStatistics
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.memory import peak
from adadfq_lab.methods.generators import UpsampleConv2d
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.registry import make_method
from adadfq_lab.student.layers import QuantConv2d, QuantLayer
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.teacher.teacher import Teacher


@dataclass(frozen=True)
class Bench:
    """Medians in milliseconds; `ratio`s are medians of the ratios of neighbouring measurements."""

    round_ms: float
    textbook_ms: float
    careful_ms: float
    floor_ms: float
    bf16_ms: float
    textbook_ratio: float
    careful_ratio: float
    floor_ratio: float
    peak_mb: float
    max_relative_difference: float
    threads: int


class _Ste(nn.Module):
    """x + (grid(x) - x).detach(): the quantizer as one writes it first."""

    def grid(self, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        q = torch.clamp(torch.round(x / scale + zero_point), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return x + ((q - zero_point) * scale - x).detach()


class _TextbookLayer(_Ste):
    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        flat = layer.weight.reshape(len(layer.weight), -1)
        low, high = flat.min(dim=1).values.clamp(max=0), flat.max(dim=1).values.clamp(min=0)
        scale = (high - low) / (2**layer.bits - 1)
        zero_point = -(2 ** (layer.bits - 1)) - torch.round(low / scale)
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        weight = self.grid(layer.weight, scale.view(shape), zero_point.view(shape), layer.bits)
        if isinstance(layer, QuantConv2d):
            out = layer.convolve(x, weight, layer.bias)
            return out if layer.bn is None else layer.bn(out)
        return F.linear(x, weight, layer.bias)  # type: ignore[arg-type]


class _TextbookActivation(_Ste):
    def __init__(self, activation: QuantActivation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.activation.relu == "relu" else F.relu6(x)
        scale, zero_point = self.activation.qparams()
        return self.grid(x, scale, zero_point, self.activation.bits)


def _direct_upsample(conv: UpsampleConv2d, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), conv.weight, conv.bias, padding=1)


def _swap(module: nn.Module, kind: type, make: Callable[[Any], nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, make(child))


class Textbook:
    """The game's round, written in the obvious way, on copies of the game's players and optimizers, after the observation.

    careful: with the usual optimisations
    """

    def __init__(self, game: Game, *, careful: bool = False) -> None:
        self.game, self.careful = game, careful
        layout = torch.channels_last if careful else torch.contiguous_format
        self.teacher = copy.deepcopy(game.teacher.network).requires_grad_(not careful).to(memory_format=layout)
        self.generator = copy.deepcopy(game.generator).to(memory_format=layout)
        self.student = copy.deepcopy(game.student).to(memory_format=layout)
        if not careful:
            # The fast generator lays its first map out channels last, and convolutions keep that: undo it.
            self.generator.get_submodule("norm0").register_forward_hook(lambda module, inputs, out: out.contiguous())
        self.statistics: list[BatchStatistics] = []
        for module in self.teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._observe)
        _swap(self.student.graph, QuantLayer, _TextbookLayer)
        _swap(self.student.graph, QuantActivation, _TextbookActivation)
        for module in self.generator.modules():
            if isinstance(module, UpsampleConv2d):
                module.forward = partial(_direct_upsample, module)  # type: ignore[method-assign]
        how = {"fused": True} if careful else {"foreach": False}
        self.adam = torch.optim.Adam(self.generator.parameters(), game.rates.generator_lr, betas=(0.5, 0.999), **how)
        self.sgd = torch.optim.SGD(
            self.student.parameters(), game.rates.student_lr, momentum=0.9, weight_decay=1e-4, nesterov=True, **how
        )
        for mine, its in ((self.adam, game.generator_optimizer), (self.sgd, game.student_optimizer)):
            mine.load_state_dict({**copy.deepcopy(its.state_dict()), "param_groups": mine.state_dict()["param_groups"]})
            for parameter, state in mine.state.items():  # a fused step requires that both have the same memory layout
                state |= {k: torch.empty_like(parameter).copy_(v) for k, v in state.items() if v.shape == parameter.shape}

    def _observe(self, module: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean(dim=(0, 2, 3))
        var = x.var(dim=(0, 2, 3), correction=0)
        assert module.running_mean is not None and module.running_var is not None
        self.statistics.append(BatchStatistics(mean, var, module.running_mean, module.running_var))

    def round(self, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        game = self.game
        self.statistics.clear()
        x = self.generator(z, y)
        z_p, z_q = self.teacher(x), self.student(x)
        r = Round(game.index, x, y, z_p, z_q, self.statistics, game.bounds, game.fidelity)
        terms_g = game.method.generator_loss(r)
        self.adam.zero_grad()
        # Without `inputs` gradients go to everything.
        only = {"inputs": list(self.generator.parameters()), "retain_graph": True} if self.careful else {}
        sum(terms_g.values(), torch.zeros(())).backward(**only)
        if not self.careful:
            self.adam.step()
            x, z_p = x.detach(), z_p.detach()
            r = Round(game.index, x, y, z_p, self.student(x), self.statistics, game.bounds, game.fidelity)
        terms_q = game.method.student_loss(r)
        self.sgd.zero_grad()
        only = {"inputs": [p for p in self.student.parameters() if p.requires_grad]} if self.careful else {}
        sum(terms_q.values(), torch.zeros(())).backward(**only)
        if self.careful:
            self.adam.step()
        self.sgd.step()
        return {f"generator.{k}": v for k, v in terms_g.items()} | {f"student.{k}": v for k, v in terms_q.items()}


class Floor:
    """The convolutions of a round and nothing else, on tensors of the right shapes and layout."""

    def __init__(self, game: Game) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, list[Any], list[list[bool]]]] = []
        z, y = game.draw()
        with torch.no_grad():
            x = self._record(game.generator, (z, y), [[True, True]], [[True, True]])
            self._record(game.teacher.network, (x,), [[True, False]], [[True, False]])
            self._record(game.student, (x,), [[True, False], [False, True]], [[True, False], [True, True]])

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], first: list[list[bool]], rest: list[list[bool]]) -> Tensor:
        """Notes every convolution of a forward: its operands, and the backward passes it needs as [input?, weight?]."""
        handles, seen = [], []

        def note(m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            assert isinstance(m, nn.Conv2d | QuantConv2d)
            weight = m.weight.detach()
            transposed = isinstance(m, UpsampleConv2d)
            if transposed:
                assert isinstance(m, UpsampleConv2d)
                weight = m.kernel()
            weight = weight.contiguous(memory_format=torch.channels_last)
            stride, padding = (2, 2) if transposed else m.stride, m.padding
            seen.append((args[0], weight, torch.ones_like(out), [stride, padding, m.dilation, transposed, (0, 0), m.groups]))

        for m in module.modules():
            if isinstance(m, nn.Conv2d | QuantConv2d):
                handles.append(m.register_forward_hook(note))
        out: Tensor = module(*inputs)
        for handle in handles:
            handle.remove()
        self.calls += [(*call, first if i == 0 else rest) for i, call in enumerate(seen)]
        return out

    def __call__(self) -> None:
        for x, weight, gradient, options, passes in self.calls:
            torch.ops.aten.convolution(x, weight, None, *options)
            for mask in passes:
                torch.ops.aten.convolution_backward(gradient, x, weight, None, *options, [*mask, False])


def _game(teacher: Teacher, batch: int, bits: str, precision: Any = "float32") -> Game:
    schedule = Schedule(batch=batch, warmup=0, observe=3)
    return Game(teacher, quantize(teacher, bits), make_method("adadfq"), schedule=schedule, precision=precision)


def relative_difference(teacher: Teacher, batch: int, bits: str, *, careful: bool = False) -> float:
    """The largest relative difference of the fast from the textbook (or careful) round, in loss terms and weights, in float64.

    Weights are compared tensor by tensor: |difference| / |tensor| in the 2-norm.
    """
    game = _game(copy.deepcopy(teacher), batch, bits)
    for module in (game.generator, game.student, game.observed_teacher, game.teacher):
        module.double()
    for _ in game.play(6):
        pass
    textbook = Textbook(game, careful=careful)
    state = game.random.get_state()
    expected = textbook.round(*game.draw())
    game.random.set_state(state)
    record = game.round()
    pairs = [(record.terms[name], value) for name, value in expected.items()]
    pairs += list(zip(game.generator.parameters(), textbook.generator.parameters(), strict=True))
    pairs += list(zip(game.student.parameters(), textbook.student.parameters(), strict=True))
    return max(float((a - b).detach().norm() / b.detach().norm().clamp(min=1e-12)) for a, b in pairs)


def _interleaved(kinds: list[Callable[[], object]], rounds: int, *, warm: int = 2) -> list[list[float]]:
    """Milliseconds of each of `kinds`, one after the other in turn, `rounds` times; the first `warm` turns do not count."""
    times: list[list[float]] = [[] for _ in kinds]
    for i in range(warm + rounds):
        for kind, milliseconds in zip(kinds, times, strict=True):
            started = time.perf_counter()
            kind()
            if i >= warm:
                milliseconds.append(1e3 * (time.perf_counter() - started))
    return times


def textbook_seconds(teacher: Teacher, *, batch: int = 16, bits: str = "3w3a", rounds: int = 5) -> float:
    """The median time of `rounds` textbook rounds, in seconds."""
    game = _game(teacher, batch, bits)
    for _ in game.play(4):
        pass
    textbook = Textbook(game)
    return median(_interleaved([lambda: textbook.round(*game.draw())], rounds)[0]) / 1e3


def bench(teacher: Teacher, *, batch: int = 16, bits: str = "3w3a", rounds: int = 20) -> Bench:
    """Times `rounds` rounds of each kind, one after the other in turn, after checking that they agree."""
    if rounds < 1:
        raise UserError(f"rounds must be at least 1, not {rounds}")
    game = _game(teacher, batch, bits)
    for _ in game.play(10):
        pass
    held = peak(game.device)
    difference = max(relative_difference(teacher, batch, bits, careful=careful) for careful in (False, True))
    others = [Textbook(game), Textbook(game, careful=True)]
    written = [lambda other=other: other.round(*game.draw()) for other in others]
    fast, slow, careful, least = _interleaved([game.round, *written, Floor(game)], rounds)
    # Apart from the others, and only a round or two: a processor without bf16 arithmetic takes many times as long.
    (low,) = _interleaved([_game(teacher, batch, bits, "bf16").round], min(rounds, 2), warm=1)
    return Bench(
        round_ms=median(fast),
        textbook_ms=median(slow),
        careful_ms=median(careful),
        floor_ms=median(least),
        bf16_ms=median(low),
        textbook_ratio=median(b / a for a, b in zip(fast, slow, strict=True)),
        careful_ratio=median(b / a for a, b in zip(fast, careful, strict=True)),
        floor_ratio=median(a / b for a, b in zip(fast, least, strict=True)),
        peak_mb=held,
        max_relative_difference=difference,
        threads=torch.get_num_threads(),
    )
