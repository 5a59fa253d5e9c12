"""What a file is, judged by its content: a slide or a tile, which format, which slide of a folder of DICOM files.

Nothing here needs the packages that read slides, except for formats that only OpenSlide recognizes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from histo_export.data.pillow import quiet_pillow
from histo_export.data.tiff import TiffError, TiffPage, is_tiff, read_pages
from histo_export.extras import MissingExtraError, needs

LARGEST_TILE = 1024
"""Pixels. A TIFF whose longer side exceeds this, and four sides of the model's tiles, is a slide, otherwise a tile."""
DICOM_MARK = slice(128, 132)
"""Where a DICOM file holds the letters DICM."""


def is_slide(path: Path, tile_size: int) -> bool:
    """Whether a TIFF is a slide and not a tile: whether its largest page, level or sub-image is too large for a tile.

    Args:
        path: any file; what is not a readable TIFF is not a slide here, and the error is reported when it is read.
        tile_size: side of the model's tiles in pixels.
    """
    try:
        pages = tiff_pages(path)
    except (OSError, TiffError):
        return False
    return pages is not None and max(max(page.size) for page in pages) > max(LARGEST_TILE, 4 * tile_size)


def slide_format(path: Path) -> str | None:
    """The format of a file that can be given to `open_slide`, by its content and whatever its name.

    Returns:
        OpenSlide's name, such as "aperio", "dicom" or "generic-tiff"; "tiff" for another TIFF; None for anything else,
        also for what is not a regular file or cannot be read. Without OpenSlide only TIFF and DICOM are recognized.
    """
    try:
        head = read_head(path)
    except OSError:
        return None
    if not head:
        return None
    try:
        import openslide
    except ModuleNotFoundError:
        pass
    else:
        if vendor := openslide.OpenSlide.detect_format(str(path)):
            return str(vendor)
    if is_tiff(head):
        return "tiff"
    return "dicom" if head[DICOM_MARK] == b"DICM" else None


def dicom_series(path: Path) -> str | None:
    """The SeriesInstanceUID of a DICOM file. All files of a slide share it, and OpenSlide opens all if one is named.

    Returns:
        None if the file is not DICOM, cannot be read, or does not state it.

    Raises:
        MissingExtraError: pydicom is not installed, and the file is DICOM.
    """
    try:
        if read_head(path)[DICOM_MARK] != b"DICM":
            return None
        needs("Reading DICOM", "slides", modules=["pydicom"])
        import pydicom

        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break the standard are common and do no harm here
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            return str(header.SeriesInstanceUID) or None
    except MissingExtraError:
        raise
    except Exception:  # pydicom may raise anything on damaged input; the error is reported when the slide is read
        return None


def read_head(path: Path) -> bytes:
    """The first 132 bytes; nothing if it is not a regular file, because a named pipe would block.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(DICOM_MARK.stop)


def tiff_pages(path: Path) -> list[TiffPage] | None:
    """The pages of a TIFF; None for another file.

    Raises:
        OSError: the file cannot be read.
        TiffError: it is damaged.
    """
    if not is_tiff(read_head(path)):
        return None
    with path.open("rb") as file, quiet_pillow():
        return read_pages(file)
