"""Files that programs write in practice: each is read with the right pixels, or refused by name."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from histo_export.data.images import BadImageError, decode_image
from histo_export.errors import HistoError
from histo_export.predict.formats import dicom_series, is_slide, slide_format
from histo_export.predict.readers import open_slide
from histo_export.predict.readers.direct_reader import DirectReader
from histo_export.predict.readers.flat_tiff import FlatTiffReader
from histo_export.predict.readers.openslide_reader import OpenSlideReader
from histo_export.predict.slide import Slide

tifffile = pytest.importorskip("tifffile", reason='slides need pip install "histo-export[slides]"')

Pixels = npt.NDArray[Any]
LAYOUTS: dict[str, dict[str, Any]] = {"tiles": {"tile": (128, 128)}, "strips": {"rowsperstrip": 32}}
ORIENTATION, PHOTOMETRIC, COMPRESSION, XMP = 274, 262, 259, 700
SIDE_Y, SIDE_X = 240, 320


def colours() -> Pixels:
    """Smooth colours, uint8 (240, 320, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE_X, SIDE_Y), Image.Resampling.BICUBIC))


RGB = colours()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
ALPHA = np.full(GREY.shape, 255, np.uint8)
ALPHA[:, :100], ALPHA[:, 100:200] = 0, 90


def write(path: Path, pixels: Pixels, layout: str = "tiles", **options: Any) -> Path:
    kind = {"photometric": "rgb", "metadata": None, **LAYOUTS[layout], **options}
    tifffile.imwrite(path, pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER", **kind)
    return path


def patched(path: Path, tag: int, value: int) -> Path:
    """The file with another value of a tag that has one 16-bit number."""
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[tag].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, at, value)
    path.write_bytes(data)
    return path


def palette() -> tuple[Pixels, Pixels]:
    """Indices, and colours as TIFF stores them, uint16 (3, 256)."""
    image = Image.fromarray(RGB).quantize(256)
    table = np.zeros((256, 3), np.uint16)
    values = np.asarray(image.getpalette(), np.uint16).reshape(-1, 3)
    table[: len(values)] = values * 257
    return np.asarray(image), np.ascontiguousarray(table.T)


def all_of(slide: Slide) -> Pixels:
    pixels = np.asarray(slide.read(0, 0, 0, slide.width, slide.height))
    slide.close()
    return pixels


def grey3(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, 2)


def on_white(rgb: Pixels) -> Pixels:
    alpha = ALPHA[..., None] / 255
    return rgb * alpha + 255 * (1 - alpha)


