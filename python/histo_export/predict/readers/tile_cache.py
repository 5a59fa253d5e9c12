"""Decoded tiles of a file, of which a bounded number of bytes is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


class TileCache:
    """The tiles that were used last, for any number of threads. A tile that several ask for at once is made once.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._tiles: OrderedDict[Hashable, Pixels] = OrderedDict()
        self._coming: dict[Hashable, Future[Pixels]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Pixels]) -> Pixels:
        """The tile of this key, made by `make` if it is not here; what `make` raises is raised for all who wait."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            coming = self._coming.get(key)
            if first := coming is None:
                coming = self._coming[key] = Future()
        if not first:
            return coming.result()
        try:
            tile = make()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            coming.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._tiles[key] = tile
            self.bytes += tile.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._tiles.popitem(last=False)[1].nbytes
        coming.set_result(tile)
        return tile
