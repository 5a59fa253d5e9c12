"""What every reader of slides offers: tiles at the model's µm per pixel, and small overviews. `readers` opens files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.predict.settings import SlideResample

Pixels = npt.NDArray[np.uint8]

WHITE = (255, 255, 255)
"""The colour of glass, for what is outside of a slide or has no pixels."""

NO_SCALE = "does not state its µm per pixel"
"""What is wrong with a slide or a model without it."""

Pair = tuple[float, float]
"""Of x and y, which differ where a slide's pixels are not square."""

Corner = tuple[int, int]
MapAll = Callable[[Callable[[Corner], None], Iterable[Corner]], Iterable[None]]
"""Applies a function to all corners; their order does not matter."""

PLAUSIBLE_MPP = (0.05, 10.0)
"""A TIFF's resolution is often that of a screen or a printer: 72 dpi are 353 µm per pixel, 600 dpi 42 and 2400 dpi 11.
The finest objectives give 0.05 µm, a 1x objective 10. Values out of this range are ignored."""

BLOCK = 4096
"""Side in pixels of the blocks in which an overview is read, so that no slide is in memory completely."""


@dataclass(frozen=True)
class Level:
    """Width and height in pixels; `downsample`: pixels of level 0 for one of this level."""

    width: int
    height: int
    downsample: float


class Slide(ABC):
    """An opened slide, which any number of threads may read.

    Attributes:
        path: the file.
        levels: from the finest on.
        mpp: µm per pixel of level 0 in x and y; None where the file does not state it.
        bounds: x, y, width and height, in pixels of level 0, of the part that was scanned, and that viewers show; None
            where the file does not state it.
        vendor: the name that the reader gives to the format.
        reader: the name of the reader.
        why: why this reader was taken, as a sentence about the file.
    """

    reader: ClassVar[str]
    why: str = ""
    path: Path
    levels: list[Level]
    mpp: Pair | None
    bounds: tuple[int, int, int, int] | None
    vendor: str

    @property
    def chosen(self) -> str:
        """The reader and the reason, for records."""
        return f"{self.reader}: {self.why}"

    @property
    def width(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].height

    @abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        """RGB pixels of a level from (x, y) in pixels of level 0; white outside of the slide.

        Raises:
            HistoError: the file is damaged at this place.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is at least as fine as `downsample`, or level 0."""
        # A level half a per cent coarser counts as the same: many files state rounded downsamples.
        return max(i for i, each in enumerate(self.levels) if i == 0 or each.downsample <= downsample * 1.005)

    def shrink_of(self, level: int) -> int:
        """1, or that a level is decoded at 1 / n of the size that the file stores."""
        return 1

    def size_at(self, level: int, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height, in pixels of a level, of a rectangle of this size in pixels of level 0."""
        width, height = (max(1, round(side / self.levels[level].downsample)) for side in size)
        return width, height

    def tile(self, x: int, y: int, size: tuple[int, int], pixels: int, resample: SlideResample = "bilinear") -> Pixels:
        """A tile: a rectangle of level 0 as uint8 `(pixels, pixels, 3)`; white outside of the slide.

        It is resampled (PIL's antialiased filters) from the coarsest level that is at least as fine as the tile in both
        directions, and not resampled where that level has the same resolution.

        Args:
            x, y: upper left corner in pixels of level 0; may be negative.
            size: width and height in pixels of level 0. They differ where the slide's pixels are not square.
            pixels: side of the result.
            resample: the filter.

        Raises:
            HistoError: the file is damaged at this place.
        """
        level = self.level_for(min(size) / pixels)
        width, height = self.size_at(level, size)
        image = self.read(level, x, y, width, height)
        if (width, height) != (pixels, pixels):
            image = image.resize((pixels, pixels), filter_of(resample))
        return np.asarray(image)

    def tiles(
        self,
        corners: npt.NDArray[np.int64],
        size: tuple[int, int],
        pixels: int,
        resample: SlideResample = "bilinear",
    ) -> Pixels:
        """Several tiles, uint8 `(n, pixels, pixels, 3)`; fastest where they are given row by row.

        Args:
            corners: int64 `(n, 2)`, the upper left ones, x and y; the rest is as for `tile`.
        """
        return np.stack([self.tile(x, y, size, pixels, resample) for x, y in corners.tolist()])

    def overview(self, downsample: Pair, map_all: MapAll = map) -> tuple[Pixels, Pair]:
        """A small image of the slide, averaged block by block from the coarsest level that is fine enough.

        Args:
            downsample: pixels of level 0 for one of the image, in x and y, at most.
            map_all: applies a function to all blocks, e.g. the `map` of a pool of threads.

        Returns:
            uint8 RGB `(height, width, 3)`; and its downsample in x and y.

        Raises:
            HistoError: the file is damaged.
        """
        level = self.level_for(min(downsample))
        source = self.levels[level]
        fx, fy = (max(1, math.floor(each / source.downsample * 1.005)) for each in downsample)
        block_x, block_y = (max(factor, BLOCK // factor * factor) for factor in (fx, fy))
        out = np.full((-(-source.height // fy), -(-source.width // fx), 3), 255, np.uint8)

        def fill(corner: Corner) -> None:
            x, y = corner
            at = round(x * source.downsample), round(y * source.downsample)
            image = self.read(level, *at, min(block_x, source.width - x), min(block_y, source.height - y))
            small = np.asarray(image.reduce((fx, fy)))
            top, left = y // fy, x // fx
            out[top : top + small.shape[0], left : left + small.shape[1]] = small

        corners = ((x, y) for y in range(0, source.height, block_y) for x in range(0, source.width, block_x))
        for _ in map_all(fill, corners):
            pass
        return out, (source.downsample * fx, source.downsample * fy)


def filter_of(resample: SlideResample) -> Image.Resampling:
    """PIL's filter. What `dct` has left to do is bilinear."""
    return Image.Resampling.BICUBIC if resample == "bicubic" else Image.Resampling.BILINEAR


def on_white(image: Image.Image) -> Image.Image:
    """An image in RGB: transparent pixels show glass."""
    if image.mode not in ("RGBA", "LA"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    flat = Image.new("RGB", image.size, WHITE)
    flat.paste(image, mask=alpha)
    return flat


def plausible(x: float, y: float) -> Pair | None:
    """The µm per pixel in x and y, or None where one of them is outside of `PLAUSIBLE_MPP`."""
    low, high = PLAUSIBLE_MPP
    return (x, y) if low <= x <= high and low <= y <= high else None
