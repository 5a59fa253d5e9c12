"""Sets of tiles: which folder says what, what is called a test, and the pictures of mistakes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from histo_export.bundle_files import CONFIG, TRAINED_ON
from histo_export.export.bundle import open_bundle, spec_of
from histo_export.metrics import report_of
from histo_export.model.checkpoint import Checkpoint
from histo_export.predict import pictures
from histo_export.predict.inputs import TileSetInput, find_inputs
from histo_export.predict.labels import labels_of
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from histo_export.predict.tile_set import TileResults, write_tile_set
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn, tile_hash

CLASSES = ("TUMOR", "STROMA", "test")
SPEC = ModelSpec(1, CLASSES, crop=32, tile_size=40)
NOTHING = TrainedOn.of(np.zeros(0, np.int64), np.zeros(0, np.int64))


def make_tiles(root: Path, names: Sequence[str]) -> TileSetInput:
    """Tiles of noise, each another one, at these paths below `root`."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)
    return TileSetInput(root, [root / name for name in names], name=root.name)


def hashes_of(tiles: TileSetInput) -> np.ndarray:
    return np.array([tile_hash(np.asarray(Image.open(file))) for file in tiles.files])


def write(
    tiles: TileSetInput,
    out: Path,
    predicted: Sequence[int],
    trained_on: TrainedOn | None = NOTHING,
    *,
    largest: float = 30,
) -> dict[str, Any]:
    """summary.json of a set whose tiles were predicted as these classes, with this logit, in two shards."""
    out.mkdir()
    logits, same = largest * np.eye(3, dtype=np.float32)[list(predicted)], np.ones(len(tiles), np.float32)
    results = TileResults(logits, hashes_of(tiles), same, [""] * len(tiles))
    cut = len(tiles) // 2
    shards = [
        (TileResults(*(column[part] for column in vars(results).values())), "made")
        for part in (slice(cut), slice(cut, None))
    ]
    write_tile_set(tiles, SPEC, shards, out, resize=False, trained_on=trained_on)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("largest", [1, 30, 300, 30_000])
def test_the_loss_is_that_of_training_however_sure_the_network_is(tmp_path: Path, largest: float) -> None:
    tiles = make_tiles(tmp_path / "set", ["TUMOR/0.png", "STROMA/0.png"])
    found = write(tiles, tmp_path / "out", (0, 0), largest=largest)["test"]
    logits = largest * np.float32([[1, 0, 0], [1, 0, 0]])
    assert found["loss"] == report_of(CLASSES, logits, np.array([0, 1])).loss
    assert found["loss"] == pytest.approx(np.log(np.exp(-float(largest)) * 2 + 1) + largest / 2)


@pytest.mark.parametrize(
    ("named", "tile", "label"),
    [
        ("set", "TUMOR/1.png", ("TUMOR", "")),
        ("set", "TUMOR/patient/1.png", ("TUMOR", "")),
        ("set", "train/TUMOR/1.png", ("TUMOR", "train")),
        ("set", "Validation/TUMOR/patient/1.png", ("TUMOR", "val")),
        ("set", "test/patient/TUMOR/1.png", ("TUMOR", "test")),
        ("set", "patient/train/TUMOR/1.png", ("TUMOR", "train")),
        ("set", "TUMOR/train/1.png", ("TUMOR", "train")),
        ("set", "TUMOR/STROMA/1.png", ("TUMOR", "")),  # the outer one, as in training
        ("set", "train/test/1.png", ("test", "train")),
        ("set", "test/1.png", ("test", "")),
        ("set/train", "TUMOR/1.png", ("TUMOR", "train")),
        ("set/valid", "patient/TUMOR/1.png", ("TUMOR", "val")),
        ("set/test", "train/TUMOR/1.png", ("TUMOR", "train")),
        ("set/train/TUMOR", "1.png", ("TUMOR", "train")),
        ("set/train/TUMOR", "patient/1.png", ("TUMOR", "train")),
        ("set/train", "1.png", None),
        ("set", "train/1.png", None),
    ],
)
def test_what_folders_say(tmp_path: Path, named: str, tile: str, label: tuple[str, str] | None) -> None:
    tiles = make_tiles(tmp_path / named, [tile])
    assert labels_of(tiles, CLASSES) == (label and [label])
    (tmp_path / "list.txt").write_text(f"{named}/{tile}\n")
    (listed,) = find_inputs([tmp_path / "list.txt"], 40).inputs
    assert isinstance(listed, TileSetInput)
    if named == "set":  # a list has no folder of its own; this one's tiles may have any root
        (tmp_path / "list.txt").write_text(f"{named}/{tile}\n{named}/other/STROMA/2.png\n")
        make_tiles(tmp_path / "set", ["other/STROMA/2.png"])
        (listed,) = find_inputs([tmp_path / "list.txt"], 40).inputs
        found = labels_of(listed, CLASSES)  # type: ignore[arg-type]
        assert found == (label and [label, ("STROMA", "")])


