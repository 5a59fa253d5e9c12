"""Several slides in one run: their stages overlap, and nothing else changes. A stub takes the place of the model."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiled_tiff import write_pyramid

from histo_export.data.walk import DONE
from histo_export.errors import UsageError
from histo_export.predict import run as run_module
from histo_export.predict import whole_slide, work
from histo_export.predict.readers import open_slide
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings, SlideSettings
from histo_export.predict.whole_slide import SlidePrediction
from stub_model import SIDE, StubRuntime, stub_model, write_tiles

from .conftest import draw_slide

tifffile = pytest.importorskip("tifffile", reason='slides need pip install "histo-export[slides]"')
pytest.importorskip("simplejpeg", reason='slides need pip install "histo-export[slides]"')

SETTINGS = PredictSettings(threads=2, batch=16)
NAMES = ("a", "b", "c")


def encode(tile: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_slide(path: Path, height: int = 400) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_pyramid(path, [draw_slide(height, 1200)], encode, side=128, compression=7, photometric=6)


def damaged(path: Path, tile: int) -> Path:
    """A slide one of whose tiles ends too early."""
    write_slide(path)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[offset + size // 2 : offset + size // 2 + 2] = b"\xff\xd9"
    path.write_bytes(data)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    with stub_model(tmp_path / "bundle") as folder:
        yield folder


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    return [write_slide(tmp_path / "in" / f"{name}.tif", 400 + 64 * i) for i, name in enumerate(NAMES)]


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest here."""
    monkeypatch.setattr(whole_slide, "tissue_picture", lambda *_: b"tissue")
    monkeypatch.setattr(whole_slide, "heat_map", lambda *_, **__: b"heat map")


