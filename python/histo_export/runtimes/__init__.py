"""One small file per runtime, all with one interface: uint8 tiles in, float32 logits out.

A runtime is opened from one file of a bundle and belongs in a process of its own: thread pools of different
runtimes disturb each other.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from histo_export.errors import UsageError
from histo_export.spec import Precision

Tiles = npt.NDArray[np.uint8]
"""`(n, side, side, 3)` RGB, as a decoder gives them."""


class Runtime(ABC):
    """A model file opened for inference on the CPU or one GPU."""

    name: ClassVar[str]
    precision: ClassVar[Precision] = "fp32"
    """Asked for: what can't be had is an error and never replaced; what ran is told by `executed`."""

    @abstractmethod
    def __init__(self, file: Path, threads: int, device: str) -> None:
        """Loads `file`; raises HistoError where it is unreadable or `device` ("cpu" or "cuda") cannot be had."""

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why no file can be run in this runtime on this machine and `device`; None where one can.

        Only for what a user may well lack, such as a compiler. The first call may take as long as that compiles.
        """
        return None

    @property
    @abstractmethod
    def executed(self) -> str:
        """What really ran, for reports: device or provider, and precision."""

    def warmup(self, batch: int, side: int) -> None:
        """Runs black tiles, so that the first real ones find everything compiled, allocated and loaded."""
        self.run(np.zeros((batch, side, side, 3), np.uint8))

    @abstractmethod
    def run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Logits `(n, classes)`."""

    @abstractmethod
    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """The outputs of `model.STAGES`, each `(n, channels, h, w)`; the head's are the logits."""


def to_float(tiles: Tiles) -> npt.NDArray[np.float32]:
    """What ToTensor does: `(n, 3, side, side)` float32 in [0, 1]."""
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class Entry:
    """Where a runtime is found.

    Attributes:
        module: below `histo_export.runtimes`; imported when the runtime is asked for.
        cls: its class there.
        file: the file of a bundle that it opens.
        precision: that class's, for those who choose without importing it.
    """

    module: str
    cls: str
    file: str
    precision: Precision = "fp32"


RUNTIMES: Mapping[str, Entry] = {
    "native": Entry("native", "NativeRuntime", "model.safetensors"),
    "native-latency": Entry("native", "NativeLatencyRuntime", "model.safetensors"),
    "onnxruntime": Entry("onnxruntime", "OnnxRuntime", "model.onnx"),
    "onnxruntime-tensorrt": Entry("onnxruntime", "TensorRtRuntime", "model.onnx"),
    "openvino": Entry("openvino", "OpenVinoRuntime", "model.onnx"),
    "openvino-streams": Entry("openvino", "OpenVinoStreamsRuntime", "model.onnx"),
    "torchscript": Entry("torchscript", "TorchScriptRuntime", "torchscript_model.pt"),
    "libtorch": Entry("libtorch", "LibtorchRuntime", "torchscript_model.pt"),
    "torch": Entry("torch_eager", "TorchRuntime", "model.safetensors"),
    "torch-channels-last": Entry("torch_eager", "ChannelsLastRuntime", "model.safetensors"),
    "torch-compile": Entry("torch_compile", "TorchCompileRuntime", "model.safetensors"),
    "torch-cuda-graph": Entry("torch_cuda_graph", "CudaGraphRuntime", "model.safetensors"),
    "torch-export": Entry("torch_export", "TorchExportRuntime", "model.pt2"),
    # The same in a lower precision: the id, a hyphen, the precision.
    "native-bf16x3": Entry("native", "NativeBf16x3Runtime", "model.safetensors", "bf16x3"),
    "native-latency-bf16x3": Entry("native", "NativeLatencyBf16x3Runtime", "model.safetensors", "bf16x3"),
    "native-bf16": Entry("native", "NativeBf16Runtime", "model.safetensors", "bf16"),
    "native-latency-bf16": Entry("native", "NativeLatencyBf16Runtime", "model.safetensors", "bf16"),
    "openvino-bf16": Entry("openvino", "OpenVinoBf16Runtime", "model.onnx", "bf16"),
    "openvino-streams-bf16": Entry("openvino", "OpenVinoStreamsBf16Runtime", "model.onnx", "bf16"),
    "torch-channels-last-bf16": Entry("torch_eager", "ChannelsLastBf16Runtime", "model.safetensors", "bf16"),
    "torch-compile-bf16": Entry("torch_compile", "TorchCompileBf16Runtime", "model.safetensors", "bf16"),
    "native-int8": Entry("native", "NativeInt8Runtime", "model.safetensors", "int8"),
    "native-latency-int8": Entry("native", "NativeLatencyInt8Runtime", "model.safetensors", "int8"),
    "onnxruntime-int8": Entry("onnxruntime", "OnnxInt8Runtime", "model-int8.onnx", "int8"),
    # model.onnx as ONNX Runtime's own tool quantises it; in no bundle, benchmarks/low_precision_table.py makes it.
    "onnxruntime-tool-int8": Entry("onnxruntime", "OnnxToolInt8Runtime", "model-int8-onnxruntime.onnx", "int8"),
    "openvino-int8": Entry("openvino", "OpenVinoInt8Runtime", "model-int8.onnx", "int8"),
    "openvino-streams-int8": Entry("openvino", "OpenVinoStreamsInt8Runtime", "model-int8.onnx", "int8"),
}


def in_precision(runtime_id: str, precision: Precision) -> str:
    """The id of the same runtime in another precision; UsageError where it has no such form."""
    if RUNTIMES[runtime_id].precision == precision:
        return runtime_id
    base = runtime_id.removesuffix(f"-{RUNTIMES[runtime_id].precision}")
    other = base if precision == "fp32" else f"{base}-{precision}"
    if other not in RUNTIMES:
        able = ", ".join(name.removesuffix(f"-{precision}") for name in RUNTIMES if name.endswith(f"-{precision}"))
        raise UsageError(f"{runtime_id} in {precision}", "is not known", f"These can: {able}; or use another precision")
    return other


def runtime_class(runtime_id: str) -> type[Runtime]:
    """The class of `RUNTIMES[runtime_id]`; HistoError where it needs a package that is not installed."""
    entry = RUNTIMES[runtime_id]
    found: type[Runtime] = getattr(importlib.import_module(f"histo_export.runtimes.{entry.module}"), entry.cls)
    return found


def open_runtime(runtime_id: str, file: Path, threads: int, device: str = "cpu") -> Runtime:
    """Opens a file of a bundle in one of `RUNTIMES`."""
    return runtime_class(runtime_id)(file, threads, device)
