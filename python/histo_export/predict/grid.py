"""The squares that a slide is cut into, the tiles that are read for them, and the cells whose area they stand for.

The network sees the centre crop of a tile. So by default the *seen* square is the unit: seen squares lie edge to edge,
and each tile is read around one of them. Where squares overlap or leave gaps, each stands for its *cell*, the middle of
the square, so that no part of the slide is counted twice. All lengths are pixels of level 0; pairs are of x and y,
which differ where the slide's pixels are not square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.predict.settings import SlideSettings
from histo_export.predict.slide import Pair
from histo_export.predict.tissue import Tissue
from histo_export.spec import ModelSpec

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_SQUARES = 10_000_000
"""Of a slide, with tissue or without: a day's work at 100 tiles a second, and about 1 GB of positions."""

PART = 65536
"""Squares whose areas are computed at a time: some twenty numbers of each."""

BAND = 4096
"""Pixels of the width of the bands in which a slide is read, in the level that is read. A reader that keeps the file's
tiles of a few rows of a band decodes each of them once, however wide the slide is."""


@dataclass(frozen=True)
class Layout:
    """What all squares of a grid have in common.

    Attributes:
        square: width and height of the unit: the seen square, or the tile.
        seen: width and height of what the network sees.
        tile: width and height that are read for one square; whole pixels.
        offset: from a tile's corner to its square's.
        stride: from square to square; not rounded, so that rounding errors don't add up along a row.
    """

    square: Pair
    seen: Pair
    tile: tuple[int, int]
    offset: Pair
    stride: Pair

    @property
    def seen_share(self) -> float:
        """The part of a tile's area that the network sees."""
        return self.seen[0] * self.seen[1] / (self.tile[0] * self.tile[1])


def make_layout(spec: ModelSpec, mpp: Pair, settings: SlideSettings) -> Layout:
    """The layout for a model's tiles on a slide.

    Args:
        spec: of the model; its µm per pixel is known.
        mpp: µm per pixel of level 0.
        settings: the unit, and overlap or stride.
    """
    assert spec.mpp is not None
    width, height = (max(1, round(spec.tile_size * spec.mpp / um)) for um in mpp)
    scale = width / spec.tile_size, height / spec.tile_size
    seen = spec.crop * scale[0], spec.crop * scale[1]
    if settings.grid == "seen":
        square, offset = seen, (spec.crop_offset * scale[0], spec.crop_offset * scale[1])
    else:
        square, offset = (float(width), float(height)), (0.0, 0.0)
    if settings.stride_um is not None:
        stride = settings.stride_um / mpp[0], settings.stride_um / mpp[1]
    else:
        stride = square[0] * (1 - settings.overlap), square[1] * (1 - settings.overlap)
    return Layout(square, seen, (width, height), offset, stride)


@dataclass(frozen=True)
class Axis:
    """The columns or the rows of a grid.

    Attributes:
        start: float64 `(n,)`, left or upper edges of the squares.
        low, high: float64 `(n,)`, edges of the cells, which never overlap.
    """

    start: Floats
    low: Floats
    high: Floats

    @classmethod
    def over(cls, length: int, square: float, stride: float, count: int) -> Axis:
        """`count` squares along a side of a slide.

        A cell is the middle of its square, as wide as the stride and not wider than the square. The first and the last
        cell extend to the slide's edge, as far as it is seen.
        """
        start: Floats = np.arange(count, dtype=np.float64) * stride
        width = min(stride, square)
        low = start + (square - width) / 2
        high = low + width
        if stride <= square:
            high[:-1] = low[1:]  # the same number, so that no gap is left by rounding
        low[0] = 0.0
        high[-1] = max(high[-1], min(length, start[-1] + square))
        return cls(start, low, high)

    def index_at(self, position: Floats) -> Integers:
        """The cell at each position, or -1 where there is none."""
        index = np.searchsorted(self.low, position, side="right") - 1
        return np.where((index >= 0) & (position < self.high[index]), index, -1)


