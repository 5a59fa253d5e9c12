"""Decode one image file into a tile, or say exactly why it cannot be one.

What is accepted, and what becomes of it:

======================================  ==========================================================
8-bit RGB (JPEG, PNG, TIFF, WebP, BMP,  as it is; no colour management, an ICC profile is ignored
JPEG 2000, AVIF, JPEG XL)
grey, 1- to 8-bit                       replicated to three channels
palette                                 looked up
RGBA, LA, palette with transparency     alpha dropped if every pixel is opaque, else refused
TIFF in YCbCr                           converted
more than 8 bits, float, CMYK, Lab      refused
TIFF with further channels              refused
TIFF with an orientation other than 1   refused
several pages, animations               refused
======================================  ==========================================================

JPEG XL needs the package pillow-jxl-plugin, in which whatever it decodes to 8 bits counts as 8-bit.

TIFFs are judged and decoded by `data.tiff`, which does the same for slides.

EXIF orientation of JPEG and PNG is ignored, as PIL and torchvision do by default: tiles have no upright side, and so
all tools see the same pixels. For TIFF, tools disagree.

Partial transparency is refused rather than put on white or black, because tools disagree on the
colour (PIL shows what lies beneath, usually black) and a model would learn the choice.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from histo_export.data.pillow import quiet_pillow
from histo_export.data.tiff import TiffError, choose_page, is_tiff, load_page, read_pages
from histo_export.errors import HistoError
from histo_export.extras import installed

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2", ".j2k", ".jpf", ".jpx", ".avif", ".jxl"}
)
FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
"""Pillow's names of what is decoded, beside TIFF and JPEG XL, and people's names. Its other readers, some of which
start programs, are never asked."""
OF_STRANGERS = ("JPEG", "PNG", "WEBP")
"""Those that a server decodes for anybody: the fewer decoders of C, the fewer faults that a file can use."""
JXL_PLUGIN = "pillow-jxl-plugin"
JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
OTHERS = {
    b"GIF8": "GIF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"II\xbc\x01": "JPEG XR",
    b"\x93NUMPY": "NumPy",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"DDS ": "DirectDraw",
}
"""How files of other kinds begin → their name."""
MAX_PIXELS = 8192 * 8192
"""Most pixels of a tile."""
MAX_BYTES = 256 << 20
"""Largest size of a file; larger ones are refused without reading them into memory."""


class BadImageError(Exception):
    """Why a file cannot be a tile, as the predicate of a sentence: "is truncated"."""


def center_crop(tile: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    """The central `crop` by `crop` square of a uint8 `(h, w, 3)` tile, as a view.

    The corner is `int(round((side - crop) / 2.0))`, torchvision's CenterCrop: Python rounds halves to
    even, so 131 → 128 starts at 2 and 129 → 128 at 0.

    Raises:
        ValueError: the tile is smaller than the crop.
    """
    h, w = tile.shape[:2]
    if min(h, w) < crop:
        raise ValueError(f"a crop of {crop} does not fit into a tile of {w}x{h}")
    top, left = round((h - crop) / 2.0), round((w - crop) / 2.0)
    return tile[top : top + crop, left : left + crop]


def resampled(tile: NDArray[np.uint8], side: int, filter_name: str = "bilinear") -> NDArray[np.uint8]:
    """A uint8 `(h, w, 3)` tile as uint8 `(side, side, 3)`: Pillow's filter of that name, which covers all pixels of the
    tile where it becomes smaller, so that nothing aliases."""
    return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling[filter_name.upper()]))


def read_image_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        BadImageError: missing, unreadable, empty, larger than `MAX_BYTES`, or not a regular file.
    """
    try:
        # No O_NONBLOCK: a named pipe would block in open(), so it is refused before.
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is not a regular file"
            raise BadImageError(kind if path.exists() else "does not exist (broken link?)")
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


