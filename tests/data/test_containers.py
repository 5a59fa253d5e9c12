"""Files that hold tiles: what is read, what is refused, and that damage is told in a line."""

from __future__ import annotations

import pickle
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import (
    noise,
    png,
    write_folder,
    write_hdf5,
    write_npz,
    write_parquet,
    write_shard,
    write_tar,
    write_zip,
)

from histo_export.data import TileData, containers, open_data
from histo_export.data.containers import NoTilesError, npz_file, open_container, tar_archive, zip_archive
from histo_export.data.images import BadImageError
from histo_export.errors import HistoError, UsageError
from histo_export.system import peak_memory

pytest.importorskip("h5py", reason='needs pip install "histo-export[features]"')
CLASSES = ("STROMA", "TUMOR")
TILES = noise([f"{name}/{i:02}.png" for name in CLASSES for i in range(10)], 16)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda path: write_zip(path / "tiles.zip", {name: png(tile) for name, tile in TILES.items()}),
    "tar": lambda path: write_tar(path / "tiles.tar", {name: png(tile) for name, tile in TILES.items()}),
    "webdataset": lambda path: write_shard(path / "tiles.tar", TILES),
    "hdf5": lambda path: write_hdf5(path / "tiles.h5", TILES),
    "parquet": lambda path: write_parquet(path / "tiles.parquet", TILES, CLASSES),
    "npz": lambda path: write_npz(path / "tiles.npz", TILES, CLASSES),
    "stored npz": lambda path: write_npz(path / "tiles.npz", TILES, CLASSES, compressed=False),
}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path)


def test_tiles_are_read_in_any_order_and_after_pickling(file: Path) -> None:
    container = open_container(file)
    assert len(container) == len(TILES)
    assert open_container(file) is container  # the shards of a set open it again
    tiles = list(TILES.values())
    copied = pickle.loads(pickle.dumps(container))
    for i in (19, 0, 7, 19, 3):
        for each in (container, copied):
            found = each.tile(i)
            np.testing.assert_array_equal(found, tiles[i])
            assert found.flags.writeable


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "hdf5"])
def test_a_data_set_is_that_of_the_folder(tmp_path: Path, kind: str) -> None:
    folder = open_data(write_folder(tmp_path / "tiles", TILES), crop=8)
    data = open_data(WRITERS[kind](tmp_path), crop=8)
    assert data.classes == folder.classes == CLASSES
    for part in ("train", "val", "test"):
        mine, theirs = getattr(data, part), getattr(folder, part)
        np.testing.assert_array_equal(mine.hashes, theirs.hashes)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        np.testing.assert_array_equal(mine.tile(1), theirs.tile(1))
        if "npz" not in kind:
            assert mine.names == theirs.names
    if "npz" not in kind:  # the same encoded bytes: a run may go on with the archive of its folder
        assert data.fingerprint == folder.fingerprint


def test_a_folder_in_the_archive_with_its_name_is_no_part_of_names(tmp_path: Path) -> None:
    files = {name: png(tile) for name, tile in TILES.items()} | {"readme.txt": b"x"}
    path = write_zip(tmp_path / "Tiles.zip", files, "tiles/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/tiles/._1.png", b"x")
        archive.writestr("tiles/.hidden.png", b"x")
    listing = open_container(path).listing
    assert list(listing.names) == list(TILES)
    assert listing.notes == ["Tiles.zip: 1 files that are not images were left out"]


def test_names_of_windows_are_paths(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {name.replace("/", "\\"): png(tile) for name, tile in TILES.items()})
    assert list(open_container(path).listing.names) == list(TILES)


def names_of(data: TileData) -> list[list[str]]:
    return [sorted(data.classes[i] for i in part.labels) for part in (data.train, data.val, data.test)]


