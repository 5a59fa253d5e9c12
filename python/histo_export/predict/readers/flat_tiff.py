"""TIFF files without tiles inside, read into memory completely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histo_export.errors import HistoError
from histo_export.predict.readers.resolution import tiff_mpp
from histo_export.predict.slide import Level, Pair, Pixels, Slide, text_of_error

MAX_MEMORY_BYTES = 4 << 30
"""Largest size of a TIFF that must be read completely."""


class FlatTiffReader(Slide):
    def __init__(self, path: Path) -> None:
        self.path, self.vendor, self.bounds = path, "tiff", None
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
            raise HistoError(
                path, f"is not a TIFF that can be read ({text_of_error(error)})", "Copy it again"
            ) from error
        if pixels.ndim == 2 and pixels.dtype == np.uint8:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
            raise HistoError(
                path, f"holds {pixels.dtype} {'×'.join(map(str, pixels.shape))}, not 8-bit RGB", "Convert it"
            )
        self._pixels: Pixels = pixels[..., :3]
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]

    @staticmethod
    def _find_mpp(page: tifffile.TiffPage) -> Pair | None:
        unit = {2: "inch", 3: "centimeter"}.get(int(page.tags.valueof("ResolutionUnit", 2)), "none")
        (x, x_of), (y, y_of) = (page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY")
        if not (x_of and y_of):
            return None
        return tiff_mpp((x / x_of, y / y_of), unit, page.description)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        out = np.full((height, width, 3), 255, np.uint8)
        inside = self._pixels[max(y, 0) : y + height, max(x, 0) : x + width]
        out[max(-y, 0) :, max(-x, 0) :][: inside.shape[0], : inside.shape[1]] = inside
        return Image.fromarray(out)

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)
