"""The benchmark of sources of tiles, with few tiles: it checks that all give the same pixels."""

from __future__ import annotations

import pytest
import tile_sources


def test_all_sources_give_the_same_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py", reason='needs pip install "histo-export[features]"')
    tile_sources.measure(tiles=40, side=32, threads=2, rounds=1)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 10
