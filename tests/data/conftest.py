"""Small image folders and arrays, made on the spot; real tiles where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[2]


def noise_tile(*key: int, side: int = 32) -> np.ndarray:
    """Random uint8 RGB (side, side, 3), another one for every key."""
    return np.random.default_rng(key).integers(0, 256, (side, side, 3), dtype=np.uint8)


def save(path: Path, tile: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """tiles/{A,B,C}/0..9.png of 32x32."""
    for k, c in enumerate("ABC"):
        for i in range(10):
            save(tmp_path / "tiles" / c / f"{i}.png", noise_tile(k, i))
    return tmp_path / "tiles"


@pytest.fixture
def make_split(tmp_path: Path) -> Callable[..., Path]:
    """Makes sets/{train,val,test}/{A,B}/0..2.png, or what the arguments say."""

    def make(val: str = "val", counts: tuple[int, int, int] = (3, 2, 2), suffix: str = ".png") -> Path:
        for s, (split, n) in enumerate(zip(("train", val, "test"), counts, strict=True)):
            for k, c in enumerate("AB"):
                for i in range(n):
                    save(tmp_path / "sets" / split / c / f"{i}{suffix}", noise_tile(s, k, i))
        return tmp_path / "sets"

    return make


@pytest.fixture(scope="session")
def real_tiles() -> Path:
    """224x224 H&E tiles in train, val and test; they are not part of the project."""
    path = Path(os.environ.get("HISTO_REAL_TILES") or REPO.parent / "shared" / "data" / "crc-polyps")
    if not path.is_dir():
        pytest.skip(f"no real tiles at {path} (HISTO_REAL_TILES names another place)")
    return path
