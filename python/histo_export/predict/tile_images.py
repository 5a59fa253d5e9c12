"""The tiles of a slide as pictures, for `--tiles-out`: each as the network gets it, without loss."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from histo_export.errors import HistoError, not_written
from histo_export.files import atomic_folder
from histo_export.predict.settings import TileFormat
from histo_export.predict.slide import Pixels

KeepTile = Callable[[tuple[int, int], Pixels], None]
"""Takes the corner of a tile in pixels of level 0, and its pixels; may be called by several threads."""

ELSEWHERE = "choose another --tiles-out"


def tile_name(slide: str, corner: tuple[int, int], kind: TileFormat) -> str:
    """The name of a tile's picture: the slide and the tile's upper left corner in pixels of level 0.

    Args:
        slide: name of the slide's result, which holds no separator of paths (`names.plain_name`).
        corner: x and y; may be negative, because tiles may begin outside of the slide.
        kind: suffix.
    """
    return f"{slide}_x{corner[0]}_y{corner[1]}.{kind}"


@contextmanager
def tile_images(out: Path, slide: str, kind: TileFormat) -> Iterator[KeepTile]:
    """A function that writes tiles into `out/slide`, a folder that appears when all are complete.

    Args:
        out: made if it does not exist.
        slide: name of the slide's result.
        kind: of the pictures.

    Raises:
        HistoError: the folder exists already: nobody knows whether it is ours. Or it can't be written.
    """
    folder = out / slide
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise _exists(folder)
        with atomic_folder(folder, replace=False) as partial:

            def keep(corner: tuple[int, int], pixels: Pixels) -> None:
                options = {"lossless": True} if kind == "webp" else {"compress_level": 1}
                try:
                    Image.fromarray(pixels).save(partial / tile_name(slide, corner, kind), kind.upper(), **options)
                except OSError as error:
                    raise not_written(folder, error, ELSEWHERE) from error

            yield keep
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _exists(folder) from error
        raise not_written(folder, error, ELSEWHERE) from error


def _exists(folder: Path) -> HistoError:
    return HistoError(folder, "exists already, and is not replaced", "Delete it, or choose another --tiles-out")
