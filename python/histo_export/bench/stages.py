"""Where the native engine's time goes, stage by stage, beside what this machine can do at most.

The limits are measured on the spot (`_core.measure_peaks`, `_core.measure_reading`): how many products per second the
instructions of the kernels form in registers, and how many bytes per second come from memory. Each layer is judged by
the peak of the instruction that it multiplies with, and counts what it executes: after Winograd's reduction, without
its transforms. So a share of the peak tells how well the time is used, and the multiply-adds by the definition tell
what a user gets for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from histo_export import _core
from histo_export.runtimes.native import NativeRuntime, median_layer_times
from histo_export.spec import Precision

RUNS_SECONDS = 1.0
"""About as long are the runs of a batch repeated."""
LEAST_RUNS, MOST_RUNS = 5, 50

BYTES_OF: Mapping[str, int] = {"fp32": 4, "bf16x3": 6, "bf16": 2, "int8": 1}
"""Of one number of a feature map, by the precision of the layer that reads it."""

Bound = Literal["arithmetic", "memory", "unknown"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Part):
    """What the machine can do at most, all threads together.

    Attributes:
        multiply_adds: kind of products → multiply-adds per second in registers.
        instructions: kind of products → the instruction.
        bytes: per second from memory.
    """

    multiply_adds: dict[str, float]
    instructions: dict[str, str]
    bytes: float


class StageRow(_Part):
    """A stage of the network, or "all".

    Attributes:
        stage: its name.
        seconds: for the batch; medians of its layers added up.
        multiply_adds, executed_multiply_adds: per tile, by the definition and after Winograd's reduction.
        least_arithmetic_s: for the batch, at the peaks of the layers' instructions; None where one is unknown.
        bytes: that the batch must read at least: the weights as packed, and the stage's input, each once.
        least_memory_s: for the batch, to read them from memory.
    """

    stage: str
    seconds: float
    multiply_adds: int
    executed_multiply_adds: int
    least_arithmetic_s: float | None
    bytes: int
    least_memory_s: float

    @property
    def bound(self) -> Bound:
        """Which limit is the nearer one."""
        if self.least_arithmetic_s is None:
            return "unknown"
        return "arithmetic" if self.least_arithmetic_s >= self.least_memory_s else "memory"


class StageTable(_Part):
    """The stages of one model in one batch.

    Attributes:
        subject: the model.
        precision, isa, profile: that the engine executed.
        threads, batch: of the run.
        limits: of the machine with so many threads, measured in the same run.
        rows: the stages in the order of the computation, then "all".
    """

    subject: str
    precision: Precision
    isa: str
    profile: str
    threads: int
    batch: int
    limits: Limits
    rows: list[StageRow]


def measure_limits(threads: int, seconds: float = 0.1) -> Limits:
    """The limits of this machine; `seconds` for each kind of products."""
    peaks = _core.measure_peaks(threads, seconds)
    return Limits(
        multiply_adds={peak["products"]: peak["multiply_adds"] for peak in peaks},
        instructions={peak["products"]: peak["instruction"] for peak in peaks},
        bytes=_core.measure_reading(threads, 3 * seconds),
    )


def measure_stages(runtime: NativeRuntime, subject: str, limits: Limits, batches: Sequence[int]) -> list[StageTable]:
    """Times the engine's stages on noise, a table for each batch.

    Args:
        runtime: the model, opened.
        subject: what to call the model.
        limits: measured with the same number of threads.
        batches: tiles per run.
    """
    engine = runtime.engine
    side = engine.info()["crop"]
    tables = []
    for batch in batches:
        tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        engine.warmup(batch)
        once = sum(layer["seconds"] for layer in engine.layer_times(tiles))
        layers = median_layer_times(engine, tiles, min(MOST_RUNS, max(LEAST_RUNS, round(RUNS_SECONDS / once))))
        info = engine.info()
        tables.append(
            StageTable(
                subject=subject,
                precision=info["precision"],
                isa=info["isa"],
                profile=info["profile"],
                threads=info["threads"],
                batch=batch,
                limits=limits,
                rows=stage_rows(layers, batch, side, limits),
            )
        )
    return tables


def stage_rows(layers: Sequence[Mapping[str, Any]], batch: int, crop: int, limits: Limits) -> list[StageRow]:
    """The rows of a table.

    Args:
        layers: of `Engine.layer_times`.
        batch: tiles of the run.
        crop: side of the tiles that the stem reads, in pixels.
        limits: of the machine.
    """
    rows = []
    read = 3 * crop**2  # bytes that the next stage reads of a tile: uint8 pixels, then the map before it
    numbers = 0  # of the map before it
    for stage, group in groupby(layers, key=lambda layer: str(layer["name"]).partition(".")[0]):
        own = list(group)
        if numbers:
            read = numbers * BYTES_OF[own[0]["precision"]]
        rows.append(_row(stage, own, batch, batch * read, limits))
        numbers = int(np.prod(own[-1]["output"])) if stage != "stem" else _pooled(own[0]["output"])
    return [*rows, _row("all", layers, batch, batch * 3 * crop**2, limits)]


def _pooled(output: Sequence[int]) -> int:
    """Numbers of the stem's map behind its maximum, which halves the sides."""
    channels, height, width = output
    return channels * ((height + 1) // 2) * ((width + 1) // 2)


def _row(stage: str, layers: Sequence[Mapping[str, Any]], batch: int, map_bytes: int, limits: Limits) -> StageRow:
    least = [_least_seconds(layer, limits) for layer in layers]
    read = map_bytes + sum(layer["weight_bytes"] for layer in layers)
    return StageRow(
        stage=stage,
        seconds=sum(layer["seconds"] for layer in layers),
        multiply_adds=sum(layer["multiply_adds"] for layer in layers),
        executed_multiply_adds=sum(layer["executed_multiply_adds"] for layer in layers),
        least_arithmetic_s=None if None in least else batch * sum(seconds for seconds in least if seconds is not None),
        bytes=read,
        least_memory_s=read / limits.bytes,
    )


def _least_seconds(layer: Mapping[str, Any], limits: Limits) -> float | None:
    """What a layer needs for a tile at the peak of the instruction that it multiplies with; None: that is unknown."""
    precision, executed = layer["precision"], layer["executed_multiply_adds"]
    products = precision
    if precision == "bf16x3":
        products, executed = "bf16", 3 * executed
    elif precision == "int8" and layer["convolution"] != "direct":
        products = "int16"  # Winograd's transformed bytes are words
    elif precision == "bf16" and "bf16" not in limits.multiply_adds:
        products = "fp32"  # what int8 keeps in bf16 is multiplied as floats there
    peak = limits.multiply_adds.get(products)
    return None if peak is None else executed / peak
