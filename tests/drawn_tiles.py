"""Tile sets in memory for several folders of tests. Sources of tiles are classes: loader processes unpickle them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from histo_export.data import TileData, TileSet

Tile = npt.NDArray[np.uint8]

COLOURS = ("pink", "blue", "striped")
SIDE = 36


class TintedNoise:
    """Tile `i` is blurred noise of a tint of its own, uint8 `(side, side, 3)`."""

    def __init__(self, seed: int, side: int) -> None:
        self.seed, self.side = seed, side

    def __call__(self, i: int) -> Tile:
        rng = np.random.default_rng([self.seed, i])
        coarse = rng.normal(0, 60, (-(-self.side // 5), -(-self.side // 5), 3)).repeat(5, 0).repeat(5, 1)
        tile = coarse[: self.side, : self.side] + rng.uniform(60, 200, 3)
        return tile.clip(0, 255).astype(np.uint8)


class Coloured:
    """Tile `i` shows its class of `COLOURS`, which a network that sees 32 × 32 pixels learns within seconds."""

    def __init__(self, labels: npt.NDArray[np.int64], seed: int) -> None:
        self.labels, self.seed = labels, seed

    def __call__(self, i: int) -> Tile:
        rng = np.random.default_rng([self.seed, i])
        colour = ((200, 120, 160), (120, 110, 190), (160, 115, 175))[self.labels[i]]
        tile = np.tile(np.array(colour, np.float64), (SIDE, SIDE, 1))
        if self.labels[i] == 2:
            tile[::4] += 50
        tile += rng.normal(0, 25, tile.shape) + rng.normal(0, 8, 3)
        return tile.clip(0, 255).astype(np.uint8)


def labels_of(classes: Sequence[str], per_class: int) -> npt.NDArray[np.int64]:
    """`per_class` of each class, class by class."""
    return np.repeat(np.arange(len(classes), dtype=np.int64), per_class)


def tile_set(classes: Sequence[str], labels: npt.NDArray[np.int64], draw: Callable[[int], Tile]) -> TileSet:
    return TileSet(tuple(classes), labels, [f"tile {i}" for i in range(len(labels))], draw)


def coloured_data(train: int = 16, val: int = 6, test: int = 8) -> TileData:
    """That many tiles of each of `COLOURS`."""

    def split(per_class: int, seed: int) -> TileSet:
        labels = labels_of(COLOURS, per_class)
        return tile_set(COLOURS, labels, Coloured(labels, seed))

    return TileData(
        name="drawn",
        classes=COLOURS,
        train=split(train, 1),
        val=split(val, 2),
        test=split(test, 3),
        tile_size=SIDE,
        mpp=0.5,
        synthetic=True,
        fingerprint=f"drawn-{train}-{val}-{test}",
        description="coloured squares",
    )
