from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.data import folder, open_data
from histo_export.errors import HistoError, UsageError
from histo_export.trained_on import tile_hash

from .conftest import noise_tile, save

MakeSplit = Callable[..., Path]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(make_split: MakeSplit, val: str) -> None:
    data = open_data(make_split(val), crop=32)
    assert data.classes == ("A", "B")
    assert [len(s) for s in (data.train, data.val, data.test)] == [6, 4, 4]
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(data.val.names)[:2] == [f"{val}/A/0.png", f"{val}/A/1.png"]
    np.testing.assert_array_equal(data.train.tile(4), noise_tile(0, 1, 1))
    assert data.tile_size == 32
    assert (data.mpp, data.synthetic, data.notes, data.name) == (None, False, (), "sets")


def test_flat_folder_is_split_by_class(flat: Path) -> None:
    data = open_data(flat, crop=32)
    for part, n in ((data.train, 7), (data.val, 1), (data.test, 2)):
        assert np.bincount(part.labels).tolist() == [n, n, n]
    names = [n for s in (data.train, data.val, data.test) for n in s.names]
    assert len(set(names)) == 30


def test_split_is_seeded_and_counts_work(flat: Path) -> None:
    def names(**options: object) -> list[list[str]]:
        data = open_data(flat, crop=8, **options)  # type: ignore[arg-type]
        return [sorted(s.names) for s in (data.train, data.val, data.test)]

    assert names(split=(5, 2, 2)) == names(split=(5, 2, 2))
    assert names(split=(5, 2, 2)) != names(split=(5, 2, 2), seed=1)
    assert [len(n) for n in names(split=(5, 2, 2))] == [15, 6, 6]
    assert [len(n) for n in names(split=(0.5, 0.2, 0.1))] == [15, 6, 3]
    # A class falls the same way whichever others are chosen.
    whole, subset = names(), names(classes=["C", "A"])
    assert subset[0] == [n for n in whole[0] if not n.startswith("B")]


def test_tiles_are_compared_by_their_pixels(make_split: MakeSplit, tmp_path: Path) -> None:
    """A copy in another file format is the same tile: to the notes, and to the record of what was trained on."""
    root = make_split()
    train_tile, val_tile = noise_tile(0, 0, 1), noise_tile(1, 1, 0)
    save(root / "test" / "A" / "copy.tif", train_tile)
    save(root / "val" / "A" / "copy.tif", train_tile)
    data = open_data(root, crop=32)
    notes = "\n".join(data.notes)
    assert (
        "1 of 5 test tiles are identical to train tiles (for example test/A/copy.tif = train/A/1.png): the test"
        in notes
    )
    assert "1 of 5 val tiles are identical to train tiles" in notes
    assert "lie in two classes" not in notes
    np.save(tmp_path / "array.npy", np.stack([train_tile, val_tile, noise_tile(2, 0, 0), train_tile[:, ::-1]]))
    rows = np.load(tmp_path / "array.npy", mmap_mode="r")
    hashes = np.array([tile_hash(row) for row in rows])
    assert data.trained_on.splits(hashes).tolist() == ["train", "val", "", ""]
    assert tile_hash(train_tile) != tile_hash(train_tile.reshape(16, 64, 3))
    np.testing.assert_array_equal(data.train.hashes, [tile_hash(data.train.tile(i)) for i in range(len(data.train))])


def test_class_order_is_label_order(flat: Path) -> None:
    data = open_data(flat, crop=8, classes=["c", "A"])
    assert data.classes == ("C", "A")
    assert data.train.names[0].startswith("C/")
    assert data.train.labels[0] == 0


def test_suffixes_hidden_files_and_nested_folders(flat: Path) -> None:
    save(flat / "A" / "slide1" / "deep.TIF", noise_tile(9))
    save(flat / "A" / "big.JPEG", noise_tile(10))
    (flat / "A" / "Thumbs.db").write_bytes(b"junk")
    (flat / "A" / ".hidden.png").write_bytes(b"junk")
    (flat / "A" / "._0.png").write_bytes(b"junk")
    (flat / "B" / "notes.txt").write_text("x")
    (flat / ".git").mkdir()
    (flat / "__MACOSX").mkdir()
    data = open_data(flat, crop=8)
    assert data.classes == ("A", "B", "C")
    assert sum(map(len, (data.train, data.val, data.test))) == 32
    assert len(data.notes) == 1
    assert "B/notes.txt" in data.notes[0]


