from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from histo_export.data import open_data
from histo_export.errors import HistoError, UsageError
from histo_export.trained_on import tile_hash


def tiles(n: int, side: int = 16, key: int = 0) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """arrays.npy: 60 tiles, that is six blocks of ten."""
    np.save(tmp_path / "arrays.npy", tiles(60))
    return tmp_path / "arrays.npy"


def test_six_equal_blocks(array: Path) -> None:
    data = open_data(array, crop=16, split=(6, 2, 2))
    assert data.classes == tuple(f"class{i}" for i in range(6))
    assert [len(s) for s in (data.train, data.val, data.test)] == [36, 12, 12]
    for part in (data.train, data.val, data.test):
        for i, name in enumerate(part.names):
            at = int(name.removeprefix("arrays[").rstrip("]"))
            assert part.labels[i] == at // 10
            np.testing.assert_array_equal(part.tile(i), tiles(60)[at])
    assert part.tile(0).flags.c_contiguous
    assert part.tile(0).flags.writeable
    assert (data.tile_size, data.name, data.synthetic) == (16, "arrays.npy", False)


def test_blocks_are_told(array: Path) -> None:
    note = (
        "arrays.npy has no labels: its tiles are taken for 6 equal consecutive blocks, one for each of class0, class1"
    )
    assert open_data(array, crop=16).notes[0].startswith(note)
    assert "save the labels as arrays_labels.npy" in open_data(array, crop=16).notes[0]
    np.save(array.parent / "arrays_labels.npy", np.arange(60) % 3)
    assert not any("no labels" in note for note in open_data(array, crop=16).notes)


def test_classes_name_the_blocks(array: Path) -> None:
    data = open_data(str(array), crop=16, classes=["x", "y", "z"], split=(10, 5, 5))
    assert data.classes == ("x", "y", "z")
    assert np.bincount(data.train.labels).tolist() == [10, 10, 10]
    with pytest.raises(HistoError, match="60 tiles, which are not 7 equal blocks"):
        open_data(array, crop=16, classes=list("abcdefg"))


def test_class_list_and_subset(array: Path) -> None:
    (array.parent / "classes.txt").write_text("TUMOR\nSTROMA\nCOMPLEX\nLYMPHO\nDEBRIS\nMUCOSA\n")
    assert open_data(array, crop=16).classes[5] == "MUCOSA"
    data = open_data(array, crop=16, classes=["mucosa", "TUMOR"])
    assert data.classes == ("MUCOSA", "TUMOR")
    assert all(int(n[7:-1]) >= 50 for n, k in zip(data.train.names, data.train.labels, strict=True) if k == 0)
    with pytest.raises(UsageError, match="Did you mean STROMA"):
        open_data(array, crop=16, classes=["STRMA", "TUMOR"])


@pytest.mark.parametrize("name", ["labels.npy", "arrays_labels.npy"])
def test_label_array(array: Path, name: str) -> None:
    labels = np.arange(60) % 3
    np.save(array.parent / name, labels.astype(np.uint8))
    for path in (array, array.parent):
        data = open_data(path, crop=16, classes=["a", "b", "c"])
        assert data.classes == ("a", "b", "c")
        for label, tile in zip(data.test.labels, data.test.names, strict=True):
            assert label == labels[int(tile[7:-1])]
    with pytest.raises(UsageError, match="4 names for 3 labels"):
        open_data(array, crop=16, classes=list("abcd"))
    with pytest.raises(HistoError, match="labels go up to 2, but there are only 2"):
        open_data(array, crop=16, classes=list("ab"))


def test_three_arrays(tmp_path: Path) -> None:
    for k, s in enumerate(("train", "val", "test")):
        np.save(tmp_path / f"{s}.npy", tiles(12, side=20 - k, key=k))
    np.save(tmp_path / "val_labels.npy", np.tile(np.arange(6), 2))
    data = open_data(tmp_path, crop=16)
    assert data.tile_size == 18
    assert data.train.labels.tolist() == np.repeat(np.arange(6), 2).tolist()
    assert data.val.names[0] == "val[0]"
    with pytest.raises(UsageError, match="already split"):
        open_data(tmp_path, crop=16, split=(1, 1, 1))
    with pytest.raises(HistoError, match=r"every tile of test\.npy: is 18x18 .* crop of 19"):
        open_data(tmp_path, crop=19)
    np.save(tmp_path / "test_labels.npy", np.repeat(np.arange(5), [4, 2, 2, 2, 2]))
    with pytest.raises(HistoError, match="class class5: has no tile in test"):
        open_data(tmp_path, crop=16)
    (tmp_path / "val.npy").unlink()
    with pytest.raises(HistoError, match=r"train\.npy but no val\.npy"):
        open_data(tmp_path, crop=16)


