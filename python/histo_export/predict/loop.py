"""Tiles through a runtime: read by several threads, inferred in batches, delivered in order, in bounded memory.

The inference side is the C++ batch loop (`BatchRunner`). In front of it stand reader threads, because decoding a tile
takes as long as inferring it; libjpeg, OpenSlide and the engine all work without the GIL.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from histo_export._core import BatchRunner, TileResult
from histo_export.errors import HistoError
from histo_export.runtimes import Runtime

Job = TypeVar("Job")
Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

AHEAD = 64
"""Tiles that may wait, decoded, for the batch loop; enough that one slow read stops nobody."""


@dataclass
class StageSeconds:
    """Where the time went. Stages overlap, so they may exceed `wall`; `read` adds up all reader threads.

    Attributes:
        wait: the batch loop had no tile.
    """

    wall: float = 0.0
    read: float = 0.0
    wait: float = 0.0
    infer: float = 0.0
    write: float = 0.0

    def add(self, other: StageSeconds) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def softmax(logits: npt.NDArray[np.float32]) -> Probabilities:
    """Probabilities along the last axis, by way of float64, so that they add up to 1 in float32."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: Probabilities = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def run_tiles(
    runtime: Runtime,
    classes: int,
    jobs: Iterable[Job],
    read: Callable[[Job], Pixels],
    deliver: Callable[[int, Probabilities | HistoError], None],
    *,
    side: int,
    batch: int,
    readers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> StageSeconds:
    """Reads, infers and delivers every job.

    Args:
        runtime: what infers.
        classes: logits per tile.
        jobs: what `read` is called with, in order.
        read: in one of `readers` threads, to uint8 `(side, side, 3)`; a HistoError loses this one tile.
        deliver: called in order with the job's index, and the probabilities `(classes)` or why the tile is lost.
        side: of every tile, in pixels.
        batch: tiles per call of the runtime.
        progress: called with the number of tiles delivered, at least every 100 ms.

    Returns:
        The seconds of each stage.

    Raises:
        HistoError: the runtime failed.
        Exception: whatever else `jobs`, `read`, `deliver` or `progress` raise.
    """
    busy = _Busy()
    lost: dict[int, HistoError] = {}
    broken: list[Exception] = []

    def timed(job: Job) -> Pixels | HistoError:
        start = time.perf_counter()
        try:
            return read(job)
        except HistoError as error:
            return error
        finally:
            busy.add(time.perf_counter() - start)

    def source() -> Generator[Pixels | HistoError]:
        # What is raised in here would lose one tile and silently end the rest.
        try:
            for index, tile in enumerate(_read_ahead(pool, timed, jobs)):
                if isinstance(tile, HistoError):
                    lost[index] = tile
                yield tile
        except Exception as error:
            broken.append(error)

    def receive(result: TileResult) -> None:
        if result.logits is not None:
            deliver(result.index, softmax(result.logits))
        elif result.index in lost:
            deliver(result.index, lost.pop(result.index))
        else:
            raise HistoError(runtime.name, f"failed ({result.error})", "Try another --runtime or a smaller --batch")

    runner = BatchRunner(runtime.batch_target(), classes, batch=batch, on_error="report")
    start = time.perf_counter()
    with ThreadPoolExecutor(readers, thread_name_prefix="read") as pool:
        tiles = source()
        try:
            stats = runner.run(tiles, receive, shape=(side, side), progress=lambda stats: progress(stats.tiles))
        finally:
            tiles.close()
    if broken:
        raise broken[0]
    wall = time.perf_counter() - start
    return StageSeconds(wall, busy.seconds, stats.prepare_seconds, stats.infer_seconds, stats.deliver_seconds)


class _Busy:
    """Seconds, added up by many threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], Pixels | HistoError], jobs: Iterable[Job]
) -> Iterator[Pixels | HistoError]:
    """`map(read, jobs)` with at most `AHEAD` under way; closing it cancels those that have not begun."""
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
