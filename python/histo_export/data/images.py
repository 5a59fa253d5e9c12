"""Decode one image file into a tile, or say exactly why it cannot be one.

What is accepted, and what becomes of it:

=====================================  ==========================================================
8-bit RGB (JPEG, PNG, TIFF)            as it is; no colour management, an ICC profile is ignored
grey, 1- to 8-bit                      replicated to three channels
palette                                looked up
RGBA, LA, palette with transparency    alpha dropped if every pixel is opaque, else refused
TIFF in YCbCr                          converted (JPEG inside; libjpeg's conversion)
more than 8 bits, float, CMYK, Lab     refused
TIFF or PNG of several pages           refused
=====================================  ==========================================================

EXIF orientation is ignored, as PIL and torchvision do by default: tiles have no upright side, and so all
tools see the same pixels.

Partial transparency is refused rather than put on white or black, because tools disagree on the
colour (PIL shows what lies beneath, usually black) and a model would learn the choice.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
MAX_PIXELS = 8192 * 8192
"""Most pixels of a tile; PIL's own limit (twice 89 million) is higher."""
MAX_BYTES = 256 << 20
"""Largest size of a file; larger ones are refused without reading them into memory."""


class BadImageError(Exception):
    """Why a file cannot be a tile, as the predicate of a sentence: "is truncated"."""


def read_image_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        BadImageError: missing, unreadable, empty, larger than `MAX_BYTES`, or not a regular file.
    """
    try:
        # No O_NONBLOCK: a named pipe would block in open(), so it is refused before.
        if not path.is_file():
            raise BadImageError("is not a regular file" if path.exists() else "does not exist (broken link?)")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BadImageError(f"is {size >> 20} MiB, too large for a tile (cut slides into tiles first)")
            data = file.read(MAX_BYTES)
    except PermissionError as error:
        raise BadImageError("may not be read (permission denied)") from error
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise BadImageError("is empty (0 bytes)")
    return data


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG or TIFF bytes in full.

    Returns:
        uint8 RGB `(h, w, 3)`, C-contiguous.

    Raises:
        BadImageError: for any other bytes; no other exception is raised.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF")) as image:
            return _pixels(image, data)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("is not a JPEG, PNG or TIFF image, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"claims more than {MAX_PIXELS:,} pixels, too many for a tile") from error
    except MemoryError as error:
        raise BadImageError("does not fit in memory") from error
    # PIL's decoders may raise anything on damaged input: SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "truncated" in text.lower():
            raise BadImageError("is truncated") from error
        raise BadImageError(f"cannot be decoded ({text[:120]})") from error


def _pixels(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"is {width}x{height} pixels, too large for a tile (cut slides into tiles first)")
    bits = _bits_per_channel(image, data)
    if bits > 8 or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise BadImageError(f"has {max(bits, 16)} bits per channel, not 8 (scale it to 8 bits yourself)")
    if image.mode in ("CMYK", "LAB", "HSV"):
        raise BadImageError(f"is in {image.mode.title() if image.mode == 'LAB' else image.mode}, not RGB")
    # A JPEG may carry previews as further frames; its first is the image by definition.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImageError(f"holds {frames} pages, not one")
    image.load()
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert(image.mode.upper())
        rgba = np.asarray(image.convert("RGBA"))
        if (clear := int(np.count_nonzero(rgba[..., 3] != 255))) > 0:
            raise BadImageError(f"has {clear:,} transparent pixels (flatten it on the colour you want)")
        return np.ascontiguousarray(rgba[..., :3])
    if image.mode not in ("RGB", "L", "1", "P", "YCbCr", "RGBX"):
        raise BadImageError(f"has PIL mode {image.mode}, not 8-bit RGB or grey")
    if image.mode != "RGB":
        image = image.convert("RGB")
    # np.array, not asarray: the copy is writable and does not keep PIL's buffer alive.
    return np.array(image, dtype=np.uint8, order="C")


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Bits of a channel as stored in the file, because PIL converts 16-bit RGB to 8 bits and its mode hides that."""
    if image.format == "PNG":
        return data[24]  # IHDR: 8-byte signature, 8-byte chunk head, width, height, bit depth
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined, no-any-return]
    return 8
