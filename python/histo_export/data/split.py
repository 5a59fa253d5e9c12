"""Split tiles into train, val and test: seeded, and stratified by class."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from histo_export.errors import HistoError, UsageError

Split = tuple[float, float, float] | tuple[int, int, int]
"""Fractions (train, val, test) that sum to at most 1, or counts per class."""

DEFAULT_SPLIT: Split = (0.68, 0.16, 0.16)
"""The report's 425/100/100 of 625, as fractions."""


def check_split(split: Split) -> None:
    """Raise UsageError unless `split` is three positive counts or three fractions summing to at most 1."""
    shown = "/".join(str(part) for part in split)
    step = "Give fractions such as 0.68/0.16/0.16, or counts per class such as 425/100/100"
    if len(split) != 3:
        raise UsageError(f"split {shown}", f"has {len(split)} parts, not train/val/test", step)
    if any(isinstance(part, bool) or not np.isfinite(part) or part <= 0 for part in split):
        raise UsageError(f"split {shown}", "every part must be above zero", step)
    if all(isinstance(part, int) for part in split):
        return
    if any(part >= 1 for part in split):
        raise UsageError(f"split {shown}", "mixes counts with fractions, or has a fraction of 1 or more", step)
    if sum(split) > 1 + 1e-9:
        raise UsageError(f"split {shown}", f"sums to {sum(split):g}, more than 1", step)


def part_sizes(n: int, split: Split, class_name: str, where: object) -> tuple[int, int, int]:
    """How many of the `n` tiles of a class go to train, val and test.

    Fractions are rounded cumulatively, so sizes never sum to more than `n`, and no part is empty.

    Raises:
        HistoError: the class has too few tiles.
    """
    if all(isinstance(part, int) for part in split):
        counts = (int(split[0]), int(split[1]), int(split[2]))
        if sum(counts) > n:
            raise HistoError(
                f"{where}: class {class_name}",
                f"has {n:,} tiles, but the split {'/'.join(map(str, counts))} needs {sum(counts):,}",
                "Ask for fewer with --split, or add tiles",
            )
        return counts
    if n < 3:
        raise HistoError(
            f"{where}: class {class_name}",
            f"has {n} tile{'s' if n != 1 else ''}, too few for train, val and test",
            "Add tiles, or leave the class out with --classes",
        )
    edges = [0, *(int(np.floor(n * part + 0.5 + 1e-9)) for part in np.cumsum(split))]
    sizes = [max(1, b - a) for a, b in pairwise(edges)]
    while sum(sizes) > n:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes[0], sizes[1], sizes[2]


def stratified_split(
    labels: NDArray[np.int64], classes: tuple[str, ...], split: Split, seed: int, where: object
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the train, val and test tiles, each sorted.

    A class is shuffled with a generator seeded by `seed` and the class's name, so its tiles fall the
    same way whichever other classes are chosen.

    Args:
        labels: int64 `(n,)`; the order of the tiles within a class must not depend on the machine.
        classes: names, indexed by label.
        split: fractions or counts per class.
        seed: any integer ≥ 0.
        where: the thing that messages name.
    """
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        sizes = part_sizes(len(members), split, name, where)
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, word])))
        members = rng.permutation(members)
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            part.append(members[start : start + size])
            start += size
    train, val, test = (np.sort(np.concatenate(part)).astype(np.int64) for part in parts)
    return train, val, test