def decode_image(
    data: bytes,
    most_pixels: int = MAX_PIXELS,
    judge_size: Callable[[int, int], None] = lambda width, height: None,
    formats: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Decode the bytes of an image file, in full.

    Args:
        data: of a file.
        most_pixels: an image that states more is refused before it is decoded.
        judge_size: called with width and height before it is decoded; raises a HistoError where they do not fit.
        formats: of `FORMATS`, what is decoded beside TIFF; None: any kind that `SUFFIXES` names.

    Returns:
        uint8 RGB `(h, w, 3)`, C-contiguous.

    Raises:
        BadImageError: for any other bytes.
        HistoError: that of `judge_size`; no other exception is raised.
    """

    def judge(size: tuple[int, int]) -> None:
        if size[0] * size[1] > most_pixels:
            raise BadImageError(f"is {size[0]}x{size[1]} pixels, too large for a tile (cut slides into tiles first)")
        judge_size(*size)

    with _bad_images(formats):
        if is_tiff(data[:4]):
            return opaque_pixels(_load_tiff(io.BytesIO(data), judge))
        _refuse_other_kinds(data)
        if formats is None and data.startswith(JPEG_XL):
            _need_jpeg_xl()
            formats = ("JXL",)
        with Image.open(io.BytesIO(data), formats=tuple(formats or FORMATS)) as image:
            return opaque_pixels(_load(image, data, judge))


def image_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 RGB `(h, w, 3)` of an image that a program opened, which may not have been decoded yet.

    Raises:
        BadImageError: as `opaque_pixels`; or it was closed, or is damaged. No other exception is raised.
    """
    with _bad_images():
        return opaque_pixels(image)


@contextmanager
def _bad_images(formats: Sequence[str] | None = None) -> Iterator[None]:
    """Turns whatever Pillow raises in the block into a BadImageError; `formats` as in `decode_image`."""
    try:
        with quiet_pillow():
            yield
    except TiffError as error:
        raise BadImageError(f"{error.cause}; {error.next_step[0].lower()}{error.next_step[1:]}") from error
    except (BadImageError, HistoError):
        raise
    except UnidentifiedImageError as error:
        *others, last = (
            name for key, name in FORMATS.items() if key in (formats or FORMATS) and key not in ("JPEG", "PNG")
        )
        kinds = f"{', '.join(others)} or {last}" if others else last
        raise BadImageError(f"is not a JPEG, PNG or TIFF image, nor {kinds}, or its header is damaged") from error
    except MemoryError as error:
        raise BadImageError("does not fit in memory") from error
    # PIL's decoders may raise anything on damaged input: SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "truncated" in text.lower():
            raise BadImageError("is truncated") from error
        raise BadImageError(f"cannot be decoded ({text[:120]})") from error


def _load_tiff(file: io.BytesIO, judge: Callable[[tuple[int, int]], None]) -> Image.Image:
    pages = read_pages(file)
    if (count := sum(page.main for page in pages)) > 1:
        raise BadImageError(f"holds {count} pages, not one")
    index = choose_page(pages)
    judge(pages[index].size)
    return load_page(file, index, pages[index])


def _load(image: Image.Image, data: bytes, judge: Callable[[tuple[int, int]], None]) -> Image.Image:
    """An image that is no TIFF, decoded if it is accepted."""
    judge(image.size)
    # PIL converts 16-bit RGB to 8 bits, and its mode hides that. IHDR: 8-byte signature, 8-byte chunk head, width,
    # height, bit depth.
    if image.format == "PNG" and data[24] > 8:
        raise BadImageError(f"has {data[24]} bits per channel, not 8 (scale it to 8 bits yourself)")
    if image.mode == "CMYK":
        raise BadImageError("is in CMYK, not RGB")
    # A JPEG may carry previews as further frames; its first is the image by definition.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImageError(f"holds {frames} pages, not one")
    image.load()
    return image


def _refuse_other_kinds(data: bytes) -> None:
    """BadImageError for the kinds that people have and that are not decoded, with what to do."""
    kind = next((name for start, name in OTHERS.items() if data.startswith(start)), None)
    if (
        data[4:8] == b"ftyp"
        and data[8:12] in (b"heic", b"heix", b"mif1", b"heim", b"msf1")
        and b"avif" not in data[8:64]
    ):
        kind = "HEIC"
    if data[128:132] == b"DICM":
        kind = "DICOM"
    if kind is not None:
        raise BadImageError(f"is a {kind} file, which is not read as a tile (save it as PNG)")
    if (bits := _bits(data)) > 8:
        raise BadImageError(f"has {bits} bits per channel, not 8 (scale it to 8 bits yourself)")


def _need_jpeg_xl() -> None:
    """BadImageError where the package that decodes JPEG XL is not installed."""
    if not installed("pillow_jxl"):
        raise BadImageError(f"is a JPEG XL image, which needs {JXL_PLUGIN} (pip install {JXL_PLUGIN})")
    import_module("pillow_jxl")  # Pillow knows the format from then on


def _bits(data: bytes) -> int:
    """Bits per channel that a JPEG 2000 or AVIF file states: Pillow makes 8 of them without a word. 8 of other kinds.

    JPEG 2000: Ssiz of each component behind the marker 0xFF51 (ISO/IEC 15444-1, A.5.1). AVIF: the flags in the box
    av1C (AV1 Codec ISO Media File Format Binding, 2.3.3).
    """
    if data.startswith(JPEG_2000) and (start := data.find(b"\xff\x4f\xff\x51")) >= 0:
        count = int.from_bytes(data[start + 40 : start + 42], "big")
        return max(((size & 0x7F) + 1 for size in data[start + 42 : start + 42 + 3 * count : 3]), default=8)
    if data[4:8] == b"ftyp" and b"avif" in data[8:64] and 0 <= (start := data.find(b"av1C")) < len(data) - 6:
        flags = data[start + 6]
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 8


def opaque_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 RGB `(h, w, 3)`; BadImageError where pixels are transparent, or it is not 8-bit RGB or grey."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        if (clear := int(np.count_nonzero(rgba[..., 3] != 255))) > 0:
            raise BadImageError(f"has {clear:,} transparent pixels (flatten it on the colour you want)")
        return np.ascontiguousarray(rgba[..., :3])
    if image.mode not in ("RGB", "L", "1", "P"):
        raise BadImageError(f"has PIL mode {image.mode}, not 8-bit RGB or grey")
    if image.mode != "RGB":
        image = image.convert("RGB")
    # np.array, not asarray: the copy is writable and does not keep PIL's buffer alive.
    return np.array(image, dtype=np.uint8, order="C")
