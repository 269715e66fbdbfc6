"""torch's own optimizers and backward pass, without its compiler.

The first `torch.optim` optimizer of a process imports torch's compiler (torch._dynamo, and with it triton), only to tell it to
look away; the first `y.backward(gradient)` imports its symbolic shapes (sympy). Nothing here compiles, and together that is
160 MB and two seconds in every student's kernel. What does the work in an optimizer is wrapped for that purpose, and each
wrapper names what it wraps: `without_compiler` takes that. `backward` asks for the same gradient in another way.
"""

import inspect
from typing import TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])


_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def without_compiler(kind: Kind) -> Kind:
    """The optimizer class `kind`, same arithmetic and same state, whose use imports no compiler; not for torch.compile.

    `kind` itself if a version of torch wraps its methods in another way: slower to import, and otherwise the same.
    """
    methods = {name: getattr(kind, name, None) for name in (*_WRAPPED, "step")}
    plain = {name: inspect.unwrap(method) for name, method in methods.items() if callable(method)}
    as_known = all(inspect.isfunction(plain.get(name)) and plain[name].__name__ == name for name in methods)
    if not as_known or "self" not in inspect.signature(plain["step"]).parameters:
        return kind
    plain["step"] = torch.no_grad()(plain["step"])
    return type(kind.__name__, (kind,), {**plain, "__doc__": kind.__doc__})  # type: ignore[return-value]


Adam = without_compiler(torch.optim.Adam)


SGD = without_compiler(torch.optim.SGD)


def backward(y: Tensor, gradient: Tensor) -> None:
    """`y.backward(gradient)`, bit for bit: the gradient of sum(y * gradient) with respect to y is 1 * gradient."""
    (y * gradient).sum().backward()
