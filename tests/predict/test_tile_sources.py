"""`histo predict` over the same tiles in files of every kind, over tables with labels, and with a map of classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import (
    Tiles,
    png,
    write_folder,
    write_hdf5,
    write_npz,
    write_parquet,
    write_shard,
    write_tar,
    write_zip,
)

from histo_export import UsageError
from histo_export.predict import judge, run
from histo_export.predict.inputs import TileSetInput, find_inputs
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from stub_model import SIDE, stub_model

pytest.importorskip("h5py", reason='needs pip install "histo-export[features]"')
CLASSES = ("bright", "dark")


def tiles(classes: tuple[str, ...] = CLASSES, per_class: int = 5) -> Tiles:
    found: Tiles = {}
    for c, name in enumerate(classes):
        for i in range(per_class):
            noise = np.random.default_rng([c, i]).integers(0, 256 - 40 * i, (SIDE, SIDE, 3), dtype=np.uint8)
            found[f"{name}/{i}.png"] = noise
    return found


TILES = tiles()
WRITERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda path: write_zip(path / "set.zip", {name: png(tile) for name, tile in TILES.items()}, "set/"),
    "tar": lambda path: write_tar(path / "set.tar", {name: png(tile) for name, tile in TILES.items()}),
    "webdataset": lambda path: write_shard(path / "set.tar", TILES),
    "parquet": lambda path: write_parquet(path / "set.parquet", TILES, CLASSES),
    "npz": lambda path: write_npz(path / "set.npz", TILES, CLASSES),
    "hdf5": lambda path: write_hdf5(path / "set.h5", TILES),
    "npy": lambda path: write_npy(path / "set.npy"),
}


def write_npy(path: Path) -> Path:
    np.save(path, np.stack(list(TILES.values())))
    np.save(path.with_name("set_labels.npy"), np.repeat([0, 1], 5))
    path.with_name("classes.txt").write_text("\n".join(CLASSES))
    return path


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Path]:
    with stub_model(tmp_path / "bundle") as bundle:
        yield bundle


@pytest.fixture(scope="module")
def of_the_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the folder with the same tiles."""
    root = tmp_path_factory.mktemp("folder")
    with stub_model(root / "bundle") as bundle:
        predict(bundle, [write_folder(root / "set", TILES)], root / "out", PredictSettings())
    return root / "out/set"


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Drawing takes seconds; tests/predict/test_sets.py looks at what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "installed", lambda module: module != "matplotlib")
        yield


