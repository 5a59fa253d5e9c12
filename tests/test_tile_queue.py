"""`TileQueue` in Python: each submission has one answer, with the engine's own bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from histo_export import Engine, TileQueue
from histo_export._core import TileAnswer


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine(bundle / "model.safetensors", threads=1)


@pytest.fixture(scope="module")
def tiles() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (12, 75, 75, 3), np.uint8)


def answers_of(queue: TileQueue, count: int) -> dict[int, TileAnswer]:
    found: dict[int, TileAnswer] = {}
    for answers in queue:
        found |= {answer.id: answer for answer in answers}
        if len(found) >= count:
            break
    return found


def test_answers_are_the_engines_bits_whatever_thread_submits(engine: Engine, tiles: np.ndarray) -> None:  # type: ignore[type-arg]
    expected = engine.run(tiles)
    ids: dict[int, int] = {}
    with TileQueue(engine, batch=5, max_wait=0.01) as queue:

        def submit(part: range) -> None:
            for i in part:
                tile_id = queue.try_submit(tiles[i])
                assert tile_id is not None
                ids[tile_id] = i

        threads = [threading.Thread(target=submit, args=(range(k, 12, 3),)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = answers_of(queue, 12)
        queue.drain()  # the last answer counts when it has been handed over
        stats = queue.stats
    assert found.keys() == ids.keys()
    for tile_id, answer in found.items():
        assert (answer.error, answer.cancelled) == (None, False)
        assert answer.logits is not None
        assert answer.logits.tobytes() == expected[ids[tile_id]].tobytes()
    assert (stats.submitted, stats.answered, stats.failed, stats.waiting) == (12, 12, 0, 0)
    assert stats.batches >= 3
    assert repr(stats).startswith("<TileQueueStats: 12 tiles, 12 answered, ")


def test_a_full_queue_takes_no_more_and_cancelling_makes_room(engine: Engine, tiles: np.ndarray) -> None:  # type: ignore[type-arg]
    queue = TileQueue(engine, batch=8, max_wait=600, capacity=3)  # too few tiles for a batch: nothing runs
    ids = [queue.try_submit(tile) for tile in tiles[:3]]
    assert None not in ids
    assert queue.try_submit(tiles[3]) is None
    assert ids[1] is not None
    assert queue.cancel(ids[1])
    assert not queue.cancel(ids[1])
    assert not queue.cancel(-1)
    assert queue.try_submit(tiles[3]) is not None
    assert repr(queue) == "<TileQueue: 4 tiles, 3 waiting>"
    queue.drain()
    found = answers_of(queue, 4)
    assert [found[i].cancelled for i in ids if i is not None] == [False, True, False]
    assert repr(found[ids[1]]) == f"<TileAnswer {ids[1]}: cancelled>"
    assert found[ids[1]].logits is None
    assert "cancelled" in str(found[ids[1]].error)
    queue.close()


def test_closing_answers_what_waits_and_ends_the_iteration(engine: Engine, tiles: np.ndarray) -> None:  # type: ignore[type-arg]
    queue = TileQueue(engine, batch=8, max_wait=600)
    found: list[TileAnswer] = []
    taker = threading.Thread(target=lambda: found.extend(answer for answers in queue for answer in answers))
    taker.start()
    for tile in tiles[:2]:
        queue.try_submit(tile)
    queue.close()
    queue.close()
    taker.join()
    assert [answer.cancelled for answer in found] == [True, True]
    assert list(queue) == []
    assert queue.stats.submitted == 2
    with pytest.raises(ValueError, match="the queue is closed"):
        queue.try_submit(tiles[0])
    assert not queue.cancel(1)
    queue.drain()


def test_what_cannot_be_a_tile_is_refused_and_takes_no_room(engine: Engine, tiles: np.ndarray) -> None:  # type: ignore[type-arg]
    with TileQueue(engine, capacity=1, max_wait=600) as queue:
        for wrong, error in (
            (tiles, ValueError),
            (tiles[0, :, :, :2].copy(), ValueError),
            (tiles[0].astype(np.float32), TypeError),
            (tiles[0, ::2], ValueError),
            (tiles[0, :63].copy(), ValueError),
            ("tile", TypeError),
        ):
            with pytest.raises(error):
                queue.try_submit(wrong)  # type: ignore[arg-type]
        assert queue.stats.submitted == 0
        assert queue.try_submit(tiles[0]) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"capacity": 0}, "capacity is 0"),
        ({"max_wait": -1}, "max_wait is -1; it must be a number of seconds from 0 to 3600"),
        ({"max_wait": float("nan")}, "max_wait is nan"),
        ({"max_wait": "1"}, "max_wait is str; a number of seconds is needed"),
    ],
)
def test_arguments_are_judged(engine: Engine, arguments: dict[str, object], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        TileQueue(engine, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="engine is str; an Engine is needed"):
        TileQueue("engine")  # type: ignore[arg-type]


@pytest.fixture
def waiting(engine: Engine) -> Iterator[TileQueue]:
    with TileQueue(engine) as queue:
        yield queue


def test_waiting_for_answers_leaves_the_interpreter_to_others(waiting: TileQueue, tiles: np.ndarray) -> None:  # type: ignore[type-arg]
    submitter = threading.Timer(0.05, waiting.try_submit, [tiles[0]])
    submitter.start()
    (answer,) = next(iter(waiting))  # would wait for ever with the lock
    assert answer.logits is not None
