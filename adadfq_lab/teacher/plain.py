"""A network of anybody's as a plain one: an independent copy whose every weight is a parameter that can be read and trained.

Wrappers (DataParallel, torch.compile) are taken off. Weights that a hook or a parametrization computes (prune, weight_norm,
spectral_norm, torch.nn.utils.parametrize) become what they compute in eval mode. SyncBatchNorm becomes BatchNorm, a half
precision network a float32 one. None of this changes what the network computes; the original is not touched.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from adadfq_lab.errors import UserError, first_line

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""The batch norm of a tensor with so many dimensions."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copied(network: nn.Module) -> nn.Module:
    """A copy that shares nothing with `network` and computes the same, hooks included, in eval mode.

    Raises UserError for what is not the Python source of a network (TorchScript) or cannot be copied.
    """
    if not isinstance(network, nn.Module):
        raise UserError(f"this takes a network, a torch.nn.Module, not {network!r}")
    while isinstance(inner := getattr(network, "_orig_mod", None) or _parallel(network), nn.Module):
        network = inner
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            place = f"module {name!r} of this network" if name else "this network"
            raise UserError(f"{place} is TorchScript; give the Python network that it was scripted or traced from")
    # A pruned weight is the result of a multiplication; deepcopy refuses it unless it is told what to put in its place.
    computed = [t for m in network.modules() for t in tree_leaves(_own(m)) if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(network, {id(t): t.detach().clone() for t in computed}).eval()
    except Exception as error:  # whatever the copying of foreign objects raises
        raise UserError(f"{type(network).__name__} cannot be copied (copy.deepcopy): {first_line(error)}") from error


def _own(module: nn.Module) -> list[object]:
    """The attributes of `module` that are not parameters, buffers or modules."""
    return [value for name, value in vars(module).items() if not name.startswith("_")]


def _parallel(network: nn.Module) -> nn.Module | None:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return network.module if isinstance(network, parallel) else None


@torch.no_grad()
def plain(network: nn.Module, *, keep_hooks: bool = False) -> nn.Module:
    """A plain copy of `network` in eval mode, see above; a network that is plain already is only copied.

    keep_hooks: leave forward hooks that compute no weight, so that tracing can follow them

    Raises UserError as `copied` does, for a weight that is not finite (which one), and for one that cannot be computed.
    """
    made = copied(network)
    for name, module in made.named_modules():
        _bake(name, module)
        if not keep_hooks:
            for hooks in HOOKS:
                getattr(module, hooks).clear()
    made = _with_plain_norms(made)
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in made.state_dict().values()):
        made = made.float()
    for name, tensor in made.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            wrong = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{name} of the network has {wrong} NaN or infinite of {tensor.numel()} entries; load its weights again"
            )
    return made


def hooked(network: nn.Module) -> list[str]:
    """The names of the modules with forward hooks that compute no weight, "" for the network itself."""
    return [name for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def _bake(name: str, module: nn.Module) -> None:
    """Makes every computed weight of `module` itself a parameter with the value it has in eval mode."""
    try:
        if parametrize.is_parametrized(module):
            _own_class(module)
            for weight in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    except Exception as error:  # whatever foreign code raises
        raise UserError(
            f"the weight of module {name!r} ({type(module).__name__}) is computed, and that cannot be undone: "
            f"{first_line(error)}; call its own remove function (prune.remove, remove_parametrizations) first"
        ) from error
    if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(getattr(module, "weight", None), nn.Parameter):
        weight = vars(module).pop("weight", module._buffers.pop("weight", None))
        if weight is None:
            raise UserError(
                f"module {name!r} ({type(module).__name__}) has no weight until a hook computes it; run the network once, "
                "or remove the hook and set the weight"
            )
        module.register_parameter("weight", nn.Parameter(weight.detach().clone()))


def _own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own.

    `register_parametrization` makes a class for one module and sets `__class__`; a copy of the module shares it, and
    `remove_parametrizations` deletes from it, so the original would lose its weight too.
    """
    shared = type(module)
    own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)


def _with_plain_norms(network: nn.Module) -> nn.Module:
    """SyncBatchNorm and torchvision's FrozenBatchNorm2d as the batch norm that they are on one device."""
    for name, module in list(network.named_modules()):
        made: nn.Module | None = None
        if type(module) is nn.SyncBatchNorm:
            made = _AnyBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
            made._parameters, made._buffers = module._parameters, module._buffers
        elif type(module).__name__ == "FrozenBatchNorm2d" and {"weight", "running_var"} <= dict(module.named_buffers()).keys():
            made = nn.BatchNorm2d(len(module.weight), module.eps)
            made.load_state_dict(module.state_dict(), strict=False)
            made = made.to(next(module.buffers()).device)
        if made is not None:
            if not name:
                return made.eval()
            network.set_submodule(name, made.eval())
    return network


class _AnyBatchNorm(nn.BatchNorm2d):
    """A batch norm of tensors with any number of dimensions, as SyncBatchNorm is."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape will do."""
