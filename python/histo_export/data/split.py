"""Split tiles into train, val and test: seeded, stratified by class, and by whole groups where there are groups."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from histo_export.data.rows import listed
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


TRIES = 12
"""Orders of the groups that are tried, of which the one is kept whose shares are nearest to what was asked for."""
MORE_TRIES = 100
"""The same while every split so far has left a class out."""
SEARCHED = 10
"""Groups up to which all ways to deal them out are tried where the orders left a class out."""
NEAR_ENOUGH = 0.02
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

    The shares of each class come as near to `split` as whole groups allow. Not by `sklearn`'s StratifiedGroupKFold:
    its folds are of equal size, and its versions 1.5 and 1.9 give different ones for the same seed, so that test tiles
    of a run could be training tiles of the same run after an update.

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
    if all(isinstance(part, int) for part in split):
        shown = "/".join(map(str, split))
        raise UsageError(f"split {shown}", "counts tiles, and whole groups seldom add up to them", "Give fractions")
    names, group = np.unique(groups, return_inverse=True)
    tiles = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(tiles, (group, labels), 1)
    own = (tiles > 0).sum(0)
    if few := [f"class {name}: {n} of 3" for name, n in zip(classes, own, strict=True) if n < 3]:
        cause = f"train, val and test need a group each of every class:{listed(few)}"
        raise HistoError(where, cause, "Add slides or patients, or leave these classes out with --classes")
    part_of = _best_parts(tiles, split, seed)
    lacking = [
        f"class {name}: no tile in {part}"
        for i, part in enumerate(("train", "val", "test"))
        for name, count in zip(classes, tiles[part_of == i].sum(0), strict=True)
        if not count
    ]
    if lacking:
        if len(names) <= SEARCHED:
            cause = f"no split by its {len(names)} groups has every class in train, val and test; the nearest lacks:"
            step = "Add slides or patients, or leave classes out with --classes"
        else:
            cause = f"its {len(names):,} groups leave classes out of a split:"
            step = "Try another --seed or --split, add groups, or leave classes out with --classes"
        raise HistoError(where, f"{cause}{listed(lacking)}", step)
    train, val, test = (np.flatnonzero(part_of[group] == part) for part in range(3))
    return train, val, test


def _best_parts(tiles: NDArray[np.int64], split: Split, seed: int) -> NDArray[np.int64]:
    """The part of each group, `(groups,)`: 0, 1, 2 for train, val, test, and 3 for what `split` leaves out.

    Args:
        tiles: int64 `(groups, classes)`, how many of each class a group has.
        split: fractions.
        seed: any integer ≥ 0.
    """
    wanted = np.array([*split, rest] if (rest := 1 - sum(split)) > 1e-9 else split)
    shares = tiles / tiles.sum(0)
    best, least = np.zeros(len(tiles), dtype=np.int64), (len(wanted) * len(shares[0]) + 1, 0.0)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, len(tiles)])))
    for tried in range(MORE_TRIES):
        if tried >= TRIES and least[0] == 0:
            break
        if tried == TRIES and len(tiles) <= SEARCHED:
            found = _searched(tiles, wanted)
            return best if found is None else found
        part_of, reached = _dealt(shares, wanted, rng.permutation(len(tiles)))
        fault = int((reached[:3] == 0).sum()), float(np.abs(reached - wanted[:, None]).max())
        if fault < least:
            best, least = part_of, fault
        if fault <= (0, NEAR_ENOUGH):
            break
    return best


def _searched(tiles: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Of all ways to deal groups out to train, val and test, the nearest to `wanted` with every class in each part.

    Counts are integers, so that every machine finds the same one.

    Args:
        tiles: int64 `(groups, classes)`, as in `_best_parts`.
        wanted: the share of each part.

    Returns:
        The part of each group; None where there is no such way.
    """
    ways = np.indices((3,) * len(tiles), dtype=np.int64).reshape(len(tiles), -1).T
    reached = np.stack([(ways == part).astype(np.int64) @ tiles for part in range(3)], 1)
    complete = (reached > 0).all((1, 2))
    if not complete.any():
        return None
    deviation = np.abs(reached[complete] / tiles.sum(0) - wanted[:3, None]).max((1, 2))
    nearest: NDArray[np.int64] = ways[complete][deviation.argmin()]
    return nearest


def _dealt(
    shares: NDArray[np.float64], wanted: NDArray[np.float64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Groups dealt out in an order, each to the part that needs it most; and the share of each class in each part.

    The need of a part is measured by the sum over classes of the squared deviation from the wanted share, relative to
    that share. It is summed exactly (`math.fsum`), so that every machine deals in the same way.

    Args:
        shares: `(groups, classes)`, the share of a class's tiles that a group has.
        wanted: of each part.
        order: of the groups.

    Returns:
        The part of each group, int64 `(groups,)`, and float64 `(parts, classes)`.
    """
    reached = np.zeros((len(wanted), shares.shape[1]))
    part_of = np.zeros(len(shares), dtype=np.int64)
    undealt = (shares > 0).sum(0)  # groups of each class
    for group in order:
        added = shares[group]
        # Where as many of train, val and test lack a class as groups of it are left, this one must go to one of those.
        lacking = reached[:3] == 0
        urgent = lacking & (added > 0) & (lacking.sum(0) >= undealt)
        parts = np.flatnonzero(urgent.any(1)) if urgent.any() else range(len(wanted))
        undealt -= added > 0
        # The deviation with the group less that without it: (a + x - w)² - (a - w)² = x (2a + x - 2w)
        change = added * (2 * reached + added - 2 * wanted[:, None]) / wanted[:, None]
        part = min(parts, key=[math.fsum(row) for row in change.tolist()].__getitem__)
        part_of[group] = part
        reached[part] += added
    return part_of, reached
