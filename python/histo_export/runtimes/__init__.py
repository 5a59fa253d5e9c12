"""One small file per runtime, all with one interface: uint8 tiles in, float32 logits out.

A runtime is opened from one file of a bundle and belongs in a process of its own: thread pools of different
runtimes disturb each other.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Tiles = npt.NDArray[np.uint8]
"""`(n, side, side, 3)` RGB, as a decoder gives them."""


class Runtime(ABC):
    """A model file opened for inference on the CPU or one GPU, in fp32."""

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, file: Path, threads: int, device: str) -> None:
        """Loads `file`; raises HistoError where it is unreadable or `device` ("cpu" or "cuda") cannot be had."""

    @property
    @abstractmethod
    def executed(self) -> str:
        """What really ran, for reports: device or provider, and precision."""

    @abstractmethod
    def run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Logits `(n, classes)`."""

    @abstractmethod
    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """The outputs of `model.STAGES`, each `(n, channels, h, w)`; the head's are the logits."""


def to_float(tiles: Tiles) -> npt.NDArray[np.float32]:
    """What ToTensor does: `(n, 3, side, side)` float32 in [0, 1]."""
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


OPENED_BY: Mapping[str, tuple[str, str]] = {
    "model.onnx": ("onnxruntime", "OnnxRuntime"),
    "torchscript_model.pt": ("torchscript", "TorchScriptRuntime"),
    "model.safetensors": ("torch_eager", "TorchRuntime"),
    "model.pt2": ("torch_export", "TorchExportRuntime"),
}
"""File of a bundle → module and class that runs it."""


def open_runtime(file: Path, threads: int, device: str = "cpu") -> Runtime:
    """Opens a file of a bundle in its runtime."""
    module, name = OPENED_BY[file.name]
    runtime: Any = getattr(importlib.import_module(f"histo_export.runtimes.{module}"), name)
    opened: Runtime = runtime(file, threads, device)
    return opened
