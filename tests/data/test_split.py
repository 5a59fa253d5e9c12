from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histo_export.data.split import DEFAULT_SPLIT, part_sizes, stratified_split


def test_default_is_the_reports_split() -> None:
    assert part_sizes(625, DEFAULT_SPLIT, "A", "x") == (425, 100, 100)


@given(st.integers(3, 2000), st.tuples(*[st.floats(0.01, 0.33)] * 3))
def test_parts_are_never_empty_nor_too_many(n: int, split: tuple[float, float, float]) -> None:
    sizes = part_sizes(n, split, "A", "x")
    assert min(sizes) >= 1
    assert sum(sizes) <= n


@given(st.lists(st.integers(3, 40), min_size=2, max_size=4), st.integers(0, 9))
def test_parts_are_disjoint_and_stratified(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(f"c{i}" for i in range(len(counts)))
    parts = stratified_split(labels, classes, DEFAULT_SPLIT, seed, "x")
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == sum(counts)
    for part in parts:
        assert np.all(np.bincount(labels[part], minlength=len(counts)) >= 1)
