"""The pages of results in Chromium: they load without an error or a request, and their controls do what they say.

Chromium is the system's (Debian: apt install chromium); HISTO_CHROMIUM names another one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export.data.walk import DONE
from histo_export.predict import whole_slide
from histo_export.predict.colours import hex_colours
from histo_export.predict.pages.run import write_run_page
from histo_export.predict.pictures import paint_cells
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from histo_export.predict.whole_slide import SlidePrediction
from stub_model import stub_model, write_tiles

from .test_geometry import ArraySlide, coloured, run

playwright = pytest.importorskip("playwright.sync_api", reason='pages need pip install "histo-export[test]"')
CHROMIUM = os.environ.get("HISTO_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("pages need Chromium (apt install chromium, or HISTO_CHROMIUM)", allow_module_level=True)

Open = Callable[..., Any]
HOSTILE = "</script><img src=x onerror=alert(1)>\"'\nname"
RECORD = {"command": "histo predict", "began": "2026-01-01T00:00:00Z", "seconds": 1.5, "executed": ["cpu fp32"]}
WIDE, NARROW = (1280, 900), (400, 800)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file. At the end nothing may have gone wrong on any page, nor have been asked of a network."""
    faults: list[str] = []
    pages = []

    def call(path: Path) -> Any:
        page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
        pages.append(page)
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda request: _check_address(request.url, faults))
        page.goto(path.as_uri())
        return page

    yield call
    for page in pages:
        page.close()
    assert faults == []


def _check_address(address: str, faults: list[str]) -> None:
    if not address.startswith(("file:", "data:")):
        faults.append(f"asked for {address}")


@contextmanager
def as_result(out: Path, name: str) -> Iterator[Path]:
    """A folder in `out` that counts as a complete result."""
    (out / name).mkdir(parents=True)
    yield out / name
    done = {"key": "k", "tiles": 1, "source": f"/slides/{name}.svs", "lost": []}
    (out / name / DONE).write_text(json.dumps(done), encoding="utf-8")


@pytest.fixture(scope="module")
def prediction() -> SlidePrediction:
    return run(ArraySlide(coloured()), overlap=0.5, min_tissue=0.5)