INDICES, TABLE = palette()
ACCEPTED: dict[str, tuple[Callable[[], tuple[Pixels, dict[str, Any]]], Pixels]] = {
    "RGB": (lambda: (RGB, {}), RGB),
    "BigTIFF": (lambda: (RGB, {"bigtiff": True}), RGB),
    "big-endian": (lambda: (RGB, {"byteorder": ">"}), RGB),
    "deflate": (lambda: (RGB, {"compression": "zlib"}), RGB),
    "planes": (lambda: (np.moveaxis(RGB, 2, 0), {"planarconfig": "separate"}), RGB),
    "grey": (lambda: (GREY, {"photometric": "minisblack"}), grey3(GREY)),
    "grey, white is 0": (lambda: (255 - GREY, {"photometric": "miniswhite"}), grey3(GREY)),
    "bilevel": (lambda: (GREY > 128, {"photometric": "minisblack"}), grey3((GREY > 128) * np.uint8(255))),
    "palette": (
        lambda: (INDICES, {"photometric": "palette", "colormap": TABLE}),
        (TABLE.T[INDICES] // 257).astype(np.uint8),
    ),
    "OME": (lambda: (RGB, {"ome": True, "metadata": {"axes": "YXS"}}), RGB),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_tile_and_a_slide_have_the_same_and_right_pixels(kind: str, layout: str, tmp_path: Path) -> None:
    make, expected = ACCEPTED[kind]
    pixels, options = make()
    path = write(tmp_path / "a.tif", pixels, layout, **options)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx((0.5, 0.5))
    np.testing.assert_array_equal(all_of(slide), expected)
    np.testing.assert_array_equal(decode_image(path.read_bytes()), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ycbcr_is_converted(layout: str, tmp_path: Path) -> None:
    ycbcr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    path = write(tmp_path / "a.tif", ycbcr, layout, photometric="ycbcr")
    expected = np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB")).astype(int)
    # libtiff, which OpenSlide uses, and Pillow round differently.
    assert np.abs(all_of(open_slide(path)) - expected).max() <= 1
    assert np.abs(decode_image(path.read_bytes()) - expected).max() <= 1


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "zstd"])
def test_flat_files_are_read_in_every_codec_of_pillow(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    quality = {"quality": 95} if compression == "jpeg" else {}
    Image.fromarray(RGB).save(path, compression=compression, **quality)
    pixels = all_of(open_slide(path))
    assert np.abs(pixels.astype(int) - RGB).mean() < (2 if compression == "jpeg" else 1e-9)
    np.testing.assert_array_equal(decode_image(path.read_bytes()), pixels)


def test_a_tile_in_fax_codec_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(GREY > 128).save(path, compression="group4")
    np.testing.assert_array_equal(all_of(open_slide(path)), grey3((GREY > 128) * np.uint8(255)))


def encode(tile: Pixels, codec: str) -> bytes:
    """The bytes of a tile of a TIFF."""
    out = io.BytesIO()
    if codec == "jpeg":
        Image.fromarray(tile).save(out, "JPEG", quality=90)
        return out.getvalue()
    Image.fromarray(tile).save(out, "TIFF", compression=codec)
    out.seek(0)
    with tifffile.TiffFile(out) as file:
        ((offset,), (size,)) = file.pages[0].dataoffsets, file.pages[0].databytecounts
    return out.getvalue()[offset : offset + size]


@pytest.mark.parametrize("codec", ["jpeg", "tiff_lzw", "packbits", "zstd", "lzma"])
def test_tiles_in_every_codec_are_the_same_for_tiles_and_slides(codec: str, tmp_path: Path) -> None:
    """tifffile encodes with imagecodecs only, so the tiles of a file without compression are replaced."""
    path = write(tmp_path / "a.tif", RGB)
    with tifffile.TiffFile(path) as file:
        offsets, sizes = (file.pages[0].tags[name] for name in ("TileOffsets", "TileByteCounts"))
    data = bytearray(path.read_bytes())
    expected = np.pad(RGB, ((0, 16), (0, 64), (0, 0)), mode="edge")
    corners = [(y, x) for y in range(0, SIDE_Y, 128) for x in range(0, SIDE_X, 128)]
    for i, (y, x) in enumerate(corners):
        tile = expected[y : y + 128, x : x + 128]
        encoded = encode(tile, codec)
        if codec == "jpeg":
            tile[:] = np.asarray(Image.open(io.BytesIO(encoded)))
        for tag, value in ((offsets, len(data)), (sizes, len(encoded))):
            kind = "<H" if tag.dtype == 3 else "<I"
            struct.pack_into(kind, data, tag.valueoffset + i * struct.calcsize(kind), value)
        data += encoded
    path.write_bytes(data)
    patched(path, COMPRESSION, {"jpeg": 7, "tiff_lzw": 5, "packbits": 32773, "zstd": 50000, "lzma": 34925}[codec])
    if codec == "jpeg":
        patched(path, PHOTOMETRIC, 6)
    slide = open_slide(path)
    assert type(slide) is {"lzma": FlatTiffReader, "jpeg": DirectReader}.get(codec, OpenSlideReader)
    np.testing.assert_array_equal(all_of(slide), expected[:SIDE_Y, :SIDE_X])
    np.testing.assert_array_equal(decode_image(path.read_bytes()), expected[:SIDE_Y, :SIDE_X])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("base", ["rgb", "minisblack"])
def test_transparent_parts_of_a_slide_are_white(base: str, kind: str, layout: str, tmp_path: Path) -> None:
    plain = RGB if base == "rgb" else GREY[..., None]
    stored = plain if kind == "unassalpha" else np.rint(plain * (ALPHA[..., None] / 255)).astype(np.uint8)
    path = write(tmp_path / "a.tif", np.dstack([stored, ALPHA]), layout, photometric=base, extrasamples=[kind])
    pixels = all_of(open_slide(path))
    assert (pixels[:, :100] == 255).all()
    np.testing.assert_array_equal(pixels[:, 200:], np.broadcast_to(plain, RGB.shape)[:, 200:])
    assert np.abs(pixels - on_white(plain)).max() <= 2
    with pytest.raises(BadImageError, match="48,000 transparent pixels"):
        decode_image(path.read_bytes())


REFUSED: dict[str, tuple[str, Callable[[], tuple[Pixels, dict[str, Any]]]]] = {
    "CMYK": (
        "is in CMYK, not RGB",
        lambda: (np.asarray(Image.fromarray(RGB).convert("CMYK")), {"photometric": "separated"}),
    ),
    "Lab": ("is in Lab, not RGB", lambda: (RGB, {"photometric": "cielab"})),
    "16 bits": ("has 16 bits per channel", lambda: (RGB.astype(np.uint16) * 257, {})),
    "12 bits in 16": (
        "has 16 bits per channel",
        lambda: (GREY.astype(np.uint16) * 16, {"photometric": "minisblack"}),
    ),
    "float": ("holds floating-point numbers", lambda: (RGB.astype(np.float32), {})),
    "signed": ("holds signed integers", lambda: (GREY.astype(np.int8), {"photometric": "minisblack"})),
    "unknown fourth channel": (
        "fourth channel that is not stated to be alpha",
        lambda: (np.dstack([RGB, ALPHA]), {"extrasamples": ["unspecified"]}),
    ),
    "unknown second channel": (
        "has 2 channels",
        lambda: (np.dstack([GREY, ALPHA]), {"photometric": "minisblack", "extrasamples": ["unspecified"]}),
    ),
    "five channels": (
        "has 5 channels",
        lambda: (np.stack([GREY] * 5), {"photometric": "minisblack", "planarconfig": "separate"}),
    ),
    "focal planes": ("holds 3 images of the same size", lambda: (np.stack([RGB, RGB, RGB]), {})),
    "channels of OME": (
        "holds 3 images of the same size",
        lambda: (np.stack([GREY] * 3), {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}}),
    ),
    **{
        f"orientation {value}": (
            rf"orientation {value}\)",
            lambda value=value: (RGB, {"extratags": [(ORIENTATION, 3, 1, value, True)]}),
        )
        for value in range(2, 9)
    },
    "orientation in XMP": (
        r"orientation 6\)",
        lambda: (RGB, {"extratags": [(XMP, 1, None, b'<x tiff:Orientation="6"/>', True)]}),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_come_out_wrong_is_refused_by_name(kind: str, layout: str, tmp_path: Path) -> None:
    reason, make = REFUSED[kind]
    pixels, options = make()
    path = write(tmp_path / "a.tif", pixels, layout, **options)
    with pytest.raises(HistoError, match=reason) as error:
        open_slide(path)
    assert "Copy it again" not in error.value.next_step
    with pytest.raises(BadImageError, match=reason.replace("images of the same size", "(images|pages)")):
        decode_image(path.read_bytes())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("number", "name"),
    [
        (34712, "JPEG 2000"),
        (33005, "JPEG 2000"),
        (50001, "WebP"),
        (50002, "JPEG XL"),
        (34887, "LERC"),
        (22610, "JPEG XR"),
        (6, "old-style JPEG"),
        (12345, "codec 12345"),
    ],
)
def test_a_codec_that_is_not_read_is_named(number: int, name: str, layout: str, tmp_path: Path) -> None:
    path = patched(write(tmp_path / "a.tif", RGB, layout), COMPRESSION, number)
    with pytest.raises(HistoError, match=f"is compressed with {name}, which cannot be read") as error:
        open_slide(path)
    assert "Convert it" in error.value.next_step
    with pytest.raises(BadImageError, match=f"is compressed with {name}"):
        decode_image(path.read_bytes())


def test_imagej_stacks_with_one_directory_are_refused(tmp_path: Path) -> None:
    text = "ImageJ=1.53t\nimages=4\nslices=4\n"
    path = write(tmp_path / "a.tif", RGB, "strips", description=text)
    with pytest.raises(HistoError, match="holds 4 images of the same size"):
        open_slide(path)


def test_missing_strips_are_not_black(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, "strips")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["StripByteCounts"]
    data = bytearray(path.read_bytes())
    sizes = f"<{tag.count}{'H' if tag.dtype == 3 else 'I'}"
    values = [*struct.unpack_from(sizes, data, tag.valueoffset)]
    struct.pack_into(sizes, data, tag.valueoffset, *values[:-1], 0)
    path.write_bytes(data)
    for read in (lambda: open_slide(path), lambda: decode_image(path.read_bytes())):
        with pytest.raises((HistoError, BadImageError), match="lacks some of its strips or tiles"):
            read()


def test_subsampled_ycbcr_without_compression_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, "strips")
    patched(path, PHOTOMETRIC, 6)  # the tag of subsampling is absent, which means 2×2
    with pytest.raises(HistoError, match="is in subsampled YCbCr without compression"):
        open_slide(path)


def write_pyramid(path: Path, levels: list[int], layout: str, flag: bool = True, pixels: Pixels = RGB) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for level in levels:
            image = np.ascontiguousarray(pixels[:: 2**level, :: 2**level])
            kind = {"subfiletype": 1} if level and flag else {}
            resolution = (20000 / 2**level,) * 2
            options = {"resolution": resolution, "resolutionunit": "CENTIMETER", **LAYOUTS[layout]}
            writer.write(image, photometric="rgb", metadata=None, **options, **kind)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("levels", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_a_pyramid_in_any_order_is_read_at_its_largest_level(levels, flag, layout, tmp_path: Path) -> None:
    slide = open_slide(write_pyramid(tmp_path / "a.tif", levels, layout, flag))
    assert slide.mpp == pytest.approx((0.5, 0.5))
    np.testing.assert_array_equal(all_of(slide), RGB)


def test_a_level_that_openslide_would_read_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", metadata=None, tile=(128, 128))
        small = np.ascontiguousarray(RGB[::2, ::2]).astype(np.uint16) * 257
        writer.write(small, photometric="rgb", metadata=None, tile=(128, 128), subfiletype=1)
    with pytest.raises(HistoError, match="has a level of 160×120 pixels that has 16 bits per channel"):
        open_slide(path)


def test_different_images_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in (RGB, RGB[:, :200]):
            writer.write(image, photometric="rgb", metadata=None, tile=(128, 128))
    with pytest.raises(HistoError, match="holds 2 different images"):
        open_slide(path)


def test_labels_and_thumbnails_beside_a_slide_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", metadata=None, tile=(128, 128))
        writer.write(RGB[:100, :100], photometric="rgb", metadata=None, rowsperstrip=10)
        writer.write(RGB[:16, :32], photometric="rgb", metadata=None, tile=(16, 16))
    np.testing.assert_array_equal(all_of(open_slide(path)), RGB)


def large() -> Pixels:
    return np.zeros((40, 1300, 3), np.uint8)


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"ome": True, "metadata": {"axes": "YXS"}}])
def test_a_tiff_is_a_slide_if_one_of_its_pages_is_large(options, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", large(), **options)
    assert is_slide(path, 224)
    assert not is_slide(path, 1300 // 4 + 1)


def test_the_largest_page_decides_wherever_it_is(tmp_path: Path) -> None:
    assert is_slide(write_pyramid(tmp_path / "a.tif", [2, 1, 0], "tiles", pixels=large()), 224)
    assert not is_slide(write_pyramid(tmp_path / "b.tif", [2, 1], "tiles", pixels=large()), 224)
    below = tmp_path / "c.tif"
    with tifffile.TiffWriter(below) as writer:
        writer.write(RGB[:32], photometric="rgb", metadata=None, tile=(128, 128), subifds=1)
        writer.write(large(), photometric="rgb", metadata=None, tile=(128, 128))
    assert is_slide(below, 224)
    with pytest.raises(HistoError, match="in a SubIFD"):
        open_slide(below)


@pytest.mark.parametrize("name", ["slide", "slide.qptiff", "slide.btf", "slide.svs", "é ünï$^.tf8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_content_decides_and_not_the_name(name: str, layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, RGB, layout, bigtiff=True)
    assert slide_format(path) == ("generic-tiff" if layout == "tiles" else "tiff")
    slide = open_slide(path)
    assert type(slide) is (DirectReader if layout == "tiles" else FlatTiffReader)
    np.testing.assert_array_equal(all_of(slide), RGB)


def test_large_flat_files_and_bad_ones_print_no_warning(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RGB).save(path, compression="tiff_lzw")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses more than twice as many
    np.testing.assert_array_equal(all_of(open_slide(path)), RGB)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr("histo_export.predict.readers.flat_tiff.MAX_MEMORY_BYTES", RGB.nbytes - 1)
    with pytest.raises(HistoError, match=r"too many to read at once.*vips tiffsave"):
        open_slide(path)


def test_threads_share_the_silence_of_pillow(tmp_path: Path) -> None:
    from histo_export.data.pillow import quiet_pillow

    before = warnings.filters[:], Image.MAX_IMAGE_PIXELS
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with quiet_pillow():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(60)
    with quiet_pillow():
        pass
    assert Image.MAX_IMAGE_PIXELS is None
    leave.set()
    thread.join()
    assert (warnings.filters[:], Image.MAX_IMAGE_PIXELS) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_cut_files_are_refused(share: float, layout: str, compression: str | None, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, RGB.shape, dtype=np.uint8)
    path = write(tmp_path / "a.tif", noise, layout, compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(HistoError):
        all_of(open_slide(path))
    assert not is_slide(path, 224)


def test_damaged_directories_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = write_pyramid(tmp_path / "a.tif", [0, 1], "strips")
    with tifffile.TiffFile(path) as file:
        places = [page.offset for page in file.pages]
    whole = path.read_bytes()
    read = 0
    for _ in range(150):
        data = bytearray(whole)
        at = int(rng.choice(places)) + int(rng.integers(0, 200))
        data[at] = int(rng.integers(0, 256))
        path.write_bytes(data)
        is_slide(path, 224)
        slide_format(path)
        try:
            all_of(open_slide(path))
            read += 1
        except HistoError:
            continue
    assert 0 < read < 150


def test_a_list_of_pages_that_returns_to_itself_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, "strips")
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].offset
    data = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * tags, start)
    path.write_bytes(data)
    np.testing.assert_array_equal(all_of(open_slide(path)), RGB)


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    pipe = tmp_path / "pipe.tif"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        bound.bind("socket.tif")
        for path in (pipe, tmp_path / "socket.tif", tmp_path, tmp_path / "absent.tif"):
            assert not is_slide(path, 224)
            assert slide_format(path) is None
            assert dicom_series(path) is None
            with pytest.raises(HistoError, match=r"is a folder|is not a file|does not exist"):
                open_slide(path)


def test_impossible_names_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.tif"
    loop.symlink_to(loop)
    for path in (tmp_path / ("x" * 300), tmp_path / "\0.tif", loop):
        assert not is_slide(path, 224)
        assert slide_format(path) is None
        with pytest.raises(HistoError, match=r"cannot be read \(File name too long\)|does not exist"):
            open_slide(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_that_are_not_utf8_are_read(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode(b"caf\xe9"), RGB, layout)
    assert slide_format(path) is not None
    np.testing.assert_array_equal(all_of(open_slide(path)), RGB)


def test_what_tifffile_logs_stays_off_the_screen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, "strips", software="x" * 100)
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags["Software"].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, entry + 8, len(data) + 1000)  # its text lies beyond the end of the file
    path.write_bytes(data)
    code = "import sys, pathlib, histo_export.predict.readers as r; r.open_slide(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_other_files_have_no_format(tmp_path: Path) -> None:
    text, image = tmp_path / "notes.svs", tmp_path / "a.tif"
    text.write_text("not a slide" * 20)
    Image.fromarray(RGB).save(image, "PNG")
    for path in (text, image):
        assert slide_format(path) is None
        assert dicom_series(path) is None
        with pytest.raises(HistoError, match="not a slide of a format that OpenSlide knows"):
            open_slide(path)


def write_dicom(path: Path, pixels: Pixels, series: int, instance: int = 1, kind: str = "VOLUME") -> Path:
    """A minimal whole-slide instance of one level: RGB without compression, in frames of 128 pixels."""
    pydicom = pytest.importorskip("pydicom", reason='slides need pip install "histo-export[slides]"')
    side, root = 128, "1.2.826.0.1.3680043.8.498"
    down, across = -(-pixels.shape[0] // side), -(-pixels.shape[1] // side)
    padded = np.full((down * side, across * side, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    frames = padded.reshape(down, side, across, side, 3).swapaxes(1, 2)

    def item(**fields: Any) -> Any:
        dataset = pydicom.Dataset()
        for name, value in fields.items():
            setattr(dataset, name, value)
        return dataset

    storage = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6", "SOPInstanceUID": f"{root}.{series}.{instance}"}
    spacing = item(PixelSpacing=[0.0005, 0.0005], SliceThickness=0.001)
    slide = item(
        **storage,
        Modality="SM",
        StudyInstanceUID=f"{root}.1",
        SeriesInstanceUID=f"{root}.{series}",
        ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"],
        TotalPixelMatrixColumns=pixels.shape[1],
        TotalPixelMatrixRows=pixels.shape[0],
        Columns=side,
        Rows=side,
        NumberOfFrames=down * across,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        DimensionOrganizationType="TILED_FULL",
        TotalPixelMatrixFocalPlanes=1,
        NumberOfOpticalPaths=1,
        OpticalPathSequence=[item(OpticalPathIdentifier="1")],
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[spacing])],
        PixelData=frames.tobytes(),
    )
    slide.file_meta = pydicom.dataset.FileMetaDataset()
    slide.file_meta.MediaStorageSOPClassUID = storage["SOPClassUID"]
    slide.file_meta.MediaStorageSOPInstanceUID = storage["SOPInstanceUID"]
    slide.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    slide.save_as(path, enforce_file_format=True, little_endian=True, implicit_vr=False)
    return path


def test_dicom_files_tell_their_slide_whatever_their_name(tmp_path: Path) -> None:
    first = write_dicom(tmp_path / "1.2.826.11", RGB, series=11)
    label = write_dicom(tmp_path / "0_label.dcm", RGB[:100, :100], series=11, instance=2, kind="LABEL")
    second = write_dicom(tmp_path / "b.dcm", RGB[:, ::-1], series=12)
    assert [slide_format(path) for path in (first, label, second)] == ["dicom"] * 3
    assert dicom_series(first) == dicom_series(label) == "1.2.826.0.1.3680043.8.498.11"
    assert dicom_series(second) == "1.2.826.0.1.3680043.8.498.12"
    for path, expected in ((first, RGB), (label, RGB), (second, RGB[:, ::-1])):
        slide = open_slide(path)
        assert (slide.vendor, slide.mpp) == ("dicom", pytest.approx((0.5, 0.5)))
        np.testing.assert_array_equal(all_of(slide), expected)


@pytest.mark.parametrize("size", [132, 400, 1000, 4000])
def test_cut_dicom_files_are_refused(size: int, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RGB, series=11)
    path.write_bytes(path.read_bytes()[:size])
    assert slide_format(path) == "dicom"
    assert dicom_series(path) in (None, "1.2.826.0.1.3680043.8.498.11")
    with pytest.raises(HistoError):
        all_of(open_slide(path))
