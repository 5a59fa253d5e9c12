from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drawn_tiles import COLOURS, labels_of, tile_set
from histo_export.data import TileSet
from histo_export.export.card import describe_floors
from histo_export.training.floors import LEVELS, ColourFloor, _subset, colour_features, colour_floor, colours_of


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
    assert remark.startswith("colour floor: trees that see only the colours of the tiles reach 100.0 % on test, and ")
    assert "the network is -10.0 points from that (95 % interval -" in remark
    assert remark.endswith("; it does not beat it, and may have learnt nothing but the stain")


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
    found = floor(True, np.ones(60, bool))
    assert found.training_tiles == 30
    assert found.accuracy == 1, "each class is still there"


def test_a_thinned_set_keeps_the_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [900, 99, 1])
    chosen = _subset(labels, 100, seed=0)
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen])
    assert counts[2] == 1
    assert counts[1] == pytest.approx(10, abs=1)
    assert (_subset(labels, 2000, seed=0) == np.arange(1000)).all()


def test_the_floor_in_words() -> None:
    found = floor(True, np.zeros(60, bool))
    text = describe_floors({"chance": 1 / 3, "majority": 0.4, "colour": found.to_dict()})
    assert text.startswith(
        "chance 33.3 %, always the largest class 40.0 %, colour alone 100.0 % (the network is -100.0"
    )
    assert "does not beat it" in text
    ahead = replace(found, ahead=0.1, ahead_interval=(0.05, 0.15)).to_dict()
    assert "does not beat it" not in describe_floors({"chance": 1 / 3, "majority": 0.4, "colour": ahead})


NOISE = 300, 60
"""Tiles of two classes whose colours tell nothing, in train; as many in test."""


def floor_of_noise(right: np.ndarray, balanced: bool) -> ColourFloor:
    labels = np.repeat([0, 1], NOISE)

    def source(seed: int) -> Any:
        return lambda i: np.random.default_rng([seed, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    train, val, test = (tile_set(("a", "b"), labels, source(seed)) for seed in range(3))
    return colour_floor(train, val, test, 8, right=right, judged=np.ones(len(labels), bool), balanced=balanced)


def test_a_balanced_network_is_not_accused_on_imbalanced_tiles() -> None:
    """It is right on 80 % of each class; trees that always answer the large class are right on 83 % of all tiles."""
    right = np.concatenate([np.arange(count) % 5 > 0 for count in NOISE])
    found = floor_of_noise(right, balanced=True)
    assert found.accuracy == pytest.approx(0.5, abs=0.1)
    assert found.val_accuracy == pytest.approx(0.5, abs=0.1)
    assert found.ahead == pytest.approx(0.8 - found.accuracy)
    assert found.remark() is None
    assert "balanced accuracy (the network" in describe_floors({**CHANCE, "colour": found.to_dict()})


def test_no_stain_is_spoken_of_where_colour_tells_nothing() -> None:
    found = floor_of_noise(np.repeat([True, False], NOISE), balanced=False)
    assert found.accuracy == pytest.approx(found.no_skill, abs=0.02)
    for text in (found.remark(), describe_floors({**CHANCE, "colour": found.to_dict()})):
        assert text is not None
        assert "it does not beat it, and colour alone tells no classes apart" in text
        assert "stain" not in text


CHANCE = {"chance": 0.5, "majority": 0.5}


@pytest.mark.parametrize(
    ("groups", "judgement"),
    [
        (1, "this decides nothing: the test has one group, so that no interval is known"),
        (3, "this says little: an interval over 3 groups"),
    ],
)
def test_few_groups_decide_nothing(groups: int, judgement: str) -> None:
    found = floor(False, np.ones(60, bool), groups=np.arange(60) % groups)
    assert found.groups == groups
    for text in (found.remark(), describe_floors({**CHANCE, "colour": found.to_dict()})):
        assert text is not None
        assert judgement in text
    if groups == 1:
        assert (found.interval, found.ahead_interval) == ((0, 1), (-1, 1))
        assert "interval -" not in str(found.remark())


def test_the_trees_do_not_depend_on_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cpus in (1, 3):
        monkeypatch.setattr("histo_export.training.floors.allowed_cpus", lambda cpus=cpus: list(range(cpus)))
        found.append(floor(False, np.ones(60, bool)))
    assert found[0] == found[1]


def test_progress_is_told() -> None:
    told: list[str] = []
    colours_of(splits(True)[0], 32, np.arange(3), told.append)
    assert told == ["colour floor: 0 of 3 tiles"]
