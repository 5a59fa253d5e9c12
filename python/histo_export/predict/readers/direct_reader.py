"""Slides whose compressed tiles are read by their place in the file and decoded once.

OpenSlide copies each tile of the file through a canvas for every region, which costs several times as much as decoding
it. Here a region is put together of decoded tiles that are kept. OpenSlide opens the file too: it tells the levels and
the scale, it reads what cannot be proven to have the same pixels, and its pixels are compared when the slide is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.errors import HistoError
from histo_export.predict.readers.openslide_reader import OpenSlideReader
from histo_export.predict.readers.tile_cache import TileCache
from histo_export.predict.readers.tile_tables import UnprovenError, read_tables
from histo_export.predict.settings import SlideResample
from histo_export.predict.slide import Level, Pixels, Slide, filter_of
from histo_export.system import SharedFile

CACHE_BYTES = 64 << 20
"""Of decoded tiles. Tiles of a slide are read in bands (`grid.BAND`) whose rows fit in it."""
MAX_STRIP = 8192
"""Pixels of the width of a strip, which holds tiles that lie side by side."""
MAX_REGION = 4096
"""OpenSlide divides wider regions, and rounds the place of each part."""
MOST_BYTES = 8
"""Of a compressed tile for each of its pixels; no codec needs more than a few."""
SMALL = 1 << 16
"""Bytes of a tile beside these, such as tables."""
CHECKED = 3
"""Tiles of each level whose pixels are compared with OpenSlide's when a slide is opened."""


class TileError(Exception):
    """A tile of the file is damaged or missing."""


@dataclass(frozen=True)
class Source:
    """What a level is read from: the tiles of `levels[base]` of the file, decoded at 1 / `shrink` of their size."""

    base: int
    shrink: int = 1


