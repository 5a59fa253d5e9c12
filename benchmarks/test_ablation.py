"""What ablation.py shows to a network, and what it makes of the figures; nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import pytest
from ablation import BEDS, PARTS, Beds, Part, Results, halves, normalise_stain, paired, shift_stain, table

from drawn_tiles import coloured_data, tile_set
from histo_export.data import TileData
from histo_export.training.recipes import Recipe, TrainConfig


def forbidden(i: int) -> np.ndarray:
    raise AssertionError("a tile of the test folder was read")


@pytest.fixture
def data() -> TileData:
    made = coloured_data(6, 6, 4)
    return replace(made, test=tile_set(made.classes, made.test.labels, forbidden))


def test_no_tile_of_the_test_folder_is_read_before_the_end(data: TileData) -> None:
    beds = Beds(data, 34)
    for world in BEDS:
        seen = beds.world(world)
        for split in (seen.train, seen.val, seen.test, *map(beds.bed, BEDS[world])):
            assert {split.tile(i).shape for i in range(len(split))} == {(34, 34, 3)}
        assert (seen.trained_on.splits(seen.test.hashes) == "").all(), "the judging tiles choose nothing"
    with pytest.raises(AssertionError, match="was read"):
        beds.bed("test").tile(0)


def test_each_world_is_a_run_of_its_own(data: TileData) -> None:
    beds = Beds(data, None)
    assert len({beds.world(world).fingerprint for world in BEDS} | {data.fingerprint}) == 3


def test_halves_have_each_class_and_share_no_tile() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    choosing, judging = halves(labels)
    assert sorted(choosing + judging) == list(range(7))
    assert np.bincount(labels[choosing]).tolist() == [2, 2]
    assert np.bincount(labels[judging]).tolist() == [2, 1]


def test_a_normalised_tile_has_the_target_colours() -> None:
    random = np.random.default_rng(0)
    for colour in ((200, 120, 160), (120, 110, 190)):
        tile = (np.array(colour) + random.normal(0, 12, (40, 40, 3))).clip(0, 255).astype(np.uint8)
        density = -np.log((normalise_stain(tile).reshape(-1, 3) + 1.0) / 256)
        assert density.mean(0) == pytest.approx(ablation.TARGET[0], abs=0.05)
    assert normalise_stain(np.full((4, 4, 3), 255, np.uint8)).shape == (4, 4, 3)
    assert not (shift_stain(tile) == tile).all()
    assert (shift_stain(tile) == shift_stain(tile)).all()


@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_possible_and_changes_one_thing(name: str) -> None:
    part = PARTS[name]
    config = TrainConfig(recipe=part.recipe or "strong", parts=part.changes, keep=part.keep)
    assert isinstance(config.resolved_recipe, Recipe)
    assert (part == Part()) == (name == "base")


def test_differences_are_paired_by_seed() -> None:
    base = {0: 0.50, 1: 0.60, 2: 0.70}
    assert paired({0: 0.52, 1: 0.62, 2: 0.72}, base) == "+2.0 (+2.0 to +2.0)"
    assert paired({0: 0.51, 1: 0.63, 3: 0.9}, base) == "+2.0 (-10.7 to +14.7)", "t with one degree of freedom"
    assert paired({1: 0.61}, base) == "+1.0 (one seed)"
    assert paired({5: 0.61}, base) == ""


def test_finished_rows_are_kept_and_other_settings_refused(tmp_path: Path) -> None:
    file, settings = tmp_path / "rows.json", {"steps": 3}
    results = Results(file, settings)
    rows: dict[str, Any] = {"plain/base/0": {"val": 0.5, "shifted": 0.4}, "plain/ema/0": {"val": 0.6, "shifted": 0.3}}
    results.rows |= rows
    results.floors["val"] = 0.9
    results.save()
    again = Results(file, settings)
    assert again.rows == rows
    text = table(again)
    assert "| *colour floor* | 90.0 % |  |" in text
    assert "| base | 50.0 % | 40.0 % |" in text
    assert "| ema | 60.0 % +10.0 (one seed) | 30.0 % -10.0 (one seed) |" in text
    with pytest.raises(SystemExit, match="is of other settings"):
        Results(file, {"steps": 4})
