"""TIFF files that OpenSlide does not read tile by tile, read into memory completely."""

from __future__ import annotations

import logging
from pathlib import Path

import tifffile
from PIL import Image

from histo_export.data.pillow import quiet_pillow
from histo_export.data.tiff import CHECK, TiffError, TiffPage, load_page
from histo_export.errors import HistoError, one_line
from histo_export.predict.readers.resolution import tiff_mpp
from histo_export.predict.slide import WHITE, Level, Pair, Slide, on_white

MAX_MEMORY_BYTES = 4 << 30
"""Largest size of a TIFF that must be read completely; Pillow needs a third more for RGB."""

# Without a handler, Python prints what tifffile logs about damaged tags.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class FlatTiffReader(Slide):
    """Page `index` of a TIFF, as `data.tiff.choose_page` gives it."""

    reader = "memory"

    def __init__(self, path: Path, index: int, page: TiffPage) -> None:
        self.path, self.vendor, self.bounds = path, "tiff", None
        self.levels = [Level(page.width, page.height, 1.0)]
        if page.bytes > MAX_MEMORY_BYTES:
            raise HistoError(
                path,
                f"cannot be read in parts, and {page.bytes / 2**30:.0f} GiB are too many to read at once",
                "Convert it to a tiled TIFF, e.g. with vips tiffsave --tile --pyramid",
            )
        try:
            with path.open("rb") as file, quiet_pillow():
                with tifffile.TiffFile(file) as tiff:
                    self.mpp = self._find_mpp(tiff.pages[index].aspage())
                self._image = load_page(file, index, page)
        except TiffError:
            raise
        except Exception as error:  # tifffile may raise anything on damaged input
            raise HistoError(path, f"is not a TIFF that can be read ({one_line(error)})", CHECK) from error

    @staticmethod
    def _find_mpp(page: tifffile.TiffPage) -> Pair | None:
        unit = {2: "inch", 3: "centimeter"}.get(int(page.tags.valueof("ResolutionUnit", 2)), "none")
        (x, x_of), (y, y_of) = (page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY")
        if not (x_of and y_of):
            return None
        return tiff_mpp((x / x_of, y / y_of), unit, page.description)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        out = Image.new("RGB", (width, height), WHITE)
        box = max(x, 0), max(y, 0), min(x + width, self.width), min(y + height, self.height)
        if box[0] < box[2] and box[1] < box[3]:
            out.paste(on_white(self._image.crop(box)), (box[0] - x, box[1] - y))
        return out

    def close(self) -> None:
        self._image.close()
