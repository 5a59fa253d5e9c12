"""What the pages of results hold, without a browser; tests/predict/test_pages_browser.py looks at them in one."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export.predict.pages import templates
from histo_export.predict.pages.samples import LEAST_SURE, SUREST, SampleChoice, read_samples
from histo_export.predict.pages.slide import slide_data
from histo_export.predict.pictures import paint_cells
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from histo_export.predict.slide import Slide
from histo_export.predict.whole_slide import SlidePrediction
from stub_model import SPEC, stub_model, write_tiles

from .test_geometry import ArraySlide, coloured, run

SETTINGS = PredictSettings(threads=1, batch=4)
HOSTILE = "</script><script>alert(1)</script>\"'\n& <b>"


def data_of(page: Path) -> Any:
    """The values in a page."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


class Tags(HTMLParser):
    """Which ids a page has, which ids its labels name, and whether every element is closed."""

    VOID = frozenset({"meta", "input", "img", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: list[str] = []
        self.controls: list[str | None] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids += [value for name, value in attributes if name == "id" and value]
        self.named += [values[name] or "" for name in ("for", "aria-labelledby", "aria-describedby") if name in values]
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        if tag in ("input", "select"):
            self.controls.append(values.get("id") if self.open[-1] != "label" else "in a label")
        if tag not in self.VOID and tag != "html":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["run", "slide", "tile_set"])
def test_pages_are_sound_and_need_nothing_else(kind: templates.Kind) -> None:
    text = templates.page(kind, HOSTILE, {"name": HOSTILE})
    tags = Tags(text)
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    assert set(tags.named) <= set(tags.ids)
    assert {each for each in tags.controls if each != "in a label"} <= set(tags.named)
    assert not [link for link in tags.links if "//" in link]
    script = text.rpartition("<script>")[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:|fetch\(|import", script)
    assert {"data", *re.findall(r'byId\("([\w-]+)"\)', script)} <= set(tags.ids)


@pytest.fixture(scope="module")
def prediction() -> SlidePrediction:
    return run(ArraySlide(coloured()), overlap=0.5, min_tissue=0.5)


def numbers(text: str, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_slides_page_holds_what_the_tables_do(prediction: SlidePrediction, tmp_path: Path) -> None:
    prediction.write(tmp_path)
    data = data_of(tmp_path / "index.html")
    assert data["files"] == [
        "heatmap.png",
        "probabilities.ome.tiff",
        "summary.json",
        "tiles.csv",
        "tiles.geojson",
        "tissue.png",
    ]
    assert data["home"] == ""
    assert data["summary"] == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    grid, n = prediction.grid, len(prediction.grid)
    x = np.array(data["columns"]["start"])[numbers(data["column"], "<i4")]
    np.testing.assert_array_equal(np.rint(x), grid.x)
    probabilities = numbers(data["probabilities"], "<u2").reshape(n, 3) / 65535
    np.testing.assert_allclose(probabilities, prediction.probabilities, atol=0.5 / 65535 + 1e-7)
    np.testing.assert_array_equal(numbers(data["chosen"], "<u2"), prediction.probabilities.argmax(1))
    area = np.bincount(numbers(data["chosen"], "<u2"), numbers(data["area"], "<f4"), 3)
    np.testing.assert_allclose(area, list(prediction.area_mm2.values()), rtol=1e-5)
    with Image.open(tmp_path / "thumbnail.jpg") as image:
        assert max(image.size) <= 480


def test_the_page_paints_what_the_picture_does(prediction: SlidePrediction) -> None:
    """Its cells and its tissue, pixel by pixel, as the script of the page reads them."""
    data = slide_data(prediction._view(), prediction.summary())
    width, height = data["picture"]["size"]
    runs = numbers(data["tissue"], "<u4")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    x, y = prediction.background.centres
    np.testing.assert_array_equal(mask, prediction.tissue.at(x[None, :], y[:, None]))
    index = np.full((height, width), -1)
    for i, (column, row) in enumerate(zip(numbers(data["column"], "<i4"), numbers(data["row"], "<i4"), strict=True)):
        across = (x >= data["columns"]["low"][column]) & (x < data["columns"]["high"][column])
        down = (y >= data["rows"]["low"][row]) & (y < data["rows"]["high"][row])
        index[np.ix_(down, across)] = i
    np.testing.assert_array_equal(index, prediction.grid.index_at(x, y))
    layer = paint_cells(prediction.background, prediction.grid, prediction.tissue, prediction.probabilities)
    assert ((layer[..., 3] > 0) == (layer[..., 3] > 0) & mask).all()


def test_every_mask_survives_its_runs(prediction: SlidePrediction) -> None:
    for everything in (np.zeros((3, 4), bool), np.ones((3, 4), bool), np.arange(12).reshape(3, 4) % 2 == 0):
        tissue = replace(prediction.tissue, mask=everything, downsample=(1.0, 1.0), extent=(0, 0, 4, 3))
        background = replace(prediction.background, pixels=np.zeros((3, 4, 3), np.uint8), downsample=(1.0, 1.0))
        view = replace(prediction._view(), tissue=tissue, background=background)
        runs = numbers(slide_data(view, prediction.summary())["tissue"], "<u4")
        np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2 == 1, runs), everything.ravel())


def test_names_of_slides_and_classes_run_nothing(tmp_path: Path) -> None:
    spec = replace(SPEC, classes=("RED", "GREEN", "BLUE"), crop=64, tile_size=75)
    prediction = run(ArraySlide(coloured()), spec)
    hostile = [HOSTILE, "__proto__", "constructor"]
    named = replace(
        prediction,
        classes=tuple(hostile),
        area_mm2=dict(zip(hostile, prediction.area_mm2.values(), strict=True)),
        name=HOSTILE,
        background=replace(prediction.background, name=HOSTILE),
    )
    named.write(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 2
    assert Tags(text).open == []
    data = data_of(tmp_path / "index.html")
    assert data["name"] == HOSTILE
    assert [each["name"] for each in data["classes"]] == hostile
    assert HOSTILE in data["summary"]["classes"]


def test_samples_are_the_surest_and_the_least_sure_in_any_parts() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 3, 500).astype(np.float32)
    probabilities[100:110] = probabilities[50:60]  # equal ones: the first counts, even if it comes later
    probabilities[300:400] = np.eye(3, dtype=np.float32)[rng.integers(0, 2, 100)]
    once = SampleChoice(3)
    once.add(np.arange(500), probabilities)
    for order in (np.arange(500), np.arange(500)[::-1], rng.permutation(500)):  # slides are read in bands
        parts = SampleChoice(3)
        for indices in np.array_split(order, 14):
            parts.add(indices, probabilities[indices])
        assert (once.surest, once.least_sure) == (parts.surest, parts.least_sure)
        assert not parts.add(np.arange(500, 600), probabilities[300:400]), "these come later than equal ones"
    top, chosen = probabilities.max(1), probabilities.argmax(1)
    assert [index for _, index, _ in once.least_sure] == np.argsort(top, kind="stable")[:LEAST_SURE].tolist()
    for each, tiles in enumerate(once.surest):
        order = sorted(np.flatnonzero(chosen == each), key=lambda i: (-top[i], i))
        assert [index for _, index, _ in tiles] == order[:SUREST]


def test_a_class_that_does_not_occur_and_a_tile_that_is_gone_are_left_out() -> None:
    from histo_export import HistoError

    choice = SampleChoice(3)
    choice.add(np.arange(2), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]], np.float32))

    def read(index: int) -> np.ndarray[Any, Any]:
        if index == 0:
            raise HistoError("tile", "is gone", "Nothing")
        return np.zeros((4, 4, 3), np.uint8)

    samples = read_samples(choice, read)
    assert [[tile.index for tile in tiles] for tiles in samples.surest] == [[1]]
    assert [tile.index for tile in samples.least_sure] == [1]


