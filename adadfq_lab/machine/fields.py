"""Checks values from files and the command line, and converts them to the types of a dataclass's fields."""

import dataclasses
import json
import math
import types
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adadfq_lab.errors import UserError

T = TypeVar("T")


def check_whole(owner: object, **least: int) -> None:
    """Raises UserError for a field of `owner` below its least value, or too large for 64 bits."""
    for name, lowest in least.items():
        if not lowest <= getattr(owner, name) < 2**63:
            raise UserError(f"{name} must be at least {lowest} and less than 2^63, not {getattr(owner, name)}")


def check_rates(owner: object, *names: str) -> None:
    """Raises UserError for a field of `owner` that is negative, infinite or NaN; None is allowed: not set."""
    for name in names:
        if not 0 <= (getattr(owner, name) or 0.0) < math.inf:
            raise UserError(f"{name} must be a number from 0 on, not {getattr(owner, name)}")


def fitting(key: str, hint: Any, value: Any) -> Any:
    """`value` from JSON as the type `hint`: lists become tuples, whole numbers floats, objects dataclasses.

    Raises UserError, which names `key`, if the value does not have that type.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any or (origin is Literal and any(value == v and type(value) is type(v) for v in inner)):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
            if len(each) == len(value):
                return tuple(fitting(key, k, v) for k, v in zip(each, value, strict=True))
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
            return build(kind, value)
        if kind is float and type(value) is int and abs(value) < 2**53:
            return float(value)
        if origin is dict and isinstance(value, dict):
            return value
        if type(value) is kind and (kind is not float or math.isfinite(value)):
            return value
    names = [" or ".join(map(str, get_args(k))) if get_origin(k) is Literal else getattr(k, "__name__", str(k)) for k in kinds]
    raise UserError(f"{key} does not take {value!r:.60}; it takes {' or '.join(names).replace('NoneType', 'nothing')}")


def read(key: str, hint: Any, text: str) -> Any:
    """`text` from the command line as the type `hint`: parsed as JSON or, if it is not JSON or does not fit, as it is.

    Raises UserError as `fitting` does.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return fitting(key, hint, text)
    try:
        return fitting(key, hint, value)
    except UserError:
        with suppress(UserError):  # a name that looks like a number
            return fitting(key, hint, text)
        raise


def build(kind: type[T], plain: Any) -> T:
    """A dataclass made from a JSON object; missing fields take their defaults.

    Raises UserError for an unknown field, for a missing one without default, and for a value that does not fit.
    """
    if not isinstance(plain, dict):
        raise UserError(f"a {kind.__name__} is an object, not {plain!r:.60}")
    hints = get_type_hints(kind)
    if unknown := plain.keys() - hints.keys():
        raise UserError(f"{kind.__name__} has no field {min(unknown)!r:.60}")
    try:
        return kind(**{key: fitting(key, hints[key], value) for key, value in plain.items()})
    except TypeError as error:
        raise UserError(str(error)) from None
