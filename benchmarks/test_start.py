"""Loading a model and its first call, in a fresh process each time; the import of the runtime is timed separately.

Neither depends on the pool, so the first one chosen stands for all. The files are in the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from histo_export.bench.subjects import Subject

if TYPE_CHECKING:
    from conftest import Choice, Timed

ROUNDS = 2


@pytest.fixture(scope="session")
def fresh(
    runtime_id: str, subjects: dict[int, Subject], choice: Choice, open_timed: Callable[..., Timed]
) -> Iterator[list[Timed]]:
    """Workers that have loaded the model and done nothing else."""
    with ExitStack() as stack:
        subject = subjects[choice.pools[0]]
        yield [open_timed(stack, runtime_id, subject) for _ in range(ROUNDS if choice.timing else 1)]


def test_load(fresh: list[Timed], choice: Choice, run_benchmark: Callable[..., None]) -> None:
    facts = iter([timed.facts for timed in fresh])
    group = f"load, pool {choice.pools[0]}, {choice.settings}"
    run_benchmark(lambda: next(facts)["load_s"], group, rounds=len(fresh), import_s=fresh[0].facts["import_s"])


def test_first_call(fresh: list[Timed], choice: Choice, run_benchmark: Callable[..., None]) -> None:
    """Before any check, because that would be the first call; the output is checked afterwards."""
    batch = choice.batches[0]
    left = iter(fresh)
    group = f"first call, pool {choice.pools[0]}, batch {batch}, {choice.settings}"
    run_benchmark(lambda: next(left).worker.call(batch), group, rounds=len(fresh), tiles_per_call=batch)
    for timed in fresh:
        timed.check(timed.worker.logits(batch))
        timed.check_executed()
