import csv
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import histo_export
from histo_export import Engine, HistoError, UsageError, figures
from histo_export._core import precision_support, usable_cpus
from histo_export.bench.subjects import noise_scales
from histo_export.data.demo import CLASSES
from histo_export.export.bundle import entry
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.predict import Classifier, loop
from histo_export.predict import run as run_module
from histo_export.predict.inputs import SlideInput
from histo_export.predict.readers import open_slide
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings, SlideSettings, TissueSettings
from histo_export.spec import ModelSpec

HISTO = str(Path(sys.executable).parent / "histo")
SETTINGS = PredictSettings(threads=2, batch=7)
OUTPUTS = {"tiles.csv", "tiles.geojson", "heatmap.png", "tissue.png", "summary.json", "done.json"}
OUTPUTS |= {"probabilities.ome.tiff", "index.html", "thumbnail.jpg"}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes' folders with five tiles each."""
    root = tmp_path_factory.mktemp("tiles") / "set"
    rng = np.random.default_rng(5)
    for name in CLASSES[:3]:
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (75, 75, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_slide(bundle: Path, large_slide_file: Path, tmp_path: Path) -> None:
    outcome = predict(bundle, [large_slide_file], tmp_path, SETTINGS)
    assert not outcome.failures
    folder = tmp_path / "large"
    assert content(folder).keys() == OUTPUTS
    assert {path.name for path in tmp_path.iterdir()} == {"large", "run.json", "index.html"}
    with (folder / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["minx", "miny", "width", "height", *(f"prob_{name}" for name in CLASSES)]
    # 75 pixels of 0.495 µm are 74 of 0.5 µm, and the 64 that are seen are 63.1 of them.
    assert {row["width"] for row in rows} == {"63"}
    slide = open_slide(large_slide_file)
    stride, offset = 64 * 74 / 75, 6 * 74 / 75
    places = [(round(int(row["minx"]) / stride), round(int(row["miny"]) / stride)) for row in rows]
    tiles = np.stack(
        [slide.tile(round(x * stride - offset), round(y * stride - offset), (74, 74), 75) for x, y in places]
    )
    expected = loop.softmax(Engine(bundle / "model.safetensors").run(tiles))
    found = np.array([[float(row[f"prob_{name}"]) for name in CLASSES] for row in rows])
    assert np.abs(found - expected).max() <= 6e-8
    features = json.loads((folder / "tiles.geojson").read_text())["features"]
    assert len(features) == len(rows) == outcome.done[0].tiles
    for feature, row, p in zip(features, rows, found, strict=True):
        corners = np.array(feature["geometry"]["coordinates"][0])
        assert corners.min(0).tolist() == [int(row["minx"]), int(row["miny"])]
        assert (corners[0] == corners[-1]).all()
        assert feature["properties"]["objectType"] == "tile"
        assert feature["properties"]["classification"]["name"] == CLASSES[p.argmax()]
        assert [0 <= part <= 255 for part in feature["properties"]["classification"]["color"]] == [True] * 3
        assert str(uuid.UUID(feature["id"])) == feature["id"]  # QuPath drops any other
        assert feature["properties"]["measurements"][f"prob_{CLASSES[2]}"] == pytest.approx(p[2], abs=1e-7)
    assert len({feature["id"] for feature in features}) == len(features)
    summary = json.loads((folder / "summary.json").read_text())
    areas = [facts["area_mm2"] for facts in summary["classes"].values()]
    ellipse = np.pi * (slide.height * 0.36) * (slide.width * 0.33) * 0.0005**2
    assert summary["tissue_mm2"] == pytest.approx(ellipse, rel=0.05)
    assert sum(areas) == pytest.approx(summary["tissue_mm2"], rel=0.05)  # squares with under 10 % tissue are not taken
    assert round(sum(areas) + summary["unanalysed_mm2"], 6) == summary["tissue_mm2"]
    for name in ("heatmap.png", "tissue.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 1.5 * figures.DPI


def test_every_run_writes_the_same_bytes_in_any_batch(bundle: Path, large_slide_file: Path, tmp_path: Path) -> None:
    predict(bundle, [large_slide_file], tmp_path / "a", SETTINGS)
    predict(bundle, [large_slide_file], tmp_path / "b", PredictSettings(threads=1, batch=32))
    assert content(tmp_path / "a/large") == content(tmp_path / "b/large")


def test_other_runtimes_agree(bundle: Path, slide_file: Path) -> None:
    settings = {"overlap": 0.5, "min_tissue": 0.5}
    native = histo_export.load(bundle).predict_slide(slide_file, **settings)
    other = histo_export.load(bundle, runtime="onnxruntime").predict_slide(slide_file, **settings)
    np.testing.assert_array_equal(native.grid.x, other.grid.x)
    np.testing.assert_allclose(native.probabilities, other.probabilities, atol=2e-5)


@pytest.mark.parametrize(("overlap", "stride"), [(0.0, 75), (0.5, 37.5), (0.0, None)])
def test_tiles_as_wsinfer_cuts_them_cover_the_slide_and_reach_over_its_edge(overlap: float, stride) -> None:
    from histo_export.predict.grid import make_grid, make_layout
    from histo_export.predict.tissue import Tissue

    spec = ModelSpec(1, CLASSES, crop=64, tile_size=75, mpp=0.5)
    um = {"stride_um": 60.0} if stride is None else {"overlap": overlap}
    step = stride or 120
    settings = SlideSettings(everything=True, grid="tile", **um)
    tissue = Tissue(np.ones((88, 125), np.bool_), (8.0, 8.0), 0, (0, 0, 1000, 700))
    grid, _ = make_grid((1000, 700), make_layout(spec, (0.5, 0.5), settings), settings, tissue)
    assert grid.size == (75, 75)
    assert len(grid) == -(-1000 // step) * -(-700 // step)
    assert grid.x.max() < 1000 <= grid.x.max() + max(grid.size[0], step)
    np.testing.assert_array_equal(np.unique(grid.x), np.rint(np.arange(0, 1000, step)))
    np.testing.assert_array_equal(grid.tile_corners, np.stack([grid.x, grid.y], 1))


def test_no_mpp_is_a_hint_and_not_a_guess(bundle: Path, pixels, write_tiff: Callable[..., Path], tmp_path) -> None:
    slide = write_tiff(tmp_path / "slide.tif", pixels, mpp=None)
    classifier = histo_export.load(bundle)
    with pytest.raises(HistoError, match=r"does not state its µm per pixel. State it with --mpp"):
        classifier.predict_slide(slide)
    assert len(classifier.predict_slide(slide, mpp=0.5).grid) > 20


def test_tiles_in_folders_of_classes_are_judged(bundle: Path, tile_folder: Path, tmp_path: Path) -> None:
    outcome = predict(bundle, [tile_folder], tmp_path, SETTINGS)
    assert not outcome.failures
    folder = tmp_path / "set"
    assert {"tiles.csv", "tiles.parquet", "summary.json", "confusion.png", "mistakes.png"} < content(folder).keys()
    with (folder / "tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(f"{name}/{i}.png" for name in CLASSES[:3] for i in range(5))
    tiles = np.stack([np.asarray(Image.open(tile_folder / row["path"])) for row in rows])
    prediction = histo_export.load(bundle).predict(tiles)
    assert [row["class"] for row in rows] == prediction.labels
    found = np.array([[float(row[f"prob_{name}"]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(found, prediction.probabilities, atol=6e-8)
    table = pq.read_table(folder / "tiles.parquet").to_pydict()
    assert table["class"] == prediction.labels
    assert table["path"] == [row["path"] for row in rows]
    np.testing.assert_array_equal(np.float32(table["prob_LYMPHO"]), prediction.probabilities[:, 3])
    right = sum(row["class"] == row["label"] for row in rows)
    test = json.loads((folder / "summary.json").read_text())["test"]
    assert test["accuracy"] == pytest.approx(right / 15)
    assert test["interval"][0] <= test["accuracy"] <= test["interval"][1]


def test_arrays_and_lists(bundle: Path, tile_folder: Path, tmp_path: Path) -> None:
    tiles = np.random.default_rng(2).integers(0, 256, (40, 75, 75, 3), dtype=np.uint8)
    np.save(tmp_path / "array.npy", tiles)
    names = [f"{CLASSES[0]}/{i}.png" for i in (3, 1)]
    (tile_folder / "some.txt").write_text("# two\n" + "\n".join(names) + "\n")
    out = tmp_path / "out"
    outcome = predict(bundle, [tmp_path / "array.npy", tile_folder / "some.txt"], out, SETTINGS)
    assert not outcome.failures
    with (out / "array/tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"array.npy[{i}]" for i in range(40)]
    assert [row["class"] for row in rows] == histo_export.load(bundle).predict(tiles).labels
    with (out / "some/tiles.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["3.png", "1.png"]


def test_bad_inputs_end_nothing(
    bundle: Path, slide_file: Path, large_slide_file: Path, tmp_path: Path, write_tiff: Callable[..., Path]
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "text.svs").write_text("hello")
    cut = inputs / "cut.svs"
    cut.write_bytes(large_slide_file.read_bytes()[: large_slide_file.stat().st_size // 3])
    tiles = inputs / "tiles"
    tiles.mkdir()
    Image.new("RGB", (75, 75), (200, 120, 170)).save(tiles / "good.png")
    Image.new("RGB", (80, 75)).save(tiles / "wide.png")
    (tiles / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    np.save(inputs / "floats.npy", np.zeros((2, 75, 75, 3), np.float32))
    out = tmp_path / "out"
    paths = [inputs / "text.svs", cut, tiles, inputs / "floats.npy", inputs / "absent", large_slide_file]
    outcome = predict(bundle, paths, out, SETTINGS)
    assert {done.name for done in outcome.done} == {"tiles", "large"}
    failed = {Path(failure.path).name: failure.reason for failure in outcome.failures}
    assert failed.keys() == {"text.svs", "cut.svs", "wide.png", "broken.png", "floats.npy", "absent"}
    assert "80×75 pixels, and the model takes 75×75. Add --resize" in failed["wide.png"]
    assert "float32" in failed["floats.npy"]
    with (out / "failed.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert {path.name for path in out.iterdir()} == {"tiles", "large", "run.json", "index.html", "failed.csv"}
    assert pq.read_table(out / "tiles/tiles.parquet").num_rows == 1


def test_resize(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (150, 150), (200, 120, 170)).save(tmp_path / "in/tile.png")
    settings = PredictSettings(threads=1, resize="bilinear")
    done = predict(bundle, [tmp_path / "in"], tmp_path / "out", settings).done[0]
    assert (done.tiles, done.summary["warnings"]) == (1, [])


def test_tiles_that_are_enlarged_are_told_and_specks_are_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for side in (14, 30, 75):
        Image.new("RGB", (side, side), (200, 120, 170)).save(tmp_path / f"in/{side}.png")
    outcome = predict(bundle, [tmp_path / "in"], tmp_path / "out", PredictSettings(threads=1, resize="bilinear"))
    (warning,) = outcome.done[0].summary["warnings"]
    assert warning.startswith("1 of 2 tiles are enlarged, up to 2.5 times, and lack details")
    (failure,) = outcome.failures
    assert (failure.path, failure.reason[:50]) == ("14.png", "is 14×14 pixels, which would be enlarged 5.36 time")


def test_a_killed_run_is_finished_by_the_same_command(bundle: Path, large_slide_file: Path, tmp_path: Path) -> None:
    """Killed with one slide done and the other under way; what is done is not done again."""
    second = tmp_path / "second.tiff"
    second.write_bytes(large_slide_file.read_bytes())
    inputs = [str(large_slide_file), str(second)]
    options = ["--batch", "1", "--threads", "1", "--quiet"]

    def command(out: Path) -> list[str]:
        return [HISTO, "predict", str(bundle), *inputs, *options, "--out", str(out)]

    out = tmp_path / "killed"
    process = subprocess.Popen(command(out))
    deadline = time.monotonic() + 120
    while not list(out.glob(".second.partial-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "second").exists()
    before = (out / "large/done.json").stat().st_mtime_ns
    assert subprocess.run(command(out), check=False).returncode == 0
    assert (out / "large/done.json").stat().st_mtime_ns == before
    assert subprocess.run(command(tmp_path / "whole"), check=False).returncode == 0
    for name in ("large", "second"):
        assert content(out / name) == content(tmp_path / "whole" / name)
    assert not list(out.glob(".*"))


def test_a_set_goes_on_where_it_was_ended(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    """By whatever: shards that are there are not run again, and the result is that of a run in one piece."""
    tiles = np.random.default_rng(2).integers(0, 256, (50, 75, 75, 3), dtype=np.uint8)
    np.save(tmp_path / "array.npy", tiles)
    predict(bundle, [tmp_path / "array.npy"], tmp_path / "one", SETTINGS)
    monkeypatch.setattr(run_module, "SHARD", 16)

    def end(progress: run_module.Progress) -> None:
        if progress.all_done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(bundle, [tmp_path / "array.npy"], tmp_path / "two", SETTINGS, report=end)
    (hidden,) = (tmp_path / "two").iterdir()
    assert sorted(path.name for path in hidden.iterdir()) == ["0000000000.npz", "0000000016.npz"]
    (done,) = predict(bundle, [tmp_path / "array.npy"], tmp_path / "two", SETTINGS).done
    assert (done.tiles, done.run) == (50, 18)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"array", "run.json", "index.html"}
    assert content(tmp_path / "one/array") == content(tmp_path / "two/array")


def test_a_damaged_shard_is_made_anew(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "array.npy", np.zeros((20, 75, 75, 3), np.uint8))
    monkeypatch.setattr(run_module, "SHARD", 16)

    def end(progress: run_module.Progress) -> None:
        if progress.all_done > 16:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(bundle, [tmp_path / "array.npy"], out, SETTINGS, report=end)
    (shard,) = out.glob(".array.shards-*/*.npz")
    shard.write_bytes(shard.read_bytes()[:100])
    (failure,) = predict(bundle, [tmp_path / "array.npy"], out, SETTINGS).failures
    assert "is damaged" in failure.reason
    (done,) = predict(bundle, [tmp_path / "array.npy"], out, SETTINGS).done
    assert (done.tiles, done.run) == (20, 20)


def test_a_full_disk_leaves_nothing_and_is_listed(
    bundle: Path, slide_file: Path, large_slide_file: Path, tmp_path: Path, monkeypatch
) -> None:
    from histo_export.predict import whole_slide

    write = whole_slide.SlidePrediction.write

    def full(self: whole_slide.SlidePrediction, folder: Path, **options: bool) -> None:
        if self.name == "large.tiff":
            (folder / "tiles.csv").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, folder, **options)

    monkeypatch.setattr(whole_slide.SlidePrediction, "write", full)
    settings = PredictSettings(threads=1, slide=SlideSettings(min_tissue=0.9))
    other = tmp_path / "other.svs"
    other.write_bytes(large_slide_file.read_bytes())
    outcome = predict(bundle, [large_slide_file, other], tmp_path / "out", settings)
    assert [done.name for done in outcome.done] == ["other"]
    assert "No space left" in outcome.failures[0].reason
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"other", "run.json", "index.html", "failed.csv"}


def test_output_inside_of_the_input_and_inputs_of_one_name(bundle: Path, tmp_path: Path) -> None:
    """The second run finds the results of the first and takes none of them for tiles; a new input renames nothing."""
    root = tmp_path / "sets"
    for i, folder in enumerate(("p2/HE", "p1/HE")):
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (75, 75), (200, 20 * i, 170)).save(root / folder / "a.png")
        outcome = predict(bundle, [root / "p1/HE", root / "p2/HE"][1 - i :], root / "predictions", SETTINGS)
        assert not outcome.failures
    new, old = outcome.done
    assert (old.name, old.run) == ("HE", 0)
    assert (new.name[:3], new.run) == ("HE-", 1)
    sources = {json.loads(file.read_text())["source"] for file in root.glob("predictions/*/done.json")}
    assert sources == {str(root / "p1/HE"), str(root / "p2/HE")}
    outcome = predict(bundle, [root], root / "predictions", SETTINGS)
    assert [(done.name, done.tiles) for done in outcome.done] == [("sets", 2)]
    outcome = predict(bundle, [root], root / "predictions", SETTINGS)
    assert [(done.tiles, done.run) for done in outcome.done] == [(2, 0)]
    skipped = {
        kind["kind"]: kind["count"] for kind in json.loads((root / "predictions/run.json").read_text())["skipped"]
    }
    # The records of the three runs before, and their page.
    assert skipped == {"results of histo": 3, "files of other types": 4}


def test_what_is_left_out_is_told(bundle: Path, histo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (75, 75)).save(tmp_path / "in/a.png")
    (tmp_path / "in/[red]notes.xml").touch()
    (tmp_path / "list.csv").write_text("case;tile\n1;in/a.png\n")
    inputs = [tmp_path / "in", tmp_path / "list.csv"]
    code, _, err = histo("predict", bundle, *inputs, "--out", tmp_path / "out", "--threads", 1)
    assert code == 0
    assert f"left out: 1 files of other types, e.g. {tmp_path}/in/[red]notes.xml" in err
    assert "left out: 1 files and folders that were reached before" in err
    assert "list.csv: column 2 (tile), separated by semicolon" in err


def test_results_of_other_settings_are_not_mixed(bundle: Path, tile_folder: Path, tmp_path: Path) -> None:
    predict(bundle, [tile_folder / "TUMOR"], tmp_path, SETTINGS)
    again = predict(bundle, [tile_folder / "TUMOR"], tmp_path, SETTINGS)
    assert (again.done[0].tiles, again.done[0].run) == (5, 0)
    other = PredictSettings(threads=2, resize="bilinear")
    with pytest.raises(UsageError, match=r"other settings or a changed input. Add --force"):
        predict(bundle, [tile_folder / "TUMOR"], tmp_path, other)
    assert predict(bundle, [tile_folder / "TUMOR"], tmp_path, other, force=True).done[0].run == 5
    foreign = tmp_path / "foreign"
    (foreign / "TUMOR").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not a result of histo predict"):
        predict(bundle, [tile_folder / "TUMOR"], foreign, other, force=True)


@pytest.fixture(scope="module")
def int8_bundle(
    bundle: Path,
    copy_bundle: Callable[[Path, Path], Path],
    checkpoint: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same network with scales, made for int8."""
    folder = copy_bundle(bundle, tmp_path_factory.mktemp("int8") / "int8")
    file = folder / "model.safetensors"
    file.unlink()
    file.write_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec, noise_scales(checkpoint)))
    config = json.loads((folder / "config.json").read_text())
    figures = {"accuracy": 1, "interval": [0.9, 1], "agreement": 1, "drop": 0, "measured_with": "nothing"}
    low = {"tiles": 1, "fingerprint": "", "max_drop": 0.5, "drop_accepted": False, "not_native": {}}
    low["precisions"] = {"fp32": figures, "int8": figures}
    config["histo"] |= {"precision": "int8", "low_precision": low}
    config["histo"]["files"]["model.safetensors"] = entry(file.read_bytes()).model_dump()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_bundle_runs_in_its_own_precision(int8_bundle: Path, tile_folder: Path, tmp_path: Path) -> None:
    if reason := precision_support()["int8"].reason:
        pytest.skip(reason)
    tiles = [tile_folder / "TUMOR"]
    (executed,) = predict(int8_bundle, tiles, tmp_path, SETTINGS).executed
    assert executed.startswith("cpu int8, ")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["executed"] == [executed]
    assert (record["settings"]["runtime"], record["settings"]["precision"]) == ("native-int8", "int8")
    assert json.loads((tmp_path / "TUMOR/summary.json").read_text())["executed"] == executed
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(tiles[0].iterdir())])
    expected = loop.softmax(Engine(int8_bundle / "model.safetensors", precision="int8").run(pixels))
    table = pq.read_table(tmp_path / "TUMOR/tiles.parquet").to_pydict()
    np.testing.assert_array_equal(np.float32(table["prob_TUMOR"]), expected[:, 0])

    # Asked for by name it is the same result; in another precision it is another, which does not take its place.
    named = PredictSettings(threads=1, precision="int8")
    assert predict(int8_bundle, tiles, tmp_path, named).done[0].run == 0
    other = PredictSettings(threads=1, precision="fp32")
    with pytest.raises(UsageError, match=r"other settings or a changed input. Add --force"):
        predict(int8_bundle, tiles, tmp_path, other)
    assert predict(int8_bundle, tiles, tmp_path, other, force=True).done[0].run == 5
    assert json.loads((tmp_path / "TUMOR/summary.json").read_text())["executed"].startswith("cpu fp32, ")


def test_a_slides_summary_tells_what_was_executed(bundle: Path, large_slide_file: Path, tmp_path: Path) -> None:
    (executed,) = predict(bundle, [large_slide_file], tmp_path, SETTINGS).executed
    assert json.loads((tmp_path / "large/summary.json").read_text())["executed"] == executed


def test_a_precision_is_never_replaced(int8_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="torchscript in int8: is unavailable"):
        histo_export.load(int8_bundle, runtime="torchscript")
    assert histo_export.load(int8_bundle, runtime="torchscript", precision="fp32").runtime.executed == "cpu fp32"
    with pytest.raises(HistoError, match=r"has no model-int8\.onnx, which onnxruntime-int8 runs"):
        histo_export.load(int8_bundle, runtime="onnxruntime")
    reason = precision_support()["int8"].reason or "has no scales for int8"
    with pytest.raises(HistoError, match=re.escape(reason)):
        histo_export.load(bundle, precision="int8")
    monkeypatch.setenv("HISTO_ISA", "portable")
    with pytest.raises(HistoError, match="precision int8 needs AVX2 with VNNI, AVX-512 with VNNI, or AMX"):
        histo_export.load(int8_bundle)


def test_names_that_are_not_utf8(bundle: Path, large_slide_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (75, 75)).save(folder / "good.png")
    (folder / "good.png").rename(folder / os.fsdecode(b"\xff,.png"))
    (folder / os.fsdecode(b"\xfe.tiff")).write_bytes(large_slide_file.read_bytes())
    outcome = predict(bundle, [tmp_path / "in"], tmp_path / "out", PredictSettings(threads=1))
    assert not outcome.failures
    assert sorted(done.tiles for done in outcome.done)[0] == 1
    with (tmp_path / "out/in/tiles.csv").open() as file:
        assert next(csv.DictReader(file))["path"] == "\ufffd,.png"


class Failing:
    name = "failing"

    def run(self, tiles):
        raise RuntimeError("out of order")

    def batch_target(self):
        return self


def test_a_failing_runtime_or_reader_is_not_a_lost_tile() -> None:
    tile = np.zeros((64, 64, 3), np.uint8)

    spec = ModelSpec(1, ("A", "B"), crop=64, tile_size=64)

    def run(runtime, read):
        return loop.TileLoop(runtime, spec, batch=2, readers=2).run(range(9), read, lambda *_: None)

    with pytest.raises(HistoError, match=r"failing: failed \(RuntimeError: out of order\)"):
        run(Failing(), lambda job: tile)

    def broken(job):
        return tile[job // 5 * 99]

    class Zeros(Failing):
        name = "zeros"

        def run(self, tiles):
            return np.zeros((len(tiles), 2), np.float32)

    with pytest.raises(IndexError):
        run(Zeros(), lambda job: broken(job) if job > 4 else tile)


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return histo_export.load(bundle)


def test_threads_0_are_all_usable_cpus(bundle: Path, classifier: Classifier) -> None:
    assert classifier.threads == classifier.runtime.engine.info()["threads"] == usable_cpus()
    assert histo_export.load(bundle, threads=0).threads == usable_cpus()


def test_tiles_are_taken_as_programs_have_them(classifier: Classifier, tmp_path: Path) -> None:
    tiles = np.random.default_rng(5).integers(0, 256, (3, 75, 75, 3), dtype=np.uint8)
    expected = classifier.predict(tiles)
    assert len(expected) == 3
    assert repr(expected) == "<TilePrediction: 3 tiles, 6 classes>"
    assert expected.labels == [CLASSES[i] for i in expected.probabilities.argmax(1)]
    images = [Image.fromarray(tile) for tile in tiles]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    several = [
        *(list(tiles), iter(tiles), images, paths, list(map(str, paths)), torch.from_numpy(tiles)),
        [paths[0], images[1], torch.from_numpy(tiles[2])],
    ]
    for source in several:
        np.testing.assert_array_equal(classifier.predict(source, batch=2).logits, expected.logits)
    for single in (tiles[1], images[1], paths[1], str(paths[1]), torch.from_numpy(tiles[1])):
        np.testing.assert_array_equal(classifier.predict(single).logits, expected.logits[1:2])


@pytest.mark.parametrize(
    ("tiles", "error", "message"),
    [
        (np.zeros((1, 75, 75, 3), np.float32), UsageError, r"tiles\[0\]: is float32 \(75, 75, 3\). Give paths, PIL"),
        (np.zeros((2, 3, 75, 75), np.uint8), UsageError, r"tiles\[0\]: is uint8 \(3, 75, 75\)"),
        (np.zeros((0, 75, 75, 3), np.uint8), UsageError, "tiles: is empty"),
        (np.zeros((75, 75), np.uint8), UsageError, r"tiles\[0\]: is uint8 \(75, 75\)"),
        (np.array(3, np.uint8), UsageError, r"tiles\[0\]: is uint8 \(\)"),
        ([], UsageError, "tiles: is empty"),
        (b"\x89PNG", UsageError, r"tiles: is bytes. To decode .*: PIL.Image.open\(io.BytesIO\(tile\)\)"),
        ([b"\x89PNG"], UsageError, r"tiles\[0\]: is bytes. To decode"),
        ({"a.png": 3}, UsageError, "tiles: is dict. Give paths"),
        (None, UsageError, "tiles: is NoneType. Give paths"),
        ([3], UsageError, r"tiles\[0\]: is int"),
        (
            [np.zeros((75, 75, 3), np.uint8), np.zeros((90, 80, 3), np.uint8)],
            HistoError,
            r"tiles\[1\]: is 80×90",
        ),
        (
            Image.new("RGB", (40, 40)),
            HistoError,
            r"tiles\[0\]: is 40×40 pixels, .* takes 75×75. Give resize=",
        ),
        (Image.new("RGBA", (75, 75)), HistoError, r"tiles\[0\]: has 5,625 transparent pixels"),
        (Image.new("CMYK", (75, 75)), HistoError, r"tiles\[0\]: has PIL mode CMYK"),
        ("nowhere.png", HistoError, "nowhere.png: does not exist"),
        (
            Path(__file__).parent,
            UsageError,
            "predict: is a folder, not a tile. Give the paths of the images in it, or run histo",
        ),
    ],
)
def test_what_is_no_tile_is_refused(classifier: Classifier, tiles: Any, error: type[HistoError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        classifier.predict(tiles)
    assert len(str(caught.value).replace(str(Path(__file__).parent), "")) < 200


def test_a_closed_image_is_named(classifier: Classifier, tmp_path: Path) -> None:
    """Of one that was never decoded, and of one that was, Pillow raised errors of two kinds."""
    Image.new("RGB", (75, 75)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as unread:
        pass
    with Image.open(tmp_path / "a.png") as read:
        read.load()
    read.close()
    for image in (unread, read):
        with pytest.raises(HistoError, match=r"tiles\[0\]: cannot be decoded .*\. Give an image that is open"):
            classifier.predict([image])


def test_tiles_of_another_size_are_resized_as_the_command_does(
    classifier: Classifier, bundle: Path, tmp_path: Path
) -> None:
    image = Image.fromarray(np.random.default_rng(6).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png")
    settings = PredictSettings(threads=1, resize="bicubic")
    assert not predict(bundle, [tmp_path / "in"], tmp_path / "out", settings).failures
    with (tmp_path / "out/in/tiles.csv").open() as file:
        row = next(csv.DictReader(file))
    found = classifier.predict(image, resize="bicubic").probabilities[0]
    np.testing.assert_allclose([float(row[f"prob_{name}"]) for name in CLASSES], found, atol=6e-8)
    with pytest.raises(HistoError, match=r"enlarged 7.5 times"):
        classifier.predict(image.resize((10, 10)), resize="bilinear")
    with pytest.raises(UsageError, match="resize='nearest': is unknown"):
        classifier.predict(image, resize="nearest")
    for batch in (0, "8", 2.5):
        with pytest.raises(UsageError, match=re.escape(f"batch={batch!r}: is not a number of tiles")):
            classifier.predict(image, batch=batch)  # type: ignore[arg-type]


def test_the_examples_of_the_guide_run(
    bundle: Path, slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Tiles and slides\n(.*?)^## ", guide, re.DOTALL | re.MULTILINE)
    examples = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(examples) >= 4
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "slide.tif").symlink_to(slide_file)
    (tmp_path / "tiles").mkdir()
    for name in "ab":
        Image.new("RGB", (75, 75), (ord(name), 90, 160)).save(tmp_path / "tiles" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)
    assert len(names["prediction"]) == len(names["files"]) == 2
    assert (tmp_path / "results/slide/summary.json").is_file()
    assert set(histo_export.load.__kwdefaults__) == {"runtime", "precision", "threads", "device"}, "the guide has all"


def test_a_training_run_is_not_a_bundle(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "last.ckpt").touch()
    with pytest.raises(UsageError, match=f"is a training run, not a bundle.*: histo export '{run}/last.ckpt'"):
        histo_export.load(run)
    (run / "best.ckpt").touch()
    with pytest.raises(UsageError, match=f"is a training run, not a bundle.*: histo export '{run}'"):
        histo_export.load(run)


def test_arguments_of_the_interface(bundle: Path) -> None:
    classifier = histo_export.load(bundle, threads=1)
    for argument, value, message in (
        *(("runtime", "fast", "runtime fast: is unknown"), ("runtime", "", "runtime '': is unknown. histo doctor")),
        *(("runtime", None, "runtime None: is not a name. histo doctor"), ("runtime", 3, "runtime 3: is not a name")),
        *(("precision", "foo", "precision foo: is unknown. Choose from fp32, bf16x3, bf16, int8."),),
        *(("precision", "", "precision '': is unknown"), ("precision", 8, "precision 8: is unknown")),
        *(("device", "gpu", "device gpu: is unknown. Use cpu or cuda."), ("device", None, "device None: is unknown")),
        *(("threads", -1, "threads=-1: is not 0 or more"), ("threads", "2", "threads='2': is not 0 or more")),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            histo_export.load(bundle, **{argument: value})
    for path, what in ((None, "NoneType, not a path"), (3, "int, not a path"), (b"x", "bytes, not"), ("", "empty")):
        with pytest.raises(UsageError, match=rf"bundle: is {what}.*Name a folder that histo export wrote\.$"):
            histo_export.load(path)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"path: is {what}.*Name the file of a slide\.$"):
            classifier.predict_slide(path)  # type: ignore[arg-type]
    with pytest.raises(HistoError, match=r"predict: is a folder"):
        classifier.predict_slide(Path(__file__).parent)
    assert classifier.threads == 1
    assert classifier.classes == CLASSES
    assert repr(classifier) == "<Classifier: 6 classes, tiles of 75×75 pixels, native (C++)>"
    with pytest.raises(UsageError, match="overlap"):
        SlideSettings(overlap=1.0)


def test_the_command(bundle: Path, tile_folder: Path, tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [HISTO, "predict", str(bundle), str(tile_folder / "TUMOR")]
        command += ["--out", str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = run("--verbose")
    assert shown.returncode == 0, shown.stderr
    assert "TUMOR" in shown.stdout
    assert "tiles/s" in shown.stdout
    again = run("--json", "--quiet")
    assert json.loads(again.stdout)["inputs"][0]["run"] == 0
    assert json.loads(again.stdout)["executed"] == []
    assert "Executed: cpu fp32, " in shown.stdout
    for option, value in (("--runtime", "nativ"), ("--precision", "int4")):
        wrong = run(option, value)
        assert wrong.returncode == 2
        assert f"{option} {value}" in wrong.stderr
    assert "Did you mean native?" in run("--runtime", "nativ").stderr


def test_sets_of_tiles_need_no_package_for_slides() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('scipy', 'openslide', 'tifffile'))\n"
        "import histo_export.predict.run, histo_export.predict.pictures, histo_export.cli"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["slide", "tiles"])
def test_an_impossible_option_is_not_the_fault_of_an_input(
    histo: Callable[..., tuple[int, str, str]],
    bundle: Path,
    large_slide_file: Path,
    tile_folder: Path,
    tmp_path: Path,
    name: str,
) -> None:
    source = large_slide_file if name == "slide" else tile_folder
    code, out, err = histo("predict", bundle, source, "--overlap", 2, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err == "histo: --overlap 2: is not in 0 to 0.95. Use e.g. --overlap 0.5.\n"
    assert not list(tmp_path.iterdir())


def test_settings_are_the_same_on_another_machine(large_slide_file: Path) -> None:
    """Ray pickles the settings; the key of a result is made of their values, whatever made them."""
    settings = PredictSettings(slide=SlideSettings(overlap=0.5, tissue=TissueSettings(closing_um=20)))
    assert pickle.loads(pickle.dumps(settings)) == settings
    item = SlideInput(large_slide_file)
    key = run_module._key(item, "model", settings)
    assert run_module._key(item, "model", replace(settings, batch=1, threads=7)) == key
    changes = ({"min_tissue": 0.2}, {"tissue": TissueSettings()}, {"grid": "tile"}, {"resample": "bicubic"})
    others = [replace(settings, slide=replace(settings.slide, **each)) for each in changes]
    assert len({key, *(run_module._key(item, "model", other) for other in others)}) == 5


def test_results_of_an_older_version_are_those_of_other_settings(
    bundle: Path, slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "slide.svs"
    other.write_bytes(slide_file.read_bytes())
    settings = PredictSettings(threads=1, slide=SlideSettings(min_tissue=0.9))
    monkeypatch.setattr(run_module, "RESULTS", run_module.RESULTS - 1)
    predict(bundle, [other], tmp_path / "out", settings)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="other settings or a changed input"):
        predict(bundle, [other], tmp_path / "out", settings)
