"""Which TIFF files are accepted, as tiles and as slides, and the decoder of those that are read completely.

A page (an image with its tags) is accepted, or refused by name:

======================================  =====================================================================
RGB, 8 bits per channel                 as it is, also with one plane per channel; an ICC profile is ignored
grey (black or white is 0), 1–8 bits    replicated to three channels
palette, 1–8 bits                       looked up
YCbCr, 8 bits                           converted
one more channel, stated as alpha       RGB or grey with transparency; the caller decides what becomes of it
CMYK, Lab, other colour models          refused
more than 8 bits, signed, float         refused
other further channels                  refused, because their meaning is unknown
orientation other than 1                refused, because programs disagree on it (see docs/predict.md)
missing parts (sparse files)            refused if the file is read completely
JPEG 2000, WebP, JPEG XL, LERC, …       refused; `CODECS` lists what is read
======================================  =====================================================================

A file may hold smaller copies of its image (a pyramid, in any order) and small further images such as a label. Several
images of the same size, which are channels, focal planes or times, are refused.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2

from histo_export.errors import one_line

MAX_PAGES = 10_000
"""Most pages of a file; more are the work of a damaged file or an attack."""

CONVERT = "Convert it to an 8-bit RGB TIFF with JPEG or LZW compression, e.g. with bfconvert or gdal_translate"
CHECK = "Open it in another program; if it is damaged there too, copy it again"

CODECS = {
    1: "no compression",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
"""What Pillow decodes."""
OPENSLIDE_CODECS = frozenset(CODECS) - {2, 3, 4, 34925}
"""What OpenSlide decodes in TIFFs with tiles."""
OTHER_CODECS = {
    6: "old-style JPEG",
    22610: "JPEG XR",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}

GREY, PALETTE, YCBCR = (0, 1), 3, 6
CHANNELS = {0: 1, 1: 1, 2: 3, PALETTE: 1, YCBCR: 3}
"""Photometric interpretation → channels of its colour."""
OTHER_COLOURS = {
    4: "a transparency mask",
    5: "CMYK",
    8: "Lab",
    9: "Lab",
    10: "Lab",
    32803: "a camera's raw format",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a camera's raw format",
}
JPEG_YCBCR = ((299, 587, 114), (0, 255, 128, 255, 128, 255))
"""Coefficients in thousandths and reference of black and white, as JPEG defines them and Pillow converts."""


class TiffError(Exception):
    """Why a TIFF is not accepted.

    Attributes:
        cause: the predicate of a sentence: "is in CMYK".
        next_step: what the user can do.
    """

    def __init__(self, cause: str, next_step: str) -> None:
        self.cause, self.next_step = cause, next_step
        super().__init__(cause, next_step)


@dataclass(frozen=True)
class TiffPage:
    """The tags of a page that decide how it is read.

    Attributes:
        width, height: in pixels, as stored.
        main: it is in the file's list of pages; if not, it is in a page's SubIFDs.
        reduced: it is stated to be a smaller copy of another page.
        tiled: it is stored in tiles, not in strips.
        complete: none of its tiles or strips is missing.
        images: more than 1 if further images follow that have no tags of their own (ImageJ).
    """

    width: int
    height: int
    main: bool
    reduced: bool
    tiled: bool
    complete: bool
    images: int
    photometric: int
    bits: tuple[int, ...]
    channels: int
    extra: tuple[int, ...]
    formats: tuple[int, ...]
    compression: int
    orientation: int
    subsampled: bool
    jpeg_ycbcr: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def bytes(self) -> int:
        """Size of its pixels in memory, where a channel has a byte or more."""
        return self.width * self.height * self.channels * max(1, max(self.bits) // 8)

    @property
    def in_tiles_for_openslide(self) -> bool:
        """OpenSlide reads it tile by tile, and correctly."""
        grey_alpha = self.channels == 2  # which OpenSlide takes for premultiplied, whatever the file states
        return self.tiled and self.compression in OPENSLIDE_CODECS and max(self.bits) == 8 and not grey_alpha

    def check(self) -> None:
        """TiffError where the page's kind is not accepted."""
        self._check_colours()
        self._check_channels()
        if self.orientation in range(2, 9):
            raise TiffError(
                f"is stored turned or mirrored (orientation {self.orientation}), which programs show differently",
                "Save it upright, e.g. with vips autorot",
            )
        if self.compression not in CODECS:
            name = OTHER_CODECS.get(self.compression, f"codec {self.compression}")
            raise TiffError(f"is compressed with {name}, which cannot be read", CONVERT)

    def _check_colours(self) -> None:
        if self.photometric not in CHANNELS:
            name = OTHER_COLOURS.get(self.photometric, f"the colour model {self.photometric}")
            raise TiffError(f"is in {name}, not RGB", "Convert it to RGB, e.g. with vips colourspace")
        if set(self.formats) != {1}:
            kind = {2: "signed integers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
            name = kind.get(max(self.formats), "numbers of an unknown type")
            raise TiffError(f"holds {name} ({max(self.bits)} bits per channel), not 8-bit RGB", CONVERT)
        allowed = {1, 2, 4, 8} if CHANNELS[self.photometric] == 1 and self.channels == 1 else {8}
        if len(set(self.bits)) > 1 or self.bits[0] not in allowed:
            bits = "/".join(map(str, sorted(set(self.bits))))
            raise TiffError(f"has {bits} bits per channel, not 8", "Scale it to 8 bits, e.g. in ImageJ or with vips")

    def _check_channels(self) -> None:
        further = self.channels - CHANNELS[self.photometric]
        if further == 1 and self.photometric in (1, 2) and self.extra in ((1,), (2,)):
            return
        if further == 1 and self.photometric == 2:
            raise TiffError("has a fourth channel that is not stated to be alpha", "Save it as RGB")
        if further:
            raise TiffError(f"has {self.channels} channels, not RGB or grey", "Save the channels to show as RGB")

    def check_decoder(self) -> None:
        """TiffError where Pillow would read wrong pixels without a word."""
        if not self.complete:
            raise TiffError(
                "lacks some of its strips or tiles", "Save it with all its pixels, e.g. with gdal_translate"
            )
        if self.photometric == YCBCR and self.compression != 7 and not self.jpeg_ycbcr:
            raise TiffError("is in YCbCr with a conversion of its own", "Convert it to RGB, e.g. with vips colourspace")
        if self.photometric == YCBCR and self.compression == 1 and self.subsampled:
            raise TiffError("is in subsampled YCbCr without compression", "Convert it to RGB")


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these bytes (at least 4) is a TIFF or BigTIFF."""
    return head.startswith(tuple(PREFIXES))


def read_pages(file: BinaryIO) -> list[TiffPage]:
    """The pages of a TIFF or BigTIFF in the order of its list, and then those in SubIFDs. Call it in `quiet_pillow`.

    Raises:
        TiffError: it is damaged.
    """
    try:
        file.seek(0)
        head = file.read(8)
        directory = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)
        pages: list[TiffPage] = []
        following: deque[int] = deque()
        seen: set[int] = set()
        offset, main = directory.next, True
        while offset or following:
            if not offset:
                offset, main = following.popleft(), False
            if offset not in seen:
                seen.add(offset)
                file.seek(offset)
                directory.load(file)
                following.extend(_numbers(directory, Tag.SubIFDs, ()))
                pages.append(_page(directory, main))
                offset = directory.next
            else:
                offset = 0
            if len(pages) > MAX_PAGES:
                raise TiffError(f"has more than {MAX_PAGES:,} pages", CHECK)
    except TiffError:
        raise
    except Exception as error:  # Pillow may raise anything on damaged input
        raise TiffError(f"is not a TIFF that can be read ({one_line(error, 120)})", CHECK) from error
    if not pages:
        raise TiffError("holds no image", CHECK)
    return pages


def choose_page(pages: list[TiffPage]) -> int:
    """The index of the page to show, which is the largest.

    Raises:
        TiffError: this page is not accepted, or other pages are no copies of it.
    """
    index = max(range(len(pages)), key=lambda i: (pages[i].width * pages[i].height, -i))
    page = pages[index]
    if not page.main:
        raise TiffError("keeps its largest image in a SubIFD, where it is not read", CONVERT)
    page.check()
    same = 1 + sum(other.size == page.size for i, other in enumerate(pages) if i != index)
    if (images := max(same, page.images)) > 1:
        raise TiffError(
            f"holds {images} images of the same size (channels, focal planes, times or pages)",
            "Save the image to show as a TIFF of its own",
        )
    scenes = 1 + sum(not _belongs_to(other, page) for other in pages)
    if scenes > 1:
        raise TiffError(f"holds {scenes} different images", "Save each as a TIFF of its own")
    for level in pages:
        if level.tiled and level.reduced:  # which OpenSlide reads
            try:
                level.check()
            except TiffError as error:
                cause = f"has a level of {level.width}×{level.height} pixels that {error.cause}"
                raise TiffError(cause, error.next_step) from error
    return index


def _belongs_to(other: TiffPage, page: TiffPage) -> bool:
    """Whether it is a level of the page's pyramid, or a label, a thumbnail or the like."""
    if other is page or other.reduced:
        return True
    if (page.tiled and not other.tiled) or 100 * other.width * other.height < page.width * page.height:
        return True
    # The sides of a level are rounded to whole pixels.
    return abs(other.width * page.height - other.height * page.width) <= max(page.size)


def load_page(file: BinaryIO, index: int, page: TiffPage) -> Image.Image:
    """Decodes a page in full. Call it in `quiet_pillow`, after `choose_page` and a check of its size.

    Args:
        file: stays open; not needed afterwards.
        index, page: from `choose_page`.

    Returns:
        An image of mode 1, L, LA, P, RGB or RGBA.

    Raises:
        TiffError: it is damaged or too large for the memory, or Pillow cannot read it.
    """
    page.check_decoder()
    try:
        file.seek(0)
        opened = Image.open(file, formats=("TIFF",))
        opened.seek(index)
        opened.load()
        image: Image.Image = opened
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        return image.convert("RGB") if image.mode == "YCbCr" else image
    except MemoryError as error:
        raise TiffError("does not fit in memory", "Convert it to a tiled TIFF") from error
    except Exception as error:  # Pillow's decoders may raise anything on damaged input
        text = one_line(error, 120)
        if "truncated" in text.lower():
            raise TiffError("is truncated", "Copy it again") from error
        cause = f"cannot be decoded ({CODECS[page.compression]}: {text})"
        raise TiffError(cause, CHECK) from error


def _numbers(tags: Mapping[int, Any], tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)


def _page(tags: Mapping[int, Any], main: bool) -> TiffPage:
    def number(tag: int, default: int) -> int:
        return _numbers(tags, tag, (default,))[0]

    width, height = number(Tag.ImageWidth, 0), number(Tag.ImageLength, 0)
    if width < 1 or height < 1:
        raise TiffError("states no width and height", CHECK)
    photometric = number(Tag.PhotometricInterpretation, 0)
    channels = number(Tag.SamplesPerPixel, 1)
    bits = _numbers(tags, Tag.BitsPerSample, (1,))
    description = str(tags.get(Tag.ImageDescription, ""))
    imagej = re.search(r"^images=(\d+)", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    coefficients = tags.get(Tag.YCbCrCoefficients, (0.299, 0.587, 0.114))
    reference = _numbers(tags, Tag.ReferenceBlackWhite, JPEG_YCBCR[1])
    return TiffPage(
        width=width,
        height=height,
        main=main,
        reduced=bool(number(Tag.NewSubfileType, 0) & 1) or number(Tag.SubfileType, 1) == 2,
        tiled=Tag.TileOffsets in tags,
        complete=_complete(tags, width, height, channels),
        images=int(imagej[1]) if imagej else 1,
        photometric=photometric,
        bits=bits,
        channels=channels,
        extra=_numbers(tags, Tag.ExtraSamples, ()),
        formats=_numbers(tags, Tag.SampleFormat, (1,)),
        compression=number(Tag.Compression, 1),
        orientation=_orientation(tags),
        subsampled=_numbers(tags, Tag.YCbCrSubSampling, (2, 2)) != (1, 1),
        jpeg_ycbcr=(tuple(round(1000 * float(c)) for c in coefficients), reference) == JPEG_YCBCR,
    )


def _complete(tags: Mapping[int, Any], width: int, height: int, channels: int) -> bool:
    """Whether every strip or tile is stated and has a size; Pillow leaves missing ones black."""
    planes = channels if _numbers(tags, Tag.PlanarConfiguration, (1,)) == (2,) else 1
    if Tag.TileOffsets in tags:
        across, down = (_numbers(tags, tag, (1,))[0] for tag in (Tag.TileWidth, Tag.TileLength))
        parts = math.ceil(width / across) * math.ceil(height / down)
        sizes = _numbers(tags, Tag.TileByteCounts, (1,) * parts * planes)
    else:
        parts = math.ceil(height / min(height, _numbers(tags, Tag.RowsPerStrip, (height,))[0]))
        sizes = _numbers(tags, Tag.StripByteCounts, (1,) * parts * planes)
    return len(sizes) >= parts * planes and 0 not in sizes


def _orientation(tags: Mapping[int, Any]) -> int:
    """As stated in the tag; without one in XMP, which Pillow follows too."""
    if Tag.Orientation in tags:
        return _numbers(tags, Tag.Orientation, (1,))[0]
    xmp = tags.get(Tag.XMLPacket, b"")
    xmp = bytes(xmp) if isinstance(xmp, (bytes, tuple)) else str(xmp).encode()
    found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(found[1]) if found else 1