def test_samples_of_a_slide_are_what_the_network_saw(prediction: SlidePrediction) -> None:
    slide: Slide = ArraySlide(coloured())
    for tiles in prediction.samples.surest:
        for tile in tiles:
            x, y = prediction.grid.x[tile.index], prediction.grid.y[tile.index]
            np.testing.assert_array_equal(tile.pixels, np.asarray(slide.read(0, x, y, 64, 64)))
            assert tile.chosen == prediction.probabilities[tile.index].argmax()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_run_has_a_page_with_all_results_and_failures(tmp_path: Path, out: Path) -> None:
    first, second = write_tiles(tmp_path / "a<b>'"), write_tiles(tmp_path / "index.html")
    (second / "broken.png").write_bytes(b"no image")
    with stub_model(tmp_path / "bundle") as bundle:
        predict(bundle, [first], out, SETTINGS)
        predict(bundle, [second, tmp_path / "absent"], out, SETTINGS, command="histo predict </script>")
    data = data_of(out / "index.html")
    results = data["results"]
    assert [result["earlier"] for result in results] == [False, True]
    assert results[0]["name"].startswith("index.html-"), "the page has this name"
    for result in results:
        assert (out / result["page"].replace("%3C", "<").replace("%3E", ">").replace("%27", "'")).is_file()
        assert result["thumbnail"]
        assert sum(each["share"] for each in result["classes"]) == pytest.approx(1)
    assert [row[0] for row in data["failures"]] == [str(tmp_path / "absent"), "broken.png"]
    assert data["record"]["command"] == "histo predict </script>"
    page = data_of(out / results[0]["name"] / "index.html")
    assert page["home"] == "../index.html"
    assert [tile["name"] for tile in page["leastSure"]] == ["1.png", "0.png", "2.png"]


def test_a_damaged_result_and_one_of_an_older_version_do_no_harm(tmp_path: Path, out: Path) -> None:
    with stub_model(tmp_path / "bundle") as bundle:
        predict(bundle, [write_tiles(tmp_path / "old"), write_tiles(tmp_path / "bad")], out, SETTINGS)
        for name in ("index.html", "thumbnail.jpg"):
            (out / "old" / name).unlink()
        (out / "bad/summary.json").write_text('{"tiles": 3, "classes": []}', encoding="utf-8")
        shutil.copytree(out / "old", out / ".hidden")
        (out / "notes").mkdir()
        predict(bundle, [write_tiles(tmp_path / "new")], out, SETTINGS)
    results = data_of(out / "index.html")["results"]
    assert [(result["name"], result["page"], result["thumbnail"]) for result in results] == [
        ("new", "new/index.html", "new/thumbnail.jpg"),
        ("old", "old/", ""),
    ]


def test_a_page_of_a_run_has_the_same_bytes_for_the_same_files(tmp_path: Path, out: Path) -> None:
    from histo_export.predict.pages.run import write_run_page

    with stub_model(tmp_path / "bundle") as bundle:
        predict(bundle, [write_tiles(tmp_path / "a"), write_tiles(tmp_path / "b")], out, SETTINGS)
    before = (out / "index.html").read_bytes()
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    write_run_page(out, record, ["a", "b"], [])
    assert (out / "index.html").read_bytes() == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