@pytest.mark.parametrize("place", ["", "data"])
def test_shards_in_a_folder_are_split_by_their_names(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for i, (split, name) in enumerate(
        [("train-00000-of-00002", "TUMOR"), ("train-00001-of-00002", "STROMA"), ("validation-0", ""), ("test-0", "")]
    ):
        some = noise([f"{c}/{j}.png" for c in CLASSES for j in range(2) if name in ("", c)], 16 + i)
        write_parquet(tmp_path / place / f"{split}.parquet", some, CLASSES)
    data = open_data(tmp_path, crop=8)
    assert names_of(data) == [[*["STROMA"] * 2, *["TUMOR"] * 2]] * 3
    assert data.train.names[0] == "train-00001-of-00002/STROMA/0.png"  # names alone would be there several times


def test_medmnist(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays)
    data = open_data(tmp_path / "pathmnist.npz", crop=28)
    assert data.classes == ("class0", "class1")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 4, 4]
    np.testing.assert_array_equal(data.val.tile(3), arrays["val_images"][3])
    assert data.val.names == ["val_images[0]", "val_images[2]", "val_images[1]", "val_images[3]"]
    (tmp_path / "classes.txt").write_text("fat\nmucus\n")
    containers._opened.clear()
    assert open_data(tmp_path / "pathmnist.npz", crop=28).classes == ("fat", "mucus")


