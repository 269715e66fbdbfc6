"""One game on several processes: the same rounds as on one, exactly.

    torchrun --nproc-per-node 2 -m adadfq_lab train --batch 16 ...

The loss of a round is not a sum over samples: H' subtracts the batch's smallest entropy, L_BNS compares the batch's moments, G
normalises over its batch, and activation ranges are the batch's. Gradients averaged over processes, as usual in data-parallel
training, would belong to another game. So a batch is *one* batch here, and each process holds a part of it:

    z, y                     drawn whole on every process, from the same random state; each takes its part (`shard`)
    G's batch norms          normalise over every process's part (within `spread`), and differentiate through it
    P's moments, Q's ranges  are those of the whole batch (`merged`, `extremes`)
    images, logits           are put together (`gather`); then every process computes the same losses
    gradients of G and Q     are summed over processes (`sum_gradients`)

Every process computes the same losses, so the gradient of a gathered tensor is the same everywhere,
and each process keeps its own part: `gather` needs no communication backwards, and the sum over processes of what reaches the
weights is the gradient on one process. This holds only within `spread`, so that what the first process measures is left
alone. Without other processes every function here returns its argument.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.overrides import TorchFunctionMode

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import write_atomically

TIMEOUT = "ADADFQ_PROCESS_TIMEOUT"
"""Environment variable: seconds after which a process gives up waiting for the others, 1800 if not set."""


_in_spread = False


# Joining and leaving


def launched() -> bool:
    """Whether torchrun (or another launcher that sets its variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def restarted() -> bool:
    """Whether torchrun starts these processes again, after one of them failed (`torchrun --max-restarts`)."""
    return launched() and _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined(device: str = "auto") -> Iterator[int]:
    """Joins the processes that were launched together and yields this one's rank; one process alone is rank 0.

    device: "cpu"; otherwise, if there are GPUs, each process takes the one of its local rank

    Tensors on the CPU travel by gloo, those on a GPU by NCCL. Raises UserError if there are more processes than GPUs.
    """
    if not launched():
        yield 0
        return
    backend, place = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if device != "cpu" and torch.cuda.is_available():
        if place >= torch.cuda.device_count():
            raise UserError(
                f"process {place} of this machine has no GPU of its own; start at most {torch.cuda.device_count()} with "
                "--nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=float(os.environ.get(TIMEOUT, "1800")))
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    # The launcher's store outlives a restart, and still holds the addresses of the attempt before.
    store = PrefixStore(f"attempt {_attempt()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    yield dist.get_rank()
    dist.destroy_process_group()  # not after an error: it would wait for the others, who learn of it when this process ends


def processes() -> int:
    """How many processes play together; 1 for one alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def hand_out(path: Path) -> None:
    """The first process's half of `receive`."""
    if processes() > 1:
        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        dist.broadcast(torch.tensor(len(content)), 0)
        dist.broadcast(content, 0)


def receive(path: Path) -> Path:
    """Writes the file that the first process hands out to `path`: the others start from its checkpoint, disk shared or not."""
    length = torch.tensor(0)
    dist.broadcast(length, 0)
    content = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0)
    write_atomically(path, content.numpy().tobytes())
    return path


def on_any(flag: bool) -> bool:
    """Whether `flag` is set on any process; every process must call it. Hosts wait for each other, accelerators do not."""
    if processes() == 1:
        return flag
    seen = torch.tensor(int(flag))
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen)


# One batch on all of them


@contextmanager
def spread() -> Iterator[None]:
    """Within it the batch at hand is spread over all processes, and batch norms in training mode normalise over all of it."""
    global _in_spread
    if processes() == 1:
        yield
        return
    before, _in_spread = _in_spread, True
    try:
        with _SpreadNorms():
            yield
    finally:
        _in_spread = before


def parts() -> int:
    """In how many parts the batch at hand is: the number of processes within `spread`, else 1."""
    return dist.get_world_size() if _in_spread else 1


def check_batch(batch: int) -> None:
    """Raises UserError if the processes cannot have equal parts of `batch` images."""
    if batch % processes():
        raise UserError(f"{batch} images cannot be dealt evenly to {processes()} processes; choose another --batch")


def shard(whole: Tensor) -> Tensor:
    """This process's part `(N / parts, ...)` of the samples `(N, ...)`."""
    return whole if parts() == 1 else whole.chunk(parts())[dist.get_rank()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.first, ctx.count = dist.get_rank() * len(part), len(part)
        whole = part.new_empty((parts() * len(part), *part.shape[1:]))
        dist.all_gather(list(whole.chunk(parts())), part.contiguous())
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.narrow(0, ctx.first, ctx.count)


def gather(part: Tensor) -> Tensor:
    """The whole `(N, ...)` of which every process has a part `(N / parts, ...)`.

    Its gradient is right if every process computes the same function of the whole, as for a loss.
    """
    whole: Tensor = part if parts() == 1 else _Gather.apply(part)
    return whole


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest `low` and the largest `high` of all parts, 0-dim; without gradient."""
    if parts() == 1:
        return low, high
    both = torch.stack((-low, high))
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return -both[0], both[1]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up each parameter's gradient over all parts, in one message."""
    if parts() == 1:
        return
    moved = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in moved if p.grad is not None])
    dist.all_reduce(flat)
    for p, total in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
        p.grad = torch.empty_like(p).copy_(total.view(p.shape))  # laid out like the parameter, which fused steps require


# Batch norms that normalise over all parts


class _Normalize(torch.autograd.Function):
    """x `(n, C, ...)` to x^ = (x - mean) / sqrt(var + eps), with mean and var over all parts; and these two, `(C,)`.

    With < > the mean over all samples and places of all parts, dx = (g - <g> - x^ <g x^>) / sqrt(var + eps).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        places = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, places, correction=0)
        means, variances = gather(torch.stack((mean, var))[None]).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        inverse = torch.rsqrt(var + eps).view(shape)
        normal = (x - mean.view(shape)) * inverse
        ctx.save_for_backward(normal, inverse)
        ctx.places, ctx.parts = places, parts()
        ctx.mark_non_differentiable(mean, var)
        return normal, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, None]:
        normal, inverse = ctx.saved_tensors
        means = torch.stack((grad.mean(ctx.places), (grad * normal).mean(ctx.places)))
        dist.all_reduce(means)
        first, second = (means / ctx.parts).view(2, *inverse.shape)
        return (grad - first - normal * second) * inverse, None


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` in training mode of the whole batch, for this part `x`; updates the running statistics as it does."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    normal: Tensor
    normal, mean, var = _Normalize.apply(wide, eps)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if running_mean is not None and running_var is not None:
        n = parts() * x.numel() // x.shape[1]
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)
    if weight is not None and bias is not None:
        normal = torch.addcmul(bias.view(shape), normal, weight.view(shape))
    return normal.to(x.dtype)


class _SpreadNorms(TorchFunctionMode):
    """Within it any batch norm in training mode normalises over all parts."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.batch_norm and named.get("training") and parts() > 1:
            return _batch_norm(*args, **named)
        return func(*args, **named)
