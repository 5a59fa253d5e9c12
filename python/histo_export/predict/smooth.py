"""The mean of overlapping squares: a heat map that is finer than the squares, and without their steps.

The probability of a class at a point is the mean of its probabilities in all used squares that contain the point, each
with the same weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # it needs the packages for slides, which sets of tiles do without
    from histo_export.predict.grid import Axis, Grid

MOST_SUMS = 10_000_000
"""Columns times rows: as many as a grid has at most. Squares at any places may have a column and a row each."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def mean_at(
    grid: Grid, probabilities: npt.NDArray[np.float32], x: Floats, y: Floats
) -> tuple[Integers, npt.NDArray[np.float32]]:
    """The most probable class at each point by the mean of the squares, and that mean.

    Args:
        grid: the squares.
        probabilities: float32 `(n, classes)` of the squares.
        x, y: float64, in pixels of level 0; all pairs of them are the points.

    Returns:
        int64 `(len(y), len(x))`, -1 where no used square contains the point; and float32 of the same shape, 0 there.
    """
    left, right = _containing(grid.columns, grid.layout.square[0], x)
    top, bottom = _containing(grid.rows, grid.layout.square[1], y)

    def sums(values: npt.NDArray[np.float32] | float) -> Floats:
        """The sum over the squares that contain each point, by sums over all squares above and left of a corner."""
        table = np.zeros((len(grid.rows.start) + 1, len(grid.columns.start) + 1))
        table[grid.row + 1, grid.column + 1] = values
        table = table.cumsum(0).cumsum(1)
        across: Floats = table[:, right] - table[:, left]
        result: Floats = across[bottom] - across[top]
        return result

    count = sums(1.0)
    used = count > 0.5
    chosen = np.where(used, 0, -1)
    most = np.zeros(count.shape, np.float32)
    for i in range(probabilities.shape[1]):
        mean = np.divide(sums(probabilities[:, i]), count, out=np.zeros(count.shape), where=used).astype(np.float32)
        higher = used & (mean > most)
        chosen[higher], most[higher] = i, mean[higher]
    return chosen, most


def _containing(axis: Axis, side: float, position: Floats) -> tuple[Integers, Integers]:
    """The first column (or row) whose squares contain each position, and the one after the last."""
    first = np.searchsorted(axis.start + side, position, side="right")
    return first, np.searchsorted(axis.start, position, side="right")


def can_average(grid: Grid) -> bool:
    """Whether squares may overlap, so that a mean of them differs from the squares, and its sums fit into memory."""
    if len(grid.rows.start) * len(grid.columns.start) > MOST_SUMS:
        return False
    sides = zip((grid.columns, grid.rows), grid.layout.square, strict=True)
    return any(bool((np.diff(axis.start) < side * 0.999).any()) for axis, side in sides)
