from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drawn_tiles import COLOURS, labels_of, tile_set
from histo_export.data import TileSet
from histo_export.export.card import describe_floors
from histo_export.training.floors import LEVELS, ColourFloor, colour_features, colour_floor, colours_of


class Framed:
    """Noise of one colour in the centre, and a frame of the class's colour; `centre`: the classes' colours, too."""

    def __init__(self, labels: np.ndarray, seed: int, centre: bool) -> None:
        self.labels, self.seed, self.centre = labels, seed, centre

    def __call__(self, i: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, i])
        colour = np.array([60 + 60 * int(self.labels[i])] * 3)
        tile = np.full((48, 48, 3), colour)
        tile[8:40, 8:40] = colour if self.centre else 120
        return (tile + random.integers(-20, 20, tile.shape)).clip(0, 255).astype(np.uint8)


def splits(centre: bool) -> tuple[TileSet, TileSet, TileSet]:
    labels = labels_of(COLOURS, 20)
    train, val, test = (tile_set(COLOURS, labels, Framed(labels, seed, centre)) for seed in range(3))
    return train, val, test


def floor(centre: bool, right: np.ndarray, **others: Any) -> ColourFloor:
    return colour_floor(*splits(centre), 32, right=right, judged=np.ones(60, bool), **others)


def test_colour_alone_is_found_out() -> None:
    found = floor(True, np.arange(60) % 10 > 0)
    assert found.accuracy == found.val_accuracy == 1
    assert found.ahead == pytest.approx(-0.1)
    assert found.training_tiles == 60
    remark = found.remark()
    assert remark is not None
    assert remark.startswith("the network does not beat the colour floor: trees that see only the colours of the tiles")
    assert "reach 100.0 % on test, and the network is -10.0 points from that" in remark


def test_the_floor_sees_what_the_network_sees() -> None:
    """Outside the crop the colours tell the class; inside they don't."""
    found = floor(False, np.ones(60, bool))
    assert found.accuracy < 0.6
    assert found.ahead_interval[0] > 0
    assert found.remark() is None
    assert floor(False, np.ones(60, bool)) == found, "seeded"


def test_a_network_that_is_right_where_the_floor_is_right_is_not_ahead() -> None:
    found = floor(True, np.ones(60, bool))
    assert (found.ahead, found.ahead_interval) == (0, (0, 0)), "paired: the same tiles count for both"
    assert found.remark() is not None


def test_only_the_judged_tiles_count() -> None:
    judged = np.arange(60) < 20
    found = colour_floor(*splits(True), 32, right=np.zeros(20, bool), judged=judged, groups=np.arange(20) // 5)
    assert found.accuracy == 1
    assert found.ahead == -1


def test_the_place_of_a_colour_does_not_matter() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    shuffled = np.random.default_rng(1).permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    assert (colour_features(tile) == colour_features(shuffled)).all()
    assert colour_features(tile).shape == (LEVELS**3,)
    assert colour_features(tile).sum() == pytest.approx(1)
    assert colour_features(np.full((300, 300, 3), 255, np.uint8))[-1] == 1


def test_a_large_set_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histo_export.training.floors.MOST_TILES", 30)
    assert floor(True, np.ones(60, bool)).training_tiles == 30


def test_the_floor_in_words() -> None:
    found = floor(True, np.zeros(60, bool))
    text = describe_floors({"chance": 1 / 3, "majority": 0.4, "colour": found.to_dict()})
    assert text.startswith(
        "chance 33.3 %, always the largest class 40.0 %, colour alone 100.0 % (the network is -100.0"
    )
    assert "does not beat it" in text
    ahead = replace(found, ahead=0.1, ahead_interval=(0.05, 0.15)).to_dict()
    assert "does not beat it" not in describe_floors({"chance": 1 / 3, "majority": 0.4, "colour": ahead})


def test_progress_is_told() -> None:
    told: list[str] = []
    colours_of(splits(True)[0], 32, np.arange(3), told.append)
    assert told == ["colour floor: 0 of 3 tiles"]
