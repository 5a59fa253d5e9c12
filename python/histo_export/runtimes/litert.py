"""LiteRT, which was TensorFlow Lite, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from histo_export.errors import HistoError, one_line
from histo_export.runtimes.base import Names, Runtime, Tiles, TileSide
from histo_export.spec import Precision


class LiteRtRuntime(Runtime):
    """`model.tflite`, with channels last."""

    names: ClassVar[Names] = {"fp32": "LiteRT"}

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        try:
            self.interpreter: Any = Interpreter(str(file), num_threads=threads)
            (tiles,), (logits,) = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        except (RuntimeError, ValueError, OSError) as error:
            raise HistoError(file, f"is not a model that LiteRT runs ({one_line(error)})", "Export again") from error
        self._input, self._output = tiles["index"], logits["index"]
        self._side = int(tiles["shape"][1])

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return None if device == "cpu" else "LiteRT does not run on NVIDIA GPUs"

    @property
    def side(self) -> TileSide:
        return TileSide(self._side, fixed=True)

    @property
    def executed(self) -> str:
        return "cpu fp32"

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        self.interpreter.resize_tensor_input(self._input, tiles.shape)
        self.interpreter.allocate_tensors()
        self.interpreter.set_tensor(self._input, tiles.astype(np.float32) / np.float32(255))
        self.interpreter.invoke()
        logits: npt.NDArray[np.float32] = self.interpreter.get_tensor(self._output)
        return logits

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """The head's alone: the file names no other."""
        return {"head": self._run(tiles)}
