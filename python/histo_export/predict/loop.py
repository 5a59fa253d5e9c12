"""Tiles through a runtime: read by several threads, inferred in batches, delivered in order, in bounded memory.

The C++ batch loop (`BatchRunner`) infers. Threads read ahead of it, because decoding a tile takes as long as inferring
it; libjpeg, OpenSlide and the engine all work without the GIL.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from histo_export._core import BatchRunner, TileResult
from histo_export.errors import HistoError
from histo_export.runtimes import Runtime
from histo_export.spec import ModelSpec

Job = TypeVar("Job")
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]

AHEAD = 64
"""Decoded tiles that may wait for the batch loop; enough that one slow read does not stop it."""


@dataclass
class StageSeconds:
    """Seconds of each stage. Stages overlap, so that their sum may exceed `wall`.

    Attributes:
        wall: from the first read to the last delivery.
        read: of all reader threads together.
        wait: in which the batch loop had no tile.
        infer: in the runtime.
        write: in which results were delivered and written.
    """

    wall: float = 0.0
    read: float = 0.0
    wait: float = 0.0
    infer: float = 0.0
    write: float = 0.0

    def add(self, other: StageSeconds) -> None:
        """Adds the seconds of other tiles."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def softmax(logits: Logits) -> Probabilities:
    """Probabilities along the last axis, computed in float64, so that they add up to 1 in float32."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: Probabilities = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


class TileLoop:
    """Runs tiles through a runtime.

    Args:
        runtime: what infers.
        spec: of its model.
        batch: tiles per call of the runtime.
        readers: threads that read tiles.
    """

    def __init__(self, runtime: Runtime, spec: ModelSpec, *, batch: int, readers: int) -> None:
        self.runtime, self.spec, self.batch, self.readers = runtime, spec, batch, readers

    def run(
        self,
        jobs: Iterable[Job],
        read: Callable[[Job], Pixels],
        deliver: Callable[[int, Logits | HistoError], None],
        progress: Callable[[int], None] = lambda done: None,
    ) -> StageSeconds:
        """Reads, infers and delivers every job.

        Args:
            jobs: what `read` is called with, in order.
            read: called in one of the reader threads; gives uint8 `(side, side, 3)` of the model's tile size. Where
                it raises HistoError, only this tile is lost.
            deliver: called in order with the job's index, and float32 logits `(classes)` or why the tile is
                lost.
            progress: called with the number of tiles delivered, at least every 100 ms.

        Returns:
            The seconds of each stage.

        Raises:
            HistoError: the runtime failed.
            Exception: whatever else `jobs`, `read`, `deliver` or `progress` raise.
        """
        timed = _TimedReader(read)
        lost: dict[int, HistoError] = {}
        raised: list[Exception] = []

        def source() -> Generator[Pixels | HistoError]:
            # The batch loop takes an exception of its source for the loss of one tile, and then for the end.
            try:
                for index, tile in enumerate(_read_ahead(pool, timed, jobs)):
                    if isinstance(tile, HistoError):
                        lost[index] = tile
                    yield tile
            except Exception as error:
                raised.append(error)

        def receive(result: TileResult) -> None:
            if result.logits is not None:
                deliver(result.index, result.logits)
            elif result.index in lost:
                deliver(result.index, lost.pop(result.index))
            else:
                step = "Try another --runtime or a smaller --batch"
                raise HistoError(self.runtime.name, f"failed ({result.error})", step)

        classes, side = len(self.spec.classes), self.spec.tile_size
        runner = BatchRunner(self.runtime.batch_target(), classes, batch=self.batch, on_error="report")
        start = time.perf_counter()
        with ThreadPoolExecutor(self.readers, thread_name_prefix="read") as pool:
            tiles = source()
            try:
                stats = runner.run(tiles, receive, shape=(side, side), progress=lambda stats: progress(stats.tiles))
            finally:
                tiles.close()
        if raised:
            raise raised[0]
        wall = time.perf_counter() - start
        return StageSeconds(wall, timed.seconds, stats.prepare_seconds, stats.infer_seconds, stats.deliver_seconds)


class _TimedReader(Generic[Job]):
    """Reads jobs in many threads: returns a HistoError, and adds up the seconds of all threads."""

    def __init__(self, read: Callable[[Job], Pixels]) -> None:
        self.read = read
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> Pixels | HistoError:
        start = time.perf_counter()
        try:
            return self.read(job)
        except HistoError as error:
            return error
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds += spent


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], Pixels | HistoError], jobs: Iterable[Job]
) -> Iterator[Pixels | HistoError]:
    """`map(read, jobs)` in the pool, with at most `AHEAD` results waiting; closing it cancels what has not begun."""
    waiting: deque[Future[Pixels | HistoError]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
