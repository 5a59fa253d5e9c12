"""The tiles of a slide: their positions, and which of them have enough tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from histo_export.predict.settings import SlideSettings
from histo_export.spec import ModelSpec

if TYPE_CHECKING:
    from histo_export.predict.slide import Slide
    from histo_export.predict.tissue import Tissue


@dataclass(frozen=True)
class Grid:
    """Tiles row by row; lengths in pixels of level 0.

    Attributes:
        x, y: int64 `(n,)`, upper left corners.
        side: of a tile; the last tile of a row or column may reach beyond the slide, where it is white.
        stride: between neighbours; not rounded, so that rounding errors don't add up along a row.
        column, row: int64 `(n,)`, place in the grid.
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    side: int
    stride: float
    column: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)


def make_grid(
    slide: Slide, spec: ModelSpec, mpp: float, settings: SlideSettings, tissue: Tissue
) -> tuple[Grid, npt.NDArray[np.float64]]:
    """The tiles with enough tissue, and the area of tissue in the cell that each of them stands for.

    A tile's cell is as wide as the stride and lies in its middle, so that cells cover the slide without overlap and
    their areas add up.

    Args:
        slide: its size is used only.
        spec: of the model; its µm per pixel is known.
        mpp: µm per pixel of level 0.
        settings: overlap or stride, and how much tissue is enough.
        tissue: the mask.

    Returns:
        The grid; and float64 `(n,)`, pixels² of level 0.
    """
    assert spec.mpp is not None
    side = max(1, round(spec.tile_size * spec.mpp / mpp))
    stride = max(1.0, settings.stride_um / mpp if settings.stride_um else side * (1 - settings.overlap))
    columns, rows = math.ceil(slide.width / stride), math.ceil(slide.height / stride)
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    x, y = (np.rint(axis * stride).astype(np.int64) for axis in (column, row))
    keep = (x < slide.width) & (y < slide.height)
    if not settings.everything:
        inside = tissue.areas(x, y, side, side)
        keep &= (inside > 0) & (inside >= settings.min_tissue * side**2)
    x, y, column, row = x[keep], y[keep], column[keep], row[keep]
    margin = round((side - stride) / 2)
    return Grid(x, y, side, stride, column, row), tissue.areas(x + margin, y + margin, round(stride), round(stride))
