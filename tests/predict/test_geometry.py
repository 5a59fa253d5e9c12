"""What the network sees is what is cut, measured and painted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from histo_export import Engine, HistoError, Model, UsageError
from histo_export.cli import predict as cli_predict
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import lower
from histo_export.model.native_file import native_bytes
from histo_export.predict import pictures
from histo_export.predict.colours import class_colours
from histo_export.predict.grid import make_grid, make_layout
from histo_export.predict.inputs import TileSetInput
from histo_export.predict.loop import TileLoop
from histo_export.predict.readers import open_slide
from histo_export.predict.settings import PredictSettings, SlideSettings, TissueSettings
from histo_export.predict.slide import Level, Slide
from histo_export.predict.tile_set import open_tiles
from histo_export.predict.tissue import Tissue
from histo_export.predict.whole_slide import SlidePrediction, predict_slide
from histo_export.spec import ModelSpec

from .conftest import Pixels

RED, GREEN, BLUE, GLASS = (200, 60, 60), (60, 200, 60), (60, 60, 200), (243, 243, 243)
SPEC = ModelSpec(1, ("RED", "GREEN", "BLUE"), crop=64, tile_size=75, mpp=0.5)


class ArraySlide(Slide):
    """A slide in memory."""

    def __init__(self, pixels: Pixels, mpp: tuple[float, float] | None = (0.5, 0.5), bounds=None) -> None:
        self.path, self.vendor, self.mpp, self.bounds = Path("array.svs"), "array", mpp, bounds
        self.pixels = pixels
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        padded = np.pad(self.pixels, ((300, 300), (300, 300), (0, 0)), constant_values=255)
        return Image.fromarray(padded[y + 300 :, x + 300 :][:height, :width])

    def close(self) -> None:
        pass


class Brightest:
    """Stands for a runtime: the class is the channel that is brightest in the centre crop."""

    name, executed = "brightest", "test"

    def run(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        begin = SPEC.crop_offset
        crop = tiles[:, begin : begin + SPEC.crop, begin : begin + SPEC.crop]
        logits: npt.NDArray[np.float32] = (crop.mean((1, 2)) / 20).astype(np.float32)
        return logits

    def batch_target(self) -> Brightest:
        return self


def run(slide: Slide, spec: ModelSpec = SPEC, **settings) -> SlidePrediction:
    loop = TileLoop(Brightest(), spec, batch=16, readers=1)  # type: ignore[arg-type]
    settings = {"tissue": TissueSettings(closing_um=0, min_area_um2=0), **settings}
    return predict_slide(slide, loop, SlideSettings(**settings))


def coloured(height: int = 500, width: int = 690) -> Pixels:
    """Glass with three fields of tissue; the edges lie between the squares'."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[40:, 60:300] = RED
    pixels[130:420, 300:580] = GREEN
    pixels[:90, 500:] = BLUE
    return pixels


@pytest.mark.parametrize("tile_size", [64, 73, 75])
def test_the_seen_square_is_what_the_engine_sees(checkpoint: Checkpoint, tile_size: int) -> None:
    """A pixel inside its corners changes the logits of its tile, and a pixel beside them does not."""
    spec = replace(checkpoint.spec, tile_size=tile_size)
    engine = Engine(Model.from_bytes(native_bytes(lower(checkpoint.net(), spec), spec)), threads=1)
    runtime = SimpleNamespace(name="engine", executed="test", batch_target=lambda: engine)
    loop = TileLoop(runtime, spec, batch=1, readers=1)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)

    def probabilities(image: Pixels) -> SlidePrediction:
        return predict_slide(ArraySlide(image, (spec.mpp, spec.mpp)), loop, SlideSettings(everything=True))

    before = probabilities(pixels)
    assert before.grid.size == (64, 64)
    np.testing.assert_array_equal(before.grid.x, [0, 64, 128, 192] * 4)
    at = 5  # in the second row and column
    left, top = int(before.grid.x[at]), int(before.grid.y[at])
    assert (left, top) == (64, 64)
    for x, y, seen in (
        (left, top, True),
        (left + 63, top + 63, True),
        (left - 1, top, False),
        (left, top - 1, False),
        (left + 64, top + 63, False),
        (left + 63, top + 64, False),
    ):
        changed = pixels.copy()
        changed[y, x] ^= 255
        after = probabilities(changed).probabilities
        assert (after[at] != before.probabilities[at]).any() == seen, (x, y)
        assert (after != before.probabilities).any(axis=1).sum() == 1  # each pixel of the slide is seen once


SIDES = [{"overlap": 0.0}, {"overlap": 0.5}, {"overlap": 0.7}, {"stride_um": 47.0}, {"stride_um": 21.3}]


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.33, 0.9)], ids=str)
@pytest.mark.parametrize("min_tissue", [0.0, 1.0])
@pytest.mark.parametrize("grid", ["seen", "tile"])
@pytest.mark.parametrize("step", SIDES, ids=str)
def test_areas_are_those_of_the_nearest_squares_and_add_up(mpp, min_tissue, grid, step) -> None:
    """Each pixel of tissue belongs to the square whose middle is nearest, if that square holds it and is used."""
    random = np.random.default_rng(1)
    mask = np.kron(random.random((50, 69)) < 0.8, np.ones((10, 10), np.bool_))
    mask[100:300, 150:400] = True
    tissue = Tissue(mask, (1.0, 1.0), 0, (0, 0, 690, 500))
    settings = SlideSettings(grid=grid, min_tissue=min_tissue, **step)
    layout = make_layout(SPEC, mpp, settings)
    used, cells = make_grid((690, 500), layout, settings, tissue)
    assert len(used) > 0
    columns, rows = (
        nearest(axis.start, square, length)
        for axis, square, length in zip((used.columns, used.rows), layout.square, (690, 500), strict=True)
    )
    place = np.full((len(used.rows.start) + 1, len(used.columns.start) + 1), len(used))  # the last of each: none
    place[used.row, used.column] = np.arange(len(used))
    expected = np.bincount(place[np.ix_(rows, columns)][mask], minlength=len(used) + 1)[:-1]
    # Cells have edges between pixels: a row and a column of pixels at each edge are divided.
    border = 2 * (layout.square[0] + layout.square[1]) + 4
    assert np.abs(cells - expected).max() <= border
    assert abs(cells.sum() - expected.sum()) <= 0.02 * mask.sum()
    assert cells.sum() <= tissue.area * (1 + 1e-9)
    if min_tissue == 0 and layout.stride[0] <= layout.square[0] and layout.stride[1] <= layout.square[1]:
        assert cells.sum() == pytest.approx(mask.sum(), rel=1e-9)  # no strip is left, and none counted twice


def nearest(start: npt.NDArray[np.float64], side: float, length: int) -> npt.NDArray[np.int64]:
    """For each pixel the square whose middle is nearest, -1 where the pixel is not in it."""
    centres = np.arange(length) + 0.5
    index = np.abs(centres[:, None] - (start + side / 2)[None, :]).argmin(1)
    inside = (start[index] <= centres) & (centres < start[index] + side)
    return np.where(inside, index, -1)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("grid", ["seen", "tile"])
@pytest.mark.parametrize("settings", [*SIDES, {"min_tissue": 1.0}, {"min_tissue": 1.0, "overlap": 0.5}], ids=str)
def test_classes_and_unanalysed_are_all_tissue(settings, grid, everything) -> None:
    pixels = coloured()
    summary = run(ArraySlide(pixels), grid=grid, everything=everything, **settings).summary()
    parts = [each["area_mm2"] for each in summary["classes"].values()]
    assert round(sum(parts) + summary["unanalysed_mm2"], 6) == summary["tissue_mm2"]
    tissue = pixels.size / 3 if everything else (pixels != GLASS).any(2).sum()
    assert summary["tissue_mm2"] == pytest.approx(tissue * 0.25e-6, rel=0.05)
    dropped = not everything and settings.get("min_tissue") == 1
    if dropped or settings.get("stride_um") == 47.0:  # wider than the squares
        assert summary["unanalysed_mm2"] > 0.1 * summary["tissue_mm2"]


def test_areas_hardly_depend_on_the_overlap() -> None:
    """Before, overlap 0 gave the colour of the crop to the frame around it, which is a quarter of a tile."""
    areas = [run(ArraySlide(coloured()), overlap=each, min_tissue=0.0).area_mm2 for each in (0.0, 0.5, 0.7, 0.9)]
    for name, colour in (("RED", RED), ("GREEN", GREEN), ("BLUE", BLUE)):
        true = (coloured() == colour).all(2).sum() * 0.25e-6
        assert [each[name] for each in areas] == pytest.approx([true] * 4, rel=0.12)


def test_the_summary_tells_how_the_slide_was_cut() -> None:
    summary = run(ArraySlide(coloured()), overlap=0.5, resample="bicubic").summary()
    assert summary["grid"] == "seen"
    assert summary["resample"] == "bicubic"
    assert (summary["seen_pixels"], summary["seen_um"]) == ([64, 64], [32, 32])
    assert (summary["tile_pixels"], summary["tile_um"]) == ([75, 75], [37.5, 37.5])
    assert (summary["stride_pixels"], summary["stride_um"]) == ([32, 32], [16, 16])
    assert summary["seen_share_of_tile"] == pytest.approx(64**2 / 75**2, abs=1e-4)
    assert summary["warnings"] == []
    tile = run(ArraySlide(coloured()), grid="tile")
    assert tile.grid.size == (75, 75)
    np.testing.assert_array_equal(tile.grid.tile_corners, np.stack([tile.grid.x, tile.grid.y], 1))


def test_pixels_that_are_not_square(tmp_path: Path, write_tiff: Callable[..., Path]) -> None:
    """The same tissue, sampled half as often in y: same tiles, same area, same picture."""
    pixels = np.repeat(np.repeat(coloured()[::8, ::8], 8, 0), 8, 1)
    half = pixels[::2]
    square = open_slide(write_tiff(tmp_path / "square.tif", pixels))
    tall = open_slide(write_tiff(tmp_path / "tall.tif", half, mpp=(0.5, 1.0)))
    assert tall.mpp == pytest.approx((0.5, 1.0))
    for grid in ("seen", "tile"):
        one, other = (run(slide, grid=grid) for slide in (square, tall))
        assert other.summary()["tissue_mm2"] == pytest.approx(one.summary()["tissue_mm2"], rel=0.02)
        assert other.area_mm2 == pytest.approx(one.area_mm2, rel=0.1)
        assert other.grid.layout.square[0] == one.grid.layout.square[0]
        assert other.grid.layout.square[1] == pytest.approx(one.grid.layout.square[1] / 2, rel=0.02)
    tile = tall.tile(96, 96, (75, 38), 75)
    assert tile.shape == (75, 75, 3)
    assert np.abs(tile.astype(int) - pixels[192:268, 96:171][:75]).mean() < 5
    folders = []
    for name, prediction in (("one", one), ("other", other)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        prediction.write(folders[-1])
    for picture in ("heatmap.png", "tissue.png"):
        with Image.open(folders[0] / picture) as first, Image.open(folders[1] / picture) as second:
            assert first.width / first.height == pytest.approx(second.width / second.height, rel=0.03)
    header, row, *_ = (folders[1] / "tiles.csv").read_text().splitlines()
    assert header.startswith("minx,miny,width,height")
    assert row.split(",")[2:4] == ["75", "38"]


def test_enlarged_pixels_are_told_and_absurd_ones_refused() -> None:
    assert run(ArraySlide(coloured(), (0.54, 0.54))).warnings == ()
    (warning,) = run(ArraySlide(coloured(), (0.55, 0.55))).warnings
    assert "has 0.55 µm per pixel, and the model 0.5: its pixels are enlarged 1.1 times" in warning
    prediction = run(ArraySlide(coloured()), mpp=2.0)
    assert "enlarged 4 times" in prediction.summary()["warnings"][0]
    assert "enlarged 3 times" in run(ArraySlide(coloured(), (0.5, 1.5))).warnings[0]
    with pytest.raises(HistoError, match=r"enlarged 5\.2 times \(at most 5\)"):
        run(ArraySlide(coloured(), (2.6, 2.6)))
    with pytest.raises(HistoError, match=r"one tile would take 37,500×37,500 of its pixels"):
        run(ArraySlide(coloured()), ModelSpec(1, ("A", "B", "C"), crop=64, tile_size=75, mpp=5.0), mpp=0.01)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("name", ["mpp", "overlap", "stride_um", "min_tissue", "closing_um", "min_area_um2"])
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=r"is not in 0"):
        (TissueSettings if name in ("closing_um", "min_area_um2") else SlideSettings)(**{name: value})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_models_scale_is_finite(value: float) -> None:
    with pytest.raises(UsageError, match="mpp"):
        ModelSpec(1, ("A", "B"), mpp=value)


@pytest.mark.parametrize(("name", "value"), [("grid", "crop"), ("resample", "box"), ("geojson_origin", "zero")])
def test_unknown_words_are_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{value}: is unknown"):
        SlideSettings(**{name: value})


def test_too_many_squares_are_refused_with_their_number() -> None:
    with pytest.raises(HistoError, match=r"313,001 × 218,001 squares, more than 10,000,000"):
        run(ArraySlide(coloured()), stride_um=0.001)


def test_everything_is_everything_within_the_bounds() -> None:
    prediction = run(ArraySlide(coloured(), bounds=(130, 100, 256, 200)), everything=True)
    x, y = prediction.grid.x, prediction.grid.y
    assert (x.min(), x.max(), y.min(), y.max()) == (128, 384, 64, 256)
    assert prediction.summary()["tissue_mm2"] == pytest.approx(256 * 200 * 0.25e-6, abs=2e-6)
    assert prediction.summary()["unanalysed_mm2"] == 0


@pytest.mark.parametrize(("overlap", "grid"), [(0.0, "seen"), (0.5, "seen"), (0.7, "seen"), (0.5, "tile")])
def test_the_heat_map_paints_the_tissue_of_each_cell(overlap: float, grid: str) -> None:
    prediction = run(ArraySlide(coloured()), overlap=overlap, grid=grid, min_tissue=0.5)
    background, tissue = prediction.background, prediction.tissue
    layer = pictures.paint_cells(background, prediction.grid, tissue, prediction.probabilities)
    x, y = background.centres
    has_tissue = tissue.at(x[None, :], y[:, None])
    assert (layer[~has_tissue] == 0).all()  # glass
    layout = prediction.grid.layout
    chosen = prediction.probabilities.argmax(1)
    colours = class_colours(3)
    centre_x, centre_y = (
        axis.start[place] + side / 2
        for axis, place, side in zip(
            (prediction.grid.columns, prediction.grid.rows),
            (prediction.grid.column, prediction.grid.row),
            layout.square,
            strict=True,
        )
    )
    for row, column in np.random.default_rng(0).integers(0, layer.shape[:2], (400, 2)):
        away = np.maximum(np.abs(centre_x - x[column]), np.abs(centre_y - y[row]))
        width = min(layout.stride[0], layout.square[0]) / 2
        if not has_tissue[row, column] or not (away < width - 1).any():
            continue
        at = int(away.argmin())
        assert tuple(layer[row, column, :3]) == pytest.approx(colours[chosen[at]])
        assert pictures.WEAKEST <= layer[row, column, 3] <= pictures.STRONGEST
    dropped = has_tissue & (prediction.grid.index_at(x, y) < 0)
    assert dropped.any()
    assert {tuple(each) for each in layer[dropped]} == {(0, 0, 0, 0), (0, 0, 0, 1)}  # stripes


def test_the_legend_names_what_is_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(pictures, "png_of", lambda figure, compression: figures.append(figure) or b"")
    pixels = coloured()
    pixels[(pixels == BLUE).all(2)] = GLASS
    for min_tissue in (0.0, 0.5):
        prediction = run(ArraySlide(pixels), min_tissue=min_tissue)
        assert repr(prediction).startswith(f"<SlidePrediction of {prediction.name}: {len(prediction.grid)} squares, ")
        assert len(repr(prediction)) < 100
        prediction.write(str(tmp_path / "made here"))
    heat_maps = [figure for figure in figures if figure.legends]
    first, second = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in heat_maps)
    assert [text.split()[0] for text in first] == ["RED", "GREEN"]
    assert [text.split("  ")[0] for text in second] == ["RED", "GREEN", "not analysed"]
    labels = [axes.get_xlabel() for axes in heat_maps[0].axes]
    assert "strength of a colour: probability of the class" in labels


SCN = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
<collection name="made" uuid="urn:uuid:2" sizeX="{glass_x}" sizeY="{glass_y}"><barcode>made</barcode>
{images}</collection></scn>"""
SCN_IMAGE = """<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400;Leica SCN" version="1"/>
<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{page}"/></pixels>
<view sizeX="{view_x}" sizeY="{view_y}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>{objective}</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """A Leica SCN of 1500 × 1300 pixels, of which 690 × 500 were scanned, from (450, 350) on."""
    import tifffile

    nm, pixels = 500, coloured()
    macro = np.full((130, 150, 3), 235, np.uint8)
    glass = {"view_x": 1500 * nm, "view_y": 1300 * nm, "x": 0, "y": 0}
    scan = {"view_x": 690 * nm, "view_y": 500 * nm, "x": 450 * nm, "y": 350 * nm}
    images = SCN_IMAGE.format(name=3, width=150, height=130, page=0, objective=0.6, **glass)
    images += SCN_IMAGE.format(name=4, width=690, height=500, page=1, objective=20, **scan)
    path = tmp_path / "leica.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        described = SCN.format(glass_x=1500 * nm, glass_y=1300 * nm, images=images)
        writer.write(macro, photometric="rgb", tile=(256, 256), metadata=None, description=described)
        scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
        writer.write(pixels, photometric="rgb", tile=(256, 256), metadata=None, **scale)
    return path


def test_geojson_lies_where_qupath_shows_the_slide(scanned: Path, tmp_path: Path) -> None:
    slide = open_slide(scanned)
    assert (slide.vendor, slide.mpp) == ("leica", pytest.approx((0.5, 0.5)))
    assert slide.bounds == (450, 350, 690, 500)
    assert (slide.width, slide.height) == (1500, 1300)
    prediction = run(slide)
    places = {}
    for origin in ("bounds", "level0"):
        folder = tmp_path / origin
        folder.mkdir()
        prediction = run(slide, geojson_origin=origin)
        prediction.write(folder)
        features = json.loads((folder / "tiles.geojson").read_text())["features"]
        places[origin] = np.array([feature["geometry"]["coordinates"][0][0] for feature in features])
        assert json.loads((folder / "summary.json").read_text())["csv_origin"] == [0, 0]
    rows = np.loadtxt(tmp_path / "bounds/tiles.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(places["level0"], rows[:, :2])
    np.testing.assert_array_equal(places["bounds"], rows[:, :2] - [450, 350])
    assert json.loads((tmp_path / "bounds/summary.json").read_text())["geojson_origin"] == [450, 350]
    assert json.loads((tmp_path / "level0/summary.json").read_text())["geojson_origin"] == [0, 0]
    # All of it touches the image that QuPath shows.
    assert (places["bounds"] > -64).all()
    assert (places["bounds"] < (690, 500)).all()


def test_the_filter_is_the_bundles_or_the_one_that_is_named(pixels: Pixels) -> None:
    slide = ArraySlide(pixels, (0.33, 0.33))
    cut = Image.fromarray(pixels[100:214, 150:264])
    for name in ("bilinear", "bicubic"):
        expected = np.asarray(cut.resize((75, 75), Image.Resampling[name.upper()]))
        np.testing.assert_array_equal(slide.tile(150, 100, (114, 114), 75, name), expected)
    default, bilinear, bicubic = (
        run(slide, **each).probabilities for each in ({}, {"resample": "bilinear"}, {"resample": "bicubic"})
    )
    np.testing.assert_array_equal(default, bilinear)
    assert (default != bicubic).any()


def test_one_option_names_the_filter_of_slides_and_of_tiles(pixels: Pixels, tmp_path: Path) -> None:
    parts = cli_predict.RuntimeOptions, cli_predict.SlideOptions, cli_predict.FurtherOptions
    one = cli_predict._settings(
        tmp_path,
        cli_predict.RuntimeOptions(resize=True, resample="bicubic"),
        cli_predict.SlideOptions(grid="tile", geojson_origin="level0"),
        cli_predict.FurtherOptions(),
    )
    assert (one.resize, one.slide.resample) == ("bicubic", "bicubic")
    assert (one.slide.grid, one.slide.geojson_origin) == ("tile", "level0")
    default = cli_predict._settings(tmp_path, *(part() for part in parts))
    assert (default.resize, default.slide) == (None, SlideSettings())
    image = Image.fromarray(pixels[200:350, 300:450])
    image.save(tmp_path / "tile.png")
    tiles = TileSetInput(tmp_path, [tmp_path / "tile.png"])
    spec = ModelSpec(pool=1, classes=("a", "b"), crop=64, tile_size=75)
    for name in ("bilinear", "bicubic"):
        expected = np.asarray(image.resize((75, 75), Image.Resampling[name.upper()]))
        np.testing.assert_array_equal(open_tiles(tiles, spec, name)(0), expected)
    with pytest.raises(HistoError, match="Add --resize"):
        open_tiles(tiles, spec, None)(0)
    # Tiles of the size that was resized in training are resized in the same way, unasked.
    resized = replace(spec, resized_from=150)
    bilinear = np.asarray(image.resize((75, 75), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(open_tiles(tiles, resized, None)(0), bilinear)
    with pytest.raises(HistoError, match="Add --resize"):
        open_tiles(tiles, replace(spec, resized_from=151), None)(0)
    with pytest.raises(UsageError, match="--resample box: is unknown"):
        PredictSettings(resize="box")
