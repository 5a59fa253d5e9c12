"""What a file is, judged by its content: a slide or a tile, which format, which slide of a folder of DICOM files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

LARGEST_TILE = 1024
"""Pixels. A TIFF whose longer side exceeds this, and four sides of the model's tiles, is a slide, otherwise a tile."""


def is_slide(path: Path, tile_size: int) -> bool:
    """Whether a TIFF is too large for a tile.

    Args:
        path: any file; what is not a readable TIFF is not a slide here, and the error is reported when it is read.
        tile_size: side of the model's tiles in pixels.
    """
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            return max(image.size) > max(LARGEST_TILE, 4 * tile_size)
    except Image.DecompressionBombError:
        return True
    except Exception:  # PIL may raise anything
        return False


def slide_format(path: Path) -> str | None:
    """What OpenSlide calls the format of a file; None where it knows none, or is not installed."""
    try:
        import openslide
    except ModuleNotFoundError:
        return None
    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None
    return str(vendor) if vendor else None


def dicom_series(path: Path) -> str | None:
    """The SeriesInstanceUID of a DICOM slide; None where it is not one, or OpenSlide is not installed."""
    if slide_format(path) != "dicom":
        return None
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            series = slide.properties.get("dicom.SeriesInstanceUID")
    except openslide.OpenSlideError:
        return None
    return str(series) if series else None
