"""Kinds of image files beside JPEG, PNG and TIFF."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from histo_export.data import images, open_data
from histo_export.data.images import BadImageError, decode_image

from .conftest import noise_tile, save

TILE = noise_tile(3)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("WEBP", {"lossless": True}), ("BMP", {}), ("JPEG2000", {"irreversible": False}), ("AVIF", {"quality": 100})],
)
def test_pixels_are_those_that_were_saved(kind: str, options: dict[str, Any]) -> None:
    module = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
    if module and not features.check(module):
        pytest.skip(f"this Pillow is built without {kind}")
    data = encode(Image.fromarray(TILE), kind, **options)
    # AVIF is lossy, because it is YCbCr.
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) if kind == "AVIF" else TILE
    np.testing.assert_array_equal(decode_image(data), expected)


def test_grey_and_opaque_alpha() -> None:
    grey = Image.fromarray(TILE).convert("L")
    np.testing.assert_array_equal(decode_image(encode(grey, "BMP")), np.asarray(grey)[..., None].repeat(3, 2))
    rgba = Image.fromarray(TILE).convert("RGBA")
    np.testing.assert_array_equal(decode_image(encode(rgba, "WEBP", lossless=True)), TILE)
    rgba.putpixel((0, 0), (1, 2, 3, 128))
    with pytest.raises(BadImageError, match="1 transparent pixels"):
        decode_image(encode(rgba, "WEBP", lossless=True, exact=True))


def test_animations_are_refused() -> None:
    frames = [Image.fromarray(noise_tile(i)) for i in range(3)]
    with pytest.raises(BadImageError, match="holds 3 pages"):
        decode_image(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))


def test_more_bits_are_refused() -> None:
    """Pillow would make 8 bits of them and say nothing."""
    data = bytearray(encode(Image.fromarray(TILE), "JPEG2000"))
    marker = data.index(b"\xff\x4f\xff\x51")
    assert images._bits(bytes(data)) == 8
    data[marker + 42] = 11  # 12 bits
    with pytest.raises(BadImageError, match="12 bits per channel"):
        decode_image(bytes(data))
    grey16 = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32))
    with pytest.raises(BadImageError, match="16 bits"):
        decode_image(encode(grey16, "JPEG2000"))
    if features.check("avif"):
        avif = bytearray(encode(Image.fromarray(TILE), "AVIF"))
        assert images._bits(bytes(avif)) == 8
        avif[avif.index(b"av1C") + 6] |= 0x40
        with pytest.raises(BadImageError, match="10 bits"):
            decode_image(bytes(avif))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\xff\x0a" + bytes(60), "needs pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "needs pillow-jxl-plugin"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "is a HEIC file"),
        (b"GIF89a" + bytes(60), "is a GIF file"),
        (b"8BPS" + bytes(60), "is a Photoshop file"),
        (b"%PDF-1.7" + bytes(60), "is a PDF file"),
        (bytes(128) + b"DICM" + bytes(60), "is a DICOM file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(60), "is not a JPEG, PNG or TIFF image, nor WebP"),
    ],
)
def test_other_kinds_are_named(monkeypatch: pytest.MonkeyPatch, start: bytes, reason: str) -> None:
    monkeypatch.setattr(images, "installed", lambda module: False)
    with pytest.raises(BadImageError, match=reason):
        decode_image(start)


def test_jpeg_xl() -> None:
    pillow_jxl = pytest.importorskip("pillow_jxl", reason="JPEG XL needs pip install pillow-jxl-plugin")
    assert pillow_jxl
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(TILE), "JXL", lossless=True)), TILE)


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "JPEG2000", "AVIF"])
def test_changed_bytes_are_told_in_a_line(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    good = encode(Image.fromarray(TILE), kind)
    rng = np.random.default_rng(1)
    reasons = []
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            decode_image(bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))]))
        except BadImageError as error:
            reasons.append(str(error))
    assert reasons
    assert not [reason for reason in reasons if "\n" in reason]


def test_folders_of_webp_are_tiles(tmp_path: Path) -> None:
    for c in "AB":
        for i in range(4):
            save(tmp_path / c / f"{i}.webp", noise_tile(ord(c), i))
    data = open_data(tmp_path, crop=8)
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 8