def test_one_tile_without_a_class_makes_a_set_unlabelled(tmp_path: Path) -> None:
    tiles = make_tiles(tmp_path / "set", ["val/TUMOR/1.png", "val/other/2.png"])
    assert labels_of(tiles, CLASSES) is None
    summary = write(tiles, tmp_path / "out", [0, 0])
    assert "splits" not in summary
    assert "test" not in summary
    assert summary["warnings"] == []
    files = {"tiles.csv", "tiles.parquet", "summary.json", "index.html", "thumbnail.jpg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files


def test_each_split_is_reported_alone(tmp_path: Path) -> None:
    names = [f"{split}/{name}/{i}.png" for split in ("train", "val", "test") for name in CLASSES[:2] for i in range(2)]
    tiles = make_tiles(tmp_path / "set", names)
    used = hashes_of(tiles)
    record = TrainedOn.of(used[:4], used[4:8])
    summary = write(tiles, tmp_path / "out", [0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0], record)
    assert {name: (split["tiles"], split["accuracy"]) for name, split in summary["splits"].items()} == {
        "train": (4, 1.0),
        "val": (4, 0.75),
        "test": (4, 0.25),
    }
    low, high = summary["splits"]["test"]["interval"]
    assert 0 <= low < 0.25 < high < 1
    assert summary["splits"]["test"]["left_out"] == 0
    assert summary["seen_in_training"] == {"train": 4, "val": 4}
    assert "test" not in summary  # it would stand for the set
    assert "accuracy" not in summary
    assert summary["warnings"] == []
    made = {path.name for path in (tmp_path / "out").glob("*.png")}
    pictures = ("confusion", "probabilities")
    assert made == {f"{name}-{split}.png" for name in pictures for split in ("train", "val", "test")} | {
        "mistakes-val.png",
        "mistakes-test.png",
    }
    with (tmp_path / "out/tiles.csv").open() as file:
        assert [(row["label"], row["split"]) for row in csv.DictReader(file)] == [
            (name.split("/")[1], name.split("/")[0]) for name in names
        ]


def test_a_test_has_no_tile_that_was_trained_on(tmp_path: Path) -> None:
    names = ["test/TUMOR/0.png", "test/TUMOR/1.png", "test/STROMA/2.png", "test/STROMA/3.png"]
    tiles = make_tiles(tmp_path / "set", names)
    used = hashes_of(tiles)
    summary = write(tiles, tmp_path / "out", [0, 0, 0, 1], TrainedOn.of(used[:1], used[3:]))
    splits = summary["splits"]
    assert {name: (split["tiles"], split["accuracy"]) for name, split in splits.items()} == {
        "train": (1, 1.0),
        "val": (1, 1.0),
        "test": (2, 0.5),
    }
    assert splits["test"]["left_out"] == 2
    assert summary["warnings"] == [
        "2 of 4 tiles in test folders were used in training or validation: they count there, and not as a test"
    ]


@pytest.mark.parametrize("folders", [("test/TUMOR", "test/STROMA"), ("TUMOR", "STROMA")])
def test_training_tiles_alone_are_not_a_test(tmp_path: Path, folders: tuple[str, str]) -> None:
    tiles = make_tiles(tmp_path / "set", [f"{folder}/{i}.png" for i, folder in enumerate(folders)])
    summary = write(tiles, tmp_path / "out", [0, 1], TrainedOn.of(hashes_of(tiles), np.zeros(0, np.int64)))
    assert summary["splits"].keys() == {"train"}
    assert "test" not in summary
    assert len(summary["warnings"]) == 1
    assert summary["warnings"][0].startswith("2 of 2 tiles")


def test_validation_tiles_that_were_trained_on_are_told(tmp_path: Path) -> None:
    tiles = make_tiles(tmp_path / "set", ["val/TUMOR/0.png", "val/STROMA/1.png"])
    summary = write(tiles, tmp_path / "out", [0, 1], TrainedOn.of(hashes_of(tiles)[:1], hashes_of(tiles)))
    assert {name: split["tiles"] for name, split in summary["splits"].items()} == {"train": 1, "val": 1}
    (warning,) = summary["warnings"]
    assert warning.startswith(
        "1 of 2 tiles in validation folders were used in training or validation: they count there"
    )


def test_where_the_training_tiles_are_unknown_nothing_is_called_a_test(tmp_path: Path) -> None:
    """Except where the user's own folder calls it so."""
    plain = make_tiles(tmp_path / "set", ["TUMOR/0.png", "STROMA/1.png"])
    summary = write(plain, tmp_path / "plain", [0, 0], None)
    assert summary["seen_in_training"] == "unknown"
    assert summary["splits"].keys() == {"labelled"}
    assert "test" not in summary
    named = make_tiles(tmp_path / "named", ["test/TUMOR/0.png", "test/STROMA/1.png"])
    summary_named = write(named, tmp_path / "test", [0, 0], None)
    assert summary_named["splits"].keys() == {"test"}
    assert summary_named["test"] == summary_named["splits"]["test"]
    for each in (summary, summary_named):
        assert len(each["warnings"]) == 1
        assert "does not record the tiles of its training" in each["warnings"][0]


def test_an_unlabelled_set_tells_of_training_tiles(tmp_path: Path) -> None:
    tiles = make_tiles(tmp_path / "set", ["0.png", "1.png", "2.png"])
    used = hashes_of(tiles)
    summary = write(tiles, tmp_path / "out", [0, 0, 0], TrainedOn.of(used[:1], used[1:2]))
    assert summary["seen_in_training"] == {"train": 1, "val": 1}
    assert summary["warnings"] == ["2 of 3 tiles were used in training or validation"]


def test_mistakes_show_what_the_network_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    tiles = make_tiles(tmp_path / "set", ["test/TUMOR/cost$5^^6$.png", "test/STROMA/" + "long" * 40 + ".png"])
    write(tiles, tmp_path / "out", [1, 0])
    (figure,) = figures
    drawn = [axes for axes in figure.axes if axes.images]
    for axes, file, right, wrong in zip(drawn, tiles.files, ("TUMOR", "STROMA"), ("STROMA", "TUMOR"), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(Image.open(file))[4:36, 4:36])
        name, truth, predicted = axes.get_title().split("\n")
        assert (truth, predicted) == (f"true: {right}", f"predicted: {wrong} 100.0 %")
        assert len(name) <= 40
        assert name.endswith(".png")
    assert drawn[0].get_title().startswith("cost$5^^6$.png\n")
    title = figure.get_suptitle()
    assert "all of 2 mistakes in 2 test tiles" in title
    assert "32 × 32" in title


def test_predict_knows_the_tiles_of_training_by_their_pixels(
    bundle: Path, checkpoint: Checkpoint, tmp_path: Path, copy_bundle: Callable[[Path, Path], Path]
) -> None:
    """The first two golden tiles are recorded as training tiles, the third one as a validation tile."""
    golden = checkpoint.golden
    root = tmp_path / "set" / "TUMOR"
    root.mkdir(parents=True)
    for i, tile in enumerate(golden):
        Image.fromarray(tile).save(root / f"{i}.{'png' if i % 2 else 'tif'}")
    large = np.pad(golden[0], ((0, 5), (0, 5), (0, 0)))
    Image.fromarray(large).save(root / "large.png")
    np.save(tmp_path / "array.npy", golden)
    settings = PredictSettings(threads=2, batch=4, resize="bilinear")
    outcome = predict(bundle, [tmp_path / "set", tmp_path / "array.npy"], tmp_path / "out", settings)
    assert not outcome.failures
    for name in ("set", "array"):
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert summary["seen_in_training"] == {"train": 2, "val": 1}
    summary = json.loads((tmp_path / "out/set/summary.json").read_text())
    assert {split: report["tiles"] for split, report in summary["splits"].items()} == {"train": 2, "val": 1, "test": 3}

    old = copy_bundle(bundle, tmp_path / "old")  # as an earlier version wrote it
    (old / TRAINED_ON).unlink()
    config = json.loads((old / CONFIG).read_text())
    del config["histo"]["files"][TRAINED_ON]
    (old / CONFIG).write_text(json.dumps(config))
    assert spec_of(open_bundle(old)) == checkpoint.spec
    predict(old, [tmp_path / "array.npy"], tmp_path / "out-old", settings)
    assert json.loads((tmp_path / "out-old/array/summary.json").read_text())["seen_in_training"] == "unknown"
