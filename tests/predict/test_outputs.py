"""What other programs read of a slide: probabilities as OME-TIFF, pictures of tiles, feature vectors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from histo_export import HistoError, UsageError
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.predict import work
from histo_export.predict.coords import read_coords
from histo_export.predict.features import FeaturePlaces, VectorStore, write_hdf5, write_parquet
from histo_export.predict.inputs import SlideInput
from histo_export.predict.names import plain_name
from histo_export.predict.ome_tiff import write_probabilities
from histo_export.predict.readers import open_slide
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from histo_export.predict.tile_images import tile_images, tile_name
from histo_export.runtimes.native import NativeRuntime
from stub_model import SIDE, SPEC, StubRuntime, stub_model

from .test_geometry import ArraySlide, coloured, run

HOSTILE = "a<b>&\"'</Name>"


@pytest.mark.parametrize("settings", [{}, {"overlap": 0.5}, {"stride_um": 50.0, "grid": "tile"}], ids=str)
def test_probabilities_can_be_read_as_ome_tiff(tmp_path: Path, settings) -> None:
    prediction = run(ArraySlide(coloured(), (0.5, 0.5)), min_tissue=0.5, **settings)
    path = tmp_path / "p.ome.tiff"
    grid = prediction.grid
    classes = (HOSTILE, *prediction.classes[1:])
    assert write_probabilities(path, grid, prediction.probabilities, classes, prediction.mpp)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        series = file.series[0]
        assert series.axes == "CYX"
        planes = series.asarray()
        facts = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert planes.dtype == np.float32
    assert planes.shape == (3, len(grid.rows.start), len(grid.columns.start))
    np.testing.assert_array_equal(planes[:, grid.row, grid.column].T, prediction.probabilities)
    assert np.isfinite(planes).sum() == prediction.probabilities.size, "NaN where nothing was run"
    assert [channel["Name"] for channel in facts["Channel"]] == list(classes)
    assert facts["PhysicalSizeX"] == pytest.approx(grid.layout.stride[0] * 0.5)
    assert facts["PhysicalSizeXUnit"] == "µm"
    write_probabilities(tmp_path / "again.ome.tiff", grid, prediction.probabilities, classes, prediction.mpp)
    assert path.read_bytes() == (tmp_path / "again.ome.tiff").read_bytes()


def test_squares_without_a_common_stride_give_no_ome_tiff(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n0,0\n100,0\n170,50\n", encoding="utf-8")
    run(ArraySlide(coloured()), coords=str(tmp_path / "p.csv")).write(tmp_path / "out")
    assert not (tmp_path / "out/probabilities.ome.tiff").exists()


SETTINGS = PredictSettings(threads=2, batch=4)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_tiles_are_written_as_the_network_gets_them(large_slide_file: Path, tmp_path: Path, kind) -> None:
    with stub_model(tmp_path / "bundle", replace(SPEC, tile_size=40)) as bundle:
        settings = replace(SETTINGS, tiles_out=str(tmp_path / "tiles"), tiles_format=kind)
        (done,) = predict(bundle, [large_slide_file], tmp_path / "out", settings).done
        files = sorted((tmp_path / "tiles" / "large").iterdir())
        assert len(files) == done.tiles > 100
        slide = open_slide(large_slide_file)
        for file in files[:: len(files) // 7]:
            x, y = (int(part[1:]) for part in file.stem.split("_")[1:])
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image), slide.tile(x, y, (40, 40), 40))
        slide.close()

        # The tiles give the same probabilities again, and what is there already is not replaced.
        outcome = predict(bundle, [large_slide_file], tmp_path / "out", settings, force=True)
        assert outcome.done[0].run == 0, "done before"
        outcome = predict(bundle, [large_slide_file], tmp_path / "other", settings)
        (failure,) = outcome.failures
        assert failure.path == str(tmp_path / "tiles/large")
        assert "exists already, and is not replaced" in failure.reason
        assert not (tmp_path / "other/large").exists()
        with pytest.raises(UsageError, match="other settings"):
            predict(
                bundle,
                [large_slide_file],
                tmp_path / "out",
                replace(settings, tiles_format="webp" if kind == "png" else "png"),
            )


@pytest.mark.parametrize("name", ["../../up", "..", "a/b", "/etc/x", ".hidden", "con", "a\nb", "x" * 300, "ü\udcff"])
def test_names_of_tiles_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    plain = plain_name(SlideInput(Path("/slides") / f"{name.replace('/', chr(92))}.svs"))[:200]
    with tile_images(tmp_path / "tiles", plain, "png") as keep:
        keep((-12, 3_000_000), np.zeros((4, 4, 3), np.uint8))
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file.parent.parent == tmp_path / "tiles"
    assert file.name == tile_name(plain, (-12, 3_000_000), "png")
    assert len(os.fsencode(file.name)) <= 255


def test_a_full_disk_leaves_no_tiles(large_slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("histo_export.predict.tile_images.Image.Image.save", full)
    with stub_model(tmp_path / "bundle") as bundle:
        settings = replace(SETTINGS, tiles_out=str(tmp_path / "tiles"))
        (failure,) = predict(bundle, [large_slide_file], tmp_path / "out", settings).failures
    assert failure.path == str(tmp_path / "tiles/large")
    assert "Free some space or choose another --tiles-out" in failure.reason
    assert not (tmp_path / "tiles").exists()


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("out", "lies in"),
        ("out/tiles", "lies in"),
        ("file", "is a file"),
        ("file/below", "which is a file"),
        ("bundle/x", "would put results into the bundle"),
    ],
)
def test_places_that_are_not_for_tiles(large_slide_file: Path, tmp_path: Path, place: str, cause: str) -> None:
    (tmp_path / "file").touch()
    with stub_model(tmp_path / "bundle") as bundle:
        settings = replace(SETTINGS, tiles_out=str(tmp_path / place))
        with pytest.raises(UsageError, match=f"{cause}.*Choose another --tiles-out"):
            predict(bundle, [large_slide_file], tmp_path / "out", settings)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "bundle"}


def test_the_option_is_checked(histo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = histo("predict", tmp_path, tmp_path, "--tiles-format", "gif")
    assert (code, "--tiles-format gif: is unknown. Use png or webp" in err) == (2, True)


PLACES = FeaturePlaces("a.svs", np.array([[0, 5], [75, 5], [-3, 80]]), (75, 75), 150, (0.25, 0.25))
VECTORS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def test_features_are_read_as_clam_and_trident_do(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason='features need pip install "histo-export[features]"')
    for name in ("a.h5", "b.h5"):
        write_hdf5(tmp_path / name, PLACES, 8, [VECTORS[:2], VECTORS[2:]])
    with h5py.File(tmp_path / "a.h5") as file:
        assert sorted(file) == ["coords", "features"]
        np.testing.assert_array_equal(file["features"][:], VECTORS)
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(file["coords"][:], PLACES.corners)
        attributes = dict(file["coords"].attrs)
    assert attributes["patch_size_level0"] == attributes["patch_size"] == 75
    assert (attributes["patch_level"], attributes["name"], attributes["tile_size"]) == (0, "a.svs", 150)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    found = read_coords(tmp_path / "a.h5")  # the places can be given again
    np.testing.assert_array_equal(found.corners, PLACES.corners)
    assert found.size == (75, 75)


def test_features_as_parquet(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason='Parquet needs pip install "histo-export[report]"')
    write_parquet(tmp_path / "a.parquet", PLACES, 8, [VECTORS[:1], VECTORS[1:]])
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["x", "y", "features"]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), VECTORS)
    np.testing.assert_array_equal(np.stack([table["x"], table["y"]], 1), PLACES.corners)


@pytest.mark.parametrize(
    "vectors",
    [[VECTORS[:2]], [VECTORS, VECTORS[:1]], [VECTORS[:, :7]], [VECTORS[0]]],
    ids=["few", "many", "short", "flat"],
)
def test_vectors_that_are_not_those_of_the_tiles_are_refused(tmp_path: Path, vectors) -> None:
    with pytest.raises(ValueError, match="vectors"):
        write_parquet(tmp_path / "a.parquet", PLACES, 8, vectors)


def test_vectors_come_in_any_order_and_leave_in_that_of_the_tiles() -> None:
    vectors = np.random.default_rng(1).normal(size=(2500, 3)).astype(np.float32)
    store = VectorStore(2500, 3)
    for part in np.array_split(np.random.default_rng(2).permutation(2500), 40):
        store.put(part, vectors[part])
    np.testing.assert_array_equal(np.concatenate(list(store.batches())), vectors)
    store.close()


class WithFeatures(StubRuntime):
    """Its feature vector is the mean of each channel."""

    features = 3

    def run_with_features(self, tiles: Any) -> Any:
        return np.concatenate([self.run(tiles), tiles.mean((1, 2)).astype(np.float32)], axis=1)


@pytest.mark.parametrize("kind", ["h5", "parquet"])
def test_the_features_of_a_slide(large_slide_file: Path, tmp_path: Path, kind: str) -> None:
    reader = pytest.importorskip({"h5": "h5py", "parquet": "pyarrow.parquet"}[kind])
    settings = replace(SETTINGS, features=kind)
    with stub_model(tmp_path / "bundle") as bundle, pytest.MonkeyPatch.context() as patch:
        with pytest.raises(UsageError, match=r"stub: gives logits only, and no feature vectors\. Use --runtime native"):
            predict(bundle, [large_slide_file], tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
        patch.setattr(work, "open_model", lambda *_: WithFeatures())
        plain = predict(bundle, [large_slide_file], tmp_path / "plain", SETTINGS)
        outcome = predict(bundle, [large_slide_file], tmp_path / "out", settings)
    assert not outcome.failures
    assert outcome.done[0].tiles == plain.done[0].tiles
    folder = tmp_path / "out/large"
    tables = [(each / "large/tiles.csv").read_bytes() for each in (tmp_path / "out", tmp_path / "plain")]
    assert tables[0] == tables[1]
    if kind == "h5":
        with reader.File(folder / "features.h5") as file:
            corners, features = file["coords"][:], file["features"][:]
    else:
        table = reader.read_table(folder / "features.parquet")
        corners = np.stack([table["x"], table["y"]], 1)
        features = np.array(table["features"].to_pylist())
    assert len(corners) == len(features) == outcome.done[0].tiles
    slide = open_slide(large_slide_file)
    for (x, y), vector in list(zip(corners.tolist(), features, strict=True))[::40]:
        np.testing.assert_allclose(slide.tile(x, y, (SIDE, SIDE), SIDE).mean((0, 1)), vector, rtol=1e-6)
    slide.close()
    assert f"features.{kind}" in (folder / "index.html").read_text(encoding="utf-8")


def test_the_native_engine_gives_the_embedding(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(native_bytes(lower(checkpoint.net(), checkpoint.spec), checkpoint.spec))
    runtime = NativeRuntime(path, threads=1)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 75, 75, 3), dtype=np.uint8)
    both = runtime.run_with_features(tiles)
    assert runtime.features == 512 * 3 * 3
    assert both.shape == (3, len(checkpoint.spec.classes) + runtime.features)
    np.testing.assert_array_equal(both[:, : len(checkpoint.spec.classes)], runtime.run(tiles))
    weight, bias = (checkpoint.state_dict[f"fc.{name}"].numpy() for name in ("weight", "bias"))
    logits = both[:, len(checkpoint.spec.classes) :] @ weight.T + bias
    np.testing.assert_allclose(logits, runtime.run(tiles), rtol=1e-3, atol=1e-3)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histo_export.extras.find_spec", lambda module: None)
    with pytest.raises(HistoError, match=r'h5py, which is not installed. Run pip install "histo-export\[features\]"'):
        read_coords(tmp_path / "a.h5")
    with pytest.raises(HistoError, match=r"histo-export\[features\]"):
        write_hdf5(tmp_path / "a.h5", PLACES, 8, [VECTORS])