def files(out: Path) -> dict[str, bytes]:
    """All files of the results."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.parent != out
    }


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.usefixtures("_no_pictures")
def test_readers_and_companions_change_no_byte(bundle: Path, slides: list[Path], tmp_path: Path) -> None:
    """Slides alone and together with others, sound and damaged ones, read directly and by OpenSlide."""
    torn = [damaged(tmp_path / "in/torn.tif", 14), tmp_path / "in/cut.tif"]
    torn[1].write_bytes(slides[0].read_bytes()[:2000])
    tiles = write_tiles(tmp_path / "in/set", 20)
    inputs = [slides[0], torn[0], slides[1], tiles, torn[1], slides[2]]
    outs = {}
    for reader in ("auto", "openslide"):
        out = outs[reader] = tmp_path / reader
        outcome = predict(bundle, inputs, out, PredictSettings(threads=2, batch=16, reader=reader))  # type: ignore[arg-type]
        assert [done.name for done in outcome.done] == ["a", "b", "set", "c"]
        assert [Path(failure.path).name for failure in outcome.failures] == ["torn.tif", "tiles"], (
            "a cut file could be a tile"
        )
        assert sum(done.run for done in outcome.done) == sum(done.tiles for done in outcome.done)
    assert files(outs["auto"]) == files(outs["openslide"])
    readers = [each["reader"] for each in record(outs["auto"])["inputs"]]
    assert [text.partition(":")[0] for text in readers] == ["direct", "direct", "", "direct"]
    assert {each["reader"] for each in record(outs["openslide"])["inputs"]} == {"", "openslide: It was asked for."}
    with (outs["auto"] / "failed.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["reason"].startswith("is damaged: tile (4, 1) of level 0")
    for slide in slides:
        predict(bundle, [slide], tmp_path / "alone", SETTINGS)
    alone = files(tmp_path / "alone")
    assert alone == {name: data for name, data in files(outs["auto"]).items() if not name.startswith("set/")}
    assert predict(bundle, inputs, outs["auto"], PredictSettings(threads=1, reader="openslide")).done[0].run == 0


@pytest.mark.usefixtures("_no_pictures")
def test_given_places_pictures_of_tiles_and_pages_in_whole_batches(
    bundle: Path, slides: list[Path], tmp_path: Path
) -> None:
    """Batches of any size and both readers keep each tile once, and give pages and tables of the same bytes."""
    rng, places = np.random.default_rng(0), {}
    (tmp_path / "coords").mkdir()
    for name in NAMES:
        places[name] = {(x, y) for x, y in rng.integers(-20, (1150, 390), (60, 2)).tolist()}
        rows = "".join(f"{x},{y}\n" for x, y in sorted(places[name]))
        (tmp_path / "coords" / f"{name}.csv").write_text("x,y\n" + rows, encoding="utf-8")
    contents = []
    for reader, batch in (("direct", 16), ("openslide", 7)):
        settings = PredictSettings(
            threads=2,
            batch=batch,
            reader=reader,  # type: ignore[arg-type]
            slide=SlideSettings(coords=str(tmp_path / "coords"), smooth=True),
            tiles_out=str(tmp_path / reader / "tiles"),
        )
        outcome = predict(bundle, slides, tmp_path / reader / "out", settings)
        assert [done.name for done in outcome.done] == list(NAMES)
        contents.append(
            {name: data for name, data in files(tmp_path / reader / "out").items() if Path(name).name != DONE}
        )
        contents[-1] |= files(tmp_path / reader / "tiles")
    assert contents[0] == contents[1]
    for path, name in zip(slides, NAMES, strict=True):
        assert {"index.html", "thumbnail.jpg"} <= {each.name for each in (tmp_path / "direct/out" / name).iterdir()}
        pictures = {f"{name}_x{x}_y{y}.png" for x, y in places[name]}
        assert {each.name for each in (tmp_path / "direct/tiles" / name).iterdir()} == pictures
        slide = open_slide(path)
        for x, y in sorted(places[name])[::9]:
            with Image.open(tmp_path / "direct/tiles" / name / f"{name}_x{x}_y{y}.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), slide.tile(x, y, (SIDE, SIDE), SIDE))
        slide.close()


@pytest.mark.usefixtures("_no_pictures")
def test_the_reader_is_an_option_and_refuses_what_it_cannot_read(
    histo: Callable[..., tuple[int, str, str]], bundle: Path, tmp_path: Path, write_tiff: Callable[..., Path]
) -> None:
    strips = write_tiff(tmp_path / "strips.tif", draw_slide(400, 1200), tiled=False)
    code, _, err = histo("predict", bundle, strips, "--out", tmp_path / "out", "--reader", "direct")
    assert code == 1
    assert "has no tiles that can be read one by one, so it cannot be read directly. Leave --reader direct out" in err
    code, _, err = histo("predict", bundle, strips, "--out", tmp_path / "out", "--reader", "fast")
    assert (code, "--reader fast: is unknown. Use auto or direct or openslide" in err) == (2, True)
    code, _, err = histo("predict", bundle, strips, "--out", tmp_path / "out", "--resize", "--resample", "dct")
    assert (code, "--resample dct: contradicts --resize" in err) == (2, True)
    with pytest.raises(UsageError, match="--resample dct: is unknown"):
        PredictSettings(resize="dct")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_no_pictures")
def test_while_pictures_are_drawn_the_next_slide_runs(
    bundle: Path, slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first slide is not written before tiles of the second one have run, and one slide is prepared meanwhile."""
    tiles_of_second, order = threading.Event(), []
    real = SlidePrediction.write

    def write(self: SlidePrediction, folder: Path, **options: Any) -> None:
        if self.name == "a.tif":
            assert tiles_of_second.wait(60)
        order.append(self.name)
        real(self, folder, **options)

    run = whole_slide.PreparedSlide.run

    def run_and_tell(self: whole_slide.PreparedSlide, *arguments: Any, **options: Any) -> SlidePrediction:
        prediction = run(self, *arguments, **options)
        if prediction.name == "b.tif":
            tiles_of_second.set()
        return prediction

    monkeypatch.setattr(SlidePrediction, "write", write)
    monkeypatch.setattr(whole_slide.PreparedSlide, "run", run_and_tell)
    progress: list[int] = []
    outcome = predict(bundle, slides, tmp_path / "out", SETTINGS, report=lambda each: progress.append(each.all_done))
    assert not outcome.failures
    assert order == ["a.tif", "b.tif", "c.tif"]
    assert progress == sorted(progress), "what is written later is counted all the same"
    assert progress[-1] == sum(done.run for done in outcome.done)


