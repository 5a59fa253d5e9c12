"""Feature vectors of tiles in files that other tools read: HDF5 as CLAM and TRIDENT write it, and Parquet.

A feature vector is what the linear layer gets: the pooled feature map of a tile. Both writers take the vectors batch by
batch, because those of a slide can have gigabytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histo_export.errors import not_written
from histo_export.extras import needs
from histo_export.files import ELSEWHERE
from histo_export.predict.settings import FeatureFormat

Vectors = npt.NDArray[np.float32]
"""`(n, length)`, one vector for each tile."""

FILES = {"h5": "features.h5", "parquet": "features.parquet"}
"""Format → name of the file in the folder of a slide."""
ROWS = 1024
"""Of a chunk of the HDF5 file: 2 to 8 MB for vectors of 512 to 2048 numbers."""


@dataclass(frozen=True)
class FeaturePlaces:
    """Where the tiles of a slide are.

    Attributes:
        slide: name of its file.
        corners: int64 `(n, 2)`, x and y of each tile's upper left corner in pixels of level 0.
        tile: width and height of a tile in pixels of level 0.
        tile_size: side of a tile in pixels of the model.
        mpp: µm per pixel of level 0 in x and y.
    """

    slide: str
    corners: npt.NDArray[np.int64]
    tile: tuple[int, int]
    tile_size: int
    mpp: tuple[float, float]


class VectorStore:
    """Vectors of tiles in a temporary file, in any order in, and in the order of the tiles out.

    Not a memory map: on a full disk, that would end the process.

    Args:
        tiles: how many.
        length: of a vector.

    Raises:
        HistoError: the file can't be made.
    """

    def __init__(self, tiles: int, length: int) -> None:
        self.tiles, self.length = tiles, length
        try:
            self._file = tempfile.TemporaryFile(prefix="histo-features-")  # noqa: SIM115  `close` closes it
        except OSError as error:
            raise not_written("A temporary file", error, ELSEWHERE) from error

    def put(self, indices: npt.NDArray[np.int64], vectors: Vectors) -> None:
        """Keeps the vectors of these tiles; HistoError if they can't be written."""
        try:
            for index, vector in zip(indices.tolist(), np.ascontiguousarray(vectors, np.float32), strict=True):
                self._file.seek(index * 4 * self.length)
                self._file.write(vector)
        except OSError as error:
            raise not_written("A temporary file", error, ELSEWHERE) from error

    def batches(self) -> Iterator[Vectors]:
        """All vectors, `ROWS` at a time."""
        self._file.seek(0)
        for first in range(0, self.tiles, ROWS):
            rows = min(ROWS, self.tiles - first)
            yield np.frombuffer(self._file.read(rows * 4 * self.length), np.float32).reshape(rows, self.length)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


def check_features(kind: FeatureFormat) -> None:
    """MissingExtraError where the package that writes this format is not installed."""
    if kind == "h5":
        needs("--features h5", "features")
    else:
        needs("--features parquet", "report", modules=["pyarrow"])


def write_features(folder: Path, kind: FeatureFormat, places: FeaturePlaces, store: VectorStore) -> None:
    """Writes the vectors of a slide into its folder, in the order of the tiles; OSError if they can't be written."""
    write = write_hdf5 if kind == "h5" else write_parquet
    write(folder / FILES[kind], places, store.length, store.batches())


def write_hdf5(path: Path, places: FeaturePlaces, length: int, vectors: Iterable[Vectors]) -> None:
    """Writes `features` (float32 `(n, length)`) and `coords` (int64 `(n, 2)`), which has these attributes.

    `patch_size`, `patch_size_level0` (width of a tile in pixels of level 0), `patch_level` (0: `coords` and
    `patch_size` are in pixels of level 0), `name` (of the slide), `tile_size` (pixels of the model) and `mpp`.

    Args:
        path: of the file.
        places: of the tiles.
        length: of a vector.
        vectors: of all tiles, in any batches.

    Raises:
        MissingExtraError: h5py is not installed.
        ValueError: there are more or fewer vectors than tiles, or some have another length.
        OSError: it can't be written.
    """
    needs("Writing HDF5", "features")
    import h5py

    n = len(places.corners)
    with h5py.File(path, "w", libver="v110") as file:
        coords = file.create_dataset("coords", data=places.corners.astype(np.int64))
        coords.attrs["patch_size"] = coords.attrs["patch_size_level0"] = places.tile[0]
        coords.attrs["patch_level"] = 0
        coords.attrs["name"] = places.slide
        coords.attrs["tile_size"] = places.tile_size
        coords.attrs["mpp"] = places.mpp
        chunks = (min(ROWS, n), length) if n else None
        features = file.create_dataset("features", (n, length), np.float32, chunks=chunks)
        for first, batch in _placed(vectors, n, length):
            features[first : first + len(batch)] = batch


def write_parquet(path: Path, places: FeaturePlaces, length: int, vectors: Iterable[Vectors]) -> None:
    """Writes the columns `x` and `y` (int64, as `coords`) and `features` (lists of `length` float32).

    Args and errors are those of `write_hdf5`; it needs pyarrow.
    """
    needs("Writing Parquet", "report", modules=["pyarrow"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float32(), length)
    schema = pa.schema([("x", pa.int64()), ("y", pa.int64()), ("features", kind)])
    # pyarrow takes no path with other bytes than UTF-8.
    with path.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        for first, batch in _placed(vectors, len(places.corners), length):
            x, y = places.corners[first : first + len(batch)].T
            flat = pa.array(np.ascontiguousarray(batch, np.float32).ravel())
            rows = pa.FixedSizeListArray.from_arrays(flat, length)
            writer.write_table(pa.Table.from_arrays([pa.array(x), pa.array(y), rows], schema=schema))


def _placed(vectors: Iterable[Vectors], n: int, length: int) -> Iterator[tuple[int, Vectors]]:
    """The batches with the index of their first vector; ValueError where they are not `n` vectors of `length`."""
    first = 0
    for batch in vectors:
        if batch.ndim != 2 or batch.shape[1] != length:
            raise ValueError(f"vectors of shape {batch.shape}, and their length is {length}")
        if first + len(batch) > n:
            raise ValueError(f"more vectors than {n} tiles")
        yield first, batch
        first += len(batch)
    if first != n:
        raise ValueError(f"{first} vectors for {n} tiles")
