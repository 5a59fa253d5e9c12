"""Tiles in a `.npy` array, which is mapped into memory: uint8 `(n, side, side, 3)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histo_export.data.arrays import labels_beside
from histo_export.data.containers.base import (
    ArrayTiles,
    Listing,
    NoTilesError,
    Pixels,
    check_tile_array,
    named_classes,
)
from histo_export.errors import HistoError, one_line


class NpyTiles(ArrayTiles):
    """Tile `i` is row `i` of the array."""

    def _open(self) -> Pixels:
        return _mapped(self.path)

    def row(self, i: int) -> Pixels:
        pixels: Pixels = self.handle[i]
        return pixels


def open_npy(path: Path) -> NpyTiles:
    """Opens an array; HistoError where it is damaged, or holds no tiles."""
    array = _mapped(path)
    check_tile_array(path, array.shape, array.dtype, "an array")
    numbers = labels_beside(path, len(array), single=False)
    labels = [] if numbers is None else named_classes(path, numbers.tolist())
    return NpyTiles(path, Listing([f"{path.name}[{i}]" for i in range(len(array))], labels))


def _mapped(path: Path) -> Pixels:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror or error})", "Check the disk") from error
    except Exception as error:  # of many types, depending on the damage
        raise HistoError(path, f"is not a .npy array ({one_line(error)})", "Save it with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise NoTilesError(path, "is an archive of arrays", "Save one array with numpy.save, or call it .npz")
    return array
