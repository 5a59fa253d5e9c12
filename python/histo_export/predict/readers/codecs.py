"""Decodes the tiles of a TIFF file, each alone, by libraries that work without the GIL.

A tile is hostile: its size is known before it is decoded, and what a decoder warns of counts as damage. OpenSlide
judges tiles in the same way.
"""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from histo_export.data.pillow import quiet_pillow
from histo_export.errors import one_line

Pixels = npt.NDArray[np.uint8]

SHRINKS = (1, 2, 4, 8)
"""The fractions of their size at which libjpeg decodes: its inverse DCT computes fewer pixels of each block."""


class Codec(ABC):
    """Decodes tiles of `width` × `height` pixels.

    Attributes:
        shrinks: divisors of the size that `decode` takes.
    """

    shrinks: tuple[int, ...] = (1,)

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def decode(self, data: bytes, channels: int, shrink: int = 1) -> Pixels:
        """uint8 `(height / shrink, width / shrink, channels)`: red, green, blue and, if `channels` is 4, anything.

        Raises:
            ValueError: the tile is damaged, or not what the file says of its tiles. The message is a predicate.
        """


class Jpeg(Codec):
    """JPEG with three channels, whose colour model the TIFF states and not the JPEG.

    Args:
        width, height: of a tile.
        tables: the tag JPEGTables: an abbreviated stream, or nothing.
        rgb: the channels are red, green and blue, not YCbCr.
    """

    START, END = b"\xff\xd8", b"\xff\xd9"
    FRAMES = frozenset((0xC0, 0xC1, 0xC2))
    """Markers of frames that are decoded: baseline, extended and progressive, with Huffman codes."""
    NAMES_COLOURS = frozenset((0xE0, 0xEE))
    """Markers of segments (JFIF, Adobe) from which decoders conclude the colour model."""
    SCAN = 0xDA

    def __init__(self, width: int, height: int, tables: bytes, rgb: bool) -> None:
        super().__init__(width, height)
        self.shrinks = tuple(n for n in SHRINKS if width % n == 0 and height % n == 0)
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([0 if rgb else 1])
        tables = tables.removeprefix(self.START).removesuffix(self.END)
        self._start = self.START + adobe + tables

    def decode(self, data: bytes, channels: int, shrink: int = 1) -> Pixels:
        # A missing end is no damage where all pixels are there; OpenSlide never looks for it.
        stream = b"".join((self._start, *self._segments(data), self.END))
        height, width = self.height // shrink, self.width // shrink
        pixels: Pixels = simplejpeg.decode_jpeg(
            stream, "RGB" if channels == 3 else "RGBX", min_height=height, min_width=width, strict=True
        )
        if pixels.shape != (height, width, channels):
            raise ValueError(f"has {pixels.shape[1]}×{pixels.shape[0]} pixels, not {width}×{height}")
        return pixels

    def _segments(self, data: bytes) -> list[bytes]:
        """The stream without its start, and without what says something of its colours; its size is checked."""
        if not data.startswith(self.START):
            raise ValueError("is not JPEG")
        kept, begin, position, frame = [], 2, 2, False
        while True:
            while data[position : position + 2] == b"\xff\xff":  # padding
                position += 1
            marker, length = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
            if data[position : position + 1] != b"\xff" or length < 2 or position + 2 + length > len(data):
                raise ValueError("has a damaged JPEG header")
            if 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC):
                self._check_frame(marker[0], data[position + 4 : position + 10])
                frame = True
            if marker[0] in self.NAMES_COLOURS:
                kept.append(data[begin:position])
                begin = position + 2 + length
            if marker[0] == self.SCAN:
                break
            position += 2 + length
        if not frame:
            raise ValueError("has no JPEG frame")
        return [*kept, data[begin:]]

    def _check_frame(self, marker: int, frame: bytes) -> None:
        if marker not in self.FRAMES:
            raise ValueError(f"is JPEG of another kind (marker {marker:02X})")
        if len(frame) < 6:
            raise ValueError("has a damaged JPEG header")
        bits, channels = frame[0], frame[5]
        height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
        if (bits, channels, width, height) != (8, 3, self.width, self.height):
            size = f"{width}×{height} pixels, {channels} channels, {bits} bits"
            raise ValueError(f"has {size}, not {self.width}×{self.height}, 3, 8")


class Jpeg2000(Codec):
    """A JPEG 2000 codestream with three channels of 8 bits, red, green and blue, none of them subsampled."""

    def decode(self, data: bytes, channels: int, shrink: int = 1) -> Pixels:
        self._check(data)
        try:
            with quiet_pillow():
                image = Image.open(io.BytesIO(data), formats=("JPEG2000",))
                if image.mode != "RGB" or image.size != (self.width, self.height):
                    raise ValueError(f"has {image.size[0]}×{image.size[1]} pixels in mode {image.mode}")
                return with_channels(np.asarray(image), channels)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"cannot be decoded ({one_line(error)})") from error

    def _check(self, data: bytes) -> None:
        """Judges the codestream's first segment, before any memory is taken for its pixels."""
        if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 51:
            raise ValueError("is not a JPEG 2000 codestream")
        right, bottom, left, top = (int.from_bytes(data[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
        if (right, bottom, left, top) != (self.width, self.height, 0, 0):
            raise ValueError(f"has {right - left}×{bottom - top} pixels, not {self.width}×{self.height}")
        if data[40:51] != b"\x00\x03" + 3 * b"\x07\x01\x01":
            raise ValueError("is JPEG 2000 with subsampled colours, or not of 3 channels of 8 bits")


class Deflate(Codec):
    """Deflate, after TIFF's horizontal differences where `differences` is set."""

    def __init__(self, width: int, height: int, differences: bool) -> None:
        super().__init__(width, height)
        self.differences = differences

    def decode(self, data: bytes, channels: int, shrink: int = 1) -> Pixels:
        size = self.width * self.height * 3
        try:
            raw = zlib.decompressobj().decompress(data, size)
        except zlib.error as error:
            raise ValueError(f"cannot be decoded ({one_line(error)})") from error
        if len(raw) != size:
            raise ValueError(f"has {len(raw):,} bytes, not {size:,}")
        pixels = np.frombuffer(raw, np.uint8).reshape(self.height, self.width, 3)
        if self.differences:
            pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)
        return with_channels(pixels, channels)


class Uncompressed(Codec):
    def decode(self, data: bytes, channels: int, shrink: int = 1) -> Pixels:
        size = self.width * self.height * 3
        if len(data) != size:
            raise ValueError(f"has {len(data):,} bytes, not {size:,}")
        return with_channels(np.frombuffer(data, np.uint8).reshape(self.height, self.width, 3), channels)


def with_channels(rgb: Pixels, channels: int) -> Pixels:
    """RGB `(height, width, 3)` with 3 or 4 channels."""
    if channels == 3:
        return rgb
    padded = np.zeros((*rgb.shape[:2], 4), np.uint8)
    padded[..., :3] = rgb
    return padded