def rows(table: Path) -> list[list[str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("kind", WRITERS)
def test_tables_have_the_bytes_of_the_folders(stub: Path, of_the_folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    file = WRITERS[kind](tmp_path / "in")
    settings = PredictSettings(batch=3, threads=2)
    assert not predict(stub, [file], tmp_path / "have", settings).failures
    want, have = of_the_folder, tmp_path / "have/set"
    if kind in ("zip", "tar", "webdataset", "parquet"):
        assert (have / "tiles.csv").read_bytes() == (want / "tiles.csv").read_bytes()
        assert (have / "summary.json").read_bytes() == (want / "summary.json").read_bytes()
    else:  # arrays have no names of their own
        columns = slice(1, 4 if kind == "hdf5" else None)  # and CLAM's files have no labels
        assert [row[columns] for row in rows(have / "tiles.csv")] == [row[columns] for row in rows(want / "tiles.csv")]
        named = "images[{}]" if kind == "npz" else f"{file.name}[{{}}]"
        assert [row[0] for row in rows(have / "tiles.csv")[1:]] == [named.format(i) for i in range(10)]
    if kind != "hdf5":
        assert summary(have)["splits"] == summary(want)["splits"]
    before = (have / "tiles.csv").stat().st_mtime_ns
    assert predict(stub, [file], tmp_path / "have", settings).done[0].run == 0
    assert (have / "tiles.csv").stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes())  # the time of change is another one
    with pytest.raises(UsageError, match="changed input"):
        predict(stub, [file], tmp_path / "have", settings)


def test_a_lost_member_is_listed_and_the_others_are_run(stub: Path, tmp_path: Path) -> None:
    files = {name: png(tile) for name, tile in TILES.items()} | {"dark/9.png": b"no image"}
    outcome = predict(stub, [write_zip(tmp_path / "set.zip", files)], tmp_path / "out", PredictSettings())
    assert [(each.path, each.reason.split(" (")[0]) for each in outcome.failures] == [
        (
            "dark/9.png",
            "is not a JPEG, PNG or TIFF image, nor WebP, BMP, JPEG 2000 or AVIF, or its header is damaged. "
            "Repair or delete it",
        )
    ]
    assert outcome.done[0].tiles == 10


def test_containers_in_a_folder_are_inputs_and_others_are_left_out(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {name: png(tile) for name, tile in TILES.items()})
    write_zip(tmp_path / "documents.zip", {"readme.txt": b"x"})
    write_shard(tmp_path / "shard-0.tar", TILES)
    np.save(tmp_path / "labels.npy", np.arange(3))
    (tmp_path / "damaged.tar").write_bytes(b"x" * 2000)
    found = find_inputs([tmp_path], SIDE)
    assert [item.source.name for item in found.inputs if isinstance(item, TileSetInput)] == ["a.zip", "shard-0.tar"]
    assert [(kind.kind, kind.count) for kind in found.skipped] == [("files of other types", 2)]
    assert [Path(failure.path).name for failure in found.failures] == ["damaged.tar"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.tar.gz", "Unpack it to a .tar"),
        ("a.7z", "Make a .zip or a .tar"),
        ("a.pkl", "numpy.save"),
        ("a.lmdb", "Write its tiles"),
        ("a.tfrecord", "Write its tiles"),
        ("a.arrow", "to_parquet"),
    ],
)
def test_kinds_that_are_not_read_are_named_with_what_to_do(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b and more")
    (failure,) = find_inputs([tmp_path / name], SIDE).failures
    assert reason in failure.reason


def labelled(path: Path, separator: str = ",") -> Path:
    write_folder(path / "t", {f"{i}.png": tile for i, tile in enumerate(TILES.values())})
    table = [["path", "label", "patient", "split"]]
    table += [[f"t/{i}.png", "bright" if i < 5 else "dark", f"p{i % 3}", "test"] for i in range(10)]
    (path / "list.csv").write_text("\n".join(separator.join(row) for row in table))
    return path / "list.csv"


@pytest.mark.parametrize("kind", [",", ";", "parquet"])
def test_a_table_tells_labels_splits_and_patients(stub: Path, tmp_path: Path, kind: str) -> None:
    table = labelled(tmp_path, "," if kind == "parquet" else kind)
    if kind == "parquet":
        import pyarrow.csv as pc
        import pyarrow.parquet as pq

        table = tmp_path / "list.parquet"
        pq.write_table(pc.read_csv(tmp_path / "list.csv"), table)
    outcome = predict(stub, [table], tmp_path / "out", PredictSettings())
    assert not outcome.failures
    report = summary(tmp_path / "out/list")["splits"]["test"]
    assert (report["tiles"], report["groups"]) == (10, 3)
    assert rows(tmp_path / "out/list/tiles.csv")[0][-2:] == ["label", "split"]
    text = (tmp_path / "list.csv").read_text()
    if kind == ",":  # the labels belong to the result
        (tmp_path / "list.csv").write_text(text.replace("dark", "bright"))
        with pytest.raises(UsageError, match="changed input"):
            predict(stub, [table], tmp_path / "out", PredictSettings())


def test_a_label_that_the_model_does_not_know_is_told(stub: Path, tmp_path: Path) -> None:
    table = labelled(tmp_path)
    table.write_text(table.read_text().replace("dark", "necrosis"))
    predict(stub, [table], tmp_path / "out", PredictSettings())
    found = summary(tmp_path / "out/list")
    assert "splits" not in found
    assert "the label necrosis is not a class of the model" in found["warnings"][0]


def test_a_map_of_classes_gives_accuracy(stub: Path, tmp_path: Path) -> None:
    named = tiles(("LIGHT", "night", "shadow", "glass"), 3)
    folder = write_folder(tmp_path / "set", named)
    class_map = {"LIGHT": "bright", "night": "dark", "shadow": "dark", "glass": ""}
    (tmp_path / "zip").mkdir()
    archive = write_zip(tmp_path / "zip/set.zip", {name: png(tile) for name, tile in named.items()})
    for out, path in (("a", folder), ("b", archive)):
        predict(stub, [path], tmp_path / out, PredictSettings(class_map=class_map))
    found = summary(tmp_path / "a/set")
    assert found == summary(tmp_path / "b/set")
    assert found["tiles"] == 12
    assert found["splits"]["labelled"]["tiles"] == 9
    assert "3 tiles are not judged: --class-map gives them no class" in found["warnings"]
    assert {tuple(row[-2:]) for row in rows(tmp_path / "a/set/tiles.csv")[1:]} == {
        ("bright", "labelled"),
        ("dark", "labelled"),
        ("", ""),
    }
    with pytest.raises(UsageError, match="names tumour, which the model does not know"):
        predict(stub, [folder], tmp_path / "c", PredictSettings(class_map={"LIGHT": "tumour"}))
    with pytest.raises(UsageError, match="other settings"):
        predict(stub, [folder], tmp_path / "a", PredictSettings(class_map={"LIGHT": "bright"}))


def test_the_command_takes_a_map(stub: Path, tmp_path: Path, histo: Callable[..., tuple[int, str, str]]) -> None:
    folder = write_folder(tmp_path / "set", tiles(("light", "night"), 2))
    (tmp_path / "map.csv").write_text("folder,class\nlight,bright\nnight,dark\n")
    code, out, err = histo("predict", stub, folder, "--out", tmp_path / "out", "--class-map", tmp_path / "map.csv")
    assert (code, "accuracy" in out) == (0, True), err
    code, _, err = histo("predict", stub, folder, "--out", tmp_path / "out", "--class-map", tmp_path / "no.csv")
    assert (code, "does not exist" in err) == (2, True)


def test_what_a_map_does_not_name_is_told(stub: Path, tmp_path: Path) -> None:
    named = tiles(("light", "night", "glass"), 2)
    (tmp_path / "zip").mkdir()
    archive = write_zip(tmp_path / "zip/set.zip", {name: png(tile) for name, tile in named.items()})
    for number, path in enumerate((write_folder(tmp_path / "set", named), archive)):
        settings = PredictSettings(class_map={"light": "bright", "nights": "dark"})
        outcome = predict(stub, [path], tmp_path / f"a{number}", settings)
        found = summary(tmp_path / f"a{number}/set")
        assert "splits" not in found
        assert found["warnings"] == [
            "no accuracy is told: --class-map does not name the folder glass, night (a row with an empty class leaves "
            "it out)"
        ]
        assert "--class-map names what no tile has: nights" in outcome.notes
        none = PredictSettings(class_map=dict.fromkeys(("light", "night", "glass"), ""))
        predict(stub, [path], tmp_path / f"b{number}", none)
        told = summary(tmp_path / f"b{number}/set")["warnings"]
        assert told == ["no accuracy is told: --class-map gives no tile a class"]


@pytest.mark.parametrize("change", ["removed", "replaced"])
@pytest.mark.parametrize("when", ["before keys", "before tiles", "before the end"])
def test_a_file_that_changes_during_a_run_fails_alone(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, when: str
) -> None:
    """Offsets into the old file would give other bytes of the new one."""
    file = write_tar(tmp_path / "set.tar", {name: png(tile) for name, tile in TILES.items()})
    other = write_folder(tmp_path / "other", TILES)

    def disturbed(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options) if after else None
            if change == "removed":
                file.unlink(missing_ok=True)
            else:
                write_tar(file, {f"x/{i}.png": png(tile) for i, tile in enumerate(TILES.values())} | {"y": b"1" * 2000})
            return result if after else function(*arguments, **options)

        return call

    module, name, after = {
        "before keys": (run, "find_inputs", True),
        "before tiles": (run, "_outcomes", False),
        "before the end": (run, "write_tile_set", False),
    }[when]
    monkeypatch.setattr(module, name, disturbed(getattr(module, name), after=after))
    outcome = predict(stub, [file, other], tmp_path / "out", PredictSettings())
    assert [done.name for done in outcome.done] == ["other"]
    (failure,) = outcome.failures
    assert failure.path == str(file)
    assert {"removed": "No such file", "replaced": "was changed while it was in use"}[change] in failure.reason
    assert not (tmp_path / "out/set").exists()


def test_labels_of_what_is_no_tile_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "dark", {"0.png": TILES["dark/0.png"]})
    (tmp_path / "list.csv").write_text("path,label\ndark,dark\n")
    assert (
        "labels of 1 entries are not used, because these are not single tiles"
        in find_inputs([tmp_path / "list.csv"], SIDE).notes[-1]
    )


def test_addresses_and_zarr_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "slide.zarr/0").mkdir(parents=True)
    paths = [Path("https://example.org/a.zip"), Path("s3://bucket/a.svs"), tmp_path / "slide.zarr"]
    reasons = [failure.reason for failure in find_inputs(paths, SIDE).failures]
    assert [reason.partition(",")[0] for reason in reasons] == ["is an address", "is an address", "is OME-Zarr"]
