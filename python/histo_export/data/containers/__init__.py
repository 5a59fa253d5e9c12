"""Files that hold tiles: the table of all kinds. A new kind is a module here and a row of `KINDS`.

container = open_container(Path("tiles.zip"))
container.listing.names[0], container.listing.labels[0], container.tile(0)
"""

from __future__ import annotations

import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from histo_export.data.containers.base import Container, EncodedTiles, ImageFiles, Listing, NoTilesError
from histo_export.errors import HistoError

__all__ = [
    "KINDS",
    "Container",
    "EncodedTiles",
    "ImageFiles",
    "Listing",
    "NoTilesError",
    "holds_tiles",
    "kind_of",
    "open_container",
]

KINDS: Mapping[str, str] = {
    ".zip": "zip_archive.open_zip",
    ".tar": "tar_archive.open_tar",
    ".h5": "hdf5_file.open_hdf5",
    ".hdf5": "hdf5_file.open_hdf5",
    ".npy": "npy_file.open_npy",
    ".npz": "npz_file.open_npz",
    ".parquet": "parquet_file.open_parquet",
}
"""Suffix → the module and the function that opens such a file. Modules are imported when they are needed."""
UNREADABLE: Mapping[str, str] = {
    **dict.fromkeys(
        (".gz", ".tgz", ".bz2", ".xz", ".zst"), "is compressed as a whole. Unpack it to a .tar or a folder"
    ),
    **dict.fromkeys((".7z", ".rar"), "is an archive of a kind that is not read. Make a .zip or a .tar of it"),
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth"), "is a pickle, which can run code. Save the tiles with numpy.save"
    ),
    **dict.fromkeys((".lmdb", ".mdb"), "is an LMDB database. Write its tiles into a .zip or a .tar"),
    ".tfrecord": "is a TFRecord. Write its tiles into a .zip or a .tar",
    ".arrow": "is an Arrow file. Write it as Parquet: datasets: to_parquet",
    ".mat": "is a file of MATLAB. Save the tiles as uint8 (tiles, height, width, 3) with numpy.save",
}
"""Suffix of files that people have and that are not read → why, and what to do."""
KEPT = 8
"""Containers that stay open."""

_lock = threading.Lock()
_opened: OrderedDict[tuple[str, int, int], Container] = OrderedDict()


def kind_of(path: Path) -> str | None:
    """The key of `KINDS` for a file; None where it is of another kind."""
    suffix = path.suffix.lower()
    return suffix if suffix in KINDS else None


def holds_tiles(path: Path) -> bool:
    """Whether a Parquet file has a column of images: without one it is a table. A damaged file counts as one that has,
    so that the error is that of `open_container`."""
    try:
        open_container(path)
    except NoTilesError:
        return False
    except HistoError:
        pass
    return True


def open_container(path: Path) -> Container:
    """Opens a file that holds tiles. One that is open already and has not changed is not listed again.

    Raises:
        NoTilesError: it holds none.
        MissingExtraError: a package for files of this kind is not installed.
        HistoError: it is damaged, or it can't be read.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror or error})", "Check the path and the disk") from error
    if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
        raise HistoError(path, "is not a regular file", "Name a file that holds tiles")
    key = str(path.absolute()), facts.st_size, facts.st_mtime_ns
    with _lock:
        if key in _opened:
            _opened.move_to_end(key)
            return _opened[key]
    module, _, function = KINDS[path.suffix.lower()].partition(".")
    opener: Callable[[Path], Container] = getattr(import_module(f"{__name__}.{module}"), function)
    container = opener(path)
    container.facts = key[1:]
    with _lock:
        _opened[key] = container
        while len(_opened) > KEPT:
            _opened.popitem(last=False)
    return container
