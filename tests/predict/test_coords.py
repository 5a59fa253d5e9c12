"""Tiles at the places of another tool's patch file."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_export import HistoError, UsageError
from histo_export.predict.coords import coords_file, patch_grid, read_coords
from histo_export.predict.grid import BAND, Layout
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings, SlideSettings
from histo_export.predict.tissue import Tissue
from stub_model import stub_model

from .test_geometry import ArraySlide, coloured, run

LAYOUT = Layout((64.0, 64.0), (64.0, 64.0), (64, 64), (0.0, 0.0), (64.0, 64.0))
WHOLE = Tissue(np.ones((10, 10), np.bool_), (910.0, 910.0), 0, (0.0, 0.0, 9100.0, 9100.0))


def write_csv(path: Path, rows: Any, heading: str = "x,y") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading.split(","), *rows])
    return path


@pytest.fixture
def h5py() -> Any:
    return pytest.importorskip("h5py", reason='patch files need pip install "histo-export[features]"')


def test_places_of_a_grid_give_the_grids_result(tmp_path: Path) -> None:
    slide = ArraySlide(coloured())
    grid = run(slide, grid="tile")
    path = write_csv(
        tmp_path / "array.csv",
        zip(grid.grid.x, grid.grid.y, [75] * len(grid.grid), [75] * len(grid.grid), strict=True),
        "minx,miny,width,height",
    )
    patches = run(slide, grid="tile", coords=str(path))
    np.testing.assert_array_equal(patches.probabilities, grid.probabilities)
    for name in ("x", "y", "tile_corners"):
        np.testing.assert_array_equal(getattr(patches.grid, name), getattr(grid.grid, name))
    assert patches.warnings == ()
    # Counted in pixels of the mask, 8 µm wide, and not to their parts: here of fields some 100 µm wide.
    assert patches.area_mm2 == pytest.approx(grid.area_mm2, abs=0.0011)
    assert patches.summary()["tissue_mm2"] == pytest.approx(grid.summary()["tissue_mm2"], abs=0.0011)
    summary = patches.summary()
    assert summary["coords"] == "array.csv"
    assert not [name for name in summary if name.startswith("stride")]
    patches.write(tmp_path / "out")
    assert (tmp_path / "out/heatmap.png").is_file()


def test_places_are_read_in_bands_whatever_their_distance(tmp_path: Path) -> None:
    """Each part of the file is decoded once if a band is as wide as the cache allows, and not narrower."""
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(9000)[:2000], rng.integers(0, 9000, 2000)], 1)
    path = write_csv(tmp_path / "p.csv", places.tolist())
    grid = patch_grid((9100, 9100), LAYOUT, read_coords(path), WHOLE)[0]
    for downsample, bands in ((1.0, 3), (2.0, 2), (4.0, 1)):
        order = grid.reading_order(downsample)
        assert sorted(order) == list(range(len(grid)))
        assert (np.diff(grid.row[order]) < 0).sum() == bands - 1
        x = grid.tile_corners[order, 0]
        for part in np.split(x, np.flatnonzero(np.diff(grid.row[order]) < 0) + 1):
            assert np.ptp(part) < BAND * downsample


def test_a_tile_is_the_centre_of_a_larger_patch(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [(100, 50, 175, 115), (300, 150, 175, 115)], "X, Y, Width, Height")
    prediction = run(ArraySlide(coloured()), coords=str(path))
    np.testing.assert_array_equal(prediction.grid.tile_corners, [(150, 70), (350, 170)])
    np.testing.assert_array_equal(prediction.grid.x, [156, 356])  # the first 6 of 75 pixels are not seen
    (warning,) = prediction.warnings
    assert "patches of 175 × 115 pixels of level 0, and the model's tiles are 75 × 75" in warning


def test_patches_that_overlap_and_come_again(tmp_path: Path) -> None:
    places = [(100, 100), (130, 110), (100, 100), (-20, 450)]
    prediction = run(ArraySlide(coloured()), coords=str(write_csv(tmp_path / "p.csv", places)))
    assert prediction.grid.x.tolist() == [106, 136, -14]
    assert len(prediction.warnings) == 2
    assert "does not state the size" in prediction.warnings[0]
    assert prediction.warnings[1].startswith("1 patches are listed again")
    index = prediction.grid.index_at(np.array([110.0, 140.0, 171.0, 400.0]), np.array([112.0, 120.0]))
    assert index.tolist() == [[0, 0, -1, -1], [0, 1, 1, -1]]


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"patch_size": 256, "patch_level": 0}, (256, 256)),
        ({"patch_size": 256, "patch_level": 1, "downsample": [4.0, 4.0]}, (1024, 1024)),
        (
            {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20},
            (512, 512),
        ),
        ({"patch_size": 256, "patch_level": 1}, None),
        ({}, None),
    ],
    ids=["clam", "clam_level_1", "trident", "unknown_level", "bare"],
)
def test_patch_files_of_clam_and_trident(h5py: Any, tmp_path: Path, attributes, size) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.array([[8, 16], [264, 16]], np.int32)
        file["coords"].attrs.update(attributes)
    found = read_coords(tmp_path / "a.h5")
    assert found.corners.dtype == np.int64
    assert found.corners.tolist() == [[8, 16], [264, 16]]
    assert found.size == size


def _external(h5py: Any, file: Any) -> None:
    file["coords"] = h5py.ExternalLink("/etc/passwd", "/x")


BAD_HDF5: list[tuple[Callable[[Any, Any], None], str]] = [
    (lambda h5py, file: None, "no dataset `coords`"),
    (lambda h5py, file: file.create_group("coords"), "no dataset `coords`"),
    (_external, "no dataset `coords`"),
    (lambda h5py, file: file.create_dataset("coords", (2, 2), "i4", external="elsewhere"), "in another file"),
    (lambda h5py, file: file.create_dataset("coords", data=np.zeros((2, 3), int)), "as int64 2×3"),
    (lambda h5py, file: file.create_dataset("coords", data=np.zeros((2, 2))), "as float64 2×2"),
    (lambda h5py, file: file.create_dataset("coords", data=["a", "b"]), "holds coordinates as"),
    (lambda h5py, file: file.create_dataset("coords", data=np.zeros((0, 2), int)), "holds no patch"),
    (lambda h5py, file: file.create_dataset("coords", (20_000_000, 2), "i4", chunks=True), "more than 10,000,000"),
    (lambda h5py, file: file.create_dataset("coords", data=[[1 << 40, 0]]), "a place that no slide has"),
    (
        lambda h5py, file: file.create_dataset("coords", data=[[0, 0]]).attrs.update(patch_size="wide"),
        "impossible patch",
    ),
    (
        lambda h5py, file: file.create_dataset("coords", data=[[0, 0]]).attrs.update(patch_size=float("nan")),
        "states patches",
    ),
]


@pytest.mark.parametrize(("fill", "message"), BAD_HDF5, ids=range(len(BAD_HDF5)))
def test_what_is_no_patch_file_is_refused(h5py: Any, tmp_path: Path, fill, message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(h5py, file)
    with pytest.raises(HistoError, match=message):
        read_coords(tmp_path / "a.h5")


def test_a_damaged_patch_file_is_refused(h5py: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((1000, 2), int)
    content = (tmp_path / "a.h5").read_bytes()
    for damaged in (b"", b"no HDF5", content[:600], content[:-100]):
        (tmp_path / "a.h5").write_bytes(damaged)
        with pytest.raises(HistoError, match=r"a\.h5: "):
            read_coords(tmp_path / "a.h5")


def test_a_patch_file_with_changed_bytes_is_read_or_refused(h5py: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = np.arange(40).reshape(20, 2)
        file["coords"].attrs["patch_size"] = 256
    content, random, causes = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(300):
        changed = bytearray(content)
        changed[random.integers(len(content))] = random.integers(256)
        path.write_bytes(changed)
        try:
            read_coords(path)
        except HistoError as error:
            causes.add(type(error.__cause__))
    assert {OSError, KeyError, RuntimeError} <= causes  # what h5py raises


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no columns x and y"),
        ("a,b\n1,2\n", "no columns x and y"),
        ("x,y\n", "holds no patch"),
        ("x,y\n1,2\n3,far\n", "no place in line 3"),
        ("x,y\n1\n", "no place in line 2"),
        ("x,y\nnan,1\n", "no place in line 2"),
        ("x,y\n1e300,1\n", "no place in line 2"),
        ("x,y,width,height\n1,2,75,75\n1,2,80,75\n", "several sizes"),
        ("x,y,width,height\n1,2,0,75\n", "states patches of 0 × 75"),
        ("x,y\n5000,20\n", "a patch at x 5,000, y 20, outside of the slide"),
        ("x,y\n1,\xff\n", "is not a table"),
    ],
)
def test_what_is_no_table_of_places_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(HistoError, match=message):
        run(ArraySlide(coloured()), coords=str(tmp_path / "a.csv"))


def test_a_folder_has_a_file_for_each_slide(tmp_path: Path) -> None:
    for name in ("a.h5", "b_patches.h5", "c.csv"):
        (tmp_path / name).touch()
        assert coords_file(str(tmp_path), Path("/slides") / f"{name[0]}.svs") == tmp_path / name
    with pytest.raises(HistoError, match=r"d\.svs: has no patch file in .*Put one there, e\.g\. d\.h5"):
        coords_file(str(tmp_path), Path("d.svs"))


def test_coords_and_a_grid_contradict_each_other(tmp_path: Path) -> None:
    for other in ({"overlap": 0.5}, {"stride_um": 20.0}, {"everything": True}):
        with pytest.raises(UsageError, match="--coords: says where the tiles are"):
            SlideSettings(coords="a.csv", **other)


def test_the_command_takes_coords_and_notices_other_ones(
    large_slide_file: Path, tmp_path: Path, histo: Callable[..., tuple[int, str, str]]
) -> None:
    coords = tmp_path / "coords"
    coords.mkdir()
    write_csv(coords / "large.csv", [(300, 200), (400, 200)])
    out = tmp_path / "out"
    other = shutil.copy(large_slide_file, tmp_path / "other.tiff")
    with stub_model(tmp_path / "bundle") as bundle:
        settings = PredictSettings(threads=1, slide=SlideSettings(coords=str(coords)))
        outcome = predict(bundle, [large_slide_file, other], out, settings)
        assert [done.tiles for done in outcome.done] == [2]
        (failure,) = outcome.failures
        assert failure.path == str(other)
        assert failure.reason.startswith("has no patch file in")
        write_csv(coords / "large.csv", [(300, 200), (400, 200), (500, 200)])
        with pytest.raises(UsageError, match="other settings or a changed input"):
            predict(bundle, [large_slide_file], out, settings)

        both = [large_slide_file, other]
        for path, cause in (
            (coords / "large.csv", "is one patch file, and there are 2 slides"),
            (coords / "no.csv", "does not exist"),
        ):
            code, _, err = histo("predict", bundle, *both, "--out", tmp_path / "x", "--coords", path)
            assert (code, cause in err) == (2, True), err
        assert not (tmp_path / "x").exists()
        code, text, err = histo(
            "predict", bundle, large_slide_file, "--out", tmp_path / "y", "--coords", coords / "large.csv", "--json"
        )
    assert code == 0, err
    assert json.loads(text)["inputs"][0]["summary"]["tiles"] == 3
