"""Tiles that a CSV or Parquet table lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histo_export.data import TileData, open_data
from histo_export.errors import HistoError, UsageError

from .conftest import noise_tile, save


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """img/{0..23}.png."""
    for i in range(24):
        save(tmp_path / "img" / f"{i}.png", noise_tile(5, i))
    return tmp_path


def write(folder: Path, header: str, rows: list[str]) -> Path:
    path = folder / "tiles.csv"
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def names(data: TileData) -> list[list[str]]:
    return [list(part.names) for part in (data.train, data.val, data.test)]


def rows_with_split() -> list[str]:
    sides = ["train"] * 12 + ["valid"] * 6 + ["TEST"] * 6
    return [f"img/{i}.png,{'AB'[i % 2]},{side}" for i, side in enumerate(sides)]


def test_a_table_with_its_split(files: Path) -> None:
    data = open_data(write(files, "Path,LABEL,split", rows_with_split()), crop=32)
    assert data.classes == ("A", "B")
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 6, 6]
    assert data.train.names[0] == "img/0.png"
    np.testing.assert_array_equal(data.test.tile(0), noise_tile(5, 18))
    assert (data.name, data.groups, data.notes) == ("tiles.csv", None, ())
    only = open_data(files / "tiles.csv", crop=32, classes=["B", "A"])
    assert only.classes == ("B", "A")


def test_the_order_of_rows_does_not_matter(files: Path) -> None:
    rows = [f"img/{i}.png,{'AB'[i % 2]}" for i in range(24)]
    first = open_data(write(files, "path,label", rows), crop=32, seed=3)
    second = open_data(write(files, "path,label", rows[::-1]), crop=32, seed=3)
    assert names(first) == names(second)
    assert first.fingerprint == second.fingerprint


def test_groups_of_a_table_keep_together(files: Path) -> None:
    rows = [f"img/{i}.png,{'AB'[i % 2]},slide {i // 4}" for i in range(24)]
    data = open_data(write(files, "path,label,group", rows), crop=32)
    assert data.groups is not None
    assert sum(data.groups) == 6
    for part in (data.train, data.val, data.test):
        assert part.groups is not None
        assert [f"slide {int(Path(n).stem) // 4}" for n in part.names] == part.groups.tolist()


def test_a_parquet_table_is_the_same(files: Path) -> None:
    columns = dict(zip(("path", "label", "split"), zip(*(r.split(",") for r in rows_with_split()), strict=True)))  # noqa: B905
    pq.write_table(pa.table({**columns, "more": list(range(24))}), files / "tiles.parquet")
    ours = open_data(files / "tiles.parquet", crop=32)
    theirs = open_data(write(files, "path,label,split", rows_with_split()), crop=32)
    assert ours.fingerprint == theirs.fingerprint


def test_rows_of_other_labels_are_left_out_and_counted(files: Path) -> None:
    rows = [f"img/{i}.png,{'ABC'[i % 3]}" for i in range(24)]
    data = open_data(write(files, "path,label", rows), crop=32, classes=["A", "B"])
    assert data.notes == ("8 rows with other labels than --classes names were left out (C)",)
    with pytest.raises(UsageError, match="class 'D': is not in"):
        open_data(files / "tiles.csv", crop=32, classes=["A", "D"])


def test_all_faults_of_a_table_are_listed_at_once(files: Path) -> None:
    rows = rows_with_split()
    rows[0] = "img/none.png,A,train"
    rows[1] = "img/1.png,,train"
    rows[2] = "img/2.png,A,holdout"
    rows[3] = "img/4.png,B,train"
    rows[5] = "img/5.png,B,"
    rows[6] = ",A,train"
    with pytest.raises(HistoError) as refused:
        open_data(write(files, "path,label,split", rows), crop=32)
    assert str(refused.value).splitlines()[1:] == [
        "  row 2: the file 'img/none.png' does not exist",
        "  row 3: no label (img/1.png)",
        "  row 4: the split 'holdout' is unknown (train, val or test)",
        "  row 6: img/4.png is in row 5, too",
        "  row 7: no split (img/5.png)",
        "  row 8: no path",
        "6 faults. Correct the table.",
    ]


def test_a_path_that_no_system_takes_is_a_fault_of_its_row(files: Path) -> None:
    rows = rows_with_split()
    rows[0], rows[1] = f"{'x' * 300}.png,A,train", "a\0.png,B,train"
    with pytest.raises(HistoError) as refused:
        open_data(write(files, "path,label,split", rows), crop=32)
    first, second, last = str(refused.value).splitlines()[1:]
    assert first.startswith("  row 2: the file 'xxx")
    assert (second, last) == ("  row 3: the file 'a\\x00.png' does not exist", "2 faults. Correct the table.")


def test_a_file_that_is_spelled_in_two_ways_is_listed_twice(files: Path) -> None:
    rows = rows_with_split()
    rows[1] = "./img/0.png,B,train"
    rows[2] = f"{files / 'img' / '0.png'},A,test"
    with pytest.raises(HistoError) as refused:
        open_data(write(files, "path,label,split", rows), crop=32)
    assert str(refused.value).splitlines()[1:] == [
        "  row 3: ./img/0.png is in row 2, too",
        f"  row 4: {files / 'img' / '0.png'} is in row 2, too",
        "2 faults. Correct the table.",
    ]


def test_columns_that_nobody_asked_for_may_have_no_name(files: Path) -> None:
    rows = [f"{row},," for row in rows_with_split()]
    assert len(open_data(write(files, "path,label,split,,", rows), crop=32).train) == 12


def test_empty_numbers_of_parquet_are_empty_cells(files: Path) -> None:
    nan = float("nan")
    table = {"path": [f"img/{i}.png" for i in range(24)], "label": [1.0, 2.0] * 11 + [nan, None], "group": [nan] * 24}
    pq.write_table(pa.table(table), files / "tiles.parquet")
    with pytest.raises(HistoError) as refused:
        open_data(files / "tiles.parquet", crop=32)
    assert str(refused.value).splitlines()[1:3] == [
        "  row 23: no label (img/22.png)",
        "  row 24: no label (img/23.png)",
    ]
    pq.write_table(pa.table({**table, "label": [1.0, 2.0] * 12}), files / "tiles.parquet")
    assert open_data(files / "tiles.parquet", crop=32).groups is None


def test_other_columns_of_parquet_are_not_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    read = pq.ParquetFile.read

    def spy(self: pq.ParquetFile, columns: list[str]) -> pa.Table:
        asked.append(columns)
        return read(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", spy)
    columns = dict(zip(("Path", "label", "split"), zip(*(r.split(",") for r in rows_with_split()), strict=True)))  # noqa: B905
    pq.write_table(pa.table({"pixels": [b"much"] * 24, **columns}), files / "tiles.parquet")
    open_data(files / "tiles.parquet", crop=32)
    assert asked == [["Path", "label", "split"]]


def test_absolute_paths_stay_on_this_machine(files: Path) -> None:
    """Names of tiles are in notes, and so in checkpoints, which travel."""
    elsewhere = files / "of somebody" / "slides"
    for i in range(12, 24):
        file = elsewhere / f"s{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        (files / "img" / f"{i}.png").rename(file)
    table = files / "tables"
    table.mkdir()
    (files / "img").rename(table / "img")
    save(table / "img" / "1.png", noise_tile(5, 0))
    paths = [table / "img" / f"{i}.png" if i < 12 else elsewhere / f"s{i % 2}" / f"{i}.png" for i in range(24)]
    rows = [f"{path},{row.split(',', 1)[1]}" for path, row in zip(paths, rows_with_split(), strict=True)]
    data = open_data(write(table, "path,label,split", rows), crop=32, groups=r"(slides/s\d/\d+|img/\d+)\.png")
    assert set(data.train.names) == {f"img/{i}.png" for i in range(12)}
    assert set(data.test.names) == {f"s{i % 2}/{i}.png" for i in range(18, 24)}
    assert data.notes
    assert str(files) not in "".join(data.notes)
    assert "of somebody" not in "".join(data.notes)
    (elsewhere / "s0" / "12.png").write_bytes(b"no image")
    with pytest.raises(HistoError, match=r"slides/s0/12\.png: is not a JPEG") as refused:
        open_data(table / "tiles.csv", crop=32)
    assert str(elsewhere / "s0" / "12.png") in str(refused.value), "a message names the file in full"


def test_groups_of_a_csv_match_tiles_of_a_table_however_paths_are_spelled(files: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    (files / "img" / "0.png").rename(files / "img" / f"{apart}.png")
    stems = [apart, *map(str, range(1, 24))]
    rows = [f"./img/{stem}.png,{'AB'[i % 2]}" for i, stem in enumerate(stems)]
    groups = [f"img/{composed if i == 0 else i}.png,{apart if i % 2 else composed}{i // 4}" for i in range(24)]
    (files / "groups.csv").write_text("\n".join(["path,group", *groups, ""]), encoding="utf-8")
    data = open_data(write(files, "path,label", rows), crop=32, groups=str(files / "groups.csv"))
    assert data.groups is not None
    assert sum(data.groups) == 6, "é in one or two characters is one slide"


def test_a_long_list_of_faults_is_cut(files: Path) -> None:
    with pytest.raises(HistoError) as refused:
        open_data(write(files, "path,label", [f"x{i}.png,A" for i in range(50)]), crop=32)
    assert len(str(refused.value).splitlines()) == 23
    assert "  and 30 more\n50 faults" in str(refused.value)


def test_a_class_that_a_split_lacks_is_named(files: Path) -> None:
    rows = [row.replace(",B,TEST", ",A,TEST").replace(",A,valid", ",B,valid") for row in rows_with_split()]
    with pytest.raises(HistoError, match=r"(?s)class A: no tile in val\n  class B: no tile in test"):
        open_data(write(files, "path,label,split", rows), crop=32)


@pytest.mark.parametrize(
    ("header", "options", "words"),
    [
        ("path,class", {}, "has no column label"),
        ("path,label,split", {"split": (0.5, 0.2, 0.2)}, "has the column split"),
        ("path,label,group", {"groups": r"(\d)"}, "has the column group"),
        ("path,label,label", {}, "has two columns"),
    ],
)
def test_a_table_that_contradicts_itself_or_an_option(
    files: Path, header: str, options: dict[str, object], words: str
) -> None:
    cells = 2 if header.count(",") == 1 else 3
    rows = [",".join([f"img/{i}.png", "AB"[i % 2], "train"][:cells]) for i in range(24)]
    with pytest.raises(HistoError, match=words):
        open_data(write(files, header, rows), crop=32, **options)  # type: ignore[arg-type]


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(HistoError, match="is not a readable Parquet file"):
        open_data(tmp_path / "t.parquet", crop=32)
    (tmp_path / "t.csv").write_bytes(b"")
    with pytest.raises(HistoError, match="has no column path and no column label"):
        open_data(tmp_path / "t.csv", crop=32)
    (tmp_path / "t.txt").touch()
    with pytest.raises(UsageError, match=r"is neither a folder nor a \.npy, \.csv or \.parquet file"):
        open_data(tmp_path / "t.txt", crop=32)


def test_images_of_a_table_are_checked_like_those_of_a_folder(files: Path) -> None:
    (files / "img" / "3.png").write_bytes(b"not an image")
    with pytest.raises(HistoError, match=r"img/3\.png: is not a JPEG, PNG or TIFF image"):
        open_data(write(files, "path,label", [f"img/{i}.png,{'AB'[i % 2]}" for i in range(24)]), crop=32)
