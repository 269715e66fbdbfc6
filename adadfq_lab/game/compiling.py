"""torch.compile for the three forwards of a round, for runs with `compile`.

G, P with its statistics, and Q are functions of tensors whose shapes never change. The losses, the optimizers' steps and all
measurements stay as they are written.

    off       nothing is compiled
    default   each forward and its backward become fused kernels
    graphs    these are also recorded as CUDA graphs, which the host starts in one go: for small batches, whose time is spent
              on launching kernels

A round computes the same up to rounding. The modules themselves are not wrapped, so a checkpoint does not depend on whether
its game was compiled. Q's backward pass runs twice in a round, once for each player, and a compiled one
computes all gradients each time, those to the images and to the weights.

torch's compiler is imported when the first forward is called, and not at all if nothing is compiled: see `optimizers`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine import distributed

Compile = Literal["off", "default", "graphs"]
BACKEND = "inductor"
"""torch.compile's backend; "aot_eager" does everything except making kernels."""


class Forwards:
    """Calls functions of tensors, compiled or as they are.

        forwards = Forwards("default", device)
        forwards.begin()                    # once a round
        x = forwards(generator, z, y)       # generator(z, y)

    Raises UserError for CUDA graphs without a CUDA device, and for a game on several processes, whose forwards exchange
    messages.
    """

    def __init__(self, how: Compile, device: torch.device) -> None:
        if how == "graphs" and device.type != "cuda":
            raise UserError(f"CUDA graphs need a CUDA device, which {device.type} is not; leave out --compile graphs")
        if how != "off" and distributed.processes() > 1:
            raise UserError("a run on several processes cannot be compiled; leave out --compile")
        self.how, self.device = how, device
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def begin(self) -> None:
        """Tells CUDA graphs that a round begins: from now on they may overwrite what they returned in the last round."""
        if self.how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(self, function: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        """`function(*tensors)`. The first call of a function compiles it, which takes about a minute."""
        if self.how == "off":
            return function(*tensors)
        if not self._compiled:
            _prepare()
        if function not in self._compiled:
            mode = "reduce-overhead" if self.how == "graphs" else None
            self._compiled[function] = torch.compile(function, backend=BACKEND, dynamic=False, mode=mode)
        from torch._dynamo.exc import TorchDynamoException  # the compiler is slow to import

        try:
            return self._compiled[function](*tensors)
        except TorchDynamoException as error:
            reason = first_line(getattr(error, "inner_exception", error))
            raise UserError(f"torch.compile does not work here: {reason}; leave out --compile") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "Forwards":
        return Forwards(self.how, self.device)  # what is compiled here belongs to this game's modules


def _prepare() -> None:
    """Resets the compiler for a new game, and makes it keep what a second backward pass needs.

    torch keeps compiled code per function source, which all games share, for at most eight variants: without a reset
    the ninth game of a process would not be compiled.
    """
    import torch._functorch.config as options  # likewise

    torch.compiler.reset()
    options.donated_buffer = False
