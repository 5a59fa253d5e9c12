"""Tiles as programs give them to `Classifier.predict`: paths, PIL images and arrays, alone or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.data.images import BadImageError, decode_image, image_pixels, read_image_bytes
from histo_export.errors import HistoError, UsageError
from histo_export.predict.settings import Resample

Pixels = npt.NDArray[np.uint8]
Tile: TypeAlias = str | os.PathLike[str] | Image.Image | Pixels
NEEDED = "Give paths, PIL images or uint8 RGB arrays (height, width, 3)"
ENCODED = "To decode the bytes of an image file: PIL.Image.open(io.BytesIO(tile))"


def check_options(resize: Resample | None, batch: int) -> None:
    """Raises UsageError for an unknown filter or an impossible batch."""
    if resize is not None and resize not in get_args(Resample):
        raise UsageError(f"resize={resize!r}", "is unknown", f"Choose from {', '.join(get_args(Resample))}")
    if not is_count(batch) or batch < 1:
        raise UsageError(f"batch={batch!r}", "is not a number of tiles", "Give 1 or more")


def is_count(value: object) -> bool:
    """Whether it is an integer of Python or NumPy; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def path_of(name: str, value: object, needed: str) -> Path:
    """The path that a program gave as the argument `name`; UsageError with the next step `needed` for another value."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        what = "empty" if isinstance(value, str) else f"{type(value).__name__}, not a path"
        raise UsageError(name, f"is {what}", needed)
    return Path(value)


def named(tiles: Tile | Iterable[Tile]) -> Iterator[tuple[str, Tile]]:
    """Each tile with a name for messages: "tiles[3]", or the path.

    Raises:
        UsageError: it is neither a tile nor several.
    """
    array = hasattr(tiles, "__array__")
    # An array of one dimension may hold paths.
    if isinstance(tiles, str | os.PathLike | Image.Image) or (array and np.ndim(tiles) not in (1, 4)):  # type: ignore[arg-type]
        tiles = [tiles]  # type: ignore[list-item]
    if isinstance(tiles, bytes | bytearray | memoryview | Mapping) or not isinstance(tiles, Iterable):
        raise _no_tile("tiles", tiles)
    for index, tile in enumerate(tiles):
        yield os.fspath(tile) if isinstance(tile, str | os.PathLike) else f"tiles[{index}]", tile


def pixels_of(tile: Any, name: str) -> Pixels:
    """uint8 RGB `(height, width, 3)` of a tile.

    Args:
        tile: a path, a PIL image, or an array of NumPy or of another library that converts to one.
        name: for messages.

    Raises:
        UsageError: another type, dtype or shape.
        HistoError: the file or the image can't be a tile.
    """
    try:
        if isinstance(tile, str | os.PathLike):
            if Path(tile).is_dir():
                step = "Give the paths of the images in it, or run histo predict, which takes folders"
                raise UsageError(name, "is a folder, not a tile", step)
            return decode_image(read_image_bytes(Path(tile)))
        if isinstance(tile, Image.Image):
            return image_pixels(tile)
    except BadImageError as error:
        step = "Give an image that is open and complete" if isinstance(tile, Image.Image) else "Repair it"
        raise HistoError(name, str(error), f"{step}, or leave it out") from error
    if not hasattr(tile, "__array__"):
        raise _no_tile(name, tile)
    array: npt.NDArray[Any] = np.asarray(tile)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UsageError(name, f"is {array.dtype} {array.shape}", NEEDED)
    return array


def _no_tile(name: str, value: object) -> UsageError:
    """What to say of a value that is neither a tile nor several."""
    encoded = isinstance(value, bytes | bytearray | memoryview)
    return UsageError(name, f"is {type(value).__name__}", ENCODED if encoded else NEEDED)
