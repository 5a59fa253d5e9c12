"""The native engine: the C++ core alone, on the CPU."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from histo_export._core import Engine
from histo_export.errors import HistoError, UsageError
from histo_export.runtimes.base import LayerTime, Names, Runtime, Tiles, TileSide
from histo_export.runtimes.layers import by_layer
from histo_export.spec import Precision


def median_layer_times(engine: Engine, tiles: Tiles, runs: int = 9) -> list[dict[str, Any]]:
    """`Engine.layer_times`, the seconds of each layer being the median over several runs."""
    times = [engine.layer_times(tiles) for _ in range(runs)]
    return [
        layers[0] | {"seconds": statistics.median(layer["seconds"] for layer in layers)}
        for layers in zip(*times, strict=True)
    ]


def open_engine(file: Path, *, threads: int, precision: Precision, profile: str) -> Engine:
    """The engine on `model.safetensors`.

    Raises:
        HistoError: the file can't be opened, with the engine's own reason and remedy.
        UsageError: nothing is wrong with the file, but with what was asked of the engine.
    """
    try:
        return Engine(file, threads=threads, precision=precision, profile=profile)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        cause = str(getattr(error, "message", error))
        remedy = getattr(error, "remedy", "") or "see histo doctor"
        if cause.startswith(str(file)):
            cause = cause.removeprefix(str(file)).removeprefix(":").strip()
            raise HistoError(file, f"could not be opened by the native engine ({cause})", _sentence(remedy)) from error
        if "no scales" in cause:
            raise UsageError(file, "has no scales for int8", _sentence(remedy)) from error
        raise UsageError("The native engine", cause, _sentence(remedy)) from error


def _sentence(remedy: str) -> str:
    return remedy[0].upper() + remedy[1:]


class NativeRuntime(Runtime):
    """`histo::Engine` on a `model.safetensors`, without the GIL, planned for large batches.

    int8 needs the scales that `histo export --precision int8` writes into the file.
    """

    names: ClassVar[Names] = {
        "fp32": "native (C++)",
        "bf16x3": "native bf16x3 (C++)",
        "bf16": "native bf16 (C++)",
        "int8": "native int8 (C++)",
    }
    profile: ClassVar[str] = "throughput"

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        self.engine = open_engine(file, threads=threads, precision=precision, profile=self.profile)

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return None if device == "cpu" else "the native engine runs on the CPU only"

    @property
    def executed(self) -> str:
        info = self.engine.info()
        return f"cpu {info['precision']}, {info['isa']}, {info['profile']}"

    @property
    def isa(self) -> str:
        return str(self.engine.info()["isa"])

    @property
    def side(self) -> TileSide:
        return TileSide(int(self.engine.info()["crop"]), fixed=False)

    def batch_target(self) -> Engine:
        return self.engine

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        return self.engine.run(np.ascontiguousarray(tiles))

    @property
    def features(self) -> int:
        return int(self.engine.info()["embedding_size"])

    def _run_with_features(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        outputs = self.engine.outputs(np.ascontiguousarray(tiles), ("logits", "embedding"))
        return np.concatenate([outputs["logits"], outputs["embedding"]], axis=1)

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        return self.engine.stages(np.ascontiguousarray(tiles))

    def layers(self, tiles: Tiles) -> list[LayerTime]:
        """Medians of nine runs, which the engine times itself."""
        layers = median_layer_times(self.engine, np.ascontiguousarray(tiles))
        return by_layer((layer["name"], layer["seconds"]) for layer in layers)


class NativeLatencyRuntime(NativeRuntime):
    """The same, planned for single tiles."""

    names: ClassVar[Names] = {
        "fp32": "native, latency profile (C++)",
        "bf16x3": "native bf16x3, latency profile (C++)",
        "bf16": "native bf16, latency profile (C++)",
        "int8": "native int8, latency profile (C++)",
    }
    profile = "latency"