@pytest.fixture(scope="module")
def out(prediction: SlidePrediction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, a set of tiles, a failure; names that would like to run."""
    out = tmp_path_factory.mktemp("pages") / "out"
    classes = (HOSTILE, *prediction.classes[1:])
    hostile = replace(
        prediction,
        name=HOSTILE,
        classes=classes,
        area_mm2=dict(zip(classes, prediction.area_mm2.values(), strict=True)),
        background=replace(prediction.background, name=HOSTILE),
        warnings=(HOSTILE,),
    )
    small = run(ArraySlide(coloured(260, 400)))
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("heat_map", "tissue_picture"):  # which take seconds, and no page shows them
            patch.setattr(whole_slide, picture, lambda *_, **__: b"")
        for name, each in (("slide 10", prediction), ("slide 9", small), ("x'&<b>", hostile)):
            with as_result(out, name) as folder:
                each.write(folder, in_run=True)
    with stub_model(out.parent / "bundle") as bundle:
        predict(bundle, [write_tiles(out.parent / "tiles")], out, PredictSettings(threads=1))
    write_run_page(out, RECORD, ["slide 10", "slide 9"], [(HOSTILE, "is damaged. Copy it again", HOSTILE)])
    return out


@pytest.fixture
def slide(out: Path, open_page: Open) -> Any:
    return open_page(out / "slide 10/index.html")


def set_range(page: Any, name: str, value: int) -> None:
    page.evaluate(
        "([id, value]) => { const it = document.getElementById(id); it.value = value;"
        " it.dispatchEvent(new Event('input', { bubbles: true })) }",
        [name, value],
    )


def canvas(page: Any) -> np.ndarray[Any, Any]:
    """The heat map's red, green, blue and opacity, uint8."""
    png = page.evaluate(
        "async () => { const blob = await new Promise((done) => document.getElementById('heat').toBlob(done));"
        " return Array.from(new Uint8Array(await blob.arrayBuffer())) }"
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("smooth", [False, True])
def test_the_page_paints_what_the_picture_shows(slide: Any, prediction: SlidePrediction, smooth: bool) -> None:
    slide.set_checked("#smooth", smooth)
    layer = paint_cells(
        prediction.background, prediction.grid, prediction.tissue, prediction.probabilities, smooth=smooth
    )
    painted, expected = canvas(slide).astype(int), np.rint(255 * layer).astype(int)
    assert np.abs(painted[..., 3] - expected[..., 3]).max() <= 1
    # A canvas keeps colours multiplied by their opacity, so that weak ones are rounded.
    seen = expected[..., 3] > 0
    assert np.abs(painted[..., :3] - expected[..., :3])[seen].max() <= 3


def test_a_tile_is_told_where_one_points(slide: Any, prediction: SlidePrediction) -> None:
    box = slide.locator("#frame").bounding_box()
    grid = prediction.grid
    at = int(np.flatnonzero(prediction.probabilities.argmax(1) == 1)[20])
    x, y = grid.x[at] + 32, grid.y[at] + 32
    slide.mouse.move(box["x"] + x / 690 * box["width"], box["y"] + y / 500 * box["height"])
    text = slide.inner_text("#tile")
    assert f"x {grid.x[at]:,}, y {grid.y[at]:,}; 64 × 64 pixels of level 0" in text
    assert f"GREEN {100 * prediction.probabilities[at, 1]:.1f} %" in text
    assert slide.locator("#tile tr").count() == 3
    ring = slide.locator("#ring").bounding_box()
    assert ring["x"] == pytest.approx(box["x"] + grid.x[at] / 690 * box["width"], abs=1)
    slide.mouse.move(5, 5)
    assert slide.is_hidden("#ring")
    assert "Point at the slide" in slide.inner_text("#tile")


def test_opacity_threshold_and_classes(slide: Any, prediction: SlidePrediction) -> None:
    n, chosen, top = len(prediction.grid), prediction.probabilities.argmax(1), prediction.probabilities.max(1)
    set_range(slide, "opacity", 25)
    assert slide.evaluate("getComputedStyle(document.getElementById('heat')).opacity") == "0.25"
    assert slide.inner_text("#opacity-value") == "25 %"
    assert slide.inner_text("#shown").startswith(f"{n} of {n} tiles shown")

    set_range(slide, "threshold", 90)
    shown = np.rint(top * 65535) / 65535 >= 0.9
    assert 0 < shown.sum() < n
    assert slide.inner_text("#shown").startswith(f"{shown.sum()} of {n} tiles shown")
    assert slide.locator("#classes tr").nth(0).locator("td").nth(0).inner_text() == str((shown & (chosen == 0)).sum())
    set_range(slide, "threshold", 0)

    colours = [tuple(bytes.fromhex(colour[1:])) for colour in hex_colours(3)]

    def painted() -> list[bool]:
        pixels = canvas(slide)
        near = [np.abs(pixels[..., :3].astype(int) - colour).max(-1) <= 3 for colour in colours]
        return [bool((each & (pixels[..., 3] > 100)).any()) for each in near]

    assert painted() == [True, True, True]
    slide.uncheck("[data-class='1']")
    assert painted() == [True, False, True]
    assert slide.inner_text("#shown").startswith(f"{(chosen != 1).sum()} of")
    slide.click("#none")
    assert painted() == [False, False, False]
    slide.click("#all")
    assert painted() == [True, True, True]
    slide.select_option("#colour-by", label="probability of GREEN")
    assert painted() == [False, True, False]
    assert slide.is_disabled("[data-class='1']")


def test_the_slide_in_grey_and_its_zoom(slide: Any) -> None:
    assert "grayscale" in slide.evaluate("getComputedStyle(document.getElementById('slide')).filter")
    slide.uncheck("#grey")
    assert slide.evaluate("getComputedStyle(document.getElementById('slide')).filter") == "none"
    width = slide.locator("#frame").bounding_box()["width"]
    assert slide.is_disabled("#out")
    slide.click("#in")
    slide.click("#in")
    assert slide.inner_text("#zoom") == "400 %"
    assert slide.locator("#frame").bounding_box()["width"] == pytest.approx(4 * width, rel=0.02)
    slide.click("#fit")
    assert slide.locator("#frame").bounding_box()["width"] == pytest.approx(width, rel=0.01)
    assert slide.inner_text("#scale").strip().endswith("µm")


def test_the_slide_by_keyboard(slide: Any, prediction: SlidePrediction) -> None:
    grid = prediction.grid
    slide.focus("#frame")
    slide.keyboard.press("ArrowRight")  # the first tile

    def place() -> list[int]:
        column, row = slide.evaluate("[tiles.column[state.tile], tiles.row[state.tile]]")
        return [round(grid.columns.start[column]), round(grid.rows.start[row])]

    assert place() == [grid.x[0], grid.y[0]]
    slide.keyboard.press("ArrowRight")
    assert place() == [grid.x[0] + 32, grid.y[0]]
    slide.keyboard.press("ArrowDown")
    assert place() == [grid.x[0] + 32, grid.y[0] + 32]
    assert slide.locator("#ring.kept").count() == 1
    slide.mouse.move(600, 300)
    assert place() == [grid.x[0] + 32, grid.y[0] + 32], "what was chosen stays"
    slide.keyboard.press("Escape")
    assert slide.is_hidden("#ring")


def test_a_picture_of_a_tile_shows_its_place(slide: Any, prediction: SlidePrediction) -> None:
    samples = slide.locator("#least-sure button")
    assert samples.count() == len(prediction.samples.least_sure)
    slide.click("#in")
    slide.click("#in")
    samples.nth(1).click()
    assert slide.evaluate("state.tile") == prediction.samples.least_sure[1].index
    ring, window = (slide.locator(each).bounding_box() for each in ("#ring", "#scroll"))
    for side, length in (("x", "width"), ("y", "height")):
        assert window[side] - 3 <= ring[side]
        assert ring[side] + ring[length] <= window[side] + window[length] + 3
    assert slide.is_visible("#ring.kept")
    assert slide.evaluate("document.activeElement.id") == "frame"
    assert slide.locator("#surest .strip").count() == 3


@pytest.mark.parametrize("name", ["index.html", "slide 10/index.html", "tiles/index.html"])
def test_every_control_can_be_reached_and_seen(out: Path, open_page: Open, name: str) -> None:
    page = open_page(out / name)
    controls = page.locator("a[href]:not([tabindex='-1']), button:enabled, input, select, summary, #frame")
    wanted = sum(controls.nth(i).is_visible() for i in range(controls.count()))
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        facts = page.evaluate(
            "() => { const it = document.activeElement; it.dataset.reached ??= String(Math.random());"
            " const style = getComputedStyle(it);"
            " const label = it.ariaLabel || it.labels?.[0]?.textContent || it.textContent;"
            " return [it.dataset.reached, style.outlineStyle, parseFloat(style.outlineWidth), label.trim()] }"
        )
        reached.add(facts[0])
        assert facts[1] == "solid", facts
        assert facts[2] >= 2, facts
        assert facts[3], "has a label"
    assert len(reached) == wanted


@pytest.mark.parametrize("name", ["index.html", "slide 10/index.html", "x'&<b>/index.html", "tiles/index.html"])
def test_nothing_is_wider_than_the_window(out: Path, open_page: Open, name: str) -> None:
    page = open_page(out / name)
    for width, height in (WIDE, NARROW):
        page.set_viewport_size({"width": width, "height": height})
        for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(26, 26, 26)")):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground


def shown_names(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#results a.result").all_inner_texts()]


def test_the_table_of_results(out: Path, open_page: Open) -> None:
    page = open_page(out / "index.html")
    assert shown_names(page) == ["slide 10", "slide 9", "tiles", "x'&<b>"]
    page.click("[data-sort=name]")
    assert shown_names(page) == ["slide 9", "slide 10", "tiles", "x'&<b>"]
    page.click("[data-sort=tissue]")
    assert shown_names(page)[-2:] == ["slide 9", "tiles"], "what has no area comes last"
    assert page.get_attribute("th:has([data-sort=tissue])", "aria-sort") == "descending"
    page.click("[data-sort=tissue]")
    assert (shown_names(page)[0], shown_names(page)[-1]) == ("slide 9", "tiles")

    page.select_option("#kind", "set")
    assert shown_names(page) == ["tiles"]
    page.select_option("#kind", "")
    page.fill("#text", "SLIDE 1")
    assert shown_names(page) == ["slide 10"]
    assert page.inner_text("#shown") == "1 of 4 shown"
    page.fill("#text", "nothing of this name")
    assert page.is_visible("#nothing")
    page.fill("#text", "")
    page.check("#warned")
    assert shown_names(page) == ["x'&<b>"]
    page.uncheck("#warned")
    page.select_option("#class", "GREEN")
    page.fill("#least", "1")
    assert "tiles" not in shown_names(page)
    assert page.inner_text("#share-head") == "GREEN"

    assert HOSTILE.replace("\n", " ") in page.inner_text("#failure-rows").replace("\n", " ")
    assert page.locator("#results .bar").first.get_attribute("aria-label").startswith("RED ")
    page.click("#results a.result >> nth=0")
    page.wait_for_selector("#heat")
    page.click("#home")
    page.wait_for_selector("#results a.result")


def test_hostile_names_are_text(out: Path, open_page: Open) -> None:
    page = open_page(out / "x'&<b>/index.html")
    assert page.text_content("#name") == HOSTILE
    assert HOSTILE in page.text_content("#classes")
    assert page.text_content("#warnings p") == HOSTILE
    assert page.locator("img[src=x]").count() == 0


def test_two_hundred_results(out: Path, tmp_path: Path, open_page: Open) -> None:
    for i in range(200):
        shutil.copytree(out / "slide 9", tmp_path / "many" / f"slide {i}", copy_function=os.link)
    write_run_page(tmp_path / "many", RECORD, [], [])
    page = open_page(tmp_path / "many/index.html")
    assert page.locator("#results tr").count() == 200
    assert page.inner_text("#lead") == "200 slides"
    loaded = page.evaluate("performance.getEntriesByType('resource').length")
    assert loaded < 100, "pictures out of sight are loaded when one scrolls to them"
