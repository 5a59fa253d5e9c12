"""The futures before the queue, where the queue is a stand-in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from histo_export.serve import batching
from histo_export.serve.refusals import Refused


class FullQueue:
    """A queue without room; it gives one answer when `released`."""

    released = threading.Event()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.released.clear()

    def try_submit(self, tile: Any) -> None:
        return None

    def __iter__(self) -> Iterator[list[Any]]:
        self.released.wait(30)
        yield []


@pytest.fixture(autouse=True)
def _full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "TileQueue", FullQueue)


def batcher() -> batching.Batcher:
    engine: Any = SimpleNamespace(classes=2)
    return batching.Batcher(engine, batch=1, max_wait=0, capacity=4)


def test_places_of_cancelled_tiles_may_still_be_taken() -> None:
    async def ask() -> None:
        made = batcher()
        with pytest.raises(Refused, match="The queue: is full") as refused:
            await made.run([np.zeros((4, 4, 3), np.uint8)])
        assert (refused.value.status, made.waiting) == (503, 0)
        FullQueue.released.set()

    asyncio.run(ask())


def test_answers_that_come_after_the_end_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)

    async def make() -> batching.Batcher:
        return batcher()

    made = asyncio.run(make())
    FullQueue.released.set()
    made._thread.join(10)
    assert faults == []
