"""Where the tiles of a TIFF's levels lie in the file, and how each is decoded.

Only layouts are accepted whose pixels have been proven to be those of OpenSlide. `UnprovenError` says why another one
is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from histo_export.errors import one_line
from histo_export.predict.readers.codecs import Codec, Deflate, Jpeg, Jpeg2000, Uncompressed
from histo_export.predict.slide import Level

Integers = npt.NDArray[np.int64]

MAX_SIDE = 4096
"""Pixels of a file's tile. Larger ones are not meant for reading in parts."""
MAX_TABLES = 65536
"""Bytes of the tag JPEGTables; Huffman and quantisation tables have less than 2 kB."""
MAX_TILES = 50_000_000
"""Of a level: 3 terapixels in tiles of 256."""

RGB, YCBCR = 2, 6
"""Values of the tag PhotometricInterpretation."""


class UnprovenError(Exception):
    """Why OpenSlide reads a file; the message is a predicate of the file."""


@dataclass(frozen=True)
class TileTable:
    """The tiles of one level.

    Attributes:
        width, height: of the level, in pixels.
        across: tiles in a row.
        offsets, sizes: int64 `(tiles,)`, in bytes, row by row.
        codec: decodes one, and knows its size.
    """

    width: int
    height: int
    across: int
    offsets: Integers
    sizes: Integers
    codec: Codec


def read_tables(path: Path, vendor: str, levels: Sequence[Level]) -> list[TileTable]:
    """The table of each level, as OpenSlide counts them.

    Args:
        path: a TIFF.
        vendor: what OpenSlide calls the format.
        levels: of the same file, from OpenSlide.

    Raises:
        UnprovenError: the layout is another one than those that have been proven.
    """
    if vendor not in LAYOUTS:
        raise UnprovenError(f"is of the format {vendor}")
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = LAYOUTS[vendor](tiff)
            sizes = [(page.imagewidth, page.imagelength) for page in pages]
            if sizes != [(level.width, level.height) for level in levels]:
                raise UnprovenError("has other levels than OpenSlide finds")
            tables = [_table(page, vendor) for page in pages]
    except UnprovenError:
        raise
    except Exception as error:  # tifffile may raise anything on damaged input
        raise UnprovenError(f"has tables that cannot be read ({one_line(error, 80)})") from error
    if vendor == "aperio" and len(tables) > 1 and any((table.sizes == 0).any() for table in tables):
        raise UnprovenError("lacks tiles, which OpenSlide draws from other levels")
    return tables


def _aperio(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """All images in tiles, in the order of the file."""
    return [page for page in _pages(tiff) if page.is_tiled]


def _generic(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The first image, and those in tiles that are stated to be smaller copies; the widest first."""
    pages = _pages(tiff)
    levels = [page for i, page in enumerate(pages) if page.is_tiled and (i == 0 or page.is_reduced)]
    if len({page.imagewidth for page in levels}) < len(levels):
        raise UnprovenError("has several levels of one width")
    return sorted(levels, key=lambda page: -page.imagewidth)


LAYOUTS: dict[str, Callable[[tifffile.TiffFile], list[tifffile.TiffPage]]] = {
    "aperio": _aperio,
    "generic-tiff": _generic,
}
"""What OpenSlide calls a format → its levels among the images of the file's list."""


def _pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    return [page.aspage() for page in tiff.pages]


def _table(page: tifffile.TiffPage, vendor: str) -> TileTable:
    tags = page.tags
    fixed = {
        "SamplesPerPixel": (3, "channels"),
        "BitsPerSample": ((8, 8, 8), "bits per channel"),
        "PlanarConfiguration": (1, "as arrangement of its channels"),
        "SampleFormat": (1, "as format of its numbers"),
        "Orientation": (1, "as orientation"),
        "FillOrder": (1, "as order of its bits"),
        "ImageDepth": (1, "as depth"),
        "TileDepth": (1, "as depth of its tiles"),
    }
    for name, (only, what) in fixed.items():
        value = tags.valueof(name, only)
        if value != only and value != (only,) * 3:
            raise UnprovenError(f"has {value} {what}")
    width, height = int(page.tilewidth), int(page.tilelength)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise UnprovenError(f"has tiles of {width}×{height} pixels")
    across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
    if across * down > MAX_TILES:
        raise UnprovenError(f"has {across * down:,} tiles")
    offsets, sizes = (_numbers(tags.valueof(name, ())) for name in ("TileOffsets", "TileByteCounts"))
    if not len(offsets) == len(sizes) == across * down:
        raise UnprovenError(f"states {len(offsets):,} places and {len(sizes):,} sizes of {across * down:,} tiles")
    return TileTable(page.imagewidth, page.imagelength, across, offsets, sizes, _codec(page, vendor, width, height))


def _numbers(value: Any) -> Integers:
    numbers = np.atleast_1d(np.asarray(value))
    if numbers.dtype == np.uint64 and (numbers > np.iinfo(np.int64).max).any():
        raise UnprovenError("states places beyond any file")
    return numbers.astype(np.int64)


def _codec(page: tifffile.TiffPage, vendor: str, width: int, height: int) -> Codec:
    tags = page.tags
    compression, photometric = (int(tags.valueof(name, 1)) for name in ("Compression", "PhotometricInterpretation"))
    predictor = int(tags.valueof("Predictor", 1))
    if photometric not in ((RGB, YCBCR) if compression == 7 else (RGB,)):
        raise UnprovenError(f"has {photometric} as colour model")
    if compression == 7:
        tables = tags.valueof("JPEGTables", b"")
        if not isinstance(tables, bytes) or len(tables) > MAX_TABLES:
            raise UnprovenError("has tables of JPEG that are too large")
        return Jpeg(width, height, tables, rgb=photometric == RGB)
    if compression == 33005 and vendor == "aperio":
        return Jpeg2000(width, height)
    if compression in (8, 32946) and predictor in (1, 2):
        return Deflate(width, height, differences=predictor == 2)
    if compression == 1:
        return Uncompressed(width, height)
    raise UnprovenError(f"is compressed with {COMPRESSIONS.get(compression, f'codec {compression}')}")


COMPRESSIONS = {5: "LZW", 32773: "PackBits", 33003: "JPEG 2000 in YCbCr", 50000: "Zstandard"}
"""Of those that are not decoded here, the ones that occur."""
