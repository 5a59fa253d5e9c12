"""Opens slides: one file per reader, all with the interface of `predict.slide.Slide`.

The content of a file decides, not its name. The direct reader takes what it is proven to read with OpenSlide's pixels;
OpenSlide reads the other files of the formats that it knows. Of TIFFs of other programs it reads those with tiles of 8
bits; any other TIFF that `data.tiff` accepts is read into memory completely, because its parts cannot be read one by
one.
"""

from __future__ import annotations

from pathlib import Path

import openslide

from histo_export.data.tiff import TiffError, choose_page
from histo_export.errors import HistoError, one_line
from histo_export.predict.formats import read_head, tiff_pages
from histo_export.predict.readers.direct_reader import DirectReader
from histo_export.predict.readers.flat_tiff import FlatTiffReader
from histo_export.predict.readers.openslide_reader import OpenSlideReader
from histo_export.predict.readers.tile_tables import UnprovenError
from histo_export.predict.settings import Reader
from histo_export.predict.slide import Slide

GENERIC = (None, "generic-tiff")
"""What OpenSlide calls a TIFF without the marks of a scanner; it does not check what such a file holds."""


def open_slide(path: Path, reader: Reader = "auto", *, shrinks: bool = False) -> Slide:
    """Opens a slide. Which reader was taken, and why, is told by its `reader` and `why`.

    Args:
        path: of the slide.
        reader: "direct" refuses what must be read in another way.
        shrinks: whether its levels include those that are decoded smaller than they are stored, where it has any.

    Raises:
        HistoError: the file does not exist, cannot be read, is not a slide, or not one for this reader.
    """
    try:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is not a file"
            raise HistoError(path, kind if path.exists() else "does not exist", "Name a slide")
        if not read_head(path):
            raise HistoError(path, "is empty (0 bytes)", "Copy it again")
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in GENERIC:
            return _in_tiles(path, reader, shrinks)
        pages = tiff_pages(path)
        if pages is None:
            raise HistoError(
                path,
                "is not a slide of a format that OpenSlide knows",
                "Check the file, or convert it, e.g. with bfconvert to OME-TIFF",
            )
        index = choose_page(pages)
        if vendor is not None and index == 0 and pages[0].in_tiles_for_openslide:
            return _in_tiles(path, reader, shrinks)
        if reader == "direct":
            raise _not_direct(path, "has no tiles that can be read one by one")
        flat = FlatTiffReader(path, index, pages[index])
        flat.why = "It has no tiles that can be read one by one."
        return flat
    except TiffError as error:
        raise HistoError(path, error.cause, error.next_step) from error
    except OSError as error:
        raise HistoError(
            path, f"cannot be read ({error.strerror or error})", "Check its path and permissions"
        ) from error
    except openslide.OpenSlideError as error:
        raise HistoError(
            path,
            f"cannot be opened by OpenSlide ({one_line(error)})",
            "Open it in a viewer such as QuPath; if it is damaged there too, copy it again",
        ) from error


def _in_tiles(path: Path, reader: Reader, shrinks: bool) -> Slide:
    """Opens a file that OpenSlide reads."""
    slide: Slide
    if reader == "openslide":
        slide = OpenSlideReader(path)
        slide.why = "It was asked for."
        return slide
    try:
        slide = DirectReader(path, shrinks=shrinks)
        slide.why = "Its layout is proven, and its tiles that were compared have OpenSlide's pixels."
    except UnprovenError as error:
        if reader == "direct":
            raise _not_direct(path, str(error)) from error
        slide = OpenSlideReader(path)
        slide.why = f"The file {error}."
    return slide


def _not_direct(path: Path, cause: str) -> HistoError:
    return HistoError(path, f"{cause}, so it cannot be read directly", "Leave --reader direct out")
