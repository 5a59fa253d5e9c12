"""The whole network: uint8 tiles in, logits out, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Choice, Timed

LOOP_BATCH, LOOP_TILES, LOOP_ROUNDS = 32, 128, 2


def test_network(timed: Timed, pool: int, batch: int, choice: Choice, run_benchmark: Callable[..., None]) -> None:
    """Steady state: the worker has warmed up until calls no longer get faster."""
    timed.check(timed.worker.logits(batch))
    timed.check_executed()
    if choice.timing:
        timed.worker.warm(batch)
    group = f"network, pool {pool}, batch {batch}, {choice.settings}"
    run_benchmark(lambda: timed.worker.call(batch), group, tiles_per_call=batch, **timed.worker.executed())
    timed.check(timed.worker.logits(batch))


def test_batch_loop(timed: Timed, pool: int, choice: Choice, run_benchmark: Callable[..., None]) -> None:
    """`BatchRunner`, from tiles in memory to logits in order: tiles are prepared while others are inferred."""
    tiles = LOOP_TILES if choice.timing else LOOP_BATCH

    def loop() -> float:
        seconds, logits = timed.worker.loop(LOOP_BATCH, tiles)
        timed.check(logits)
        return seconds

    group = f"batch loop, {tiles} tiles by {LOOP_BATCH}, pool {pool}, {choice.settings}"
    run_benchmark(loop, group, rounds=LOOP_ROUNDS, tiles_per_call=tiles)
