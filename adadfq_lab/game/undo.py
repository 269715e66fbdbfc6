"""Undoing an unfinished round: an interrupt, too little memory or an error leaves the game as it was.

Copying the whole game before each round would cost too much. So a round computes first and changes the game last: all losses
and gradients, then Q's step, then G's.

    kept by copy       G's buffers, the random generator, Q's buffers while they move, Q's weights and momentum: 2 MB
    not copied         G's weights and Adam's two moments, 13 MB, and 500 MB for 224 x 224: G's step is one call of a fused
                       kernel and the last thing that happens, so either the step and with it the round is complete, or not
    copied if needed   G too: if its step is not one call, in rounds that measure gains (Q steps after G) and in the round
                       that fits ranges on G's new images
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn

from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Record
from adadfq_lab.machine.devices import Precision
from adadfq_lab.machine.torch_state import usual_torch
from adadfq_lab.student.student import Student


class Undo:
    """Copies of what is about to change, and the way back.

    plays: whether a round is being played; False while the game is only looked at
    index: the round that is about to be played; random: the game's random generator
    unchecked: losses that the game has not checked yet
    """

    def __init__(self, index: int, random: torch.Generator, unchecked: tuple[Any, ...]) -> None:
        self.index, self.random, self.unchecked, self.state = index, random, unchecked, random.get_state()
        self.plays = False
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._modes: list[tuple[nn.BatchNorm2d, bool, bool]] = []
        self._optimizers: list[tuple[torch.optim.Optimizer, dict[Any, dict[str, Any]], list[dict[str, Any]]]] = []
        self._last: list[tuple[Tensor, Tensor]] = []

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Copies `tensors`."""
        self._tensors += [(tensor, tensor.detach().clone()) for tensor in tensors]

    def keep_modes(self, module: nn.Module) -> None:
        """Notes whether the batch norms of `module` normalise by the batch."""
        norms = (m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
        self._modes += [(norm, norm.training, norm.track_running_stats) for norm in norms]

    def keep_optimizer(self, optimizer: torch.optim.Optimizer, *, whole: bool) -> None:
        """Copies the state of `optimizer` and its parameters; if not `whole`, only single numbers."""
        groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        slots = {p: {name: _copied(value, whole) for name, value in s.items()} for p, s in optimizer.state.items()}
        if whole:
            self.keep(p for group in optimizer.param_groups for p in group["params"])
        self._optimizers.append((optimizer, slots, groups))

    def last_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Call before the step of `optimizer` that completes the round and of which nothing was copied."""
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = sorted(stepped, key=lambda p: p.numel())[-8:]
        moving = [t for p in largest for t in (p, *optimizer.state[p].values()) if t.shape == p.shape]
        self._last = [(some, some.clone()) for some in map(_sample, moving)]

    def completed(self) -> bool:
        """Whether the last step was made: at least one of its numbers has changed."""
        return any(bool(((now != before) & ~(now.isnan() & before.isnan())).any()) for now, before in self._last)

    @torch.no_grad()
    def put_back(self) -> None:
        """Puts everything back; may be interrupted and called again."""
        for tensor, kept in self._tensors:
            tensor.copy_(kept)
        for norm, training, tracks in self._modes:
            norm.training, norm.track_running_stats = training, tracks
        for optimizer, slots, groups in self._optimizers:
            optimizer.state.clear()
            optimizer.state.update({p: dict(values) for p, values in slots.items()})
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
        self.random.set_state(self.state)


def _copied(value: Any, whole: bool) -> Any:
    return value.clone() if isinstance(value, Tensor) and (whole or not value.dim()) else value


def _sample(tensor: Tensor) -> Tensor:
    """A view of up to 64 of its numbers, evenly spaced in memory."""
    count = min(64, tensor.numel())
    return tensor.detach().as_strided((count,), (tensor.numel() // count,), tensor.storage_offset())


def steps_at_once(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the next step of `optimizer` is one call: it is not the first, it is fused, and all is of one type and device."""
    groups = optimizer.param_groups
    kinds = {(p.dtype, p.device) for group in groups for p in group["params"]}
    begun = all(p in optimizer.state for group in groups for p in group["params"] if p.requires_grad)
    return begun and len(groups) == 1 and bool(groups[0].get("fused")) and len(kinds) == 1


class Interruptible:
    """Makes a game's rounds all or nothing, with one lock, shared with the student, and one rule.

    A round excludes every other round and every look, in any thread. The next thread that gets the lock puts back what an
    interrupted round, or an interrupted putting back, has left.
    """

    device: torch.device
    precision: Precision
    random: torch.Generator
    generator_optimizer: torch.optim.Optimizer
    student_optimizer: torch.optim.Optimizer

    def __init__(self, student: Student) -> None:
        self.student, self.turns = student, student.turns
        self.index = 0
        self._reserved_for: threading.Thread | None = None
        self._undo: Undo | None = None
        self._unchecked: tuple[tuple[int, tuple[str, ...], Tensor], ...] = ()

    def _guarded(self, play: Callable[[Undo], Record]) -> Record:
        """Plays one round with `play`, all or nothing."""
        owner, undo = self._reserved_for, self._undo
        reserved = owner is not None and owner is not threading.current_thread() and owner.is_alive()
        if reserved or (undo is not None and undo.plays and self.turns.taken()):
            raise UserError("this game is being played, perhaps by a live run; call run.wait(), or run.stop() first")
        caller = sys._getframe(1)
        with self.turns.round(), usual_torch(self.device, tf32=self.precision == "tf32"):
            self._settle(caller)
            self._undo = Undo(self.index, self.random, self._unchecked)
            try:
                record = play(self._undo)
                self.index, self._undo = record.index + 1, None
            except BaseException:
                self._settle(caller)
                raise
            return record

    def _settle(self, caller: FrameType | None = None) -> None:
        """Puts back what an interrupted round has left; to be called with the lock held.

        Raises UserError within a round, for a loss that uses its own game.
        """
        frame: FrameType | None = caller or sys._getframe(1)
        undo = self._undo
        if undo is None:
            return
        while frame is not None:
            if frame.f_code is Interruptible._guarded.__code__ and frame.f_locals["self"] is self:
                raise UserError("this game is in the middle of a round; look at it and save it between two rounds")
            frame = frame.f_back
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.student_optimizer.zero_grad(set_to_none=True)
        if undo.completed():
            self.index = undo.index + 1
        else:
            undo.put_back()
            if undo.plays:
                self.student.observing = False
            self.index, self._unchecked = undo.index, undo.unchecked
        self._undo = None

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Within it the game may be looked at: waits for the end of a running round."""
        with self.turns.look(), usual_torch(self.device, tf32=self.precision == "tf32"):
            self._settle(sys._getframe(2))
            yield

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Within it no other thread plays a round of this game."""
        before, self._reserved_for = self._reserved_for, threading.current_thread()
        try:
            yield
        finally:
            self._reserved_for = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        with self._looking():
            copied = memo[id(self)] = type(self).__new__(type(self))
            memo[id(self._reserved_for)] = None
            copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied
