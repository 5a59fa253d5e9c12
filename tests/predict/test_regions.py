"""Where to look on a slide: areas of QuPath, and masks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from histo_export import HistoError, UsageError
from histo_export.predict.regions import _drawn, draw_regions, read_geojson, read_mask
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings, SlideSettings
from stub_model import stub_model

from .test_geometry import ArraySlide, coloured, run

POINT = {"type": "Point", "coordinates": [1, 2]}
SQUARE = [[0, 0], [320, 0], [320, 320], [0, 320], [0, 0]]


def feature(rings: Any, name: str | None = None, kind: str = "Polygon", classification: Any = None) -> dict[str, Any]:
    """As QuPath 0.5 exports an annotation."""
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name is not None:
        properties["name"] = name
    if classification is not None:
        properties["classification"] = {"name": classification, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "x", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def collection(path: Path, *features: Any) -> Path:
    return write(path, {"type": "FeatureCollection", "features": list(features)})


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


@pytest.mark.parametrize("form", ["collection", "list", "feature", "geometry", "geometries", "multi"])
def test_every_form_of_geojson_gives_the_same_area(tmp_path: Path, form: str) -> None:
    geometry = {"type": "Polygon", "coordinates": [SQUARE]}
    contents: dict[str, Any] = {
        "collection": {"type": "FeatureCollection", "features": [feature([SQUARE])]},
        "list": [feature([SQUARE])],
        "feature": feature([SQUARE]),
        "geometry": geometry,
        "geometries": {
            "type": "GeometryCollection",
            "geometries": [geometry, POINT],
        },
        "multi": feature([[SQUARE]], kind="MultiPolygon"),
    }
    regions, left_out = read_geojson(write(tmp_path / "a.geojson", contents[form]))
    assert [region.name for region in regions] == ["region 1"]
    assert left_out == 0
    index = _drawn(regions, (50, 50), (8.0, 8.0), (0, 0), (400, 400))
    assert index.sum() == 40 * 40


def test_names_are_those_of_qupath(tmp_path: Path) -> None:
    path = collection(
        tmp_path / "a.geojson",
        feature([SQUARE], "core A-1"),
        feature([SQUARE], classification="Tumor"),
        feature([1, 2], kind="Point"),
        feature([SQUARE], "two\nlines"),
        feature([SQUARE]),
    )
    regions, left_out = read_geojson(path)
    assert [region.name for region in regions] == ["core A-1", "Tumor", "two lines", "region 4"]
    assert left_out == 1


@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_inside_by_their_centres(seed: int) -> None:
    """Against matplotlib's test of points; with a hole, and with corners outside of the image."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    outer, hole = circle * rng.uniform(15, 45, (40, 1)) + (30, 25), circle * 8 + (30, 25)
    from histo_export.predict.regions import Region

    rings = [ring * (4, 8) - (7, 3) for ring in (outer, hole)]
    index = _drawn([Region("x", [rings])], (60, 70), (4.0, 8.0), (7, 3), (280, 480))
    y, x = np.mgrid[:60, :70] + 0.5
    points = np.stack([x.ravel(), y.ravel()], 1)
    expected = Outline(outer).contains_points(points) & ~Outline(hole).contains_points(points)
    np.testing.assert_array_equal(index.ravel() > 0, expected)


def test_areas_are_those_inside_the_region(tmp_path: Path) -> None:
    slide = ArraySlide(coloured())
    whole = run(slide)
    half = run(slide, roi=str(collection(tmp_path / "a.geojson", feature([box(0, 0, 320, 500)], "left"))))
    left = coloured()[:, :320]
    tissue = (left != 243).any(2).sum() * 0.25 / 1e6
    assert half.summary()["tissue_mm2"] == pytest.approx(tissue, rel=0.03)
    assert half.summary()["tissue_mm2"] < whole.summary()["tissue_mm2"]
    assert (half.grid.x < 320).all()
    assert len(half.grid) < len(whole.grid)
    (region,) = half.summary()["regions"]
    assert (region["name"], region["tiles"]) == ("left", len(half.grid))
    assert half.summary()["roi"] == "a.geojson"
    assert region["tissue_mm2"] == half.summary()["tissue_mm2"]


def test_several_regions_are_told_one_by_one(tmp_path: Path) -> None:
    path = collection(
        tmp_path / "a.geojson",
        feature([box(0, 0, 320, 500)], "left"),
        feature([box(320, 0, 690, 500)], "right"),
        feature([box(5000, 0, 5100, 500)], "elsewhere"),
    )
    slide = ArraySlide(coloured())
    found, whole = run(slide, roi=str(path)), run(slide)
    summary = found.summary()
    regions = {each["name"]: each for each in summary["regions"]}
    for name, areas in summary["classes"].items():
        parts = [each["classes"][name] for each in regions.values()]
        assert sum(part["area_mm2"] for part in parts) == pytest.approx(areas["area_mm2"], abs=2e-6)
        assert sum(part["tiles"] for part in parts) == areas["tiles"]
    assert summary["tissue_mm2"] == pytest.approx(whole.summary()["tissue_mm2"], abs=1e-5)
    assert regions["elsewhere"]["tiles"] == 0
    assert "elsewhere" in summary["warnings"][0]
    found.write(tmp_path / "out")
    with (tmp_path / "out/tiles.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["region"] for row in rows} == {"left", "right"}
    middles = [(row["region"], int(row["minx"]) + 32) for row in rows]
    assert all((region == "left") == (middle < 320) for region, middle in middles if middle != 320)


def test_a_hole_and_everything(tmp_path: Path) -> None:
    path = collection(tmp_path / "a.geojson", feature([box(0, 0, 690, 500), box(128, 128, 384, 384)]))
    found = run(ArraySlide(coloured()), roi=str(path), everything=True, min_tissue=0.5)
    inside = (found.grid.x >= 128) & (found.grid.x < 384) & (found.grid.y >= 128) & (found.grid.y < 384)
    assert not inside.any()
    assert found.summary()["tissue_mm2"] == pytest.approx((690 * 500 - 256 * 256) * 0.25e-6, rel=0.01)


@pytest.mark.parametrize(("share", "taken"), [(0.55, False), (0.45, True)])
def test_a_square_needs_its_share_inside(tmp_path: Path, share: float, taken: bool) -> None:
    path = collection(tmp_path / "a.geojson", feature([box(0, 0, 96, 64)]))  # half of the second square
    found = run(ArraySlide(coloured()), roi=str(path), everything=True, min_tissue=share)
    assert (64 in found.grid.x.tolist()) == taken


@pytest.mark.parametrize(("origin", "right"), [("bounds", 356), ("level0", 256)])
def test_the_origin_is_that_of_qupath(tmp_path: Path, origin: Any, right: int) -> None:
    slide = ArraySlide(coloured(), bounds=(100, 0, 590, 500))
    path = collection(tmp_path / "a.geojson", feature([box(0, 0, 256, 500)]))
    found = run(slide, roi=str(path), everything=True, geojson_origin=origin, min_tissue=0.3)
    assert found.grid.x.min() == 64
    assert right - 64 <= found.grid.x.max() < right


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_does_what_the_area_does(tmp_path: Path, suffix: str) -> None:
    slide = ArraySlide(coloured())
    mask = np.zeros((125, 173), np.uint8)  # a quarter, rounded up
    mask[:, :80] = 255
    Image.fromarray(mask).save(tmp_path / f"mask{suffix}")
    by_mask = run(slide, mask=str(tmp_path / f"mask{suffix}"))
    by_area = run(slide, roi=str(collection(tmp_path / "a.geojson", feature([box(0, 0, 320, 500)]))))
    np.testing.assert_array_equal(by_mask.grid.x, by_area.grid.x)
    assert by_mask.summary()["tissue_mm2"] == pytest.approx(by_area.summary()["tissue_mm2"], rel=0.03)
    assert "regions" not in by_mask.summary()
    assert by_mask.summary()["mask_covers"] == "level0"
    both = run(
        slide,
        mask=str(tmp_path / f"mask{suffix}"),
        roi=str(collection(tmp_path / "b.geojson", feature([box(192, 0, 690, 500)], "right"))),
    )
    assert both.grid.x.min() >= 128
    assert both.grid.x.max() < 320


def test_a_mask_of_qupath_covers_the_bounds(tmp_path: Path) -> None:
    slide = ArraySlide(coloured(), bounds=(100, 0, 590, 500))
    mask = np.zeros((100, 118), bool)
    mask[:, :40] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = draw_regions(slide, SlideSettings(mask=str(tmp_path / "mask.png")), (125, 173), (4.0, 4.0))
    assert drawn is not None
    assert drawn.facts["mask_covers"] == "bounds"
    columns = np.flatnonzero(drawn.index.any(0))
    assert (columns[0], columns[-1]) == (25, 74)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not GeoJSON"),
        (b"[" * 100_000, "is not GeoJSON"),
        (b"{}", "feature without geometry"),
        (b"3", "feature without geometry"),
        (b'{"type": "FeatureCollection", "features": []}', "holds no area"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [1, 1]]]}', "NaN is not a number"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [1e99, 1], [1, 1]]]}', "a corner that no slide has"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [1' + b"0" * 400 + b", 1], [1, 1]]]}", "damaged outline"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [1, 1]]]}', "damaged outline"),
        (b'{"type": "Polygon", "coordinates": 7}', "damaged outline"),
        (b'{"type": "MultiPolygon", "coordinates": {"a": 1}}', "damaged outline"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [1], [1, 1]]]}', "damaged outline"),
        (b'{"type": "Polygon", "coordinates": []}', "holds no area"),
        (b'{"type": "LineString", "coordinates": [[0, 0], [1, 1]]}', "holds no area"),
    ],
)
def test_what_is_no_geojson_of_areas_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.geojson").write_bytes(content)
    with pytest.raises(HistoError, match=reason) as error:
        read_geojson(tmp_path / "a.geojson")
    assert "\n" not in str(error.value)


def test_areas_elsewhere_are_refused(tmp_path: Path) -> None:
    path = collection(tmp_path / "a.geojson", feature([box(5000, 0, 5100, 500)]))
    with pytest.raises(HistoError, match=r"no area that lies on array\.svs"):
        run(ArraySlide(coloured()), roi=str(path))
    glass = collection(tmp_path / "b.geojson", feature([box(0, 0, 40, 30)]))
    with pytest.raises(HistoError, match="no tile with enough tissue in the region"):
        run(ArraySlide(coloured()), roi=str(glass))


def test_hostile_outlines_take_bounded_memory_and_time(tmp_path: Path) -> None:
    """Edges that cross all rows, and far corners."""
    zigzag = [[i % 7, -(2**30) if i % 2 else 2**30] for i in range(2000)]
    regions, _ = read_geojson(write(tmp_path / "a.geojson", feature([zigzag])))
    _drawn(regions, (1000, 50), (8.0, 8.0), (0, 0), (400, 8000))


@pytest.mark.parametrize("kind", ["colours", "empty", "text", "float", "pages"])
def test_what_is_no_mask_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mask.png"
    if kind == "colours":
        Image.new("RGB", (10, 10), (255, 0, 0)).save(path)
    elif kind == "empty":
        Image.new("L", (10, 10)).save(path)
    elif kind == "pages":
        path = tmp_path / "mask.tif"
        Image.new("L", (10, 10), 1).save(path, save_all=True, append_images=[Image.new("L", (5, 5), 1)])
    elif kind == "float":
        path = tmp_path / "mask.tif"
        Image.new("F", (10, 10), 1).save(path)
    else:
        path.write_text("mask")
    with pytest.raises(HistoError, match=r"no mask|0 everywhere|cannot be read as a mask|2 pages"):
        read_mask(path)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    Image.new("L", (100, 100), 1).save(tmp_path / "mask.png")
    with pytest.raises(HistoError, match=r"another shape than the slide: 100×100 pixels, and the slide 690×500"):
        run(ArraySlide(coloured()), mask=str(tmp_path / "mask.png"))


def test_regions_and_coords_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="as --roi and --mask do"):
        SlideSettings(coords="a", roi="b")


def test_the_command_takes_regions_and_notices_other_ones(
    tmp_path: Path, large_slide_file: Path, histo: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "in").mkdir()
    slide = shutil.copy(large_slide_file, tmp_path / "in/slide.tiff")
    (tmp_path / "roi").mkdir()
    collection(tmp_path / "roi/slide.geojson", feature([box(300, 100, 700, 300)], "here"))
    with stub_model(tmp_path / "bundle") as bundle:
        settings = PredictSettings(slide=SlideSettings(roi=str(tmp_path / "roi")))
        assert not predict(bundle, [slide], tmp_path / "out", settings).failures
        summary = json.loads((tmp_path / "out/slide/summary.json").read_text())
        assert summary["regions"][0]["name"] == "here"
        assert json.loads((tmp_path / "out/run.json").read_text())["settings"]["slide"]["roi"] == str(tmp_path / "roi")
        collection(tmp_path / "roi/slide.geojson", feature([box(300, 100, 600, 300)], "here, too"))
        command = "predict", bundle, slide, "--out", tmp_path / "out", "--roi"
        code, _, err = histo(*command, tmp_path / "roi")
        assert (code, "changed input" in err) == (2, True), err
        code, _, err = histo(*command, tmp_path / "no")
        assert (code, "does not exist" in err) == (2, True), err
        other = shutil.copy(slide, tmp_path / "in/other.tiff")
        outcome = predict(bundle, [Path(other)], tmp_path / "out", settings)
        assert "has no GeoJSON file in" in outcome.failures[0].reason
        Image.new("L", (12, 4), 1).save(tmp_path / "mask.png")
        both = PredictSettings(slide=SlideSettings(mask=str(tmp_path / "mask.png")))
        with pytest.raises(UsageError, match="is one mask, and there are 2 slides"):
            predict(bundle, [Path(slide), Path(other)], tmp_path / "masked", both)


def test_areas_with_one_name_are_told_apart(tmp_path: Path) -> None:
    """As areas of one class in QuPath have it, which mostly have no names of their own."""
    tumours = [feature([box(left, 0, left + 320, 500)], classification="Tumor") for left in (0, 320)]
    path = collection(tmp_path / "a.geojson", *tumours, feature([SQUARE], "Tumor (2)"), feature([SQUARE]))
    assert [region.name for region in read_geojson(path)[0]] == ["Tumor", "Tumor (2)", "Tumor (2) (2)", "region 4"]
    found = run(ArraySlide(coloured()), roi=str(path))
    found.write(tmp_path / "out")
    with (tmp_path / "out/tiles.csv").open(newline="", encoding="utf-8") as file:
        assert {row["region"] for row in csv.DictReader(file)} == {"Tumor", "Tumor (2)"}


def test_any_name_can_be_written(tmp_path: Path) -> None:
    path = collection(tmp_path / "a.geojson", feature([box(0, 0, 320, 500)], "a\ud800\0b\u2028c <i>=1+1"))
    found = run(ArraySlide(coloured()), roi=str(path))
    found.write(tmp_path / "out")
    assert found.summary()["regions"][0]["name"] == "a? b c <i>=1+1"
    assert "a? b c <i>=1+1" in (tmp_path / "out/tiles.csv").read_text(encoding="utf-8")


def test_features_without_a_place_are_left_out(tmp_path: Path) -> None:
    """The standard allows them (RFC 7946, 3.2)."""
    nowhere = {"type": "Feature", "geometry": None, "properties": {}}
    regions, left_out = read_geojson(collection(tmp_path / "a.geojson", nowhere, feature([SQUARE], "here")))
    assert ([region.name for region in regions], left_out) == (["here"], 1)


@pytest.mark.parametrize(("palette", "refused"), [((0, 255), False), ((255, 100), False), ((255, 0), True)])
def test_the_palette_of_a_mask_must_not_turn_it_over(tmp_path: Path, palette: Any, refused: bool) -> None:
    """pngquant and others sort a palette as they like: white may be entry 0, and black entry 1."""
    image = Image.new("P", (20, 10))
    image.putpalette([level for level in palette for _ in range(3)])
    image.paste(1, (0, 0, 5, 10))
    image.save(tmp_path / "mask.png")
    if refused:
        with pytest.raises(HistoError, match="black is not entry 0"):
            read_mask(tmp_path / "mask.png")
    else:
        assert read_mask(tmp_path / "mask.png").sum() == 50
