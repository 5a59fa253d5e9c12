"""Tiles as QuPath's WSInfer extension makes them, emulated: QuPath itself is not run.

The emulation follows the published source of QuPath 0.4 and later (`AbstractTileableImageServer.readRegion`, RGB) and
of the extension (`TileLoader`). It assumes that

- QuPath draws the pixels of the coarsest level that is at least as fine as the model at the scale 1 / downsample;
- Java2D's bilinear filter takes the 2 × 2 pixels around the centre of each new pixel, and rounds to the nearest value;
- the result has the model's size already, so that the extension does not resize it again;
- the tile does not reach over the edge of the slide or of a tile in the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histo_export.predict.readers import open_slide

from .conftest import Pixels


def as_qupath(level: Pixels, x: int, y: int, downsample: float, side: int) -> Pixels:
    """The tile at (x, y) of a level, uint8 `(side, side, 3)`; `downsample`: pixels of the level for one of the tile."""

    def taps(corner: int) -> tuple[Pixels, Pixels]:
        centres = corner + (np.arange(side) + 0.5) * downsample - 0.5
        first = np.floor(centres).astype(int)
        return first, centres - first

    (columns, fx), (rows, fy) = taps(x), taps(y)
    values = level.astype(np.float64)
    mixed = values[rows] * (1 - fy)[:, None, None] + values[rows + 1] * fy[:, None, None]
    mixed = mixed[:, columns] * (1 - fx)[:, None] + mixed[:, columns + 1] * fx[:, None]
    return np.rint(mixed).astype(np.uint8)


def difference(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_at_the_models_resolution_qupath_emulated_has_the_same_pixels(slide_file: Path, pixels: Pixels) -> None:
    slide = open_slide(slide_file)
    np.testing.assert_array_equal(slide.tile(200, 100, (150, 150), 150), as_qupath(pixels, 200, 100, 1.0, 150))
    half = pixels[::2, ::2]  # level 1, whose pixels both take unchanged
    np.testing.assert_array_equal(slide.tile(200, 100, (300, 300), 150), as_qupath(half, 100, 50, 1.0, 150))
    slide.close()


@pytest.mark.parametrize("downsample", [1.5, 1.9])
def test_resampled_tiles_are_smoother_than_in_qupath_emulated(
    slide_file: Path, pixels: Pixels, downsample: float
) -> None:
    """Both are called bilinear; PIL's filter is antialiased and Java's is not. So neither of ours is QuPath's."""
    slide = open_slide(slide_file)
    side = round(150 * downsample)
    theirs = as_qupath(pixels, 300, 200, downsample, 150)
    ours = slide.tile(300, 200, (side, side), 150, "bilinear")
    assert ours.std() < theirs.std()
    assert 1 < difference(ours, theirs) < difference(ours, np.roll(theirs, 1, 0))
    slide.close()
