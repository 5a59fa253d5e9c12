"""Where a slide has tissue.

Stained tissue is coloured and glass is not. So the mask is Otsu's threshold on the saturation of an overview, with
gaps closed and specks removed (Otsu 1979, doi:10.1109/TSMC.1979.4310076; WSInfer and CLAM find tissue the same way).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from histo_export.predict.settings import TissueSettings
from histo_export.predict.slide import Pair

Floats = npt.NDArray[np.float64]

OTSU_LIMITS = (12, 50)
"""Otsu's method splits any image in two. Its threshold is kept within the range that separates glass from tissue, so
that a slide of glass alone is not split by its noise, nor one of tissue alone by its stains."""

DARK = 40
"""A pixel whose brightest channel is below this value (of 255) has no usable colour: pen, scanner's edge, no pixels."""


@dataclass(frozen=True)
class Tissue:
    """A mask over a slide.

    Attributes:
        mask: bool `(height, width)`.
        downsample: pixels of level 0 for one of the mask, in x and y.
        threshold: the one that was used, on saturation of 0 to 255.
        extent: left, top, right and bottom, in pixels of level 0, of what counts: the mask's last row and column may
            reach beyond the slide, and a slide beyond its bounds.
    """

    mask: npt.NDArray[np.bool_]
    downsample: Pair
    threshold: int
    extent: tuple[float, float, float, float]

    @cached_property
    def _sums(self) -> Floats:
        """Tissue above and left of each corner of the mask's pixels, in pixels of the mask."""
        sums = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        sums[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        return sums

    @property
    def area(self) -> float:
        """Of all tissue, in pixels² of level 0."""
        return float(self.areas(*(np.array(edge, np.float64) for edge in self.extent)))

    def areas(self, left: Floats, top: Floats, right: Floats, bottom: Floats) -> Floats:
        """Area of tissue in rectangles; a mask pixel that is partly inside counts in part.

        Args:
            left, top, right, bottom: float64 of shapes that broadcast, in pixels of level 0.

        Returns:
            float64 of the common shape, in pixels² of level 0.
        """
        sums, (height, width) = self._sums, self.mask.shape
        x_from, y_from, x_to, y_to = self.extent

        def area_to(x: Floats, y: Floats) -> Floats:
            """Tissue above and left of a point, bilinear between the mask's corners, which is exact."""
            px = np.clip(np.clip(x, x_from, x_to) / self.downsample[0], 0, width)
            py = np.clip(np.clip(y, y_from, y_to) / self.downsample[1], 0, height)
            ix, iy = np.minimum(px.astype(int), width - 1), np.minimum(py.astype(int), height - 1)
            fx, fy = px - ix, py - iy
            upper = sums[iy, ix] * (1 - fx) + sums[iy, ix + 1] * fx
            lower = sums[iy + 1, ix] * (1 - fx) + sums[iy + 1, ix + 1] * fx
            result: Floats = upper * (1 - fy) + lower * fy
            return result

        inside = area_to(right, bottom) - area_to(left, bottom) - area_to(right, top) + area_to(left, top)
        result: Floats = np.maximum(inside, 0) * self.downsample[0] * self.downsample[1]
        return result

    def at(self, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
        """Whether points (pixels of level 0, shapes that broadcast) have tissue."""
        ix = np.clip((x / self.downsample[0]).astype(int), 0, self.mask.shape[1] - 1)
        iy = np.clip((y / self.downsample[1]).astype(int), 0, self.mask.shape[0] - 1)
        left, top, right, bottom = self.extent
        inside: npt.NDArray[np.bool_] = (left <= x) & (x < right) & (top <= y) & (y < bottom) & self.mask[iy, ix]
        return inside


def saturation(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """HSV's saturation of RGB `(h, w, 3)`, 0 to 255; 0 where the pixel is too dark to have a colour."""
    high = pixels.max(2).astype(np.int32)
    low = pixels.min(2).astype(np.int32)
    return np.where(high < DARK, 0, (high - low) * 255 // np.maximum(high, 1)).astype(np.uint8)


def otsu(values: npt.NDArray[np.uint8]) -> int:
    """The threshold that separates two groups best: values above it are the upper group."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256)
    below, above = counts.cumsum(), counts.sum() - counts.cumsum()
    sums = (counts * levels).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def find_tissue(
    overview: npt.NDArray[np.uint8],
    downsample: Pair,
    mpp: Pair,
    settings: TissueSettings,
    extent: tuple[float, float, float, float],
) -> Tissue:
    """The mask of an overview.

    Args:
        overview: RGB `(h, w, 3)`.
        downsample: pixels of level 0 for one of the overview, in x and y.
        mpp: µm per pixel of level 0, in x and y.
        settings: threshold, closing and smallest area.
        extent: see `Tissue`.
    """
    um_x, um_y = downsample[0] * mpp[0], downsample[1] * mpp[1]
    values: npt.NDArray[np.uint8] = ndimage.median_filter(saturation(overview), 3)
    threshold = settings.threshold
    if threshold is None:
        threshold = int(np.clip(otsu(values), *OTSU_LIMITS))
    mask = values > threshold
    rx, ry = (round(settings.closing_um / 2 / um) for um in (um_x, um_y))
    if rx and ry:
        # Padded first: the erosion of a closing would otherwise eat tissue at the edge of the image.
        padded = np.pad(mask, ((ry, ry), (rx, rx)), mode="edge")
        y, x = np.ogrid[-ry : ry + 1, -rx : rx + 1]
        disc = np.hypot(y * (rx / ry), x) <= rx
        mask = ndimage.binary_closing(padded, disc)[ry:-ry, rx:-rx]
    smallest = settings.min_area_um2 / (um_x * um_y)
    mask = mask & ~_small_pieces(mask, smallest)
    # What touches the edge is not a hole, or a slide of glass that is smaller than `smallest` would be filled.
    mask = mask | _small_pieces(~mask, smallest, at_edge=False)
    return Tissue(mask, downsample, threshold, extent)


def _small_pieces(mask: npt.NDArray[np.bool_], smallest: float, *, at_edge: bool = True) -> npt.NDArray[np.bool_]:
    """The connected pieces of fewer than `smallest` pixels; with or without those that touch the image's edge."""
    pieces, _ = ndimage.label(mask)
    small = np.bincount(pieces.ravel()) < smallest
    small[0] = False
    if not at_edge:
        for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
            small[edge] = False
    result: npt.NDArray[np.bool_] = small[pieces]
    return result