class DirectReader(Slide):
    """Args:
        path: of the slide.
        shrinks: whether the levels include those that libjpeg decodes at a half, a quarter and an eighth of the size.

    Raises:
        UnprovenError: OpenSlide must read this file.
        OpenSlideError: OpenSlide can't open it.
    """

    reader = "direct"

    def __init__(self, path: Path, *, shrinks: bool = False) -> None:
        self.path = path
        self._slide = OpenSlideReader(path)
        self._file: SharedFile | None = None
        try:
            self.mpp, self.bounds, self.vendor = self._slide.mpp, self._slide.bounds, self._slide.vendor
            self._tables = read_tables(path, self.vendor, self._slide.levels)
            self._file = SharedFile(path)
            self._cache = TileCache(CACHE_BYTES)
            self._sources, self.levels = self._all_levels(shrinks)
            self._compare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._slide.close()
        if self._file is not None:
            self._file.close()

    def shrink_of(self, level: int) -> int:
        return self._sources[level].shrink

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        place = self._place(level, x, y, max(width, height))
        if place is not None:
            try:
                return Image.fromarray(self._region(level, *place, width, height))
            except TileError as error:
                return self._read_instead(level, x, y, width, height, error)
        return self._slide.read(self._sources[level].base, x, y, width, height)

    def tiles(
        self,
        corners: npt.NDArray[np.int64],
        size: tuple[int, int],
        pixels: int,
        resample: SlideResample = "bilinear",
    ) -> Pixels:
        level = self.level_for(min(size) / pixels)
        width, height = self.size_at(level, size)
        out = np.empty((len(corners), pixels, pixels, 3), np.uint8)
        for first, last in self._strips(corners, size[0], level):
            places = [self._place(level, x, y, max(width, height)) for x, y in corners[first:last].tolist()]
            try:
                self._cut(out[first:last], level, places, (width, height), resample)
            except TileError:
                for i in range(first, last):  # which read() does as well as it can be done
                    x, y = corners[i].tolist()
                    out[i] = self.tile(x, y, size, pixels, resample)
        return out

    def _strips(self, corners: npt.NDArray[np.int64], width: int, level: int) -> Iterator[tuple[int, int]]:
        """Ranges of tiles that lie side by side, so that one region holds all of them."""
        x, y = corners[:, 0].tolist(), corners[:, 1].tolist()
        widest = MAX_STRIP * self.levels[level].downsample
        first = 0
        for i in range(1, len(x) + 1):
            beside = i < len(x) and y[i] == y[first] and x[i - 1] <= x[i] <= x[i - 1] + width
            if not beside or x[i] + width - x[first] > widest:
                yield first, i
                first = i

    def _cut(
        self,
        out: Pixels,
        level: int,
        places: list[tuple[int, int] | None],
        size: tuple[int, int],
        resample: SlideResample,
    ) -> None:
        """Reads a strip of the level and cuts tiles of this size out of it; TileError where that can't be done."""
        if None in places:
            raise TileError("lies between the pixels of its level")
        lefts, tops = zip(*places, strict=True)
        (width, height), side = size, out.shape[1]
        same = (width, height) == (side, side)
        strip = self._region(level, lefts[0], tops[0], lefts[-1] - lefts[0] + width, height, 3 if same else 4)
        if same:
            for tile, left in zip(out, lefts, strict=True):
                tile[:] = strip[:, left - lefts[0] : left - lefts[0] + width]
            return
        # Four channels: Pillow uses this memory as it is, and its loops are faster with them.
        image = Image.frombuffer("RGBX", (strip.shape[1], height), strip, "raw", "RGBX", 0, 1)
        method = filter_of(resample)
        for tile, left in zip(out, lefts, strict=True):
            part = image.crop((left - lefts[0], 0, left - lefts[0] + width, height))
            rgb = part.resize((side, side), method).tobytes("raw", "RGB")
            tile[:] = np.frombuffer(rgb, np.uint8).reshape(side, side, 3)

    def _all_levels(self, shrinks: bool) -> tuple[list[Source], list[Level]]:
        """The levels of the file, and between them those that are decoded smaller where there is no other."""
        levels = [(Source(i), level) for i, level in enumerate(self._slide.levels)]
        for i, table in enumerate(self._tables if shrinks else ()):
            base = self._slide.levels[i]
            for shrink in table.codec.shrinks[1:]:
                downsample = base.downsample * shrink
                new = Level(max(1, base.width // shrink), max(1, base.height // shrink), downsample)
                if not any(abs(each.downsample / downsample - 1) < 0.05 for _, each in levels):
                    levels.append((Source(i, shrink), new))
        levels.sort(key=lambda pair: pair[1].downsample)
        return [source for source, _ in levels], [level for _, level in levels]

    def _place(self, level: int, x: int, y: int, longest: int) -> tuple[int, int] | None:
        """The pixel of the level at a pixel of level 0; None where it lies between pixels, and OpenSlide interpolates.

        Of a level that is decoded smaller, it is the nearest one.
        """
        source, downsample = self._sources[level], self.levels[level].downsample
        if source.shrink > 1:
            return round(x / downsample), round(y / downsample)
        at = []
        for position in (x, y):
            exact = position / downsample
            # OpenSlide draws a region that begins outside from the level's edge on, so many whole pixels away.
            at.append(-int(-exact) if position < 0 else int(exact))
            if position >= 0 and exact != at[-1]:
                return None
        whole = downsample == int(downsample)
        return (at[0], at[1]) if whole or longest <= MAX_REGION else None

    def _region(self, level: int, x: int, y: int, width: int, height: int, channels: int = 3) -> Pixels:
        """uint8 `(height, width, channels)` from pixel (x, y) of the level; white outside. TileError for a bad tile."""
        source, area = self._sources[level], self.levels[level]
        table = self._tables[source.base]
        tile_w, tile_h = table.codec.width // source.shrink, table.codec.height // source.shrink
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, area.width), min(y + height, area.height)
        inside = (left, top, right, bottom) == (x, y, x + width, y + height)
        out = np.empty((height, width, channels), np.uint8)
        if not inside:
            out.fill(255)
        if left >= right or top >= bottom:
            return out
        for row in range(top // tile_h, -(-bottom // tile_h)):
            for column in range(left // tile_w, -(-right // tile_w)):
                tile = self._tile(source, column, row, channels)
                x0, y0 = column * tile_w, row * tile_h
                x1, y1, x2, y2 = max(left, x0), max(top, y0), min(right, x0 + tile_w), min(bottom, y0 + tile_h)
                out[y1 - y : y2 - y, x1 - x : x2 - x] = tile[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
        return out

    def _tile(self, source: Source, column: int, row: int, channels: int) -> Pixels:
        key = source, column, row, channels
        return self._cache.get(key, partial(self._decode, source, column, row, channels))

    def _decode(self, source: Source, column: int, row: int, channels: int) -> Pixels:
        table = self._tables[source.base]
        index = row * table.across + column
        offset, size = int(table.offsets[index]), int(table.sizes[index])
        assert self._file is not None
        name = f"tile ({column}, {row}) of level {source.base}"
        if size <= 0:
            raise TileError(f"{name} is missing")
        if offset < 0 or offset + size > self._file.size:
            raise TileError(f"{name} lies beyond the end of the file")
        if size > MOST_BYTES * table.codec.width * table.codec.height + SMALL:
            raise TileError(f"{name} has {size:,} bytes, more than its pixels can need")
        try:
            data = self._file.read_at(offset, size)
        except OSError as error:
            step = "Check the disk or the network, and run it again"
            raise HistoError(self.path, f"cannot be read ({error.strerror})", step) from error
        try:
            return table.codec.decode(data, channels, source.shrink)
        except (ValueError, MemoryError) as error:
            raise TileError(f"{name} {error}") from error

    def _read_instead(self, level: int, x: int, y: int, width: int, height: int, reason: TileError) -> Image.Image:
        """What OpenSlide makes of a region with a bad tile; HistoError with the tile's name if it can't read it."""
        source = self._sources[level]
        shrink = source.shrink
        try:
            image = self._slide.read(source.base, x, y, width * shrink, height * shrink)
        except HistoError as error:
            step = "Compare it with the original, and copy it again"
            raise HistoError(self.path, f"is damaged: {reason}", step) from error
        return image if shrink == 1 else image.reduce(shrink)

    def _compare(self) -> None:
        """Compares tiles of each level with OpenSlide's; UnprovenError where one differs, or none can be decoded."""
        for base, (table, level) in enumerate(zip(self._tables, self._slide.levels, strict=True)):
            present = np.flatnonzero(table.sizes > 0)
            if not len(present):
                raise UnprovenError(f"has no tile in level {base}")
            compared, damage = 0, None
            for index in present[np.unique(np.linspace(0, len(present) - 1, 3 * CHECKED).astype(int))]:
                row, column = divmod(int(index), table.across)
                try:
                    compared += self._same(base, level, column, row)
                except TileError as error:  # OpenSlide would refuse it, and then all others of the file
                    damage = error
                if compared == CHECKED:
                    break
            if damage and not compared:
                raise UnprovenError(f"is not decoded directly: {damage}")

    def _same(self, base: int, level: Level, column: int, row: int) -> bool:
        """Whether this tile has OpenSlide's pixels: UnprovenError if not, False if OpenSlide cannot read it exactly."""
        codec = self._tables[base].codec
        x, y = column * codec.width, row * codec.height
        width, height = min(codec.width, level.width - x), min(codec.height, level.height - y)
        at = round(x * level.downsample), round(y * level.downsample)
        number = self._sources.index(Source(base))
        if self._place(number, *at, max(width, height)) != (x, y):
            return False
        found = self._region(number, x, y, width, height)
        if not np.array_equal(found, np.asarray(self._slide.read(base, *at, width, height))):
            raise UnprovenError(f"has other pixels than OpenSlide finds in tile ({column}, {row}) of level {base}")
        return True
