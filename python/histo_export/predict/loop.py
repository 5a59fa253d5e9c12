"""Tiles through a runtime: read by several threads, inferred batch by batch, delivered in order, in bounded memory.

Threads read whole batches ahead of the runtime, because reading a tile can take as long as inferring it; libjpeg,
OpenSlide and the engine all work without the GIL. Python does something once for a batch and not for each tile: while
another slide's tables and pictures are written, each thing that Python does waits for the GIL.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.runtimes import Runtime
from histo_export.spec import ModelSpec

Job = TypeVar("Job")
Place = TypeVar("Place")
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]

Reasons = list[HistoError | None]
"""Why tiles are lost; None for those that are not."""

AHEAD_TILES = 1024
"""Tiles that may wait for the runtime; a batch for each reader and one more if these have fewer."""


@dataclass
class StageSeconds:
    """Seconds of each stage. Stages overlap, so that their sum may exceed `wall`.

    Attributes:
        wall: from the first read to the last delivery, and those of writing.
        read: of all reader threads together.
        wait: in which the runtime had no batch.
        infer: in the runtime.
        write: in which results were delivered and written.
        prepare: in which a slide was opened and its tissue found.
    """

    wall: float = 0.0
    read: float = 0.0
    wait: float = 0.0
    infer: float = 0.0
    write: float = 0.0
    prepare: float = 0.0

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
        """Reads, infers and delivers tiles that may be lost one by one.

        Args:
            jobs: what `read` is called with, in order.
            read: called in one of the reader threads; gives uint8 `(side, side, 3)` of the model's tile size. Where
                it raises HistoError, only this tile is lost.
            deliver: called in order with the job's index, and float32 logits `(classes)` or why the tile is
                lost.
            progress: called with the number of tiles delivered, after each batch.

        Returns:
            The seconds of each stage.

        Raises:
            HistoError: the runtime failed.
            Exception: whatever else `jobs`, `read`, `deliver` or `progress` raise.
        """

        def read_all(chunk: tuple[int, Sequence[Job]]) -> tuple[tuple[int, Reasons], Pixels]:
            tiles: list[Pixels] = []
            reasons: Reasons = []
            for job in chunk[1]:
                try:
                    tiles.append(read(job))
                    reasons.append(None)
                except HistoError as error:
                    reasons.append(error)
            side = self.spec.tile_size
            return (chunk[0], reasons), np.stack(tiles) if tiles else np.empty((0, side, side, 3), np.uint8)

        def deliver_all(place: tuple[int, Reasons], logits: Logits) -> None:
            rows = iter(logits)
            for index, lost in enumerate(place[1], place[0]):
                deliver(index, next(rows) if lost is None else lost)
            progress(place[0] + len(place[1]))

        return self.run_batches(_chunks(jobs, self.batch), read_all, deliver_all)

    def run_batches(
        self,
        jobs: Iterable[Job],
        read: Callable[[Job], tuple[Place, Pixels]],
        deliver: Callable[[Place, Logits], None],
        *,
        features: bool = False,
    ) -> StageSeconds:
        """Reads, infers and delivers whole batches.

        Args:
            jobs: what `read` is called with, in order.
            read: called in one of the reader threads; gives uint8 `(n, side, side, 3)`, n at most `batch`, and what
                `deliver` is to know of them.
            deliver: called in order with that, and with float32 logits `(n, classes)`.
            features: `deliver` gets the feature vectors, too: `(n, classes + runtime.features)`.

        Returns:
            The seconds of each stage.

        Raises:
            HistoError: the runtime failed.
            Exception: whatever else `jobs`, `read` or `deliver` raise.
        """
        timed = _TimedReader(read)
        seconds = StageSeconds()
        start = time.perf_counter()
        ahead = max(self.readers + 1, min(4 * self.readers, AHEAD_TILES // self.batch))
        with (
            ThreadPoolExecutor(self.readers, thread_name_prefix="read") as pool,
            closing(_read_ahead(pool, timed, jobs, ahead)) as batches,
        ):
            before = time.perf_counter()
            for place, tiles in batches:
                ready = time.perf_counter()
                logits = self._infer(tiles, features)
                inferred = time.perf_counter()
                deliver(place, logits)
                seconds.wait += ready - before
                seconds.infer += inferred - ready
                before = time.perf_counter()
                seconds.write += before - inferred
        seconds.wall, seconds.read = time.perf_counter() - start, timed.seconds
        return seconds

    def _infer(self, tiles: Pixels, features: bool) -> Logits:
        """Float32 `(n, classes)` or with features, also for no tile; HistoError where the runtime fails."""
        shape = len(tiles), len(self.spec.classes) + (self.runtime.features if features else 0)
        if not len(tiles):
            return np.empty(shape, np.float32)
        try:
            run = self.runtime.run_with_features if features else self.runtime.batch_target().run
            logits = run(tiles)
            if logits.shape != shape:
                raise ValueError(f"it gave {logits.shape} for {shape}")
        except Exception as error:  # runtimes raise errors of many types
            step = "Try another --runtime or a smaller --batch"
            raise HistoError(self.runtime.name, f"failed ({type(error).__name__}: {error})", step) from error
        return logits


def _chunks(jobs: Iterable[Job], size: int) -> Iterator[tuple[int, Sequence[Job]]]:
    """The jobs in lists of `size`, each with the index of its first one."""
    rest, first = iter(jobs), 0
    while chunk := list(islice(rest, size)):
        yield first, chunk
        first += len(chunk)


class _TimedReader(Generic[Job, Place]):
    """Reads jobs in many threads, and adds up the seconds of all threads."""

    def __init__(self, read: Callable[[Job], tuple[Place, Pixels]]) -> None:
        self.read = read
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> tuple[Place, Pixels]:
        start = time.perf_counter()
        try:
            return self.read(job)
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self.seconds += spent


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], tuple[Place, Pixels]], jobs: Iterable[Job], ahead: int
) -> Generator[tuple[Place, Pixels]]:
    """`map(read, jobs)` in the pool, with at most `ahead` results waiting; closing it cancels what has not begun."""
    waiting: deque[Future[tuple[Place, Pixels]]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
