from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histo_export.data.images import BadImageError, decode_image, read_image_bytes

from .conftest import noise_tile

TILE = noise_tile(1, side=16)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def png_16bit_rgb() -> bytes:
    """PIL cannot write one, and reads it as 8 bits without a word."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_rgb_is_read_exactly(kind: str, options: dict[str, object]) -> None:
    tile = decode_image(encode(TILE, kind, **options))
    assert tile.dtype == np.uint8
    assert tile.flags.c_contiguous
    np.testing.assert_array_equal(tile, TILE)


def test_jpeg_is_what_pil_reads() -> None:
    data = encode(TILE, "JPEG", quality=90)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(TILE, "JPEG")
    np.testing.assert_array_equal(decode_image(encode(TILE, "JPEG", exif=exif)), decode_image(plain))


def test_grey_is_replicated() -> None:
    grey = TILE[..., 0]
    np.testing.assert_array_equal(decode_image(encode(grey)), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(decode_image(encode(grey, "TIFF")), np.repeat(grey[..., None], 3, 2))


def test_palette_is_looked_up() -> None:
    paletted = Image.fromarray(TILE).quantize(16)
    np.testing.assert_array_equal(decode_image(encode(paletted)), np.asarray(paletted.convert("RGB")))


def test_opaque_alpha_is_dropped() -> None:
    rgba = np.dstack([TILE, np.full(TILE.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(encode(rgba)), TILE)
    la = np.dstack([TILE[..., 0], np.full(TILE.shape[:2], 255, np.uint8)])
    assert decode_image(encode(Image.fromarray(la, "LA"))).shape == (16, 16, 3)


def rgba_with_hole() -> np.ndarray:
    rgba = np.dstack([TILE, np.full(TILE.shape[:2], 255, np.uint8)])
    rgba[0, 0, 3] = 254
    return rgba


def several_pages(kind: str) -> bytes:
    page = Image.fromarray(TILE)
    return encode(page, kind, save_all=True, append_images=[Image.fromarray(noise_tile(2, side=16))])


BAD = {
    "transparent pixels": lambda: encode(rgba_with_hole()),
    "transparent pixels in a palette": lambda: encode(Image.fromarray(TILE).quantize(4), transparency=0),
    "16 bits per channel": png_16bit_rgb,
    "16 bits per channel, grey": lambda: encode(np.zeros((8, 8), np.uint16)),
    "16 bits per channel, grey tiff": lambda: encode(np.zeros((8, 8), np.uint16), "TIFF"),
    "32 bits per channel": lambda: encode(np.zeros((8, 8), np.float32), "TIFF"),
    "CMYK, not RGB": lambda: encode(Image.fromarray(TILE).convert("CMYK"), "JPEG"),
    "in CMYK": lambda: encode(Image.fromarray(TILE).convert("CMYK"), "TIFF"),
    "2 pages": lambda: several_pages("TIFF"),
    "holds 2 pages, not one": lambda: several_pages("PNG"),
    "is not a JPEG, PNG or TIFF": lambda: b"hello, I am text\n" * 9,
    "is a GIF file, which is not read as a tile": lambda: encode(TILE, "GIF"),
    "truncated": lambda: encode(noise_tile(3, side=64), "JPEG")[:-900],
    "too large for a tile": lambda: encode(Image.new("1", (9000, 9000))),
}


@pytest.mark.parametrize("reason", BAD)
def test_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(BadImageError, match=reason.split(",")[0].split(" in a ")[0]):
        decode_image(BAD[reason]())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_files_are_refused(kind: str, share: float) -> None:
    data = encode(noise_tile(5, side=64), kind)
    with pytest.raises(BadImageError):
        decode_image(data[: int(len(data) * share)])


def test_decompression_bomb_is_refused() -> None:
    data = bytearray(encode(TILE))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(BadImageError, match="is 60000x60000 pixels, too large for a tile"):
        decode_image(bytes(data))


SAMPLES = [encode(TILE, k) for k in ("PNG", "JPEG", "TIFF")] + [encode(TILE, "TIFF", compression="tiff_lzw")]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=5)), max_size=4),
)
def test_damaged_bytes_never_crash(sample: bytes, damage: list[tuple[float, bytes]]) -> None:
    data = bytearray(sample)
    for place, patch in damage:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    try:
        tile = decode_image(bytes(data))
    except BadImageError:
        return
    assert tile.dtype == np.uint8
    assert tile.ndim == 3
    assert tile.shape[2] == 3


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*"]))
@pytest.mark.filterwarnings("ignore")
def test_arbitrary_bytes_never_crash(data: bytes, head: bytes) -> None:
    with pytest.raises(BadImageError):
        decode_image(head + data)


def test_unreadable_paths(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(BadImageError, match="empty"):
        read_image_bytes(empty)
    with pytest.raises(BadImageError, match="not exist"):
        read_image_bytes(tmp_path / "gone.png")
    with pytest.raises(BadImageError, match="is a folder"):
        read_image_bytes(tmp_path)
