"""Opens slides: one file per reader, all with the interface of `predict.slide.Slide`.

OpenSlide reads the formats that it knows. A TIFF that it does not know (without tiles inside, as ImageJ and many
programs export it) is read into memory completely, because its parts can't be read one by one.
"""

from __future__ import annotations

from pathlib import Path

from histo_export.errors import HistoError
from histo_export.predict.slide import Slide, text_of_error

try:
    import openslide

    from histo_export.predict.readers.flat_tiff import FlatTiffReader
    from histo_export.predict.readers.openslide_reader import OpenSlideReader
except ModuleNotFoundError as error:
    raise HistoError(
        "Reading slides", f"needs a package that is not installed ({error.name})", "pip install 'histo-export[slides]'"
    ) from error


def open_slide(path: Path) -> Slide:
    """Opens a slide with OpenSlide, or a TIFF with tifffile.

    Raises:
        HistoError: the file does not exist, cannot be read, or is not a slide.
    """
    if not path.is_file():
        raise HistoError(path, "does not exist" if not path.exists() else "is not a file", "Name a slide")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise HistoError(path, "is empty (0 bytes)", "Copy it again")
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    try:
        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return OpenSlideReader(path)
    except openslide.OpenSlideError as error:
        raise HistoError(
            path, f"is not a slide that OpenSlide can open ({text_of_error(error)})", "Copy it again"
        ) from error
    if path.suffix.lower() in (".tif", ".tiff"):
        return FlatTiffReader(path)
    raise HistoError(path, "is not a slide of a format that OpenSlide knows", "Check the file, or convert it")
