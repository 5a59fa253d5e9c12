"""The direct reader has OpenSlide's pixels, or leaves a file to OpenSlide and says why."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiled_tiff import SHORT, UNDEFINED, write_pyramid

from histo_export.errors import HistoError
from histo_export.predict.readers import direct_reader, open_slide
from histo_export.predict.readers.codecs import Jpeg
from histo_export.predict.readers.tile_cache import TileCache
from histo_export.predict.slide import Slide

from .conftest import Pixels

tifffile = pytest.importorskip("tifffile", reason='slides need pip install "histo-export[slides]"')
pytest.importorskip("simplejpeg", reason='slides need pip install "histo-export[slides]"')

WIDTH, HEIGHT, SIDE = 700, 500, 128
APERIO = "Aperio Image Library v11.2.1\r\n700x500 (128x128) JPEG/RGB Q=70|AppMag = 40|MPP = 0.5"
REAL = Path(__file__).parents[3] / "shared/data/slides/CMU-1-Small-Region.svs"
Encode = Callable[[Pixels], bytes]


def draw(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Smooth colours with some noise: JPEG changes all of it."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


PIXELS = draw()


def saved(tile: Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, kind, **options)
    return file.getvalue()


def jpeg(**options: Any) -> Encode:
    return lambda tile: saved(tile, "JPEG", quality=80, **options)


def jpeg2000(tile: Pixels) -> bytes:
    return saved(tile, "JPEG2000", no_jp2=True, irreversible=True, quality_layers=[10])


def without_marks(tile: Pixels) -> bytes:
    """Without JFIF, as Aperio writes it."""
    data = jpeg()(tile)
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def differences(tile: Pixels) -> bytes:
    return zlib.compress(np.diff(tile, axis=1, prepend=np.uint8(0)).tobytes())


def write(path: Path, encode: Encode, levels: Sequence[Pixels] = (PIXELS,), *, side: int = SIDE, **tags: Any) -> Path:
    return write_pyramid(path, levels, encode, side=side, **tags)


def pyramid(steps: Sequence[int] = (1, 2, 4)) -> list[Pixels]:
    return [PIXELS[::step, ::step] for step in steps]


def assert_same(direct: Slide, other: Slide) -> None:
    """Tiles of several scales, inside and outside, one by one and in rows; overviews; the facts."""
    assert (direct.levels, direct.mpp, direct.bounds, direct.vendor) == (
        other.levels,
        other.mpp,
        other.bounds,
        other.vendor,
    )
    corners = np.array([(x, y) for y in range(-61, HEIGHT + 40, 190) for x in range(-50, WIDTH + 30, 128)])
    for size, pixels in (((75, 75), 75), ((150, 150), 75), ((297, 301), 75), ((40, 41), 75)):
        found = direct.tiles(corners, size, pixels)
        np.testing.assert_array_equal(found, other.tiles(corners, size, pixels))
        np.testing.assert_array_equal(found[17], direct.tile(*corners[17].tolist(), size, pixels))
    for downsample in ((1.0, 1.0), (3.0, 5.0), (16.0, 16.0)):
        np.testing.assert_array_equal(direct.overview(downsample)[0], other.overview(downsample)[0])
    direct.close()
    other.close()


JPEG = {"compression": 7, "photometric": 2}
YCBCR = {"compression": 7, "photometric": 6}
DEFLATE = {"compression": 8}
KINDS: dict[str, tuple[Encode, dict[str, Any]]] = {
    "4:4:4": (jpeg(subsampling=0), YCBCR | {"further": {530: (SHORT, [1, 1])}}),
    "4:2:2": (jpeg(subsampling=1), YCBCR | {"further": {530: (SHORT, [2, 1])}}),
    "4:2:0": (jpeg(subsampling=2), YCBCR),
    "progressive": (jpeg(progressive=True), YCBCR),
    "JPEG in RGB": (jpeg(keep_rgb=True), JPEG),
    "JPEG with a mark that contradicts the TIFF": (jpeg(subsampling=0), JPEG),
    "tables beside the tiles": (
        jpeg(streamtype=2),
        YCBCR | {"further": {347: (UNDEFINED, saved(PIXELS, "JPEG", quality=80, streamtype=1))}},
    ),
    "Aperio JPEG": (without_marks, JPEG | {"description": APERIO}),
    "Aperio JPEG 2000": (jpeg2000, {"compression": 33005, "description": APERIO}),
    "uncompressed": (np.ndarray.tobytes, {"compression": 1}),
    "deflate": (lambda tile: zlib.compress(tile.tobytes()), DEFLATE),
    "deflate of differences": (differences, DEFLATE | {"further": {317: (SHORT, [2])}}),
    "BigTIFF": (jpeg(), YCBCR | {"bigtiff": True}),
    "OME-TIFF": (jpeg(), YCBCR | {"description": '<?xml version="1.0"?><OME><Image/></OME>'}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_openslide(kind: str, tmp_path: Path) -> None:
    encode, options = KINDS[kind]
    path = write(tmp_path / "a.tif", encode, **options)
    slide = open_slide(path)
    assert slide.reader == "direct", slide.why
    assert_same(slide, open_slide(path, "openslide"))


@pytest.mark.parametrize("steps", [(1, 2, 4), (1, 3, 7)], ids=str)
@pytest.mark.parametrize("description", ["", APERIO], ids=["generic", "aperio"])
def test_levels_are_those_of_openslide(steps: Sequence[int], description: str, tmp_path: Path) -> None:
    """A downsample of 3 is not exact: 500 / 167 and 700 / 234. OpenSlide interpolates between such pixels."""
    path = write(tmp_path / "a.tif", without_marks, pyramid(steps), description=description, **JPEG)
    slide = open_slide(path)
    assert (slide.reader, len(slide.levels)) == ("direct", 3), slide.why
    assert_same(slide, open_slide(path, "openslide"))


@pytest.mark.parametrize("side", [16, 240, 512, 1024])
def test_any_tile_size(side: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", jpeg(), side=side, **YCBCR)
    slide = open_slide(path)
    assert slide.reader == "direct", slide.why
    assert_same(slide, open_slide(path, "openslide"))


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_file(), reason="needs OpenSlide's public slide CMU-1-Small-Region.svs")
def test_a_real_slide() -> None:
    slide, other = open_slide(REAL), open_slide(REAL, "openslide")
    assert slide.reader == "direct", slide.why
    corners = np.array([(x, y) for y in range(-22, 2967, 397) for x in range(-22, 2220, 256)])
    for size in ((150, 150), (298, 298)):
        np.testing.assert_array_equal(slide.tiles(corners, size, 150), other.tiles(corners, size, 150))
    np.testing.assert_array_equal(slide.overview((16, 16))[0], other.overview((16, 16))[0])
    slide.close()
    other.close()


def entries(path: Path, name: str, page: int = 0) -> list[int]:
    """Where the numbers of a tag lie in the file, which have four bytes each."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags[name]
        assert tag.dtype == 4
        return [tag.valueoffset + 4 * i for i in range(tag.count)]


