"""The tiles that a network was trained on, as hashes of their pixels, so that none is taken for a test later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from histo_export.errors import HistoError

Hashes = npt.NDArray[np.int64]


def tile_hash(tile: npt.NDArray[np.uint8]) -> int:
    """A 64-bit hash of a tile's decoded pixels.

    A PNG with the pixels of a JPEG, and a row of an array with them, count as the same tile. A tile that was turned,
    resampled or compressed again is another one.

    Args:
        tile: uint8 RGB `(h, w, 3)`.

    Returns:
        A signed integer. Among 10⁶ different tiles, two share a hash with a probability of 3e-8.
    """
    digest = hashlib.blake2b(repr(tile.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(tile).data)
    return int.from_bytes(digest.digest(), "little", signed=True)


@dataclass(frozen=True)
class TrainedOn:
    """What a network has learnt from.

    Attributes:
        train: int64 `(n,)`, sorted: `tile_hash` of each tile of the training split.
        val: the same of the validation split, which chose the epoch.
    """

    train: Hashes
    val: Hashes

    @classmethod
    def of(cls, train: Hashes, val: Hashes) -> TrainedOn:
        """The record of these tiles, int64 `(n,)` each, in any order."""
        return cls(np.unique(train), np.unique(val))

    def splits(self, hashes: Hashes) -> npt.NDArray[np.str_]:
        """The split in which each of the tiles `hashes` `(n,)` was used: "train" (also if in both), "val", or ""."""
        used = np.full(len(hashes), "", "<U5")
        used[np.isin(hashes, self.val)] = "val"
        used[np.isin(hashes, self.train)] = "train"
        return used

    def to_bytes(self) -> bytes:
        """A safetensors file; the same record has the same bytes."""
        return safetensors.numpy.save({"train": self.train, "val": self.val}, metadata={"histo.format": "1"})

    @classmethod
    def read(cls, path: Path) -> TrainedOn:
        """Inverse of `to_bytes`; HistoError where the file is damaged."""
        try:
            tensors = safetensors.numpy.load(path.read_bytes())
            record = cls(tensors["train"], tensors["val"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise HistoError(path, f"is not a readable record of training tiles ({error})", "Export again") from error
        if any(part.dtype != np.int64 or part.ndim != 1 for part in (record.train, record.val)):
            raise HistoError(path, "does not hold int64 hashes (n,)", "Export again")
        return record
