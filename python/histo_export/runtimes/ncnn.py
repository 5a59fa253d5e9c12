"""ncnn, on the CPU, one tile after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ncnn
import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.runtimes.base import Names, Runtime, Tiles, TileSide, to_float
from histo_export.spec import Precision


class NcnnRuntime(Runtime):
    """`model.ncnn.param` with `model.ncnn.bin` beside it, in float32: by default ncnn rounds to float16 and bf16."""

    names: ClassVar[Names] = {"fp32": "ncnn"}

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        self.net: Any = ncnn.Net()
        options = self.net.opt
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = options.use_vulkan_compute = False
        weights = file.with_suffix(".bin")
        for each in (file, weights):
            if not os.access(each, os.R_OK):  # ncnn prints to stderr and goes on
                raise HistoError(each, "is missing or can't be read", "Export again")
        try:
            self._side = _side_of(file)
        except (ValueError, IndexError, StopIteration) as error:
            raise HistoError(file, "is not a network that histo export wrote", "Export again") from error
        if self.net.load_param(str(file)) or self.net.load_model(str(weights)):
            raise HistoError(file, "is not a model that ncnn runs", "Export again")

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return None if device == "cpu" else "ncnn does not run on NVIDIA GPUs here"

    @property
    def side(self) -> TileSide:
        return TileSide(self._side, fixed=True)

    @property
    def executed(self) -> str:
        return "cpu fp32"

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        return np.stack([self._logits(tile) for tile in to_float(tiles)])

    def _logits(self, tile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with self.net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(tile).clone())
            failed, out = extractor.extract("out0")
            if failed:
                raise HistoError(self.file, f"could not be run by ncnn (status {failed})", "Export again")
            return np.array(out, np.float32)

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """The head's alone: the file names no other."""
        return {"head": self._run(tiles)}


def _side_of(file: Path) -> int:
    """The side of the tiles, which the file states in the layer that refuses all others."""
    lines = file.read_text(encoding="utf-8").splitlines()
    split = next(line.split() for line in lines if line.startswith("Slice "))
    sizes = next(word for word in split if word.startswith("-23300="))
    return int(sizes.split(",")[1])
