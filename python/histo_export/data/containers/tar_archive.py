"""Tiles in a tar archive, among them the shards of WebDataset. Only headers are read to list them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from histo_export.data.containers.base import (
    MAX_LABEL_BYTES,
    EncodedTiles,
    Members,
    check_count,
    check_size,
    file_errors,
    image_members,
    tile_errors,
)
from histo_export.data.images import BadImageError
from histo_export.errors import HistoError

KIND = "tar archive"
MAX_HEADER = 1 << 20
"""Bytes of a header, extended ones included. A damaged header may state any size."""
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
"""The first bytes of compressed files → the program that makes a plain .tar of them."""
Place = tuple[int, int]
"""Where a member's bytes begin, and how many they are."""


class TarTiles(EncodedTiles):
    """Tile `i` is a member of the archive."""

    def __init__(self, path: Path, members: Members[Place]) -> None:
        super().__init__(path, members.listing)
        self.where = members.where

    def data(self, i: int) -> bytes:
        with tile_errors():
            check_size(self.where[i][1])
            return _read(self.path, self.where[i])


class _Headers(io.FileIO):
    """A tar archive, of which no more than a header may be read at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise ValueError("a header states an impossible size")
        return super().read(size) or b""


def open_tar(path: Path) -> TarTiles:
    """Opens a tar archive that is not compressed; HistoError where it is damaged, or holds no tiles."""
    with file_errors(path, KIND):
        with path.open("rb") as file:
            if program := COMPRESSED.get(file.read(2)):
                cause = "is compressed, so that single tiles cannot be read from it"
                raise HistoError(path, cause, f"Make a plain .tar of it: {program} (the images are compressed anyway)")
        files: list[tuple[str, Place]] = []
        others = 0
        with _Headers(path) as headers:
            # "utf-8", not the locale's encoding: names in tables must not depend on the machine.
            archive = tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="surrogateescape")
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep about a kilobyte for each
                if member.isreg() and not member.issparse():
                    files.append((member.name, (member.offset_data, member.size)))
                    check_count(path, len(files))
                elif not member.isdir():
                    others += 1
            _check_end(path, headers, archive.offset)
        left_out = [f"{path.name}: {others:,} links, devices and sparse files were left out"] if others else []
        return TarTiles(path, image_members(path, files, lambda place: _read_label(path, place), left_out))


def _check_end(path: Path, file: io.FileIO, offset: int) -> None:
    """HistoError unless the archive ends here with its mark, a block of zeros, and nothing follows."""
    file.seek(offset)
    if not (mark := file.read(tarfile.BLOCKSIZE)) or any(mark) or len(mark) < tarfile.BLOCKSIZE:
        raise HistoError(path, "has no end mark: it is damaged or not complete", "Copy or write it again")
    while rest := file.read(MAX_HEADER):
        if any(rest):
            step = "Give each archive as a file of its own"
            raise HistoError(path, "has data behind its end mark, such as a second archive", step)


def _read_label(path: Path, place: Place) -> bytes:
    return _read(path, (place[0], min(place[1], MAX_LABEL_BYTES + 1)))


def _read(path: Path, place: Place) -> bytes:
    with path.open("rb") as file:
        file.seek(place[0])
        data = file.read(place[1])
    if len(data) != place[1]:
        raise BadImageError("is truncated")
    return data