def test_grey_arrays_are_rgb(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", images=images)
    np.testing.assert_array_equal(open_container(tmp_path / "grey.npz").tile(2), images[2][..., None].repeat(3, 2))


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    monkeypatch.setattr(npz_file, "BLOCK", 1000)
    monkeypatch.setattr(npz_file, "KEPT_BLOCKS", 2)
    container = open_container(write_npz(tmp_path / "a.npz", TILES, compressed=compressed))
    assert isinstance(container, npz_file.NpzTiles)
    tiles = list(TILES.values())
    for each in (container, pickle.loads(pickle.dumps(container))):  # with the states of the first pass, and without
        for i in (11, 3, 19, 0, 12):
            np.testing.assert_array_equal(each.tile(i), tiles[i])
        assert len(each.handle[0]._kept) == 2


def test_labels_beside_tiles(tmp_path: Path) -> None:
    tile = png(TILES["TUMOR/00.png"])
    files = {
        "0.png": tile,
        "0.cls": b"1",
        "1.png": tile,
        "1.json": b'{"label": "fat", "x": 2}',
        "2.slide.7.png": tile,
        "2.cls": b"mucus\n",
        "3.png": tile,
        "4.png": tile,
        "4.json": b"[1]",
    }
    path = write_tar(tmp_path / "a.tar", files)
    assert open_container(path).listing.labels == ["class1", "fat", "mucus", None, None]
    (tmp_path / "a_classes.txt").write_text("one\ntwo")
    containers._opened.clear()
    assert open_container(path).listing.labels[0] == "two"
    (tmp_path / "a_classes.txt").write_text("one")
    containers._opened.clear()
    with pytest.raises(HistoError, match=r"label 1, and classes\.txt beside it names 1"):
        open_container(path)


def bad_archive(path: Path, kind: str) -> Path:
    tile = png(TILES["TUMOR/00.png"])
    if kind == "links":
        with tarfile.open(path.with_suffix(".tar"), "w") as archive:
            for name, sort in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.CHRTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = sort, "/etc/passwd"
                archive.addfile(info)
        return path.with_suffix(".tar")
    if kind in ("twice", "twice in another spelling"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(path, "w") as zipped:
                zipped.writestr("a.png", tile)
                zipped.writestr("a.png" if kind == "twice" else "./b/../a.png", tile)
    elif kind == "two archives":
        one = write_tar(path.with_suffix(".tar"), {"a.png": tile})
        one.write_bytes(one.read_bytes() * 2)
        return one
    elif kind == "cut tar":
        one = write_tar(path.with_suffix(".tar"), {"a.png": tile, "b.png": tile})
        one.write_bytes(one.read_bytes()[: 2 * (512 + 1024 * (-(-len(tile) // 1024)))])
        return one
    elif kind == "tar.gz":
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w:gz") as archive:
            archive.add(__file__)
    elif kind == "directory":
        write_zip(path, {"a.png": tile})
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("links", "holds no tile"),
        ("twice", "holds 'a.png' twice"),
        ("twice in another spelling", "holds 'a.png' twice"),
        ("two archives", "data behind its end mark"),
        ("cut tar", "not a readable tar archive|no end mark"),
        ("tar.gz", "is compressed.*gunzip"),
        ("directory", "has a directory of 0 MiB"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str) -> None:
    if kind == "directory":
        monkeypatch.setattr(zip_archive, "MAX_DIRECTORY", 10)
    with pytest.raises(HistoError, match=reason):
        open_container(bad_archive(tmp_path / "bad.zip", kind))


def test_an_archive_of_archives_data_is_never_written(tmp_path: Path) -> None:
    """Names that lead elsewhere are names: nothing is unpacked."""
    tile = png(TILES["TUMOR/00.png"])
    for path in (
        write_zip(tmp_path / "a.zip", {"../../evil.png": tile, "/etc/b.png": tile}),
        write_tar(tmp_path / "a.tar", {"../../evil.png": tile, "/etc/b.png": tile}, ""),
    ):
        assert sorted(open_container(path).listing.names) == ["../../evil.png", "/etc/b.png"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tar", "a.zip"]


@pytest.mark.parametrize("kind", ["bomb", "encrypted", "pixels", "method"])
def test_a_member_that_cannot_be_a_tile_is_lost_alone(tmp_path: Path, kind: str) -> None:
    tile = png(TILES["TUMOR/00.png"])
    path = tmp_path / "a.zip"
    write_zip(path, {"a.png": tile, "b.png": tile})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    if kind == "bomb":
        data[entry + 24 : entry + 28] = (300 << 20).to_bytes(4, "little")
    elif kind == "encrypted":
        data[entry + 8] |= 1
        data[data.rindex(b"PK\3\4") + 6] |= 1
    elif kind == "method":
        data[entry + 10] = 99
    path.write_bytes(data)
    if kind == "pixels":
        header = bytearray(tile)
        header[16:24] = (100_000).to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        write_zip(path, {"a.png": tile, "b.png": bytes(header)})
    container = open_container(path)
    np.testing.assert_array_equal(container.tile(0), TILES["TUMOR/00.png"])
    before = peak_memory()
    with pytest.raises(BadImageError) as error:
        container.tile(1)
    assert {"bomb": "MiB, too large", "encrypted": "encrypted", "pixels": "100000", "method": "cannot be read"}[
        kind
    ] in str(error.value)
    assert peak_memory() - before < 100 << 20


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((4, 8, 8, 3), {"dtype": "float32"}, "holds `imgs` as float32"),
        ((4, 8, 8), {"dtype": "uint8"}, "holds `imgs` as uint8 4×8×8"),
        ((0, 8, 8, 3), {"dtype": "uint8"}, "no tile"),
        ((10**9, 8, 8, 3), {"dtype": "uint8", "chunks": (1, 8, 8, 3)}, "more than 10,000,000"),
        ((900, 8, 8, 3), {"dtype": "uint8", "chunks": (1, 8, 8, 3)}, "lacks tiles"),
        ((2, 10**5, 10**5, 3), {"dtype": "uint8", "chunks": (1, 8, 8, 3)}, "100,000×100,000"),
        ((400, 1024, 1024, 3), {"dtype": "uint8", "chunks": (400, 1024, 1024, 3)}, "chunks of 1200 MiB"),
    ],
)
def test_hdf5_that_is_refused(tmp_path: Path, shape: Any, options: Any, reason: str) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("imgs", shape, **options)
    with pytest.raises(HistoError, match=reason):
        open_container(tmp_path / "a.h5")


def test_hdf5_in_another_file_is_refused(tmp_path: Path) -> None:
    import h5py

    write_hdf5(tmp_path / "real.h5", TILES)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["imgs"] = h5py.ExternalLink("real.h5", "imgs")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((20, 16, 16, 3), "uint8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "real.h5"), "imgs", (20, 16, 16, 3))
        file.create_virtual_dataset("imgs", layout)
    for name in ("link.h5", "virtual.h5"):
        with pytest.raises(HistoError, match=r"no dataset|another file"):
            open_container(tmp_path / name)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([print, len], dtype=object))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([print, len], dtype=object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(HistoError, match=r"(?i)object"):
            open_container(tmp_path / name)
    (tmp_path / "tiles.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(UsageError, match=r"pickle, which can run code.*numpy\.save"):
        open_data(tmp_path / "tiles.pkl")


def test_parquet_without_paths_or_with_bytes_alone(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tiles = list(TILES.values())
    same = {"image": [{"bytes": png(tile), "path": "same.png"} for tile in tiles], "label": ["A", "B"] * 10}
    plain = {
        "png": [png(tile) for tile in tiles],
        "label": [0, -1] * 10,
        "slide": ["s1", "s2"] * 10,
        "split": ["Train", ""] * 10,
    }
    for number, columns in enumerate((same, plain)):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=3)
        container = open_container(path)
        assert container.listing.names[7] == f"{number}.parquet[7]"
        np.testing.assert_array_equal(container.tile(7), tiles[7])
    assert container.listing.labels[:2] == ["class0", None]
    assert container.listing.groups[:2] == ["s1", "s2"]
    assert container.listing.splits[:2] == ["train", ""]
    pq.write_table(pa.table({"path": ["a.png"], "label": ["A"]}), tmp_path / "table.parquet")
    with pytest.raises(NoTilesError, match="no column of images"):
        open_container(tmp_path / "table.parquet")


@pytest.mark.parametrize("kind", ["zip", "tar", "webdataset", "parquet", "npz", "stored npz"])
def test_changed_bytes_give_one_line_or_tiles(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path)
    good = path.read_bytes()
    rng = np.random.default_rng(5)
    ends = [0, len(good)]
    before, begun, messages = peak_memory(), time.monotonic(), []
    for case in range(60):
        data = bytearray(good)
        if case % 6 == 5:
            del data[int(rng.integers(len(data))) :]
        for place in rng.integers(*ends, int(rng.integers(1, 9))):
            if place < len(data):
                data[place] = rng.integers(256)
        if case % 3 == 0:  # where the directory of most kinds is
            data[-int(rng.integers(1, 400)) :][:1] = bytes([rng.integers(256)])
        damaged = path.with_stem(f"d{case}")
        damaged.write_bytes(data)
        try:
            container = open_container(damaged)
        except HistoError as error:
            messages.append(str(error))
            continue
        for i in range(0, len(container), 5):
            try:
                container.tile(i)
            except BadImageError as error:
                messages.append(str(error))
        damaged.unlink()
    assert len(messages) > 10
    assert not [message for message in messages if "\n" in message]
    assert peak_memory() - before < 300 << 20
    assert time.monotonic() - begun < 60


def test_a_tar_header_that_states_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x" * 300)
    info.size = 0
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = b"77777777777\0"  # the size of the long name
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(data) + bytes(10240))
    with pytest.raises(HistoError, match="not a readable tar archive"):
        open_container(path)
    assert tar_archive.MAX_HEADER < 1 << 24


def test_a_map_of_classes(tmp_path: Path) -> None:
    tiles = noise([f"{name}/{i}.png" for name in ("ADI", "TUM1", "TUM2", "BACK") for i in range(6)], 16)
    table = tmp_path / "map.csv"
    table.write_text("folder,class\nADI,fat\nTUM1,tumour\nTUM2,tumour\nBACK,\nnone,fat\n")
    folder = write_folder(tmp_path / "tiles", tiles)
    found = [
        open_data(path, crop=8, class_map=table)
        for path in (folder, write_zip(tmp_path / "t.zip", {name: png(tile) for name, tile in tiles.items()}))
    ]
    for data in found:
        assert data.classes == ("fat", "tumour")
        assert sum(len(part) for part in (data.train, data.val, data.test)) == 18
        assert "map.csv leaves out BACK" in data.notes
        assert any("do not have: none" in note for note in data.notes)
    assert found[0].fingerprint == found[1].fingerprint
    table.write_text("folder,class\nADI,fat\nTUM1,tumour\n")
    with pytest.raises(HistoError, match=r"does not name 2 of the folders:(?s:.*)BACK(?s:.*)TUM2"):
        open_data(folder, crop=8, class_map=table)
    with pytest.raises(UsageError, match="does not exist"):
        open_data(folder, crop=8, class_map=tmp_path / "no.csv")


@pytest.mark.parametrize(("columns", "named"), [("slide", "slide"), ("slide,patient", "patient")])
def test_slides_and_patients_of_a_table_are_groups(tmp_path: Path, columns: str, named: str) -> None:
    write_folder(tmp_path, TILES)
    rows = [
        f"{name},{name.split('/')[0]},s{i % 10}" + f",p{i % 5}" * ("patient" in columns) for i, name in enumerate(TILES)
    ]
    (tmp_path / "t.csv").write_text("\n".join([f"path,label,{columns}", *rows]))
    data = open_data(tmp_path / "t.csv", crop=8)
    assert data.groups is not None
    assert sum(data.groups) == {"slide": 10, "patient": 5}[named]
    with pytest.raises(UsageError, match=f"has the column {named}"):
        open_data(tmp_path / "t.csv", crop=8, groups="folder:1")


def test_shards_of_webdataset_itself(tmp_path: Path) -> None:
    """Tried with webdataset 1.0.2."""
    webdataset = pytest.importorskip("webdataset", reason="needs pip install webdataset")
    with webdataset.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for i, (name, tile) in enumerate(TILES.items()):
            writer.write({"__key__": f"{i:06}", "png": tile, "cls": CLASSES.index(name.split("/")[0])})
    container = open_container(tmp_path / "shard.tar")
    assert container.listing.labels[9:11] == ["class0", "class1"]
    np.testing.assert_array_equal(container.tile(12), list(TILES.values())[12])


def test_parquet_of_hugging_face_itself(tmp_path: Path) -> None:
    """Tried with datasets 5.2.0."""
    datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {
        "image": [{"bytes": png(tile), "path": name} for name, tile in TILES.items()],
        "label": [CLASSES.index(name.split("/")[0]) for name in TILES],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "hf.parquet"))
    container = open_container(tmp_path / "hf.parquet")
    assert list(container.listing.names) == list(TILES)
    assert container.listing.labels[9:11] == list(CLASSES)
    np.testing.assert_array_equal(container.tile(12), list(TILES.values())[12])


@pytest.mark.parametrize("name", ["Straße", "my.tiles"])
def test_a_folder_with_any_name_of_the_archive_is_cut_off_exactly(tmp_path: Path, name: str) -> None:
    """Folding ß makes a name longer; a stem may have dots."""
    path = write_zip(tmp_path / f"{name}.zip", {key: png(tile) for key, tile in TILES.items()}, f"{name}/")
    assert list(open_container(path).listing.names) == list(TILES)


@pytest.mark.parametrize("kind", ["zip", "hdf5", "parquet"])
def test_few_files_stay_open_however_many_there_are(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.Container, "kept", 3)
    files = []
    for i in range(8):
        (tmp_path / str(i)).mkdir()
        files.append(open_container(WRITERS[kind](tmp_path / str(i))))
    monkeypatch.setattr(type(files[0]), "kept", 3)
    tiles = list(TILES.values())
    for number in (0, 11):
        for file in files:
            np.testing.assert_array_equal(file.tile(number), tiles[number])
    assert [file._opened is not None for file in files] == [False] * 5 + [True] * 3


def test_hdf5_chunks_of_many_tiles_are_decoded_once(tmp_path: Path) -> None:
    """h5py chooses such chunks itself; its own cache of 1 or 8 MiB holds too few of them, at 224 pixels 19 MB."""
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("imgs", data=np.zeros((64, 16, 16, 3), np.uint8), chunks=(64, 4, 4, 3))
    container = open_container(tmp_path / "a.h5")
    container.tile(0)
    assert container.handle.id.get_access_plist().get_chunk_cache()[1] >= 32 << 20


def test_tiles_without_a_split_are_told(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits = ["train", "train", "val", "val", "test", "test", "holdout", ""]
    columns = {"image": [png(tile) for tile in TILES.values()][:16], "label": ["A", "B"] * 8, "split": splits * 2}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = open_data(tmp_path / "t.parquet", crop=8)
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 4, 4]
    assert "4 tiles without a split (train, val or test) were left out, such as t.parquet[14]" in data.notes


def test_an_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an address, and only files are read"):
        open_data("https://example.org/tiles.zip")
