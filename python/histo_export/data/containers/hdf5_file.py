"""Tiles in an HDF5 file as CLAM saves patches: the dataset `imgs`, uint8 `(n, height, width, 3)`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from histo_export.data.containers.base import (
    ArrayTiles,
    Listing,
    NoTilesError,
    Pixels,
    check_tile_array,
    file_errors,
)
from histo_export.data.images import MAX_BYTES
from histo_export.errors import HistoError
from histo_export.extras import needs

DATASET = "imgs"
CACHE = 64 << 20
"""Bytes of chunks that stay decoded: chunks that h5py chose itself hold parts of some hundred tiles each."""
SLOTS = 100_003
"""Of the cache's table: a prime, far above the chunks that fit."""


class Hdf5Tiles(ArrayTiles):
    """Tile `i` is `imgs[i]`. h5py reads in one thread at a time."""

    kept = 4

    def _open(self) -> Any:
        import h5py

        return h5py.File(self.path, "r", rdcc_nbytes=CACHE, rdcc_nslots=SLOTS)[DATASET]

    def row(self, i: int) -> Pixels:
        pixels: Pixels = self.handle[i]
        return pixels


def open_hdf5(path: Path) -> Hdf5Tiles:
    """Opens an HDF5 file; HistoError where it is damaged, or holds no tiles."""
    needs(f"Reading {path.name}", "features")
    import h5py

    with file_errors(path, "HDF5 file"), h5py.File(path, "r") as file:
        link = file.get(DATASET, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file[DATASET], h5py.Dataset):
            step = "Name a file of CLAM with its patches; for a file with places use --coords, and name the slide"
            raise NoTilesError(path, f"holds no dataset `{DATASET}`", step)
        images = file[DATASET]
        if images.is_virtual or images.external:  # they would be read from another file
            raise HistoError(path, "keeps its tiles in another file", "Write them into this one")
        check_tile_array(path, images.shape, images.dtype, f"`{DATASET}`")
        _check_storage(path, images)
        return Hdf5Tiles(path, Listing([f"{path.name}[{i}]" for i in range(len(images))]))


def _check_storage(path: Path, images: Any) -> None:
    """HistoError where parts of the dataset were never written, which would be read as black, or are too large."""
    if images.chunks is None:
        complete = images.id.get_storage_size() >= math.prod(images.shape)
    else:
        if math.prod(images.chunks) > MAX_BYTES:
            raise HistoError(
                path, f"has chunks of {math.prod(images.chunks) >> 20} MiB", "Write it in chunks of one tile"
            )
        counts = (-(-side // chunk) for side, chunk in zip(images.shape, images.chunks, strict=True))
        complete = images.id.get_num_chunks() == math.prod(counts)
    if not complete:
        raise HistoError(path, "lacks tiles that it states: it is not complete", "Write it again")