def test_fingerprint_follows_content_only(make_split: MakeSplit, tmp_path: Path) -> None:
    root = make_split()
    first = open_data(root, crop=8).fingerprint
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert open_data(moved, crop=8).fingerprint == first
    assert len(first) == 64
    (moved / "train/A/0.png").rename(moved / "train/A/renamed.png")
    assert open_data(moved, crop=8).fingerprint == first
    (moved / "train/A/1.png").rename(moved / "val/A/9.png")
    swapped = open_data(moved, crop=8).fingerprint
    assert swapped != first
    save(moved / "val/A/9.png", noise_tile(77))
    assert open_data(moved, crop=8).fingerprint not in (first, swapped)
    assert open_data(root, crop=8, classes=["B", "A"]).fingerprint != first


def test_leakage_and_double_labels_are_noted(make_split: MakeSplit) -> None:
    root = make_split()
    shutil.copy(root / "train/A/0.png", root / "test/A/same.png")
    shutil.copy(root / "train/A/1.png", root / "train/B/other.png")
    leak, clash = open_data(root, crop=8).notes
    assert "1 of 5 test tiles" in leak
    assert "test/A/same.png = train/A/0.png" in leak
    assert "two classes" in clash


def test_mixed_sizes_are_allowed_above_the_crop(make_split: MakeSplit) -> None:
    root = make_split()
    save(root / "train/A/0.png", noise_tile(1, side=40))
    data = open_data(root, crop=32)
    assert data.tile_size == 32
    assert data.train.tile(0).shape == (40, 40, 3)
    (note,) = data.notes
    assert note.startswith("tile sides range from 32 to 40 pixels: training uses the centre 32 pixels of each")
    assert "the exported model is for tiles of 32x32, and 1 of these 14 are not" in note


def test_names_that_look_alike_are_one_class(flat: Path) -> None:
    composed, decomposed = "Poli\u0301p", "Pol\u00edp"
    save(flat / composed / "0.png", noise_tile(1))
    save(flat / decomposed / "0.png", noise_tile(2))
    with pytest.raises(
        HistoError, match=r"look alike: 'Poli\\u0301p' and 'Pol\\xedp', which both show as Pol"
    ) as caught:
        open_data(flat, crop=8)
    assert "Put their tiles into one folder" in str(caught.value)


def test_names_that_look_alike_in_two_splits(make_split: MakeSplit) -> None:
    root = make_split()
    for split, name in (("train", "\u00e9"), ("val", "\u00e9"), ("test", "e\u0301")):
        save(root / split / name / "0.png", noise_tile(1))
    with pytest.raises(HistoError, match=r"look alike: 'e\\u0301' and '\\xe9'"):
        open_data(root, crop=8)


def test_a_class_is_found_however_its_letters_are_composed(flat: Path) -> None:
    for i in range(3):
        save(flat / "e\u0301" / f"{i}.png", noise_tile(9, i))
    assert open_data(flat, crop=8, classes=["A", "\u00c9"]).classes == ("A", "e\u0301")


