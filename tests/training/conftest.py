"""Data sets and a model that train within seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drawn_tiles import COLOURS, SIDE, coloured_data
from histo_export.data import TileData
from histo_export.spec import ModelSpec


@pytest.fixture(scope="session")
def make_data() -> Callable[..., TileData]:
    return coloured_data


@pytest.fixture(scope="session")
def data() -> TileData:
    return coloured_data()


@pytest.fixture(autouse=True)
def no_checkpoints_left(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three sessions' folders, and a run's two checkpoints are 340 MB."""
    yield
    for path in tmp_path.rglob("*.ckpt"):
        path.unlink()


@pytest.fixture(scope="session")
def few() -> TileData:
    """Two steps an epoch, where nothing need be learnt."""
    return coloured_data(4, 2, 2)


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(pool=2, classes=COLOURS, crop=32, tile_size=SIDE, mpp=0.5, dropout=0.1)


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
