"""What runs an exported file, and what it says it executes: ONNX Runtime, or OpenVINO as a second opinion.

Each loads a file on one thread of the CPU and gives a function from images to logits, and a count of the operations in the
graph that it really executes, after all its optimisations. That graph is what counts: a convolution that a runtime turned back
into floats stands there as `Conv`, `FusedConv` or `Convolution f32`.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.errors import UserError, first_line
from adadfq_lab.integers.onnx_file.layers import IMAGES, LOGITS
from adadfq_lab.machine.environment import import_extra

Runtime = Literal["onnxruntime", "openvino"]
INTEGER_CONVS = ("ConvInteger", "QLinearConv", "Convolution u8", "Convolution i8")
INTEGER_PRODUCTS: tuple[str, ...] = ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul")
INTEGER_PRODUCTS += ("FullyConnected u8", "FullyConnected i8")
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedGemm", "FusedMatMul", "FullyConnected f32", "FullyConnected bf16")


@dataclass(frozen=True)
class Loaded:
    """A file, ready to run: images `(N, C, H, W)` to logits `(N, classes)`, and how often each operation is executed."""

    path: Path
    call: Callable[[Any], Any]
    executed: Counter[str]

    def __call__(self, images: Tensor) -> Tensor:
        """The logits; raises UserError if the file does not take these images, or does not return logits."""
        try:
            logits = torch.from_numpy(self.call(images.contiguous().numpy()))
        except Exception as error:  # of a dozen types without a common base: a file tampered with, or images of another shape
            shape = tuple(images.shape[1:])
            raise UserError(f"{self.path} does not run on images of shape {shape}: {first_line(error)}") from None
        if logits.dim() != 2 or len(logits) != len(images) or not logits.shape[1]:
            raise UserError(f"{self.path} returns {tuple(logits.shape)} for {len(images)} images, not logits (N, C)")
        return logits

    def count(self, operations: tuple[str, ...]) -> int:
        return sum(self.executed[name] for name in operations)

    @property
    def float_convs(self) -> int:
        """Convolutions that are executed on floats, under any name that a runtime gives them; `Convert` is not one."""
        convs = sum(count for name, count in self.executed.items() if "Conv" in name and name != "Convert")
        return convs - self.count(INTEGER_CONVS)


def load(path: Path, runtime: Runtime = "onnxruntime") -> Loaded:
    """The file on one thread of the CPU. Raises UserError if the runtime is missing or does not load the file."""
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](path)


def _onnxruntime(path: Path) -> Loaded:
    onnx = import_extra("onnx")
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "executed.onnx"
        run = session(path.read_bytes(), str(path), optimised)
        executed = onnx.load(optimised)
    return Loaded(path, lambda images: run.run([LOGITS], {IMAGES: images})[0], Counter(_op_types(executed.graph)))


def _runtime() -> ModuleType:
    """ONNX Runtime, imported here only: an environment variable must be set first.

    Without it, the runtime looks up a telemetry host at its first session, whatever `disable_telemetry_events` says.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_extra("onnxruntime")


def available() -> bool:
    """Whether ONNX Runtime is installed."""
    try:
        return bool(_runtime())
    except UserError:
        return False


def session(content: bytes, name: str, optimised: Path | None = None) -> Any:
    """An ONNX Runtime session of the file `content`; `name` is what a message calls it.

    optimised: where to write the graph that is really executed
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        # Its fallback to other providers would print a banner and try the same again.
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # of a dozen types without a common base, whatever a malformed graph sets off
        raise UserError(f"ONNX Runtime does not load {name}: {first_line(error)}") from None


def _op_types(graph: Any) -> Iterator[str]:
    """The operation of every node, those in branches and loops too."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _op_types(inner)


def _openvino(path: Path) -> Loaded:
    openvino = import_extra("openvino", "pip install openvino")
    core = openvino.Core()
    # float32 between layers, as in the file; else a processor that has bfloat16 uses it.
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    try:
        model = core.compile_model(core.read_model(path), "CPU")
    except Exception as error:  # as above
        raise UserError(f"OpenVINO does not load {path}: {first_line(error)}") from None
    executed: Counter[str] = Counter()
    for node in model.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind, precision = (facts[key].astype(str) for key in ("layerType", "runtimePrecision"))
        executed[f"{kind} {precision}" if kind in ("Convolution", "FullyConnected") else kind] += 1
    return Loaded(path, lambda images: model(images)[0], executed)
