"""The float network behind a student, and how long a file takes beside it."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadfq_lab.student.layers import QuantConv2d, QuantLayer
from adadfq_lab.student.quantizer import QuantActivation
from adadfq_lab.student.student import Student


class _Float(nn.Module):
    """A quantised layer with its float weight, and its batch norm as a step of its own."""

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not isinstance(layer, QuantConv2d):
            return F.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
        out = layer.convolve(x, layer.weight, layer.bias)
        return out if layer.bn is None else layer.bn(out)


def float_network(student: Student) -> nn.Module:
    """The network `student` was made from, as far as it remembers: its float weights, batch norms and plain ReLUs."""
    network = copy.deepcopy(student.graph)
    for name, module in list(network.named_modules()):
        if isinstance(module, QuantLayer):
            network.set_submodule(name, _Float(module))
        elif isinstance(module, QuantActivation):
            network.set_submodule(name, {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}[module.relu]())
    return network.eval()


def median_times(file: Callable[[], Any], student: Student, example: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds of the file and of torch in float32, whichever of torch's memory layouts is faster; interleaved."""
    layouts = {
        layout: float_network(student).to(memory_format=layout) for layout in (torch.channels_last, torch.contiguous_format)
    }
    inputs = {layout: example.contiguous(memory_format=layout) for layout in layouts}
    calls = [file, *(lambda layout=layout: layouts[layout](inputs[layout]) for layout in layouts)]
    spent: list[list[float]] = [[] for _ in calls]
    with _one_thread():
        for i in range(repeats + 3):
            for call, times in zip(calls, spent, strict=True):
                start = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - start))
            if i >= 10 and sum(map(sum, spent)) > 20_000:
                break
    medians = [statistics.median(times[3:]) for times in spent]  # the first three warm up
    return medians[0], min(medians[1:])


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
