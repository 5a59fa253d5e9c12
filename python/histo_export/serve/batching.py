"""Tiles of many requests in common runs of an engine.

`_core.TileQueue` makes the batches, in C++: the next run begins while Python still encodes the answers of the last one.
Here are the futures that requests wait for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histo_export._core import Engine, TileAnswer, TileQueue
from histo_export.errors import HistoError
from histo_export.serve.refusals import busy

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass
class _Request:
    """The tiles of a request; `missing` are not answered yet."""

    logits: Logits
    missing: int
    done: asyncio.Future[None]


class Batcher:
    """A bounded queue before an engine, for the event loop in which it is made.

    Args:
        engine: which is copied; the weights are shared.
        batch: tiles per run, at most.
        max_wait: seconds that the oldest tile may wait for a full batch.
        capacity: tiles that are not answered yet, at most.
    """

    def __init__(self, engine: Engine, *, batch: int, max_wait: float, capacity: int) -> None:
        self.capacity = capacity
        self._classes = engine.classes
        self._queue = TileQueue(engine, batch=batch, max_wait=max_wait, capacity=capacity)
        self._places: dict[int, tuple[_Request, int]] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._take_answers, name="answers", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tiles that have no answer yet."""
        return len(self._places)

    @property
    def batches(self) -> int:
        """Runs of the engine so far."""
        return self._queue.stats.batches

    async def run(self, tiles: Sequence[Pixels]) -> Logits:
        """Float32 `(n, classes)`, to the bit what `Engine.run` gives. A caller that is cancelled frees its places.

        Args:
            tiles: C-contiguous uint8 RGB `(height, width, 3)` each.

        Raises:
            Refused: the queue has no room for all of them; none is run.
            HistoError: the engine failed.
        """
        if len(self._places) + len(tiles) > self.capacity:
            raise busy("The queue", f"is full ({len(self._places):,} tiles wait)")
        request = _Request(np.empty((len(tiles), self._classes), np.float32), len(tiles), self._loop.create_future())
        ids: list[int] = []
        try:
            for row, tile in enumerate(tiles):
                tile_id = self._queue.try_submit(tile)
                if tile_id is None:  # places of cancelled tiles that are not free yet
                    raise busy("The queue", "is full")
                ids.append(tile_id)
                self._places[tile_id] = request, row  # its answer comes to this thread, so not before
            if tiles:
                await request.done
        finally:
            for tile_id in ids:
                if self._places.pop(tile_id, None) is not None:
                    self._queue.cancel(tile_id)
        return request.logits

    async def close(self) -> None:
        """Waits for the answers of all tiles, and ends the threads."""
        await asyncio.to_thread(self._queue.drain)
        await asyncio.to_thread(self._queue.close)
        await asyncio.to_thread(self._thread.join)

    def _take_answers(self) -> None:
        for answers in self._queue:
            try:
                self._loop.call_soon_threadsafe(self._deliver, answers)
            except RuntimeError:  # the loop is closed: the server was told to end at once
                return

    def _deliver(self, answers: list[TileAnswer]) -> None:
        for answer in answers:
            place = self._places.pop(answer.id, None)
            if place is None:  # nobody waits any more
                continue
            request, row = place
            if answer.logits is None:
                if not request.done.done():
                    cause = f"failed ({answer.error})"
                    request.done.set_exception(HistoError("The native engine", cause, "Ask again, with fewer tiles"))
                continue
            request.logits[row] = answer.logits
            request.missing -= 1
            if not request.missing and not request.done.done():
                request.done.set_result(None)