def patch(path: Path, name: str, tile: int, value: int, page: int = 0) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, entries(path, name, page)[tile], value)
    path.write_bytes(data)


def place(path: Path, tile: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return page.dataoffsets[tile], page.databytecounts[tile]


def made(path: Path) -> Path:
    """A slide with four rows of six tiles, all of them with places of four bytes."""
    return write(path, jpeg(), **YCBCR)


def test_other_layouts_go_to_openslide_with_the_reason(tmp_path: Path) -> None:
    planes = tmp_path / "planes.tif"
    tifffile.imwrite(
        planes, np.moveaxis(PIXELS, 2, 0), photometric="rgb", planarconfig="separate", tile=(128, 128), metadata=None
    )
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, PIXELS[..., 0], photometric="minisblack", tile=(128, 128), metadata=None)
    ycbcr = write(tmp_path / "a.svs", jpeg2000, compression=33003, description=APERIO)
    for path, reason in (
        (planes, "as arrangement of its channels"),
        (grey, "has 1 channels"),
        (ycbcr, "is compressed with JPEG 2000 in YCbCr"),
    ):
        slide = open_slide(path)
        assert slide.reader == "openslide"
        assert reason in slide.why
        slide.close()
        with pytest.raises(HistoError, match=rf"{reason}.*cannot be read directly.*Leave --reader direct out"):
            open_slide(path, "direct")


