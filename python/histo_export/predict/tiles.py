"""Tiles as programs give them to `Classifier.predict`: paths, PIL images and arrays, alone or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.data.images import BadImageError, decode_image, opaque_pixels, read_image_bytes
from histo_export.errors import HistoError, UsageError
from histo_export.predict.settings import Resample

Pixels = npt.NDArray[np.uint8]
Tile: TypeAlias = str | os.PathLike[str] | Image.Image | Pixels
NEEDED = "Give paths, PIL images or uint8 RGB arrays (height, width, 3)"


def check_options(resize: Resample | None, batch: int) -> None:
    """Raises UsageError for an unknown filter or an impossible batch."""
    if resize is not None and resize not in get_args(Resample):
        raise UsageError(f"resize={resize!r}", "is unknown", f"Choose from {', '.join(get_args(Resample))}")
    if batch < 1:
        raise UsageError(f"batch={batch}", "is not a number of tiles", "Give 1 or more")


def named(tiles: Tile | Iterable[Tile]) -> Iterator[tuple[str, Tile]]:
    """Each tile with a name for messages: "tiles[3]", or the path.

    Raises:
        UsageError: it is neither a tile nor several.
    """
    if isinstance(tiles, str | os.PathLike | Image.Image) or np.ndim(_shaped(tiles)) == 3:
        tiles = [tiles]  # type: ignore[list-item]
    if not isinstance(tiles, Iterable):
        raise UsageError("tiles", f"is {type(tiles).__name__}", NEEDED)
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
            return decode_image(read_image_bytes(Path(tile)))
        if isinstance(tile, Image.Image):
            return opaque_pixels(tile)
    except BadImageError as error:
        raise HistoError(name, str(error), "Repair it, or leave it out") from error
    if not hasattr(tile, "__array__"):
        raise UsageError(name, f"is {type(tile).__name__}", NEEDED)
    array: npt.NDArray[Any] = np.asarray(tile)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UsageError(name, f"is {array.dtype} {array.shape}", NEEDED)
    return array


def _shaped(tiles: object) -> Any:
    """What has the number of dimensions of an array; 0 for what isn't one."""
    return tiles if hasattr(tiles, "__array__") else 0
