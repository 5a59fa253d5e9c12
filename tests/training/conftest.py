"""Coloured tiles in memory that a network which sees 32 by 32 pixels learns within seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histo_export.data import TileData, TileSet
from histo_export.spec import ModelSpec

CLASSES = ("pink", "blue", "striped")
SIZE = 36


class Drawn:
    """Tile `i` of a split, drawn when asked for; a class, so that loader processes can be sent one."""

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        self.labels, self.seed = labels, seed

    def __call__(self, i: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, i])
        colour = ((200, 120, 160), (120, 110, 190), (160, 115, 175))[self.labels[i]]
        tile = np.tile(np.array(colour, np.float64), (SIZE, SIZE, 1))
        if self.labels[i] == 2:
            tile[::4] += 50
        tile += rng.normal(0, 25, tile.shape) + rng.normal(0, 8, 3)
        return tile.clip(0, 255).astype(np.uint8)


def tile_set(per_class: int, seed: int) -> TileSet:
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int64), per_class)
    return TileSet(CLASSES, labels, [f"tile {i}" for i in range(len(labels))], Drawn(labels, seed))


def make_data(train: int = 16, val: int = 6, test: int = 8) -> TileData:
    """That many tiles of each class."""
    return TileData(
        name="drawn",
        classes=CLASSES,
        train=tile_set(train, 1),
        val=tile_set(val, 2),
        test=tile_set(test, 3),
        tile_size=SIZE,
        mpp=0.5,
        synthetic=True,
        fingerprint=f"drawn-{train}-{val}-{test}",
        description="coloured squares",
    )


@pytest.fixture(name="make_data")
def _make_data() -> Callable[..., TileData]:
    return make_data


@pytest.fixture(scope="session")
def data() -> TileData:
    return make_data()


@pytest.fixture(autouse=True)
def no_checkpoints_left(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three sessions' folders, and a run's two checkpoints are 340 MB."""
    yield
    for path in tmp_path.rglob("*.ckpt"):
        path.unlink()


@pytest.fixture(scope="session")
def few() -> TileData:
    """Two steps an epoch, where nothing need be learnt."""
    return make_data(4, 2, 2)


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(pool=2, classes=CLASSES, crop=32, tile_size=SIZE, mpp=0.5, dropout=0.1)


@pytest.fixture
def other_data(data: TileData) -> TileData:
    return replace(data, fingerprint="other tiles")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles this small gain nothing from threads, and lose much where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
