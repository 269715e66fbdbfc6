"""Between the host and an accelerator."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; to a GPU by way of page-locked memory, so that the host does not wait for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them it is emulated, ten times slower than float32."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older versions of torch
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
