"""Tiles in a `.npz` archive as MedMNIST has them: `train_images`, `train_labels`, …, or `images` and `labels`.

An array in it is stored as it is, or deflated as a whole. So that any tile can be read without the rest in memory, the
state of the decoder is kept at each `BLOCK` of the array. The checksum of all is compared when the file is opened.
"""

from __future__ import annotations

import bisect
import io
import math
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_export.data.containers.base import (
    ArrayTiles,
    Listing,
    NoTilesError,
    Pixels,
    check_tile_array,
    file_errors,
    named_classes,
)
from histo_export.data.containers.zip_archive import check_directory, read_member
from histo_export.data.images import MAX_BYTES
from histo_export.data.tiles import SPLITS
from histo_export.errors import HistoError

BLOCK = 8 << 20
"""Bytes of an array that are decoded at a time."""
KEPT_BLOCKS = 8
"""Of one array, in memory."""
MAX_HEADER = 1 << 16
"""Bytes of an array's description."""


@dataclass(frozen=True)
class _Array:
    """An array of the archive: its name, `(n, h, w)` or `(n, h, w, 3)`, and its first byte in the member."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def tile_bytes(self) -> int:
        return math.prod(self.shape[1:])


class NpzTiles(ArrayTiles):
    """The tiles of several arrays, one after the other."""

    kept = 2

    def __init__(self, path: Path, arrays: list[_Array], listing: Listing) -> None:
        super().__init__(path, listing)
        self.arrays = arrays
        self.firsts = np.cumsum([0, *(array.shape[0] for array in arrays)]).tolist()

    def _open(self) -> list[_Blocks]:
        with zipfile.ZipFile(self.path) as archive:
            return [_Blocks(self.path, archive.getinfo(f"{array.name}.npy")) for array in self.arrays]

    def row(self, i: int) -> Pixels:
        place = bisect.bisect_right(self.firsts, i) - 1
        array = self.arrays[place]
        data = self.handle[place].read(array.start + (i - self.firsts[place]) * array.tile_bytes, array.tile_bytes)
        return np.frombuffer(data, np.uint8).reshape(array.shape[1:])

    def verify(self) -> None:
        """HistoError where the bytes are not those that were written."""
        for array, blocks in zip(self.arrays, self.handle, strict=True):
            blocks.verify(array.name)


def open_npz(path: Path) -> NpzTiles:
    """Opens an archive of arrays; HistoError where it is damaged, or holds no tiles."""
    with file_errors(path, ".npz archive"):
        with path.open("rb") as file:
            check_directory(path, file)
        with zipfile.ZipFile(path) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if len(set(names)) < len(names):
                raise HistoError(path, "holds two arrays of one name", "Write it again")
            pairs = [(f"{s}_images", f"{s}_labels", s) for s in SPLITS] + [("images", "labels", "")]
            pairs = [pair for pair in pairs if pair[0] in names]
            if not pairs:
                have = ", ".join(names[:5]) or "nothing"
                step = "Name the arrays images and labels, or train_images, train_labels, val_images and so on"
                raise NoTilesError(path, f"holds no array `images` or `train_images` (it has {have})", step)
            arrays = [_header(path, archive, images) for images, _, _ in pairs]
            numbers: list[int | None] = []
            tiles, splits = [], []
            for array, (images, labels, split) in zip(arrays, pairs, strict=True):
                count = array.shape[0]
                tiles += [f"{images}[{i}]" for i in range(count)]
                splits += [split] * count
                numbers += _labels(path, archive, labels, count) if labels in names else [None] * count
        opened = NpzTiles(path, arrays, Listing(tiles, named_classes(path, numbers), splits))
        opened.verify()
        return opened


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> _Array:
    """What an array of tiles says of itself, before any of its pixels is decoded."""
    info = archive.getinfo(f"{name}.npy")
    if info.flag_bits & 1:
        raise HistoError(path, "is encrypted", "Write it without a password")
    with archive.open(info) as member:
        shape, fortran, dtype, start = _read_header(io.BytesIO(member.read(MAX_HEADER)))
    check_tile_array(path, shape, dtype, f"`{name}`", grey=True)
    if fortran:
        raise HistoError(path, f"holds `{name}` in Fortran's order", "Save numpy.ascontiguousarray of it")
    if info.file_size != start + math.prod(shape):
        raise HistoError(
            path, f"holds {info.file_size:,} bytes of `{name}`, not {start + math.prod(shape):,}", "Save it again"
        )
    return _Array(name, shape, start)


def _read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype, file.tell()


def _labels(path: Path, archive: zipfile.ZipFile, name: str, count: int) -> list[int | None]:
    """The labels of an array; unknown ones where each tile has several (MedMNIST's sets of more labels)."""
    file = io.BytesIO(read_member(archive, archive.getinfo(f"{name}.npy"), MAX_BYTES))
    labels: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    if labels.dtype.kind not in "iu" or labels.shape[:1] != (count,):
        found = f"{labels.dtype} {'×'.join(map(str, labels.shape))}"
        raise HistoError(path, f"holds `{name}` as {found}", f"Save {count:,} integers from 0")
    return labels.ravel().tolist() if labels.size == count else [None] * count


class _Blocks:
    """A member of a zip archive, of which any part can be read: `KEPT_BLOCKS` of `BLOCK` bytes are in memory.

    Args:
        path: of the archive.
        info: the member.
    """

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise HistoError(path, "is compressed in an unusual way", "Save it with numpy.savez_compressed")
        self.path, self.info = path, info
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name, extra = struct.unpack_from("<HH", file.read(30), 26)
        self.start = info.header_offset + 30 + name + extra
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        # Before each block that has been reached: bytes read so far, and the decoder.
        self._states: list[tuple[int, Any]] = [(0, zlib.decompressobj(-zlib.MAX_WBITS))]

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of the member."""
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        data = b"".join(map(self._block, range(first, last + 1)))
        return data[offset - first * BLOCK :][:size]

    def verify(self, name: str) -> None:
        """HistoError where the checksum of all is another one than the archive states."""
        checksum = 0
        for number in range(-(-self.info.file_size // BLOCK)):
            checksum = zlib.crc32(self._block(number, keep=False), checksum)
        if checksum != self.info.CRC:
            raise HistoError(self.path, f"is damaged (the checksum of `{name}` is wrong)", "Copy or write it again")

    def _block(self, number: int, *, keep: bool = True) -> bytes:
        with self._lock:
            if (data := self._kept.get(number)) is not None:
                self._kept.move_to_end(number)
                return data
            with self.path.open("rb") as file:
                if self.info.compress_type == zipfile.ZIP_STORED:
                    file.seek(self.start + number * BLOCK)
                    data = file.read(self._size(number))
                else:
                    for reached in range(min(number, len(self._states) - 1), number + 1):
                        data = self._inflate(file, reached)
            if data is None or len(data) != self._size(number):
                raise HistoError(self.path, "is truncated", "Copy or write it again")
            if keep:
                self._kept[number] = data
                while len(self._kept) > KEPT_BLOCKS:
                    self._kept.popitem(last=False)
            return data

    def _size(self, number: int) -> int:
        return min(BLOCK, self.info.file_size - number * BLOCK)

    def _inflate(self, file: io.BufferedReader, number: int) -> bytes:
        """The bytes of a block whose state is known; that of the next one becomes known."""
        consumed, decoder = self._states[number]
        decoder = decoder.copy()
        parts, missing = [], self._size(number)
        file.seek(self.start + consumed)
        while missing and not decoder.eof:
            data = file.read(min(1 << 16, self.info.compress_size - consumed))
            part = decoder.decompress(data, missing)
            used = len(data) - len(decoder.unconsumed_tail)
            consumed += used
            missing -= len(part)
            parts.append(part)
            if not data and not part:
                break
            file.seek(self.start + consumed)
        if len(self._states) == number + 1:
            self._states.append((consumed, decoder))
        return b"".join(parts)
