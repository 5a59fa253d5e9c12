"""Tiles that occur twice: found among splits, told apart from tiles that merely look alike."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from histo_export.data import TileData, duplicates, open_data
from histo_export.data.duplicates import (
    HASH_SIDE,
    NEAR,
    duplicate_notes,
    duplicates_csv,
    identical_tiles,
    near_duplicates,
)

from .conftest import save


def all_twins(data: TileData) -> list[duplicates.Twin]:
    return [*identical_tiles((data.train, data.val, data.test)), *near_duplicates(data)[0]]


@pytest.fixture(scope="module")
def drawn() -> TileData:
    return open_data("demo", classes=["TUMOR", "MUCOSA"], crop=64, demo_size=(3, 1, 2))


@pytest.fixture
def tiles(drawn: TileData, tmp_path: Path) -> Path:
    """tiles/{train,val,test}/{TUMOR,MUCOSA}/*.png, which look like tissue."""
    for side, part in (("train", drawn.train), ("val", drawn.val), ("test", drawn.test)):
        for i, label in enumerate(part.labels):
            save(tmp_path / "tiles" / side / part.classes[label] / f"{i}.png", part.tile(i))
    return tmp_path / "tiles"


def test_tiles_that_look_alike_are_not_duplicates(drawn: TileData) -> None:
    assert all_twins(drawn) == []


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_planted_leak_is_found(tiles: Path, quality: int) -> None:
    """The same tile under another name and slightly recompressed; also the other way round, and a plain copy."""
    Image.open(tiles / "train/TUMOR/1.png").save(tiles / "test/TUMOR/other.jpg", quality=quality)
    Image.open(tiles / "train/MUCOSA/4.png").save(tiles / "val/MUCOSA/again.tif")
    found = all_twins(open_data(tiles, crop=64))
    exact, near = found
    assert (exact.name, exact.twin_name, exact.identical) == ("val/MUCOSA/again.tif", "train/MUCOSA/4.png", True)
    assert (near.name, near.twin_name) == ("test/TUMOR/other.jpg", "train/TUMOR/1.png")
    assert (near.split, near.twin_split, near.across, near.identical) == ("test", "train", True, False)
    assert 0 <= near.distance <= NEAR // 2
    rows = list(csv.DictReader(io.StringIO(duplicates_csv(found))))
    assert [(row["kind"], row["split"], row["tile"]) for row in rows] == [
        ("identical", "val", "val/MUCOSA/again.tif"),
        ("near", "test", "test/TUMOR/other.jpg"),
    ]
    assert any("1 of 5 test tiles are near duplicates of train tiles" in n for n in duplicate_notes(found, [6, 3, 5]))


def test_flat_tiles_are_no_near_duplicates(tiles: Path) -> None:
    """All of them have one perceptual hash; those that are identical are still found."""
    for side, grey in (("train", 240), ("val", 243), ("test", 236)):
        noise = np.random.default_rng(grey).integers(0, 2, (64, 64, 3), np.uint8)
        save(tiles / side / "MUCOSA" / "glass.png", noise + np.uint8(grey))
        save(tiles / side / "MUCOSA" / "white.png", np.full((64, 64, 3), grey, np.uint8))
    save(tiles / "test/MUCOSA/again.png", np.full((64, 64, 3), 240, np.uint8))
    data = open_data(tiles, crop=64)
    assert near_duplicates(data) == ([], 7)
    assert [(twin.name, twin.identical) for twin in all_twins(data)] == [("test/MUCOSA/again.png", True)]


def test_the_small_picture_is_that_of_imagehash(drawn: TileData) -> None:
    ours = next(duplicates._perceptual_hashes(drawn.train))
    theirs = imagehash.phash(Image.fromarray(drawn.train.tile(0)), hash_size=HASH_SIDE).hash
    np.testing.assert_array_equal(ours > 0, theirs.ravel())


def test_repeats_in_one_split_and_labels_that_disagree_are_noted(tiles: Path) -> None:
    save(tiles / "train/TUMOR/again.png", np.asarray(Image.open(tiles / "train/TUMOR/0.png")))
    save(tiles / "train/MUCOSA/0.png", np.asarray(Image.open(tiles / "train/TUMOR/1.png")))
    data = open_data(tiles, crop=64)
    found = all_twins(data)
    assert [(twin.across, twin.label == twin.twin_label) for twin in found] == [(False, False), (False, True)]
    repeated, clash = data.notes
    assert repeated.startswith("repeated within a split: 1 (for example train/TUMOR/again.png = ")
    assert clash.endswith("(for example train/MUCOSA/0.png = train/TUMOR/1.png): no model can get both right")
    assert "classes TUMOR and MUCOSA" in str(found[0])


def test_the_nearest_is_that_of_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    few, many = (np.where(rng.integers(0, 2, (n, 64)), 1, -1).astype(np.int8) for n in (11, 23))
    monkeypatch.setattr(duplicates, "_ROWS", 4)
    monkeypatch.setattr(duplicates, "_COLUMNS", 5)
    distances, indices = duplicates._nearest(few, many)
    every = (few[:, None] != many[None]).sum(2)
    np.testing.assert_array_equal(distances, every.min(1))
    np.testing.assert_array_equal(indices, every.argmin(1))


@pytest.mark.slow
def test_real_tiles_of_three_splits_are_no_duplicates(real_tiles: Path) -> None:
    assert near_duplicates(open_data(real_tiles, crop=64)) == ([], 0)
