"""A student's weights at n bits each: what a 3-bit network takes on disk.

The codes of all layers, one after the other, are one stream of n-bit numbers, most significant bit first; so are the zero
points. Beside them lie two float32 per output channel (scale and bias, the batch norm folded in) and one per activation grid.
The container is a safetensors file as every other of this package. Reading it gives the integers back, bit by bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.integers.layers import Grid, IntegerLayer, Integers, to_integers
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.student.quantizer import quant_range
from adadfq_lab.student.student import Student


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Signed `bits`-bit integers as a stream of bits, uint8 `(ceil(n * bits / 8),)`; the last byte is filled up with zeros.

    -4, 3, 0 at three bits are 000 111 100 with quant_min taken off, and so the bytes 00011110 0.......
    """
    unsigned = (codes.flatten().to(torch.int16) - quant_range(bits)[0]).to(torch.uint8).numpy()
    columns = np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(columns.reshape(-1)))


def unpack_bits(stream: Tensor, bits: int, count: int) -> Tensor:
    """The `count` signed `bits`-bit integers of a stream that `pack_bits` made, int8; ValueError if they do not fill it."""
    if bits not in range(2, 9) or len(stream) != -(-count * bits // 8):
        raise ValueError(f"{count} codes of {bits} bits are not {len(stream)} bytes")
    columns = np.unpackbits(stream.numpy(), count=count * bits).reshape(count, bits)
    unsigned = np.packbits(columns, axis=1)[:, 0] >> (8 - bits)
    return torch.from_numpy(unsigned.astype(np.int16) + quant_range(bits)[0]).to(torch.int8)


def ideal_bytes(student: Student) -> int:
    """What the weights alone take at n bits each, in bytes."""
    return -(-sum(layer.weight.numel() for layer in student.layers().values()) * student.bits.weights // 8)


def pack(student: Student, path: Path, table: Integers | None = None) -> Path:
    """Writes the integers of `student` to `path`, n bits a weight; returns the path. `table` spares computing them again."""
    table = table or to_integers(student)
    layers, bits = list(table.layers.values()), student.bits.weights
    tensors = {
        "codes": pack_bits(torch.cat([layer.codes.flatten() for layer in layers]), bits),
        "zero_points": pack_bits(torch.cat([layer.zero_point for layer in layers]), bits),
        "scales": torch.cat([layer.scale for layer in layers]).float(),
        "biases": torch.cat([layer.bias for layer in layers]).float(),
        "grids": torch.tensor([float(grid.scale) for grid in table.activations.values()]),
    }
    inputs = {id(grid): i for i, grid in enumerate(table.activations.values())} | {id(None): None}
    meta = {
        "kind": "packed",
        "bits": [bits, student.bits.activations],
        "layers": [[v.name, v.kind, list(v.codes.shape), inputs[id(v.input)]] for v in layers],
        "grids": [[name, grid.relu, grid.zero_point] for name, grid in table.activations.items()],
    }
    save_tensors(path, tensors, meta)
    return path


def unpack(path: Path) -> Integers:
    """The integers that `pack` wrote; `weight_scale` of a layer is its scale, for the batch norm is folded in.

    Raises UserError if the file is missing, damaged or holds no packed student.
    """
    tensors, meta, _ = load_tensors(path)
    if meta.get("kind") != "packed":
        raise UserError(f"{path} holds no packed student")
    try:
        return _unpack(tensors, meta)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its own description ({first_line(error)})") from None


def _unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Integers:
    weight_bits, activation_bits = meta["bits"]
    scales = tensors["grids"].unbind()
    grids = {
        name: Grid(activation_bits, scale, int(zero_point), relu)
        for (name, relu, zero_point), scale in zip(meta["grids"], scales, strict=True)
    }
    shapes = [tuple(shape) for _, _, shape, _ in meta["layers"]]
    sizes, channels = [int(np.prod(shape)) for shape in shapes], [shape[0] for shape in shapes]
    codes = unpack_bits(tensors["codes"], weight_bits, sum(sizes)).split(sizes)
    zero_points = unpack_bits(tensors["zero_points"], weight_bits, sum(channels)).split(channels)
    floats = [tensors[name].split(channels) for name in ("scales", "biases")]
    layers = {}
    for (name, kind, shape, source), q, zero, scale, bias in zip(meta["layers"], codes, zero_points, *floats, strict=True):
        grid = None if source is None else list(grids.values())[source]
        layers[name] = IntegerLayer(name, kind, weight_bits, q.view(shape), zero, scale, scale, bias, grid)
    return Integers(layers, grids)