@dataclass(frozen=True)
class Grid:
    """The squares that are used, row by row.

    Attributes:
        layout: what they have in common.
        columns, rows: of all squares of the slide, used or not.
        column, row: int64 `(n,)`, the place of each used square.
    """

    layout: Layout
    columns: Axis
    rows: Axis
    column: Integers
    row: Integers

    def __len__(self) -> int:
        return len(self.column)

    @property
    def x(self) -> Integers:
        """Left edges of the squares, rounded to whole pixels, int64 `(n,)`."""
        return np.rint(self.columns.start[self.column]).astype(np.int64)

    @property
    def y(self) -> Integers:
        """Upper edges, see `x`."""
        return np.rint(self.rows.start[self.row]).astype(np.int64)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a square, rounded to whole pixels."""
        width, height = self.layout.square
        return round(width), round(height)

    @property
    def tile_corners(self) -> Integers:
        """`corners_of` all squares."""
        return self.corners_of(np.arange(len(self)))

    def corners_of(self, squares: Integers) -> Integers:
        """Where the tiles of these squares begin: int64 `(n, 2)`, x and y. They may lie outside of the slide."""
        x = self.columns.start[self.column[squares]] - self.layout.offset[0]
        y = self.rows.start[self.row[squares]] - self.layout.offset[1]
        return np.rint(np.stack([x, y], 1)).astype(np.int64)

    def reading_order(self, downsample: float) -> Integers:
        """All squares in the order in which they are best read: bands of columns, each row by row. int64 `(n,)`.

        Args:
            downsample: pixels of level 0 for one of the level that is read.
        """
        band = (self.columns.start[self.column] // (BAND * downsample)).astype(np.int64)
        return np.lexsort((self.column, self.row, band)).astype(np.int64)

    def index_at(self, x: Floats, y: Floats) -> Integers:
        """The used square whose cell holds each point, or -1: int64 `(len(y), len(x))` for all pairs of x and y."""
        place = np.full((len(self.rows.start), len(self.columns.start)), -1, np.int64)
        place[self.row, self.column] = np.arange(len(self))
        row, column = self.rows.index_at(y)[:, None], self.columns.index_at(x)[None, :]
        return np.where((row >= 0) & (column >= 0), place[row, column], -1)


def make_grid(
    size: tuple[int, int], layout: Layout, settings: SlideSettings, tissue: Tissue
) -> tuple[Grid, npt.NDArray[np.float64]]:
    """The squares with enough tissue, and the area of tissue in each one's cell.

    Args:
        size: width and height of the slide.
        layout: of the squares.
        settings: the unit, and how much tissue is enough.
        tissue: the mask.

    Returns:
        The grid; and float64 `(n,)`, pixels² of level 0.

    Raises:
        HistoError: there are more squares than `MAX_SQUARES`.
    """
    counts = tuple(map(_count, size, layout.square, layout.stride, [settings.grid == "tile"] * 2))
    if math.prod(counts) > MAX_SQUARES:
        raise HistoError(
            "The grid",
            f"would have {counts[0]:,} × {counts[1]:,} squares, more than {MAX_SQUARES:,} in all",
            "Use a larger --stride or a smaller --overlap, and check --mpp",
        )
    columns, rows = map(Axis.over, size, layout.square, layout.stride, counts)
    left, top = columns.start[None, :], rows.start[:, None]
    width, height = layout.square
    some = max(1, PART // len(columns.start))  # rows
    inside = [tissue.areas(left, part, left + width, part + height) for part in _parts(top, some)]
    share = np.concatenate(inside) / (width * height)
    rounding = 1e-6  # of the sums behind areas
    # --everything takes the squares at the edges of a slide, too. At those of a region, the rule of tissue holds.
    enough = 0.0 if settings.everything and settings.everywhere else settings.min_tissue
    row, column = np.nonzero((share > rounding) & (share >= enough - rounding))
    grid = Grid(layout, columns, rows, column, row)
    return grid, cell_areas(grid, tissue)


def cell_areas(grid: Grid, tissue: Tissue) -> npt.NDArray[np.float64]:
    """The tissue in the cell of each square: float64 `(n,)`, pixels² of level 0."""
    columns, rows = grid.columns, grid.rows
    cells = [
        tissue.areas(columns.low[x], rows.low[y], columns.high[x], rows.high[y])
        for x, y in zip(_parts(grid.column, PART), _parts(grid.row, PART), strict=True)
    ]
    return np.concatenate([np.empty(0), *cells])


def _parts(values: npt.NDArray[Any], size: int) -> list[npt.NDArray[Any]]:
    """The values in parts of `size`, so that what is computed of them needs little memory at a time."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def _count(length: int, square: float, stride: float, all_that_begin: bool) -> int:
    """Squares along a side of a slide: as many as it takes to cover it, or all that begin on it, as WSInfer does."""
    beginning = math.ceil(length / stride)
    return beginning if all_that_begin else min(beginning, 1 + max(0, math.ceil((length - square) / stride)))