def test_names_that_differ_in_case_are_two_classes_and_told(flat: Path) -> None:
    for i in range(3):
        save(flat / "a" / f"{i}.png", noise_tile(9, i))
    data = open_data(flat, crop=8)
    assert data.classes == ("A", "B", "C", "a")
    assert "classes 'A' and 'a' differ in upper and lower case or spaces only; they are trained as 2 classes" in (
        data.notes
    )


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_tiles_read_again_or_kept(make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(folder, "KEPT_BYTES", kept)
    data = open_data(make_split(), crop=8)
    tile = data.train.tile(0)
    tile[:] = 0  # ours to change
    np.testing.assert_array_equal(data.train.tile(0), noise_tile(0, 0, 0))
    again = pickle.loads(pickle.dumps(data.train))
    assert len(pickle.dumps(data.train)) < 3000
    np.testing.assert_array_equal(again.tile(5), noise_tile(0, 1, 2))
    with pytest.raises(IndexError):
        data.train.tile(6)


def test_file_changed_after_the_check(make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "KEPT_BYTES", 0)
    root = make_split()
    data = open_data(root, crop=8)
    (root / "train/A/0.png").unlink()
    with pytest.raises(HistoError, match=r"train/A/0\.png.*fine when checked"):
        data.train.tile(0)


def test_all_unreadable_files_are_listed(make_split: MakeSplit) -> None:
    root = make_split(counts=(25, 2, 2))
    for i in range(24):
        path = root / f"train/A/{i}.png"
        path.write_bytes(path.read_bytes()[:200])
    (root / "test/B/0.png").write_bytes(b"")
    with pytest.raises(HistoError) as caught:
        open_data(root, crop=8)
    text = str(caught.value)
    assert "25 of 58 files" in text
    assert "  train/A/0.png is truncated\n" in text
    assert "and 5 more" in text
    assert text.count("\n  train/A/") == 20


def test_single_truncated_file_is_one_line(make_split: MakeSplit) -> None:
    root = make_split(suffix=".jpg")
    bad = root / "val/B/1.jpg"
    bad.write_bytes(bad.read_bytes()[:-400])
    with pytest.raises(HistoError, match=r"val/B/1\.jpg: is truncated\. Repair or delete it") as caught:
        open_data(root, crop=8)
    assert "\n" not in str(caught.value)


def test_kinds_of_images_are_refused_by_name(make_split: MakeSplit) -> None:
    root = make_split()
    Image.fromarray(noise_tile(1)).convert("CMYK").save(root / "train/A/c.tif")
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(root / "train/B/deep.png")
    with pytest.raises(HistoError) as caught:
        open_data(root, crop=8)
    assert "train/A/c.tif is in CMYK, not RGB" in str(caught.value)
    assert "train/B/deep.png has 16 bits per channel" in str(caught.value)


def test_tile_smaller_than_the_crop(make_split: MakeSplit) -> None:
    root = make_split()
    save(root / "train/A/small.png", noise_tile(4, side=40)[:20])
    with pytest.raises(HistoError, match=r"small\.png: is 40x20 pixels .* crop of 32\. Use --crop 20"):
        open_data(root, crop=32)
    with pytest.raises(HistoError, match=r"smaller than the crop of 128 \(and 14 more of 15 tiles\)"):
        open_data(root)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(HistoError, match="is empty"):
        open_data(tmp_path)


def test_images_without_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise_tile(1))
    with pytest.raises(HistoError, match="no folder per class"):
        open_data(tmp_path)


def test_one_class_only(tmp_path: Path, make_split: MakeSplit) -> None:
    save(tmp_path / "one" / "A" / "a.png", noise_tile(1))
    with pytest.raises(HistoError, match=r"one class only \(A\)"):
        open_data(tmp_path / "one")
    root = make_split()
    for s in ("train", "val", "test"):
        shutil.rmtree(root / s / "B")
    with pytest.raises(HistoError, match=r"one class only \(A\)"):
        open_data(root)
    with pytest.raises(UsageError, match="at least two"):
        open_data(root, classes=["A"])


def test_class_folder_without_images(flat: Path) -> None:
    (flat / "EMPTY").mkdir()
    with pytest.raises(HistoError, match="EMPTY: holds no image"):
        open_data(flat, crop=8)


@pytest.mark.parametrize(("gone", "missing"), [("test/B", "test"), ("train/B", "train"), ("val/A", "val")])
def test_class_missing_from_a_split(make_split: MakeSplit, gone: str, missing: str) -> None:
    root = make_split()
    shutil.rmtree(root / gone)
    with pytest.raises(HistoError, match=f"class {gone[-1]}: has images in .* but none in {missing}"):
        open_data(root, crop=8)


def test_split_folder_missing(make_split: MakeSplit) -> None:
    root = make_split()
    shutil.rmtree(root / "val")
    with pytest.raises(HistoError, match="train but no val folder"):
        open_data(root, crop=8)
    shutil.rmtree(root / "train")
    with pytest.raises(HistoError, match="no train folder"):
        open_data(root, crop=8)


