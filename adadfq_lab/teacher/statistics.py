"""The teacher's logits and, from the same forward, the statistics of every batch norm's input: what Eq. (11) compares.

A frozen batch norm in eval mode is a u + b per channel; its input's mean and variance come out of the same function, with one
backward that serves the value and both statistics. No hooks, no lists that grow.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from adadfq_lab.equations import BatchStatistics
from adadfq_lab.errors import UserError
from adadfq_lab.machine.distributed import gather, parts
from adadfq_lab.teacher.checking import close
from adadfq_lab.teacher.features import with_features
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.tracing import traced

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _AffineWithMoments(torch.autograd.Function):
    """u `(N, C, ...)` to a u + b, and the mean and biased variance of u per channel.

    d/du of (g . (a u + b) + g_m . mean + g_v . var) is a g + (g_m - 2 g_v mean)/n + (2 g_v/n) u.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, a: Tensor, b: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = u.transpose(1, -1).reshape(-1, u.shape[1]) if u.dim() != 4 else u.permute(0, 2, 3, 1).reshape(-1, u.shape[1])
        shifted = flat - centre  # about the running mean, so that E[u^2] - E[u]^2 does not cancel
        offset = shifted.mean(0)
        var = shifted.mul_(shifted).mean(0) - offset * offset  # square_ is pow_, five times slower
        mean = offset + centre
        shape = (1, -1) + (1,) * (u.dim() - 2)
        ctx.save_for_backward(u, a, mean)
        return torch.addcmul(b.view(shape), u, a.view(shape)), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
        u, a, mean = ctx.saved_tensors
        shape = (1, -1) + (1,) * (u.dim() - 2)
        n = u.numel() // u.shape[1]
        slope = grad_var * (2 / n)
        constant = grad_mean / n - slope * mean
        return torch.addcmul(constant.view(shape), grad, a.view(shape)).addcmul_(u, slope.view(shape)), None, None, None


class MomentsBatchNorm(nn.Module):
    """A frozen batch norm that also notes the mean and variance of its input in `self.moments`."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise UserError("a batch norm of the teacher keeps no running statistics; Eq. (11) has nothing to compare with")
        a = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            a = a * norm.weight.detach()
        b = -norm.running_mean * a
        self.register_buffer("scale", a)
        self.register_buffer("shift", b if norm.bias is None else b + norm.bias.detach())
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.moments: BatchStatistics | None = None

    def forward(self, u: Tensor) -> Tensor:
        y, mean, var = _AffineWithMoments.apply(u, self.scale, self.shift, self.running_mean)
        self.moments = BatchStatistics(mean, var, self.running_mean, self.running_var)
        return y  # type: ignore[no-any-return]


class WithStatistics(nn.Module):
    """A frozen network that returns `(logits, statistics)`, one `BatchStatistics` for each call of a batch norm.

    stages: places whose features `look` returns too, see `features.stages`

    Computed on a trace of a copy of `network`, so that a batch norm with an activation inside, one written as F.batch_norm
    and one called twice are each what they are; the network itself is not touched.

    Raises UserError for a network that cannot be traced, and for one without a batch norm with running statistics, since
    Eq. (11) is what ties the images to the training data.
    """

    def __init__(self, network: nn.Module, stages: tuple[str, ...] = ()) -> None:
        super().__init__()
        inner = network.network if isinstance(network, Teacher) else network
        shape = network.info.input_shape if isinstance(network, Teacher) else None
        module = traced(inner, shape).requires_grad_(False)
        self.stages = stages
        norms = _replace_norms(module, _tree_order(inner))
        if not norms:
            some = any(isinstance(m, _NORMS) for m in inner.modules())
            why = "keeps no running statistics" if some else "has no batch norm"
            raise UserError(
                f"{type(inner).__name__} {why}, so nothing remembers its training data; "
                "data-free quantization by Eq. (11) needs a teacher with BatchNorm layers that track running statistics"
            )
        self.network = with_features(module, stages) if stages else module
        self._norms = norms

    def forward(self, x: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
        logits, statistics, _ = self.look(x)
        return logits, statistics

    def look(self, x: Tensor) -> tuple[Tensor, list[BatchStatistics], tuple[Tensor, ...]]:
        """Logits, statistics and, from the same forward, the features `(N, C_l, H_l, W_l)` of each stage."""
        logits, features = self.network(x) if self.stages else (self.network(x), ())
        statistics = [norm.moments for norm in self._norms if norm.moments is not None]
        for norm in self._norms:
            norm.moments = None
        return logits, merged(statistics), features

    @torch.no_grad()
    def compare(self, teacher: Teacher) -> None:
        """Raises UserError if the logits of `teacher` on two random images are not these, rounding apart."""
        like = next(teacher.parameters(), teacher.mean)
        x = torch.randn(2, *teacher.info.input_shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(
            like.device
        )
        x = x.contiguous(memory_format=torch.channels_last)
        if not close(self(x)[0], teacher(x)):
            raise UserError(
                f"the teacher as the game observes it gives other logits than {teacher.info.name} itself; its batch norms "
                "cannot be followed: replace what is not a plain nn.BatchNorm"
            )


def _tree_order(network: nn.Module) -> dict[str, int]:
    """The place of each module among all, parents' children before grandchildren: the order in which statistics are added."""
    names = [f"{p}.{c}".lstrip(".") for p, parent in network.named_modules() for c, _ in parent.named_children()]
    return {name: i for i, name in enumerate(names)}


def _replace_norms(module: fx.GraphModule, order: dict[str, int]) -> list[MomentsBatchNorm]:
    """Puts a `MomentsBatchNorm` at every call of a batch norm with running statistics; returns them in this order.

    A batch norm called twice becomes two, each with the statistics of its own call.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in module.graph.nodes if node.op == "get_attr"}
    found: dict[str, MomentsBatchNorm] = {}
    for node in module.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _NORMS) or norm.running_mean is None or norm.running_var is None:
            continue
        name = str(node.target)
        while name in found or name in read:  # a forward may read the weight of a batch norm: it stays where it is
            name += "_again"
        found[name] = MomentsBatchNorm(norm)
        module.add_submodule(name, found[name])
        node.target = name
    module.recompile()
    return [found[name] for name in sorted(found, key=lambda n: order.get(n.removesuffix("_again"), len(order)))]


def merged(statistics: list[BatchStatistics]) -> list[BatchStatistics]:
    """The moments of the whole batch from those of its parts, all layers in one message.

    mean = <mean_r>, var = <var_r + (mean_r - mean)^2>, where < > is the mean over parts r of equal size.
    """
    if parts() == 1:
        return statistics
    means, variances = gather(
        torch.stack([torch.cat([s.mean for s in statistics]), torch.cat([s.var for s in statistics])])[None]
    ).unbind(1)
    mean = means.mean(0)
    var = (variances + (means - mean).square()).mean(0)
    widths = [len(s.mean) for s in statistics]
    layers = zip(mean.split(widths), var.split(widths), statistics, strict=True)
    return [s._replace(mean=m, var=v) for m, v, s in layers]
