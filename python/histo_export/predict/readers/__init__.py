"""Opens slides: one file per reader, all with the interface of `predict.slide.Slide`.

The content of a file decides, not its name. OpenSlide reads the formats that it knows. Of TIFFs of other programs it
reads those with tiles of 8 bits; any other TIFF that `data.tiff` accepts is read into memory completely, because its
parts cannot be read one by one.
"""

from __future__ import annotations

from pathlib import Path

import openslide

from histo_export.data.tiff import TiffError, choose_page
from histo_export.errors import HistoError, one_line
from histo_export.predict.formats import read_head, tiff_pages
from histo_export.predict.readers.flat_tiff import FlatTiffReader
from histo_export.predict.readers.openslide_reader import OpenSlideReader
from histo_export.predict.slide import Slide

GENERIC = (None, "generic-tiff")
"""What OpenSlide calls a TIFF without the marks of a scanner; it does not check what such a file holds."""


def open_slide(path: Path) -> Slide:
    """Opens a slide.

    Raises:
        HistoError: the file does not exist, cannot be read, or is not a slide.
    """
    try:
        if not path.is_file():
            raise HistoError(path, "does not exist" if not path.exists() else "is not a file", "Name a slide")
        if not read_head(path):
            raise HistoError(path, "is empty (0 bytes)", "Copy it again")
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in GENERIC:
            return OpenSlideReader(path)
        pages = tiff_pages(path)
        if pages is None:
            raise HistoError(
                path,
                "is not a slide of a format that OpenSlide knows",
                "Check the file, or convert it, e.g. with bfconvert to OME-TIFF",
            )
        index = choose_page(pages)
        if vendor is not None and index == 0 and pages[0].in_tiles_for_openslide:
            return OpenSlideReader(path)
        return FlatTiffReader(path, index, pages[index])
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
