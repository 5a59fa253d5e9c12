"""Writes TIFF files whose tiles are encoded by the caller, in any codec: made slides for benchmarks and tests.

tifffile needs imagecodecs for that, also where a tile is encoded already.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SHORT, LONG, ASCII, RATIONAL, UNDEFINED, LONG8 = 3, 4, 2, 5, 7, 16
FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "II", LONG8: "Q"}


def tiles_of(pixels: Pixels, side: int) -> Iterator[Pixels]:
    """The tiles of an image, row by row; those at its edges repeat its last pixels."""
    height, width = pixels.shape[:2]
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile = pixels[y : y + side, x : x + side]
            missing = side - tile.shape[0], side - tile.shape[1]
            yield np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else tile


class TiledTiff:
    """A file that is written level by level.

    Args:
        path: of the file.
        bigtiff: places of 8 bytes.
        byteorder: "<" or ">".
    """

    def __init__(self, path: Path, *, bigtiff: bool = False, byteorder: str = "<") -> None:
        self._big, self._order = bigtiff, byteorder
        self._file = path.open("wb")
        mark = b"II" if byteorder == "<" else b"MM"
        self._file.write(mark + (self._packed("HHHQ", 43, 8, 0, 0) if bigtiff else self._packed("HI", 42, 0)))
        self._link = self._file.tell() - (8 if bigtiff else 4)

    def __enter__(self) -> TiledTiff:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(
        self,
        size: tuple[int, int],
        tiles: Iterable[bytes],
        *,
        side: int,
        compression: int,
        photometric: int = 2,
        description: str = "",
        mpp: float = 0.5,
        reduced: bool = False,
        further: Mapping[int, tuple[int, Sequence[int] | bytes]] | None = None,
    ) -> None:
        """Writes an image.

        Args:
            size: width and height.
            tiles: encoded, row by row. An empty one is missing.
            side: of a tile.
            compression, photometric: numbers of the TIFF standard.
            description: the tag ImageDescription, if not empty.
            mpp: µm per pixel.
            reduced: it is a smaller copy of another image.
            further: tag → type and values.
        """
        offsets, sizes = [], []
        for tile in tiles:
            offsets.append(self._file.tell() if tile else 0)
            sizes.append(len(tile))
            self._file.write(tile)
        per_cm = (round(1e7 / mpp), 1000)
        tags: dict[int, tuple[int, Any]] = {
            254: (LONG, [int(reduced)]),
            256: (LONG, [size[0]]),
            257: (LONG, [size[1]]),
            258: (SHORT, [8, 8, 8]),
            259: (SHORT, [compression]),
            262: (SHORT, [photometric]),
            277: (SHORT, [3]),
            282: (RATIONAL, per_cm),
            283: (RATIONAL, per_cm),
            284: (SHORT, [1]),
            296: (SHORT, [3]),
            322: (LONG, [side]),
            323: (LONG, [side]),
            324: (LONG8 if self._big else LONG, offsets),
            325: (LONG, sizes),
            **(further or {}),
        }
        if description:
            tags[270] = (ASCII, description.encode() + b"\0")
        self._directory(tags)

    def _directory(self, tags: Mapping[int, tuple[int, Any]]) -> None:
        """Writes the tags behind all that was written, and links the image before to them."""
        place, width = ("Q", 8) if self._big else ("I", 4)
        rows = []
        for tag, (kind, values) in sorted(tags.items()):
            data = values if isinstance(values, bytes) else self._packed(len(values) * FORMATS[kind][:1], *values)
            count = len(values) // 2 if kind == RATIONAL else len(values)
            if len(data) > width:
                data = self._packed(place, self._append(data))
            rows.append(self._packed("HH" + place, tag, kind, count) + data.ljust(width, b"\0"))
        at = self._append(self._packed("Q" if self._big else "H", len(rows)) + b"".join(rows) + bytes(width))
        end = self._file.tell()
        self._file.seek(self._link)
        self._file.write(self._packed(place, at))
        self._file.seek(end)
        self._link = end - width

    def _append(self, data: bytes) -> int:
        """Writes at the end of the file, from an even byte on, which it returns."""
        at = self._file.tell()
        if at % 2:
            at += self._file.write(b"\0")
        self._file.write(data)
        return at

    def _packed(self, form: str, *values: int) -> bytes:
        return struct.pack(self._order + form, *values)


def write_pyramid(
    path: Path,
    levels: Sequence[Pixels],
    encode: Callable[[Pixels], bytes],
    *,
    side: int = 256,
    bigtiff: bool = False,
    byteorder: str = "<",
    mpp: float = 0.5,
    **tags: Any,
) -> Path:
    """A slide.

    Args:
        path: of the file.
        levels: uint8 RGB `(height, width, 3)`, from the finest on.
        encode: of one tile `(side, side, 3)`.
        side, bigtiff, byteorder: see `TiledTiff`.
        mpp: µm per pixel of the finest level.
        **tags: for `TiledTiff.write`.
    """
    with TiledTiff(path, bigtiff=bigtiff, byteorder=byteorder) as file:
        for i, pixels in enumerate(levels):
            size = pixels.shape[1], pixels.shape[0]
            tiles = (encode(np.ascontiguousarray(tile)) for tile in tiles_of(pixels, side))
            scale = mpp * levels[0].shape[1] / size[0]
            file.write(size, tiles, side=side, mpp=scale, reduced=i > 0, **tags)
    return path
