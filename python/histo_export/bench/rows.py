"""What is measured: one row for each runtime, model, number of threads and batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from histo_export.runtimes import LayerTime
from histo_export.statistics import round_medians


@dataclass(frozen=True, order=True)
class Conditions:
    """What two rows must share to be compared; `crop` and `tile_size` are sides in pixels."""

    device: str
    threads: int
    batch: int
    precision: str
    tile_size: int
    crop: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"batch {self.batch}, {threads}, {self.precision}, {self.device}"


class Row(BaseModel):
    """One runtime, model, number of threads and batch.

    Attributes:
        subject, pool: the model.
        runtime, name: the id of a `runtimes.Variant`, and what the runtime calls itself.
        device, threads, batch, tile_size, crop: what was asked for.
        executed, precision, devices, isa: what was done, read back after a real run.
        import_s, load_s: seconds to import the runtime and to load the model, the file being in the page cache.
        first_s: seconds of the first call at this batch.
        warm_calls, warm_s, stable: of the warm-up, and whether calls had stopped getting faster at its end.
        rounds: seconds of each timed call, by round.
        max_relative: largest |Δlogit| found, in units of a tile's largest logit.
        spread_error: RMS error found, in units of the logits' spread (`Golden.spread_error`); below fp32 only.
        tolerance: allowed, of `max_relative` in fp32 and of `spread_error` below it.
        memory_before_mb, memory_peak_mb: resident memory before the model was loaded, and at most up to this batch.
        idle_cpu: share of one CPU that the worker used while it had nothing to do.
        layers: stage, layer and seconds from the runtime's profiler; None where it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    subject: str
    pool: int
    runtime: str
    name: str
    device: str
    threads: int
    batch: int
    tile_size: int
    crop: int
    executed: str
    precision: str
    devices: list[str]
    isa: str
    import_s: float
    load_s: float
    first_s: float
    warm_calls: int
    warm_s: float
    stable: bool
    rounds: list[list[float]]
    max_relative: float
    spread_error: float | None = None
    tolerance: float
    memory_before_mb: float
    memory_peak_mb: float
    idle_cpu: float
    layers: list[LayerTime] | None

    @property
    def conditions(self) -> Conditions:
        """Rows with equal values may be compared."""
        return Conditions(self.device, self.threads, self.batch, self.precision, self.tile_size, self.crop)

    @property
    def medians(self) -> npt.NDArray[np.float64]:
        """Seconds of the median call of each round."""
        return round_medians(self.rounds)
