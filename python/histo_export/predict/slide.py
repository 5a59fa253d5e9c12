"""Reading slides: tiles at the model's µm per pixel, and small overviews.

OpenSlide reads the formats that it knows. A TIFF that it does not know (without tiles inside, as ImageJ and many
programs export it) is read by tifffile into memory completely, because its parts can't be read one by one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.errors import HistoError

try:
    import openslide
    import tifffile
except ModuleNotFoundError as error:
    raise HistoError(
        "Reading slides", f"needs a package that is not installed ({error.name})", "pip install 'histo-export[slides]'"
    ) from error

Pixels = npt.NDArray[np.uint8]

WHITE = (255, 255, 255)
"""The colour of glass, for what is outside of a slide or has no pixels."""

PLAUSIBLE_MPP = (0.05, 50.0)
"""A TIFF's resolution is often that of a screen (72 dpi are 353 µm per pixel); values out of this range are ignored."""

MAX_MEMORY_BYTES = 4 << 30
"""Largest size of a TIFF that must be read completely."""

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


def open_slide(path: Path) -> Slide:
    """Opens a slide with OpenSlide, or a TIFF with tifffile.

    Raises:
        HistoError: the file does not exist, cannot be read, or is not a slide.
    """
    if not path.is_file():
        raise HistoError(path, "does not exist" if not path.exists() else "is not a file", "Name a slide")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise HistoError(path, "is empty (0 bytes)", "Copy it again")
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    try:
        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return _OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise HistoError(path, f"is not a slide that OpenSlide can open ({_text(error)})", "Copy it again") from error
    if path.suffix.lower() in (".tif", ".tiff"):
        return _TiffInMemory(path)
    raise HistoError(path, "is not a slide of a format that OpenSlide knows", "Check the file, or convert it")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _plausible(mpp: float) -> float | None:
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None


class _OpenSlide(Slide):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide = openslide.OpenSlide(str(path))
        properties = self._slide.properties
        self.vendor = properties.get("openslide.vendor", "unknown")
        self.levels = [
            Level(*size, downsample)
            for size, downsample in zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        ]
        self.mpp = self._find_mpp(properties)

    @staticmethod
    def _find_mpp(properties: Mapping[str, str]) -> float | None:
        try:
            if stated := properties.get("openslide.mpp-x"):
                return _plausible(float(stated))
            unit = {"centimeter": 1e4, "inch": 25400.0}.get(properties.get("tiff.ResolutionUnit", ""))
            resolution = float(properties.get("tiff.XResolution", "0"))
        except ValueError:
            return None
        return _plausible(unit / resolution) if unit and resolution > 0 else None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except openslide.OpenSlideError as error:
            raise HistoError(
                self.path, f"is damaged at ({x}, {y}), level {level} ({_text(error)})", "Copy it again"
            ) from error
        alpha = region.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return region.convert("RGB")
        flat = Image.new("RGB", region.size, WHITE)
        flat.paste(region, mask=alpha)
        return flat

    def close(self) -> None:
        self._slide.close()


class _TiffInMemory(Slide):
    def __init__(self, path: Path) -> None:
        self.path, self.vendor = path, "tiff"
        try:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                if page.nbytes > MAX_MEMORY_BYTES:
                    raise HistoError(
                        path,
                        f"holds no tiles inside, and {page.nbytes / 2**30:.0f} GiB are too many to read at once",
                        "Convert it to a tiled TIFF, e.g. with vips tiffsave --tile --pyramid",
                    )
                self.mpp = self._find_mpp(page)
                pixels = page.asarray()
        except HistoError:
            raise
        except MemoryError as error:
            raise HistoError(path, "does not fit in memory", "Convert it to a tiled TIFF") from error
        except Exception as error:  # tifffile and its codecs may raise anything on damaged input
            raise HistoError(path, f"is not a TIFF that can be read ({_text(error)})", "Copy it again") from error
        if pixels.ndim == 2 and pixels.dtype == np.uint8:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
            raise HistoError(
                path, f"holds {pixels.dtype} {'×'.join(map(str, pixels.shape))}, not 8-bit RGB", "Convert it"
            )
        self._pixels: Pixels = pixels[..., :3]
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]

    @staticmethod
    def _find_mpp(page: tifffile.TiffPage) -> float | None:
        unit = {2: 25400.0, 3: 1e4}.get(int(page.tags.valueof("ResolutionUnit", 1)))
        above, below = page.tags.valueof("XResolution", (0, 1))
        return _plausible(unit * below / above) if unit and above and below else None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        out = np.full((height, width, 3), 255, np.uint8)
        inside = self._pixels[max(y, 0) : y + height, max(x, 0) : x + width]
        out[max(-y, 0) :, max(-x, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        return Image.fromarray(out)

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)
