"""Small pictures for pages, as JPEG."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

QUALITY = 85


def jpeg(pixels: Pixels) -> bytes:
    """A JPEG of uint8 RGB `(height, width, 3)`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def data_uri(pixels: Pixels) -> str:
    """The same as an address that contains the picture."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(pixels)).decode()


def reduced(pixels: Pixels, most: int) -> tuple[Pixels, int]:
    """The mean of blocks of pixels, so that the longer side has at most `most`; and the side of the blocks."""
    factor = -(-max(pixels.shape[:2]) // most)
    return np.asarray(Image.fromarray(pixels).reduce(factor)), factor


def fitted_square(pixels: Pixels, side: int) -> Pixels:
    """A square picture in another size."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def base64_of(values: npt.NDArray[np.generic]) -> str:
    """The bytes of an array, little-endian, which is the order of every browser's machine."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()
