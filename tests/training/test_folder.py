"""The folder of a run: where it may lie, and what is read back from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_export.errors import HistoError, UsageError
from histo_export.training.folder import RunFolder, check_place


def _place(kind: str, here: Path) -> tuple[Path, Path | None]:
    """An impossible place for a run, and the folder of tiles."""
    tiles = here / "tiles"
    (tiles / "A").mkdir(parents=True)
    (here / "bundle").mkdir()
    (here / "bundle" / "config.json").touch()
    (here / "file").touch()
    (here / "nowhere").symlink_to(here / "gone")
    (here / "to tiles").symlink_to(tiles)
    places = {
        "a file": (here / "file", None),
        "the root": (Path("/"), None),
        "a broken link": (here / "nowhere", None),
        "a bundle": (here / "bundle", None),
        "the tiles": (tiles, tiles),
        "among the tiles": (tiles / "A" / "run", tiles),
        "among the tiles by a link": (here / "to tiles" / "run", tiles),
    }
    return places[kind]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("a file", "is a file, not a folder"),
        ("the root", "is the root of the file system"),
        ("a broken link", "is a link that leads nowhere"),
        ("a bundle", r"holds a bundle \(config.json\)"),
        ("the tiles", "lies in the folder of the tiles"),
        ("among the tiles", "lies in the folder of the tiles"),
        ("among the tiles by a link", "lies in the folder of the tiles"),
    ],
)
def test_places_that_are_refused(tmp_path: Path, kind: str, cause: str) -> None:
    out, tiles = _place(kind, tmp_path)
    with pytest.raises(UsageError, match=rf"{cause}.*hoose another --out|{cause}.*or choose another --out"):
        check_place(out, tiles)


def test_places_that_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for out in (tmp_path / "new" / "run", tmp_path / "link", tmp_path, Path()):
        check_place(out, tmp_path / "tiles")
    check_place(tmp_path / "tiles2", tmp_path / "tiles")
    check_place(tmp_path / "run", tmp_path / "tiles.npy")


def test_options_are_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_options() is None
    folder.write_options({"data": "tiles ä", "pool": 2})
    assert folder.read_options() == {"data": "tiles ä", "pool": 2}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2, "options": {}}', '{"format": 1}', "[" * 100_000, "\xff\xfe"]
)
def test_damaged_options_are_named(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.options.write_text(content, encoding="latin-1")
    with pytest.raises(HistoError, match=r"options.json: .*the options of the run again"):
        folder.read_options()


def test_a_report_holds_no_nan(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    folder = RunFolder(tmp_path)
    folder.write_report({"loss": math.inf, "history": [{"lr": math.nan, "epoch": 1}], "interval": (0.5, -math.inf)})
    read: Callable[..., object] = json.loads
    assert read(folder.report.read_text(), parse_constant=refuse) == {
        "loss": None,
        "history": [{"lr": None, "epoch": 1}],
        "interval": [0.5, None],
    }
