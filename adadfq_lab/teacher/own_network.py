"""A network of one's own as a teacher: built by the user's code, filled with the user's weights.

network = build_own("model.py:build")              # executes model.py, and says nothing about what it does
load_weights(network, Path("weights.pt"))          # tensors only; nothing is unpickled
teacher = wrap_teacher(network, input_shape=(3, 32, 32), classes=10)
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.reading import check_regular

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "ema")
"""Names under which checkpoints keep a network's tensors."""
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of names of tensors that no forward reads: a count of batches, and what profilers leave."""


def build_own(reference: str) -> nn.Module:
    """The network that `reference` names, FILE.py:NAME or PACKAGE.MODULE:NAME: a class or function without arguments, or a
    module. The code is executed.

    Raises UserError if there is no such file or name, if the code fails, or if what it gives is not a network.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise UserError(f"{reference!r} does not name a network; write FILE.py:NAME, as in model.py:build")
    try:
        module = _executed(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        made: Any = module
        for part in name.split("."):
            made = getattr(made, part)
        network = made if isinstance(made, nn.Module) else made()
    except UserError:
        raise
    except AttributeError as error:
        raise UserError(f"{reference}: {first_line(error)}") from None
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{reference} fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{reference} gives {type(network).__name__}, not a torch.nn.Module")
    return network


def _executed(path: Path) -> Any:
    """The module that the file is, able to import its neighbours as it is when it is run."""
    check_regular(path)
    spec = importlib.util.spec_from_file_location(f"adadfq_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look for it there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def load_weights(network: nn.Module, path: Path) -> str:
    """Fills `network` with the tensors of `path`, a file of torch.save or safetensors; returns what was done, in a phrase.

    Tensors may lie under a name such as "state_dict", and their names may share a prefix, as DataParallel's `module.`. Raises
    UserError if the file holds anything but tensors, or if they are not the network's: which.
    """
    tensors, said = _tensors(path)
    own = network.state_dict()
    tensors, stripped = _without_prefix(tensors, own)
    said += [f"without the prefix {stripped!r}"] if stripped else []
    missing = [name for name in own if name not in tensors and not name.endswith(_COUNTERS)]
    extra = [name for name in tensors if name not in own and not name.endswith(_COUNTERS)]
    odd = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if missing or extra:
        both = ((missing, "are missing"), (extra, "are too many"))
        parts = [f"{len(names)} {what} ({_few(names)})" for names, what in both if names]
        raise UserError(f"{path} does not fit the network: of {len(own)} tensors, {' and '.join(parts)}")
    if odd:
        shapes = f"{odd[0]} is {tuple(tensors[odd[0]].shape)}, the network's {tuple(own[odd[0]].shape)}"
        raise UserError(f"{path} does not fit the network: {shapes}" + f" and {len(odd) - 1} more" * (len(odd) > 1))
    network.load_state_dict({name: tensors.get(name, own[name]) for name in own})
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise UserError(f"{path} holds a NaN or an infinity in {_few(broken)}; such a network cannot be quantised")
    return ", ".join([f"{len(own)} tensors of {path.name}", *said])


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file by name, and under which name they lay."""
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path), []
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?(?: GLOBAL)?) ([\w.]+)", str(error))
        if named is None:
            raise UserError(f"{path} is damaged or not a file of weights") from None
        raise UserError(
            f"{path} holds more than tensors ({named[1]}), which adadfq does not execute; "
            'save the weights alone: torch.save(model.state_dict(), "weights.pt")'
        ) from None
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or not a file of weights ({first_line(error)})") from None
    said = []
    for name in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found, said = found[name], [f"under {name!r}"]
            break
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        there = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path} holds no tensors by name, but {there[:80]}; save torch.save(model.state_dict(), ...)")
    return tensors, said


def _without_prefix(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """`tensors` without the prefix that all their names share, if the network has them without it."""
    if any(name in own for name in tensors):
        return tensors, ""
    prefix, first = "", next(iter(tensors))
    for part in first.split(".")[:-1]:
        prefix += f"{part}."
        if not all(name.startswith(prefix) for name in tensors):
            break
        if first.removeprefix(prefix) in own:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, prefix
    return tensors, ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def count_classes(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """How many logits the network gives for an image of `shape`. Raises UserError if it cannot take one, or gives no logits."""
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *shape))
    except Exception as error:  # whatever the user's network raises
        raise UserError(f"the network cannot take an image of shape {shape}: {first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        what = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the network gives {what} for one image, not logits (1, classes); wrap it in a module that does")
    return int(logits.shape[1])
