"""Split tiles into train, val and test: seeded, stratified by class, and by whole groups where there are groups."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from histo_export.data.rows import listed
from histo_export.errors import HistoError, UsageError
from histo_export.extras import needs

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


def split_tiles(
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    classes: tuple[str, ...],
    split: Split,
    seed: int,
    where: object,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`grouped_split` where groups are known, `stratified_split` elsewhere."""
    if groups is None:
        return stratified_split(labels, classes, split, seed, where)
    return grouped_split(labels, groups, classes, split, seed, where)


FOLDS = 12
"""Most parts into which groups are divided; more of them meet shares better, within a point, and take longer."""
TRIES = 20
"""Shuffles of the groups, of which the one is kept whose shares are nearest to what was asked for."""
NEAR_ENOUGH = 0.05
"""A deviation of a class's share in a split that ends the search."""


def grouped_split(
    labels: NDArray[np.int64],
    groups: NDArray[np.str_],
    classes: tuple[str, ...],
    split: Split,
    seed: int,
    where: object,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the train, val and test tiles, each sorted, where no group is on two sides.

    The shares of each class come as near to `split` as whole groups allow: `sklearn`'s StratifiedGroupKFold divides the
    tiles into equal folds, of which a split takes several.

    Args:
        labels: int64 `(n,)`.
        groups: the group of each tile, `(n,)`.
        classes: names, indexed by label.
        split: fractions.
        seed: any integer ≥ 0.
        where: the thing that messages name.

    Raises:
        UsageError: `split` is counts, which whole groups cannot meet.
        HistoError: a class would be missing from a split; all such classes are named.
    """
    needs("--groups", "train", modules=["sklearn"])
    if all(isinstance(part, int) for part in split):
        shown = "/".join(map(str, split))
        raise UsageError(f"split {shown}", "counts tiles, and whole groups seldom add up to them", "Give fractions")
    own = [np.unique(groups[labels == label]) for label in range(len(classes))]
    if few := [f"class {name}: {len(g)} of 3" for name, g in zip(classes, own, strict=True) if len(g) < 3]:
        cause = f"train, val and test need a group each of every class:{listed(few)}"
        raise HistoError(where, cause, "Add slides or patients, or leave these classes out with --classes")
    best = min(_grouped_tries(labels, groups, split, seed), key=lambda tried: tried[0])[1]
    parts = [np.flatnonzero(best == part) for part in range(3)]
    counts = [np.bincount(labels[part], minlength=len(classes)) for part in parts]
    lacking = [
        f"class {name}: no tile in {part}"
        for part, tiles in zip(("train", "val", "test"), counts, strict=True)
        for name, count in zip(classes, tiles, strict=True)
        if not count
    ]
    if lacking:
        cause = f"its {len(np.unique(groups)):,} groups leave classes out of a split:{listed(lacking)}"
        raise HistoError(where, cause, "Try another --seed or --split, add groups, or leave classes out with --classes")
    return parts[0], parts[1], parts[2]


def _grouped_tries(
    labels: NDArray[np.int64], groups: NDArray[np.str_], split: Split, seed: int
) -> Iterator[tuple[tuple[int, float], NDArray[np.int64]]]:
    """Pairs of how bad a split is, and the split: 0, 1, 2 for train, val and test, -1 for tiles left out, `(n,)`.

    How bad: the classes that are missing from a split, then the largest deviation of a class's share.
    """
    totals = np.bincount(labels)
    for attempt in range(TRIES):
        part = np.full(len(labels), -1, dtype=np.int64)
        left = np.arange(len(labels))
        remaining = 1.0
        for index in (2, 1, 0):  # the small ones first, while there is a choice
            share = min(1.0, split[index] / remaining)
            taken = _folds(labels[left], groups[left], share, seed * TRIES + attempt)
            part[left[taken]] = index
            left, remaining = left[~taken], remaining - split[index]
        shares = np.array([np.bincount(labels[part == i], minlength=len(totals)) / totals for i in range(3)])
        worst = float(np.abs(shares - np.array(split)[:, None]).max())
        yield (int((shares == 0).sum()), worst), part
        if shares.all() and worst <= NEAR_ENOUGH:
            return


def _folds(labels: NDArray[np.int64], groups: NDArray[np.str_], share: float, seed: int) -> NDArray[np.bool_]:
    """Which tiles `(n,)` belong to about that share of all, in whole groups and with about that share of each class."""
    from sklearn.model_selection import StratifiedGroupKFold

    most = min(FOLDS, len(np.unique(groups)), int(np.bincount(labels)[np.unique(labels)].min(initial=FOLDS)))
    wanted = Fraction(share).limit_denominator(max(1, most))
    taken = np.zeros(len(labels), dtype=np.bool_)
    if wanted == 1:
        return ~taken
    folds, count = max(2, wanted.denominator), max(1, wanted.numerator)
    if most < 2:
        return taken
    folder = StratifiedGroupKFold(min(folds, most), shuffle=True, random_state=seed % 2**32)
    for _, members in itertools.islice(folder.split(labels, labels, groups), count):
        taken[members] = True
    return taken
