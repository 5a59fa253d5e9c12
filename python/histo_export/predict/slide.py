"""What every reader of slides offers: tiles at the model's µm per pixel, and small overviews. `readers` opens files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

WHITE = (255, 255, 255)
"""The colour of glass, for what is outside of a slide or has no pixels."""

PLAUSIBLE_MPP = (0.05, 50.0)
"""A TIFF's resolution is often that of a screen (72 dpi are 353 µm per pixel); values out of this range are ignored."""

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
        mpp: µm per pixel of level 0; None where the file does not state it.
        vendor: the name that the reader gives to the format.
    """

    path: Path
    levels: list[Level]
    mpp: float | None
    vendor: str

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

    def tile(self, x: int, y: int, side: int, pixels: int) -> Pixels:
        """A tile: `side` by `side` pixels of level 0 from (x, y), as uint8 `(pixels, pixels, 3)`.

        It is resampled (PIL's antialiased bicubic) from the coarsest level that is at least as fine as the tile, and
        not resampled where that level has the same resolution.
        """
        wanted = side / pixels
        # A level half a per cent coarser counts as the same: many files state rounded downsamples.
        level = max(i for i, each in enumerate(self.levels) if i == 0 or each.downsample <= wanted * 1.005)
        read = max(1, round(side / self.levels[level].downsample))
        image = self.read(level, x, y, read, read)
        if read != pixels:
            image = image.resize((pixels, pixels), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def overview(self, downsample: float) -> tuple[Pixels, float]:
        """A small image of the slide, averaged block by block from the coarsest level that is fine enough.

        Args:
            downsample: pixels of level 0 for one of the image, at most.

        Returns:
            uint8 RGB `(height, width, 3)`; and its downsample.
        """
        level = max(i for i, each in enumerate(self.levels) if i == 0 or each.downsample <= downsample * 1.005)
        source = self.levels[level]
        factor = max(1, math.floor(downsample / source.downsample * 1.005))
        block = max(factor, BLOCK // factor * factor)
        out = np.full((-(-source.height // factor), -(-source.width // factor), 3), 255, np.uint8)
        for y in range(0, source.height, block):
            for x in range(0, source.width, block):
                at = round(x * source.downsample), round(y * source.downsample)
                image = self.read(level, *at, min(block, source.width - x), min(block, source.height - y))
                small = np.asarray(image.reduce(factor))
                top, left = y // factor, x // factor
                out[top : top + small.shape[0], left : left + small.shape[1]] = small
        return out, source.downsample * factor


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


def text_of_error(error: BaseException) -> str:
    """One line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def plausible(mpp: float) -> float | None:
    """The value, or None where it is outside of `PLAUSIBLE_MPP`."""
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None