def test_a_file_that_openslide_decodes_in_another_way_goes_to_openslide(tmp_path: Path, monkeypatch) -> None:
    path = made(tmp_path / "a.tif")
    real = Jpeg.decode
    monkeypatch.setattr(Jpeg, "decode", lambda self, *arguments: real(self, *arguments) ^ 1)
    slide = open_slide(path)
    assert slide.reader == "openslide"
    assert "has other pixels than OpenSlide finds in tile (0, 0) of level 0" in slide.why


def test_missing_tiles_are_what_openslide_makes_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.svs", without_marks, description=APERIO, **JPEG)
    patch(path, "TileByteCounts", 8, 0)
    slide = open_slide(path)
    assert slide.reader == "direct", slide.why
    assert (np.asarray(slide.read(0, 2 * SIDE, SIDE, SIDE, SIDE)) == 255).all()
    assert_same(slide, open_slide(path, "openslide"))
    levels = write(tmp_path / "b.svs", without_marks, pyramid(), description=APERIO, **JPEG)
    patch(levels, "TileByteCounts", 8, 0)
    slide = open_slide(levels)
    assert (slide.reader, "draws from other levels" in slide.why) == ("openslide", True)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """Damage within the coded pixels, which decoders notice at the next marker."""
    middle = len(data) // 2
    return data[:middle] + b"\xff\xd9" + data[middle + 2 :]


def enlarged(data: bytes) -> bytes:
    """A header that states 65,500 × 65,500 pixels: 13 GB."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65500, 65500) + data[at + 4 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "an end within": flipped,
    "enormous": enlarged,
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"not a tile",
    "a header alone": lambda data: data[: data.index(b"\xff\xda")],
    "another kind of JPEG": lambda data: data.replace(b"\xff\xc0", b"\xff\xc3", 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_tile_is_named_and_the_others_are_read(kind: str, tmp_path: Path) -> None:
    path = made(tmp_path / "a.tif")
    offset, size = place(path, 8)
    data = bytearray(path.read_bytes())
    bad = DAMAGE[kind](bytes(data[offset : offset + size]))
    data[offset : offset + size] = bad.ljust(size, b"\0")
    path.write_bytes(data)
    slide, other = open_slide(path), open_slide(path, "openslide")
    assert slide.reader == "direct", slide.why
    corners = np.array([(0, 0), (64, 0), (10, 300), (500, 200)])
    np.testing.assert_array_equal(slide.tiles(corners, (75, 75), 75), other.tiles(corners, (75, 75), 75))
    with pytest.raises(HistoError, match=r"is damaged at"):
        other.tile(2 * SIDE, SIDE, (75, 75), 75)
    with pytest.raises(HistoError, match=r"a\.tif: is damaged: tile \(2, 1\) of level 0 .*copy it again"):
        slide.tiles(np.array([(2 * SIDE - 64, SIDE), (2 * SIDE, SIDE)]), (75, 75), 75)
    slide.close()
    other.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("TileOffsets", 0xFFFFFFF0), ("TileByteCounts", 0xFFFFFFF0), ("TileOffsets", 0), ("TileByteCounts", 3)],
)
def test_places_outside_of_the_file_are_damage_of_one_tile(name: str, value: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", jpeg(), pyramid((1, 4)), **YCBCR)  # OpenSlide reads the last level completely
    patch(path, name, 8, value)
    slide = open_slide(path)
    assert slide.reader == "direct", slide.why
    slide.tile(0, 0, (75, 75), 75)
    with pytest.raises(HistoError, match=r"tile \(2, 1\) of level 0"):
        slide.tile(2 * SIDE, SIDE, (75, 75), 75)
    slide.close()


def test_tables_that_contradict_the_image_go_to_openslide(tmp_path: Path) -> None:
    """With a count of tiles that is too small, OpenSlide's library would be asked; it must not be this reader."""
    path = made(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[name].offset for name in ("TileOffsets", "TileByteCounts")]
    data = bytearray(path.read_bytes())
    for offset in tags:
        struct.pack_into("<I", data, offset + 4, 5)
    path.write_bytes(data)
    with pytest.raises(HistoError):
        open_slide(path, "direct")


