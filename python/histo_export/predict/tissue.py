"""Where a slide has tissue.

Stained tissue is coloured and glass is not. So the mask is Otsu's threshold on the saturation of an overview, with
gaps closed and specks removed (Otsu 1979, doi:10.1109/TSMC.1979.4310076; WSInfer and CLAM find tissue the same way).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.predict.settings import TissueSettings

try:
    from scipy import ndimage
except ModuleNotFoundError as error:
    raise HistoError("Finding tissue", "needs scipy", "pip install 'histo-export[slides]'") from error

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
        downsample: pixels of level 0 for one of the mask.
        threshold: the one that was used, on saturation of 0 to 255.
    """

    mask: npt.NDArray[np.bool_]
    downsample: float
    threshold: int

    def areas(
        self, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], width: int, height: int
    ) -> npt.NDArray[np.float64]:
        """Area of tissue in rectangles; a mask pixel that is partly inside counts in part.

        Args:
            x, y: int64 `(n,)`, upper left corners in pixels of level 0.
            width, height: of every rectangle, in pixels of level 0.

        Returns:
            float64 `(n,)`, in pixels² of level 0.
        """
        sums = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        sums[1:, 1:] = self.mask.cumsum(0).cumsum(1)

        def area_to(px: npt.NDArray[np.float64], py: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            """Tissue above and left of a point, bilinear between the mask's corners, which is exact."""
            px = np.clip(px / self.downsample, 0, self.mask.shape[1])
            py = np.clip(py / self.downsample, 0, self.mask.shape[0])
            ix = np.minimum(px.astype(int), self.mask.shape[1] - 1)
            iy = np.minimum(py.astype(int), self.mask.shape[0] - 1)
            fx, fy = px - ix, py - iy
            top = sums[iy, ix] * (1 - fx) + sums[iy, ix + 1] * fx
            bottom = sums[iy + 1, ix] * (1 - fx) + sums[iy + 1, ix + 1] * fx
            result: npt.NDArray[np.float64] = top * (1 - fy) + bottom * fy
            return result

        x0, y0 = x.astype(np.float64), y.astype(np.float64)
        x1, y1 = x0 + width, y0 + height
        inside = area_to(x1, y1) - area_to(x0, y1) - area_to(x1, y0) + area_to(x0, y0)
        return np.maximum(inside, 0) * self.downsample**2


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


def find_tissue(overview: npt.NDArray[np.uint8], downsample: float, mpp: float, settings: TissueSettings) -> Tissue:
    """The mask of an overview.

    Args:
        overview: RGB `(h, w, 3)`.
        downsample: pixels of level 0 for one of the overview.
        mpp: µm per pixel of level 0.
        settings: threshold, closing and smallest area.
    """
    um = downsample * mpp
    values: npt.NDArray[np.uint8] = ndimage.median_filter(saturation(overview), 3)
    threshold = settings.threshold
    if threshold is None:
        threshold = int(np.clip(otsu(values), *OTSU_LIMITS))
    mask = values > threshold
    radius = round(settings.closing_um / 2 / um)
    if radius:
        # Padded first: the erosion of a closing would otherwise eat tissue at the edge of the image.
        padded = np.pad(mask, radius, mode="edge")
        disc = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius
        mask = ndimage.binary_closing(padded, disc)[radius:-radius, radius:-radius]
    smallest = settings.min_area_um2 / um**2
    mask = _without_specks(mask, smallest)
    mask = ~_without_specks(~mask, smallest)
    return Tissue(mask, downsample, threshold)


def _without_specks(mask: npt.NDArray[np.bool_], smallest: float) -> npt.NDArray[np.bool_]:
    """Without connected pieces of fewer than `smallest` pixels."""
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= smallest
    large[0] = False
    result: npt.NDArray[np.bool_] = large[pieces]
    return result