def test_two_validation_folders(make_split: MakeSplit) -> None:
    root = make_split()
    shutil.copytree(root / "val", root / "valid")
    with pytest.raises(HistoError, match="both val and valid"):
        open_data(root, crop=8)


def test_split_of_what_is_split(make_split: MakeSplit) -> None:
    with pytest.raises(UsageError, match="already split"):
        open_data(make_split(), crop=8, split=(1, 1, 1))


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ((0.5, 0.4, 0.2), "more than 1"),
        ((0.5, 0.0, 0.2), "above zero"),
        ((5, 0.2, 0.2), "mixes"),
        ((5, -1, 1), "above zero"),
        ((0.5, 0.5), "2 parts"),
        ((float("nan"), 0.5, 0.1), "above zero"),
    ],
)
def test_impossible_splits(flat: Path, split: tuple[float, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_data(flat, crop=8, split=split)  # type: ignore[arg-type]


def test_more_tiles_asked_for_than_there_are(flat: Path) -> None:
    with pytest.raises(HistoError, match="class A: has 10 tiles, but the split 8/2/2 needs 12"):
        open_data(flat, crop=8, split=(8, 2, 2))


def test_too_few_tiles_to_split(tmp_path: Path) -> None:
    for c in "AB":
        for i in range(2):
            save(tmp_path / c / f"{i}.png", noise_tile(i))
    with pytest.raises(HistoError, match="has 2 tiles, too few"):
        open_data(tmp_path, crop=8)


def test_misspelt_class_and_path(flat: Path) -> None:
    save(flat / "TUMOR" / "0.png", noise_tile(5))
    with pytest.raises(UsageError, match="Did you mean TUMOR"):
        open_data(flat, classes=["TUMOUR", "A"])
    with pytest.raises(UsageError, match="twice"):
        open_data(flat, classes=["A", "a"])
    with pytest.raises(
        UsageError, match=r"Did you mean .*tiles\? Give a folder of images, a \.npy, \.csv, \.parquet, \.zip"
    ) as caught:
        open_data(str(flat.parent / "tile"))
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="Did you mean kather2016"):
        open_data("kather2106")
    with pytest.raises(UsageError, match="data '~nobody-of-this-name/tiles': does not exist"):
        open_data("~nobody-of-this-name/tiles")
    with pytest.raises(UsageError, match="does not exist"):
        open_data("x" * 5000)
    with pytest.raises(UsageError, match="does not exist"):
        open_data("nul\0byte")


def test_other_misuse(flat: Path) -> None:
    with pytest.raises(UsageError, match="neither a folder nor"):
        open_data(flat / "A" / "0.png")
    with pytest.raises(UsageError, match="crop"):
        open_data(flat, crop=0)
    with pytest.raises(UsageError, match="seed"):
        open_data(flat, seed=-1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(flat: Path) -> None:
    (flat / "A" / "0.png").chmod(0)
    with pytest.raises(HistoError, match=r"A/0\.png: may not be read"):
        open_data(flat, crop=8)
    (flat / "B").chmod(0)
    try:
        with pytest.raises(HistoError, match=r"[Pp]ermission"):
            open_data(flat, crop=8)
    finally:
        (flat / "B").chmod(0o755)


def test_permission_error_is_told(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is forbidden, so the refusal is played."""

    def refuse(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(HistoError, match="may not be read"):
        folder.open_folder(flat, name="x", crop=8)


def test_broken_link_is_listed(flat: Path) -> None:
    (flat / "A" / "link.png").symlink_to(flat / "gone.png")
    with pytest.raises(HistoError, match=r"link\.png: does not exist"):
        open_data(flat, crop=8)


def tiles_of(root: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """The number of tiles of each class in all splits, and the notes."""
    data = open_data(root, crop=8)
    labels = np.concatenate([part.labels for part in (data.train, data.val, data.test)])
    return dict(zip(data.classes, np.bincount(labels).tolist(), strict=True)), data.notes


def test_linked_folders_hold_tiles(flat: Path) -> None:
    store = flat.parent / "store"
    (flat / "A").rename(store)
    (flat / "A").symlink_to(store)  # a class
    (flat.parent / "more").mkdir()
    (flat / "B/0.png").rename(flat.parent / "more/0.png")
    (flat / "B/patient").symlink_to(flat.parent / "more")  # a folder in a class
    (flat / "C/0.png").rename(flat.parent / "other.png")
    (flat / "C/0.png").symlink_to(flat.parent / "other.png")  # a tile
    assert tiles_of(flat) == ({"A": 10, "B": 10, "C": 10}, ())


def test_linked_split_folders(make_split: MakeSplit) -> None:
    root = make_split()
    (root / "test").rename(root.parent / "elsewhere")
    (root / "test").symlink_to(root.parent / "elsewhere")
    assert tiles_of(root) == ({"A": 7, "B": 7}, ())


@pytest.mark.parametrize("target", [".", "..", "../..", "sub"])
def test_a_tile_counts_once_however_many_links_lead_to_it(flat: Path, target: str) -> None:
    """Above all where a folder is linked into itself: the search ends, and no other class is taken in."""
    (flat / "A/sub").mkdir()
    shutil.move(flat / "A/0.png", flat / "A/sub/0.png")
    (flat / "A/a-link").symlink_to(target)  # sorts before the folder
    counts, (note,) = tiles_of(flat)
    assert counts == {"A": 10, "B": 10, "C": 10}
    assert note.startswith("1 links lead to what was reached by another path")
    assert "A/a-link" in note


def test_linked_tiles_count_once(flat: Path) -> None:
    (flat / "A/00.png").symlink_to(flat / "A/0.png")
    counts, (note,) = tiles_of(flat)
    assert counts["A"] == 10
    assert "1 links" in note
    assert "A/00.png" in note


@pytest.mark.parametrize("target", ["gone", "SELF"])
@pytest.mark.parametrize("place", ["SELF", "A/SELF"])
def test_a_link_that_leads_nowhere_may_be_half_of_the_tiles(flat: Path, place: str, target: str) -> None:
    (flat / place).symlink_to(target)
    with pytest.raises(HistoError, match=f"{place}: is a link that leads nowhere. Repair or delete it"):
        open_data(flat, crop=8)


def test_results_of_histo_are_not_tiles(flat: Path) -> None:
    for place in ("predictions/a", "A/predictions/b"):
        save(flat / place / "heatmap.png", noise_tile(1))
        (flat / place / "done.json").write_text('{"key": "0123", "tiles": 3}')
    save(flat / "B/run/curves.png", noise_tile(2))
    (flat / "B/run/report.json").write_text("{}")
    counts, notes = tiles_of(flat)
    assert counts == {"A": 10, "B": 10, "C": 10}
    assert "1 files were ignored" in notes[0]
    assert "B/run/report.json" in notes[0]
    assert "3 results of histo were left out" in notes[1]


def test_what_lies_beside_the_classes_is_noted(make_split: MakeSplit) -> None:
    root = make_split()
    save(root / "extra/A/0.png", noise_tile(1))
    save(root / "loose.png", noise_tile(2))
    save(root / "val/looser.png", noise_tile(3))
    ignored, folders = open_data(root, crop=8).notes
    assert "2 files were ignored" in ignored
    assert "1 folders beside train, val and test were ignored (for example extra)" in folders


def test_a_pipe_is_no_tile(flat: Path) -> None:
    os.mkfifo(flat / "A/pipe.png")
    os.mkfifo(flat / "A/pipe")
    with pytest.raises(HistoError, match=r"A/pipe\.png: is not a regular file"):
        open_data(flat, crop=8)


@pytest.mark.data
def test_real_tiles(real_tiles: Path) -> None:
    data = open_data(real_tiles, classes=["AC", "H"])
    assert [len(s) for s in (data.train, data.val, data.test)] == [850, 200, 200]
    assert data.tile_size == 224
    assert data.train.tile(0).shape == (224, 224, 3)


def test_a_class_whose_name_is_not_text_is_refused(tmp_path: Path) -> None:
    """A folder named in Latin-1: no configuration could hold its name."""
    for name in (b"TUM\xd6R", b"STROMA"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        for i in range(6):
            Image.new("RGB", (40, 40), (40 * i, 90, 90)).save(folder / f"{i}.png")
    with pytest.raises(HistoError, match="class TUM\ufffdR: has a name that is not text in this locale"):
        open_data(tmp_path, crop=32)
