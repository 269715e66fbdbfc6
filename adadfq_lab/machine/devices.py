"""Between the host and an accelerator."""

from typing import Literal

import torch
from torch import Tensor

from adadfq_lab.errors import UserError


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; to a GPU by way of page-locked memory, so that the host does not wait for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them it is emulated, ten times slower than float32."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older versions of torch
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


Precision = Literal["float32", "tf32", "bf16"]


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA if there is a GPU, else the CPU; raises UserError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{name!r} is not a device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use; leave out --device, or use --device cpu")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"torch cannot compute on {name!r} here; leave out --device, or use --device cpu") from None
    return device
