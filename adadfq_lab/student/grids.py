"""Which tensors lie on the grid of an activation: what only moves codes, or adds the code of zero, keeps the grid.

A max pool, a slice, a channel shuffle, a border of zeros: after each, every value is still one of the n-bit values that the
activation quantiser made, so the next layer's input is quantised already.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
FUNCTIONS: tuple[Any, ...] = (
    *(torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.clone, torch.detach),
    *(torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis, torch.t),
    *(torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.narrow, torch.select, torch.index_select),
    *(torch.flip, torch.roll, torch.rot90, torch.tile, torch.amax, torch.channel_shuffle, torch.pixel_shuffle),
    *(torch.pixel_unshuffle, F.dropout, F.max_pool1d, F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d),
)
METHODS = {
    *("flatten", "unflatten", "view", "reshape", "reshape_as", "view_as", "squeeze", "unsqueeze", "contiguous", "clone"),
    *("detach", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "chunk", "split", "tensor_split"),
    *("unbind", "narrow", "select", "index_select", "expand", "expand_as", "repeat", "flip", "roll", "amax", "tile"),
}
JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack)


def grid_source(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The node whose grid the tensor of `node` lies on, back through operations that keep a grid."""
    while True:
        if node.op == "call_function" and node.target in JOINS:
            parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
            parts = [parts] if isinstance(parts, fx.Node) else parts  # the tuple that chunk or split gave
            sources = {grid_source(part, modules) for part in parts if isinstance(part, fx.Node)}  # type: ignore[union-attr]
            if len(sources) != 1:
                return node
            (node,) = sources
            continue
        before = _first(node)
        if before is None or not _keeps(node, modules):
            return node
        node = before


def _first(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if isinstance(source, fx.Node) else None


def _keeps(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return isinstance(module, MODULES) or (isinstance(module, nn.Upsample) and module.mode == "nearest")
    if node.op == "call_method":
        return node.target in METHODS
    if node.op != "call_function":
        return False
    if node.target is F.pad:
        mode, value = (node.args[i] if i < len(node.args) else node.kwargs.get(n) for i, n in ((2, "mode"), (3, "value")))
        return bool(mode not in (None, "constant") or not value)  # zero has a code on every grid
    if node.target is F.interpolate:
        return bool((node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")) == "nearest")
    if node.target is operator.getitem:
        return _item(node, modules)
    return node.target in FUNCTIONS


def _item(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether it is a part of a tensor, or of what chunk, split or unbind gave; the indices of torch.max are not codes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source.op == "call_module" or str(getattr(source.target, "__name__", source.target)) not in _VALUES_AND_INDICES


_VALUES_AND_INDICES = {"max", "min", "sort", "topk", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin", "aminmax"}