@pytest.mark.usefixtures("_no_pictures")
def test_one_slide_is_open_beside_the_one_that_runs(
    bundle: Path, slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histo_export.predict.readers.direct_reader import DirectReader

    lock, count, most = threading.Lock(), [0], [0]
    opened, closed = DirectReader.__init__, DirectReader.close

    def change(by: int) -> None:
        with lock:
            count[0] += by
            most[0] = max(most[0], count[0])

    def init(self: DirectReader, *arguments: Any, **options: Any) -> None:
        opened(self, *arguments, **options)
        change(1)

    def close(self: DirectReader) -> None:
        closed(self)
        change(-1)

    monkeypatch.setattr(DirectReader, "__init__", init)
    monkeypatch.setattr(DirectReader, "close", close)
    more = [*slides, *(write_slide(tmp_path / "in" / f"{i}.tif") for i in range(3))]
    assert len(predict(bundle, more, tmp_path / "out", SETTINGS).done) == 6
    assert (count[0], most[0]) == (0, 2)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class Interrupting(StubRuntime):
    """Presses Ctrl-C in the third batch; or fails."""

    def __init__(self, error: BaseException) -> None:
        self.left, self.error = 3, error

    def run(self, tiles: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().run(tiles)


@pytest.mark.usefixtures("_no_pictures")
def test_an_interruption_ends_all_threads_and_the_command_goes_on(
    bundle: Path, slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, out = threads(), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(work, "open_model", lambda *_: Interrupting(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            predict(bundle, slides, out, SETTINGS)
    assert threads() == before
    assert not out.exists()
    assert len(predict(bundle, slides, out, SETTINGS).done) == 3
    assert threads() == before
    assert {path.name for path in out.iterdir()} == {*NAMES, "run.json", "index.html"}


@pytest.mark.usefixtures("_no_pictures")
def test_an_error_ends_one_slide_in_whichever_stage_it_comes(
    bundle: Path, slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threads()
    stages: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
        "prepare": lambda patch: patch.setattr(whole_slide, "find_tissue", failing(whole_slide.find_tissue)),
        "tiles": lambda patch: patch.setattr(work, "open_model", lambda *_: Interrupting(RuntimeError("broken"))),
        "draw": lambda patch: patch.setattr(whole_slide, "tissue_picture", failing(whole_slide.tissue_picture)),
        "write": lambda patch: patch.setattr(work, "write_done", failing(work.write_done)),
    }
    for stage, change in stages.items():
        out = tmp_path / stage
        with monkeypatch.context() as patch:
            change(patch)
            outcome = predict(bundle, slides, out, SETTINGS)
        assert [done.name for done in outcome.done] == ["b", "c"], stage
        (failure,) = outcome.failures
        assert "broken" in failure.reason
        assert {path.name for path in out.iterdir()} == {"b", "c", "run.json", "index.html", "failed.csv"}
    assert threads() == before


def failing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Fails in the first call."""
    calls: list[int] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("broken")
        return function(*arguments, **options)

    return call


@pytest.mark.usefixtures("_no_pictures")
def test_dct_is_named_and_never_silent(bundle: Path, slides: list[Path], tmp_path: Path, monkeypatch) -> None:
    """Slides of 0.25 µm under a model of 0.5: the tiles of the file are decoded at half their size."""
    raw = write_pyramid(tmp_path / "in/raw.tif", [draw_slide(400, 1200)], np.ndarray.tobytes, side=128, compression=1)

    def run(resample: Any) -> dict[str, Any]:
        settings = PredictSettings(
            threads=2, batch=16, slide=SlideSettings(mpp=0.25, resample=resample, everything=True)
        )
        outcome = predict(bundle, [slides[0], raw], tmp_path / resample, settings)
        assert record(tmp_path / resample)["settings"]["slide"]["resample"] == resample
        return {done.name: done.summary for done in outcome.done}

    plain, dct = run("bilinear"), run("dct")
    assert "decoded_at" not in plain["a"]
    assert (dct["a"]["resample"], dct["a"]["decoded_at"], dct["a"]["warnings"]) == ("dct", "1/2", [])
    assert dct["raw"]["decoded_at"] == "1/1"
    assert "resampled with bilinear, because it cannot be decoded smaller (direct" in dct["raw"]["warnings"][0]
    table = [(tmp_path / name / "raw/tiles.csv").read_bytes() for name in ("bilinear", "dct")]
    assert table[0] == table[1]
    places = [tmp_path / name / "a/tiles.csv" for name in ("bilinear", "dct")]
    before, after = (np.loadtxt(place, delimiter=",", skiprows=1) for place in places)
    difference = np.abs(before - after)[:, 4:]
    assert 0 < difference.max() < 0.02
    assert run_module.RESULTS == 2, "what a result means has not changed"
