"""torch's global state, which any cell of a notebook can change: a game must neither depend on it nor change it.

Of the thread:  gradients on or off, inference mode, autocast, the default device, the global random generator
Of the process: the default dtype, and how exact products of float32 are
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def usual_torch(device: torch.device | None = None, *, tf32: bool = False) -> Iterator[None]:
    """Within it torch is as after a fresh import; afterwards it is as it was before.

    device: that computes, if not the CPU; on CUDA, float32 is exact there too, unless `tf32`

    Threads within it at the same time share what belongs to the process: the first one sets it, the last one puts it back.
    """
    kind = device.type if device else "cpu"
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for place in {"cpu", kind} - {"meta"}:
            if torch.is_autocast_enabled(place):
                stack.enter_context(torch.autocast(place, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        before = _enter((kind == "cuda", tf32))
        try:
            yield
        finally:
            _leave(before)


@contextmanager
def untouched_torch() -> Iterator[None]:
    """As `usual_torch`; random draws, such as a new network's weights, do not use the global generator."""
    with usual_torch(), drawing_from(torch.Generator()):
        yield


# Of the process: the default dtype, and how exact matrix products and convolutions of float32 are, on the CPU and on CUDA

_backends: Any = torch.backends  # whose operations have no types
_ON_CPU: tuple[Any, ...] = (_backends.mkldnn.matmul, _backends.mkldnn.conv)
_ON_CUDA: tuple[Any, ...] = (_backends.cuda.matmul, _backends.cudnn.conv)

Wanted = tuple[bool, bool]
"""Whether CUDA is used, and whether TF32 is allowed there."""
_changing = threading.Condition()
_inside: dict[int, int] = {}
_wanted: Wanted = (False, False)
_found: list[tuple[Any, str]] = []
_found_dtype = torch.float32


def _set(wanted: Wanted) -> None:
    """Sets what differs from `wanted`, and keeps the old values in `_found`."""
    if torch.get_default_dtype() != torch.float32:
        torch.set_default_dtype(torch.float32)
    cuda, tf32 = wanted
    for operation in _ON_CPU + _ON_CUDA if cuda else _ON_CPU:
        allowed = ("tf32",) if tf32 and operation in _ON_CUDA else ("ieee", "none")  # "none" is exact too
        if (now := operation.fp32_precision) not in allowed:
            _found.append((operation, now))
            operation.fp32_precision = allowed[0]


def _put_back() -> None:
    if torch.get_default_dtype() == torch.float32:  # else another thread has set it in the meantime
        torch.set_default_dtype(_found_dtype)
    while _found:
        operation, precision = _found.pop()
        operation.fp32_precision = precision


def _enter(wanted: Wanted) -> Wanted | None:
    """Sets what this thread asks for, once the others inside ask for the same; returns its outer setting, if any."""
    global _wanted, _found_dtype
    me = threading.get_ident()
    with _changing:
        while _wanted != wanted and _inside.keys() - {me}:
            _changing.wait()
        before = _wanted if me in _inside else None
        if not _inside:
            _found_dtype = torch.get_default_dtype()
        _inside[me] = _inside.get(me, 0) + 1
        _wanted = wanted
        _set(wanted)
        return before


def _leave(before: Wanted | None) -> None:
    global _wanted
    me = threading.get_ident()
    with _changing:
        _inside[me] -= 1
        if before is not None:
            _wanted = before
            _set(before)
            return
        del _inside[me]
        if not _inside:
            _put_back()
            _changing.notify_all()


class drawing_from(TorchFunctionMode):  # noqa: N801 (used as a context manager)
    """Within it, in this thread, every draw from torch's global random generator is a draw from `random` instead.

    The numbers are those that the global generator would give with the same seed, so `nn.Linear(3, 4)` gets the weights that
    it would get after `torch.manual_seed(seed)`, while the global generator stays where it is and other threads draw from it.
    """

    LIKE: ClassVar[dict[Any, Any]] = {
        torch.rand_like: lambda x, random: x.uniform_(generator=random),
        torch.randn_like: lambda x, random: x.normal_(generator=random),
    }
    DRAWS = (
        *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial),
        *(torch.poisson, Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_),
        *(Tensor.bernoulli, Tensor.multinomial, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_),
    )

    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        self.random = random

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.LIKE and kwargs.get("generator") is None:
            kwargs.pop("generator", None)
            return self.LIKE[func](torch.empty_like(*args, **kwargs), self.random)
        if (func in self.DRAWS or "generator" in kwargs) and kwargs.get("generator") is None:  # torch.nn.init passes None on
            kwargs["generator"] = self.random
        return func(*args, **kwargs)