def test_no_tile_that_can_be_decoded_is_doubt(tmp_path: Path) -> None:
    path = made(tmp_path / "a.tif")
    for tile in range(24):
        patch(path, "TileByteCounts", tile, 3)
    with pytest.raises(HistoError, match="is not decoded directly: tile"):
        open_slide(path, "direct")


def test_each_tile_of_the_file_is_decoded_once(tmp_path: Path, monkeypatch) -> None:
    """Also where several threads read, and each row of the grid needs tiles of the row before."""
    path = made(tmp_path / "a.tif")
    slide = open_slide(path)
    slide._cache = TileCache(direct_reader.CACHE_BYTES)  # type: ignore[attr-defined]  # forgets what was compared
    decoded: list[int] = []
    real = Jpeg.decode

    def decode(self: Jpeg, data: bytes, *arguments: Any) -> Pixels:
        decoded.append(hash(data))
        return real(self, data, *arguments)

    monkeypatch.setattr(Jpeg, "decode", decode)
    rows = [np.array([(x, y) for x in range(0, WIDTH, 64)]) for y in range(0, HEIGHT, 64)]
    threads = [threading.Thread(target=slide.tiles, args=(row, (75, 75), 75)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == len(set(decoded)) == 24
    slide.close()


def test_the_cache_is_bounded_and_an_error_reaches_all_who_wait() -> None:
    cache = TileCache(1000)
    for i in range(30):
        tile = cache.get(i, lambda i=i: np.full(100, i, np.uint8))
        assert tile[0] == i
        assert cache.bytes <= 1000
    begun, go = threading.Event(), threading.Event()

    def fail() -> Pixels:
        begun.set()
        go.wait(10)
        raise ValueError("damaged")

    errors: list[str] = []

    def ask() -> None:
        try:
            cache.get("bad", fail)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert errors == ["damaged"] * 3
    assert cache.get("bad", lambda: np.zeros(1, np.uint8))[0] == 0, "it is tried again"


def test_levels_that_are_decoded_smaller(tmp_path: Path) -> None:
    path = made(tmp_path / "a.tif")
    slide, plain = open_slide(path, shrinks=True), open_slide(path)
    assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]
    assert [slide.shrink_of(i) for i in range(4)] == [1, 2, 4, 8]
    assert slide.levels[1:] == [type(slide.levels[0])(WIDTH // n, HEIGHT // n, n) for n in (2, 4, 8)]
    for shrink in (2, 4, 8):
        found = slide.tile(SIDE, 0, (SIDE, SIDE), SIDE // shrink, "dct")
        offset, size = place(path, 1)
        image = Image.open(io.BytesIO(path.read_bytes()[offset : offset + size]))
        image.draft("RGB", (SIDE // shrink, SIDE // shrink))
        np.testing.assert_array_equal(found, np.asarray(image))
        mean = plain.tile(SIDE, 0, (SIDE, SIDE), SIDE, "dct").reshape(SIDE // shrink, shrink, SIDE // shrink, shrink, 3)
        assert np.abs(found - mean.mean((1, 3))).mean() < 6
    odd = np.array([(x, y) for y in (-9, 33, 301) for x in range(-15, 600, 101)])
    assert slide.tiles(odd, (149, 149), 75, "dct").shape == (len(odd), 75, 75, 3)
    np.testing.assert_array_equal(slide.tiles(odd, (75, 75), 75, "dct"), plain.tiles(odd, (75, 75), 75))
    slide.close()
    plain.close()
    raw = open_slide(write(tmp_path / "raw.tif", np.ndarray.tobytes, compression=1), shrinks=True)
    assert len(raw.levels) == 1
    raw.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_no_file_stays_open(tmp_path: Path, monkeypatch) -> None:
    path = made(tmp_path / "a.tif")
    slide = open_slide(path)
    slide.tile(0, 0, (75, 75), 75)
    slide.close()
    before = open_files()
    for reader in ("auto", "openslide"):
        slide = open_slide(path, reader)  # type: ignore[arg-type]
        slide.close()
    monkeypatch.setattr(direct_reader, "read_tables", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_slide(path)
    assert open_files() == before