def test_fingerprint_and_leakage(array: Path, tmp_path: Path) -> None:
    data = open_data(array, crop=16)
    first = data.fingerprint
    for split in (data.train, data.val, data.test):
        assert split.hashes.tolist() == [tile_hash(split.tile(i)) for i in range(len(split))]
    os.utime(array, (1, 1))
    array.rename(array.with_name("other.npy"))
    assert open_data(array.with_name("other.npy"), crop=16).fingerprint == first
    assert open_data(array.with_name("other.npy"), crop=16, seed=1).fingerprint != first
    same = tiles(60)
    same[:10] = same[0]
    np.save(array, same)
    notes = open_data(array, crop=16).notes
    assert any("test tiles are identical to train tiles" in n for n in notes)


def test_a_worker_gets_the_path_and_not_the_pixels(array: Path) -> None:
    train = open_data(array, crop=16).train
    data = pickle.dumps(train)
    assert len(data) < 4000
    np.testing.assert_array_equal(pickle.loads(data).tile(3), train.tile(3))


def test_fortran_order(array: Path) -> None:
    np.save(array, np.asfortranarray(tiles(60)))
    data = open_data(array, crop=16, split=(6, 2, 2))
    assert data.train.tile(0).flags.c_contiguous
    np.testing.assert_array_equal(data.train.tile(0), tiles(60)[int(data.train.names[0][7:-1])])


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.path),))


def test_pickled_objects_are_never_loaded(array: Path, tmp_path: Path) -> None:
    trapped = np.empty(6, dtype=object)
    trapped[:] = [Trap(tmp_path / "sprung")] * 6
    np.save(array, trapped, allow_pickle=True)
    with pytest.raises(HistoError, match="pickled Python objects, which are never loaded"):
        open_data(array, crop=16)
    array.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(HistoError, match="is a pickle"):
        open_data(array, crop=16)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.zeros((6, 16, 16), np.uint8), r"has shape \(6, 16, 16\), not \(n, height, width, 3\)"),
        (np.zeros((6, 3, 16, 16), np.uint8), "channels come last"),
        (np.zeros((6, 16, 16, 4), np.uint8), "has shape"),
        (np.zeros((6, 16, 16, 3), np.float32), r"dtype float32, not uint8.*0\.\.255"),
        (np.zeros((6, 16, 16, 3), np.int16), "dtype int16"),
        (np.zeros((0, 16, 16, 3), np.uint8), "holds no tile"),
        (np.zeros((), np.uint8), "has shape"),
        (np.zeros(6, dtype=[("a", np.uint8)]), "has shape"),
    ],
)
def test_wrong_arrays(array: Path, wrong: np.ndarray, reason: str) -> None:
    np.save(array, wrong)
    with pytest.raises(HistoError, match=reason):
        open_data(array, crop=16)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(59, int), "59 labels for 60 tiles"),
        (np.zeros((60, 1), int), "not integers"),
        (np.zeros(60), "dtype float64"),
        (np.full(60, -1), "negative"),
        (np.full(60, 10**12), "cannot be a class index"),
        (np.zeros(60, int), "one class only"),
        (np.array(["a"] * 60, dtype=object), "pickled"),
    ],
)
def test_wrong_labels(array: Path, labels: np.ndarray, reason: str) -> None:
    np.save(array.with_name("labels.npy"), labels)
    with pytest.raises(HistoError, match=reason):
        open_data(array, crop=16)


def test_damaged_files(array: Path) -> None:
    whole = array.read_bytes()
    for cut, reason in (
        (0, "is empty"),
        (5, "not a .npy file"),
        (40, "damaged"),
        (len(whole) - 1, "truncated"),
    ):
        array.write_bytes(whole[:cut])
        with pytest.raises(HistoError, match=reason):
            open_data(array, crop=16)
    for patch in (b"{'descr': 'xx'", b"{[}" + bytes(20), b"\xff" * 30):
        array.write_bytes(whole[:10] + patch + whole[10 + len(patch) :])
        with pytest.raises(HistoError, match="damaged"):
            open_data(array, crop=16)
    array.write_bytes(whole[:6] + b"\x09\x09" + whole[8:])
    with pytest.raises(HistoError, match="damaged"):
        open_data(array, crop=16)
    np.savez(array.with_suffix(".npz"), a=tiles(1))
    array.with_suffix(".npz").rename(array)
    with pytest.raises(HistoError, match=r"\.npz archive"):
        open_data(array, crop=16)


def test_ambiguous_folder_and_bad_class_list(array: Path) -> None:
    (array.parent / "classes.txt").write_text("a\na\n")
    with pytest.raises(HistoError, match="a class twice"):
        open_data(array, crop=16)
    np.save(array.with_name("more.npy"), tiles(6))
    with pytest.raises(HistoError, match="unclear which array"):
        open_data(array.parent, crop=16)
