"""A run with tiles in two splits is refused before it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from drawn_tiles import Coloured, tile_set
from histo_export.data import TileData
from histo_export.errors import HistoError
from histo_export.spec import ModelSpec
from histo_export.training.duplicates import judge_duplicates
from histo_export.training.folder import RunFolder
from histo_export.training.recipes import TrainConfig
from histo_export.training.run import train


@pytest.fixture
def leaky(few: TileData) -> TileData:
    """Its test tiles are the first training tiles of each class."""
    labels = few.test.labels
    source = Coloured(few.train.labels, 1)
    return replace(few, test=tile_set(few.classes, labels, lambda i: source(int(labels[i]) * 4 + i % 2)))


def test_a_run_with_a_leak_is_refused_and_lists_it(leaky: TileData, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):  # the list alone is no run that would stand in the way
        with pytest.raises(HistoError) as refused:
            train(leaky, spec, TrainConfig("report", epochs=1, device="cpu"), out, progress=False)
        text = str(refused.value)
        assert "drawn: tiles that lie in two splits:\n  test tile 0 = train tile 0 (identical)\n" in text
        assert f"6 tiles, all listed in {out / 'duplicates.csv'}. " in text
        assert "--allow-duplicates" in text
    assert [file.name for file in out.iterdir()] == ["duplicates.csv"]
    assert len((out / "duplicates.csv").read_text(encoding="utf-8").splitlines()) == 7


def test_duplicates_may_be_allowed_and_the_list_goes_with_them(leaky: TileData, few: TileData, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    silent = Console(quiet=True)
    judge_duplicates(leaky, True, folder, silent)
    assert folder.contents() == ["duplicates.csv"]
    assert judge_duplicates(few, False, folder, silent) == few
    assert folder.contents() == [], "the list of an earlier run"


def test_flat_tiles_are_counted(few: TileData) -> None:
    white = tile_set(few.classes, few.test.labels, lambda i: np.full((36, 36, 3), 230 + i, np.uint8))
    grey = tile_set(few.classes, few.val.labels, lambda i: np.full((36, 36, 3), 200 + i, np.uint8))
    data = judge_duplicates(replace(few, val=grey, test=white), False, None, Console(quiet=True))
    flat, total = len(white) + len(grey), len(few.train) + len(white) + len(grey)
    assert data.notes[-1].startswith(f"{flat} of {total} tiles are flat, such as background")


def test_near_duplicates_are_noted_where_they_are_allowed(few: TileData, tmp_path: Path) -> None:
    source = Coloured(few.train.labels, 1)
    noisy = tile_set(few.classes, few.test.labels, lambda i: source(i) ^ np.uint8(1))
    data = judge_duplicates(replace(few, test=noisy), True, None, Console(quiet=True))
    assert [note for note in data.notes if "near duplicates" in note] == [
        "6 of 6 test tiles are near duplicates of train tiles (for example tile 0 = tile 0): they stay in the test, "
        "which looks better for it"
    ]
