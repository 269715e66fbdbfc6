"""Tensors and a little JSON in one file: written whole or not at all, checked on reading, never unpickled.

Teachers, students and checkpoints have the same format on disk: a safetensors file whose metadata hold a JSON object and
the sha256 of everything else. Reading one executes nothing and reads nothing beyond the file.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.reading import check_regular

FORMAT = "adadfq 1"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all; raises as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` to write to; at the end it is synced and renamed, so readers see the old file or the new.

    Raises UserError if there can be no file of that name, and OSError if the disk is full; the old file is left as it was.
    """
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK) or not path.parent.is_dir():
        raise UserError(f"cannot write {path}; name a file in a folder that exists and can be written to")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """sha256 over `meta` and, in order of name, every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `tensors` on the CPU for `save_tensors`, whose tensors must not change while it writes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Writes `tensors` and the JSON object `meta` to `path`, atomically; returns the sha256 stored with them.

    tensors: must not change meanwhile; take a `snapshot` of a game that another thread may play on
    """
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        place = plain[name].untyped_storage().data_ptr()
        if place in places:  # one tensor under two names, which the format does not hold
            plain[name] = plain[name].clone()
        places.add(place)
    text = json.dumps(meta, sort_keys=True)
    sha256 = digest(plain, text)
    write_atomically(path, _in_order(save(plain, metadata={"format": FORMAT, "meta": text, "sha256": sha256})))
    return sha256


def _in_order(content: bytes) -> bytes:
    """A safetensors file with the entries of its metadata in order of name; the library writes them in any order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[start:]))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The tensors, the JSON object and the sha256 of a file that `save_tensors` wrote.

    Raises UserError if the file is missing, truncated, altered or not of this format.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({first_line(error)})") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{path} was not written by adadfq (no format {FORMAT!r} in its header)")
    if digest(tensors, header.get("meta", "")) != header.get("sha256"):
        raise UserError(f"{path} is damaged (sha256 differs)")
    try:
        meta = json.loads(header["meta"])
    except (KeyError, ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(f"{path} holds no description of its tensors")
    return tensors, meta, header["sha256"]
