"""Tiles in a zip archive. Members are inflated in memory, one at a time, and their checksums are compared."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from histo_export.data.containers.base import (
    MAX_LABEL_BYTES,
    EncodedTiles,
    Members,
    check_size,
    file_errors,
    image_members,
    tile_errors,
)
from histo_export.data.images import MAX_BYTES, BadImageError
from histo_export.errors import HistoError

KIND = "zip archive"
MAX_DIRECTORY = 1 << 30
"""Bytes of an archive's directory, which zipfile reads into memory: some ten million names."""


class ZipTiles(EncodedTiles):
    """Tile `i` is a member of the archive."""

    def __init__(self, path: Path, members: Members[zipfile.ZipInfo]) -> None:
        super().__init__(path, members.listing)
        self.where = [info.filename for info in members.where]

    def _open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def data(self, i: int) -> bytes:
        with tile_errors():
            archive: zipfile.ZipFile = self.handle
            return read_member(archive, archive.getinfo(self.where[i]), MAX_BYTES)


def open_zip(path: Path) -> ZipTiles:
    """Opens a zip archive; HistoError where it is damaged, or holds no tiles."""
    with file_errors(path, KIND):
        with path.open("rb") as file:
            check_directory(path, file)
        with zipfile.ZipFile(path) as archive:
            files, links = [], 0
            for info in archive.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    continue
                if mode not in (0, stat.S_IFREG):
                    links += 1
                else:
                    files.append((info.filename.replace("\\", "/"), info))
            left_out = [f"{path.name}: {links:,} links and devices were left out"] if links else []
            members = image_members(path, files, lambda info: read_member(archive, info, MAX_LABEL_BYTES), left_out)
            return ZipTiles(path, members)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a member; BadImageError where it is encrypted, or larger than `most` bytes."""
    if info.flag_bits & 1:
        raise BadImageError("is encrypted (unpack the archive with its password first)")
    check_size(info.file_size)
    if info.file_size > most:
        raise BadImageError(f"is {info.file_size:,} bytes, too large")
    with archive.open(info) as member:
        data = member.read(most + 1)  # no more than the directory states; the checksum is compared at the end
    if len(data) != info.file_size:
        raise BadImageError("is truncated")
    return data


def check_directory(path: Path, file: BinaryIO) -> None:
    """HistoError where the directory of an archive is too large for memory, before zipfile reads it."""
    file.seek(0, 2)
    size = file.tell()
    start = max(0, size - (1 << 16) - 22)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        return  # zipfile tells what it is
    (directory,) = struct.unpack_from("<I", tail, end + 12)
    locator = end - 20
    if directory == 0xFFFFFFFF and locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
        (place,) = struct.unpack_from("<Q", tail, locator + 8)
        if place + 56 > size:
            return
        file.seek(place)
        (directory,) = struct.unpack_from("<Q", file.read(56), 40)
    if directory > MAX_DIRECTORY:
        raise HistoError(path, f"has a directory of {directory >> 20:,} MiB", "Divide it into several archives")
