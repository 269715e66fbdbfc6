"""Compares the class names of a teacher and a data set: a label means nothing unless both number the classes alike.

The same names in another order, or some of them, are mapped to the teacher's order. Other names are refused, since an accuracy
would be of another task. Names are compared without case, spaces and punctuation, so `lawn_mower` is `lawn mower`.
Numbers, and `class 3`, are not names; classes without names stay in their order.
"""

import re
from dataclasses import replace

import torch

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError


def named(classes: tuple[str, ...]) -> bool:
    """Whether `classes` are names, and not only numbers."""
    return not all(re.fullmatch(r"(class[ _]?)?\d+", name, re.IGNORECASE) for name in classes)


def in_order_of(data: ImageSet, classes: tuple[str, ...], owner: str) -> ImageSet:
    """`data` with labels that are indices into `classes`, the classes of `owner`.

    Raises UserError if `data` has other class names or, if one of the two has no names, another number of classes.
    """
    if not data.labelled or data.classes == classes:
        return data
    own, wanted = [_key(name) for name in data.classes], [_key(name) for name in classes]
    if not (named(data.classes) and named(classes)):
        if len(own) != len(wanted):
            raise UserError(f"{owner} tells {len(wanted)} classes apart; {data.name} has {len(own)}")
        return data
    if own == wanted:
        return replace(data, classes=classes)
    place = {key: i for i, key in enumerate(wanted)}
    missing = [name for name, key in zip(data.classes, own, strict=True) if key not in place]
    if missing or len(place) < len(wanted) or len(set(own)) < len(own):
        over = [name for name, key in zip(classes, wanted, strict=True) if key not in own]
        raise UserError(
            f"the classes of {data.name} are not those of {owner}: {_few(missing or list(data.classes))} there, "
            f"{_few(over or list(classes))} here; give images of the teacher's classes, or rename the classes"
        )
    order = torch.tensor([place[key] for key in own])
    return replace(data, labels=order[data.labels], classes=classes)


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
