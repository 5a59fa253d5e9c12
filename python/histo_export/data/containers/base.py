"""What all files that hold tiles have in common: `Container`. Nothing is ever unpacked to the disk, nor unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from histo_export.data.arrays import class_list
from histo_export.data.images import MAX_BYTES, MAX_PIXELS, SUFFIXES, BadImageError, decode_image, read_image_bytes
from histo_export.data.walk import is_hidden, place_in_order
from histo_export.errors import HistoError, one_line

Pixels = NDArray[np.uint8]
Where = TypeVar("Where")

MAX_TILES = 10_000_000
"""Of one file."""
MAX_LABEL_BYTES = 1 << 20
"""Of the file beside a tile that holds its label."""
LABEL_SUFFIXES = (".cls", ".json")
"""Of files that hold the label of the tile with the same name, as WebDataset writes them."""
LABEL_KEYS = ("label", "cls", "class")
"""Of these files, where they are JSON; the first one that is there counts."""


_recent: dict[type, OrderedDict[int, weakref.ref[Container]]] = {}
"""Kind → the containers of it that are open, the last one used at the end."""


class NoTilesError(HistoError):
    """A file is sound, but it holds no tiles: in a folder of inputs it is left out, and does not count as a failure."""


@dataclass
class Listing:
    """What a file says of its tiles, all of the same length.

    Attributes:
        names: a name for each tile, no two alike: a path with slashes where the file has paths.
        labels: the class of each; None where only the folders in its name may tell it.
        splits: "train", "val" or "test"; "" where only the folders in its name may tell it.
        groups: the slide or patient of each; empty where they are unknown.
        notes: what was left out.
    """

    names: Sequence[str]
    labels: Sequence[str | None] = ()
    splits: Sequence[str] = ()
    groups: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.labels = self.labels or [None] * len(self.names)
        self.splits = self.splits or [""] * len(self.names)
        if len({len(self.names), len(self.labels), len(self.splits), len(self.groups or self.names)}) > 1:
            raise ValueError("its columns have different lengths")


class Container(ABC):
    """A file that holds tiles. They are read one by one, from any thread, and in forked and spawned processes.

    Attributes:
        path: of the file.
        listing: its tiles.
        facts: size and time of change of the file when its tiles were listed.
        kept: how many files of a kind stay open at a time, with what they keep in memory; the one that was not used for
            longest is closed. A data set may have thousands of them, and a process may not.
    """

    kept: ClassVar[int] = 32
    facts: tuple[int, int] | None = None
    _lock: Any
    _opened: tuple[int, Any] | None

    def __init__(self, path: Path, listing: Listing) -> None:
        if not listing.names:
            raise NoTilesError(path, "holds no tile", f"Put images into it ({', '.join(sorted(SUFFIXES))})")
        self.path, self.listing = path, listing
        self._reset()

    def __len__(self) -> int:
        return len(self.listing.names)

    @abstractmethod
    def tile(self, i: int) -> Pixels:
        """Tile `i` as uint8 RGB `(h, w, 3)`, C-contiguous; BadImageError where it can't be one."""

    def place(self, i: int) -> str:
        """Where tile `i` is, for messages."""
        return f"{self.path}: {self.listing.names[i]}"

    @abstractmethod
    def checked(self, i: int) -> tuple[bytes, Pixels]:
        """The same with a sha256 of what the file holds, by which data sets are compared."""

    def _open(self) -> Any:
        """What reading needs, opened: `handle`."""
        return None

    @property
    def handle(self) -> Any:
        """What `_open` gave in this process: a forked one must not share the place in the file with its parent."""
        opened = self._opened  # once: another thread may close it meanwhile
        if opened is None or opened[0] != os.getpid():
            with self._lock:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    opened = self._opened = os.getpid(), self._open()
        self._close_others()
        return opened[1]

    def _close_others(self) -> None:
        """Closes the files of this kind that were not used for longest. A thread that reads one of them has it still.

        No lock: a process may be forked while another thread holds it.
        """
        recent = _recent.setdefault(type(self), OrderedDict())
        recent.pop(id(self), None)
        recent[id(self)] = weakref.ref(self)
        while len(recent) > self.kept:
            _, oldest = recent.popitem(last=False)
            if (container := oldest()) is not None and container is not self:
                container._opened = None

    def check_unchanged(self) -> None:
        """HistoError where the file is not the one any more whose tiles were listed."""
        try:
            facts = self.path.stat()
        except OSError as error:
            raise HistoError(
                self.path, f"cannot be read ({error.strerror or error})", "Check the path and the disk"
            ) from error
        if self.facts not in (None, (facts.st_size, facts.st_mtime_ns)):
            raise HistoError(self.path, "was changed while it was in use", "Run the same command again")

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_opened")}
        return state | {"path": self.path.absolute()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class EncodedTiles(Container):
    """Tiles as image files have them."""

    @abstractmethod
    def data(self, i: int) -> bytes:
        """The encoded image; BadImageError where it can't be read."""

    def tile(self, i: int) -> Pixels:
        return decode_image(self.data(i))

    def checked(self, i: int) -> tuple[bytes, Pixels]:
        data = self.data(i)
        return hashlib.sha256(data).digest(), decode_image(data)


class ArrayTiles(Container):
    """Tiles as arrays of pixels."""

    @abstractmethod
    def row(self, i: int) -> Pixels:
        """uint8 `(h, w, 3)`, or grey `(h, w)`."""

    def tile(self, i: int) -> Pixels:
        with tile_errors():
            row = self.row(i)
        if row.ndim == 2:
            row = np.repeat(row[..., None], 3, axis=2)
        return np.array(row, dtype=np.uint8, order="C")

    def checked(self, i: int) -> tuple[bytes, Pixels]:
        pixels = self.tile(i)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest(), pixels


class ImageFiles(EncodedTiles):
    """Image files, each by its path, below a folder or from a table.

    Args:
        root: the folder or the table.
        paths: of the files.
        listing: of them.
    """

    def __init__(self, root: Path, paths: Sequence[Path], listing: Listing) -> None:
        super().__init__(root, listing)
        self.paths = [path.absolute() for path in paths]

    def place(self, i: int) -> str:
        return str(self.paths[i])

    def data(self, i: int) -> bytes:
        return read_image_bytes(self.paths[i])


@contextmanager
def file_errors(path: Path, kind: str, next_step: str = "Copy or write it again") -> Iterator[None]:
    """Turns whatever a reader raises for a damaged file into one HistoError: `kind` is as in "zip archive"."""
    try:
        yield
    except HistoError:
        raise
    except PermissionError as error:
        raise HistoError(path, "may not be read (permission denied)", "Check its permissions") from error
    except MemoryError as error:
        raise HistoError(path, f"is not a readable {kind} (its sizes do not fit in memory)", next_step) from error
    except Exception as error:  # readers raise errors of any type where bytes are damaged
        raise HistoError(path, f"is not a readable {kind} ({one_line(error, 120)})", next_step) from error


@contextmanager
def tile_errors() -> Iterator[None]:
    """The same for one tile: a BadImageError."""
    try:
        yield
    except BadImageError:
        raise
    except HistoError as error:
        raise BadImageError(f"cannot be read ({error.cause})") from error
    except Exception as error:  # of any type, as above
        raise BadImageError(f"cannot be read ({one_line(error, 120)})") from error


def check_size(size: int) -> None:
    """BadImageError for a tile that is stated to be larger than a tile may be, before it is read."""
    if size > MAX_BYTES:
        raise BadImageError(f"is {size >> 20} MiB, too large for a tile (cut slides into tiles first)")
    if size <= 0:
        raise BadImageError("is empty (0 bytes)")


def check_tile_array(path: Path, shape: Sequence[int], dtype: np.dtype[Any], what: str, *, grey: bool = False) -> None:
    """HistoError unless an array holds tiles: uint8 `(n, height, width, 3)`, or also `(n, height, width)`."""
    shown = f"{dtype} {'×'.join(map(str, shape))}"
    colour = len(shape) == 4 and shape[3] == 3
    if dtype != np.uint8 or not (colour or (grey and len(shape) == 3)):
        raise NoTilesError(path, f"holds {what} as {shown}", "Save uint8 (tiles, height, width, 3)")
    if 0 in shape:
        raise NoTilesError(path, f"holds no tile ({what} is {shown})", "Check the program that wrote it")
    check_count(path, shape[0])
    if shape[1] * shape[2] > MAX_PIXELS:
        raise HistoError(path, f"holds tiles of {shape[2]:,}×{shape[1]:,} pixels", "Cut them into tiles first")


def check_count(path: Path, tiles: int) -> None:
    """HistoError where a file holds more than `MAX_TILES`."""
    if tiles > MAX_TILES:
        raise HistoError(path, f"holds {tiles:,} entries, more than {MAX_TILES:,}", "Divide it into several files")


def named_classes(path: Path, numbers: Sequence[int | None]) -> list[str | None]:
    """The classes of labels that are numbers: by `<stem>_classes.txt` or `classes.txt` beside the file, else class0, …

    Raises:
        HistoError: a number is not an index into this list.
    """
    names = class_list(path)
    known = [number for number in numbers if number is not None]
    if known and (min(known) < 0 or max(known) >= (10_000 if names is None else len(names))):
        wrong = min(known) if min(known) < 0 else max(known)
        have = "no class list lies beside it" if names is None else f"classes.txt beside it names {len(names)}"
        raise HistoError(path, f"has the label {wrong}, and {have}", "Write one class name a line, in label order")
    return [None if n is None else (f"class{n}" if names is None else names[n]) for n in numbers]


@dataclass
class Members(Generic[Where]):
    """The images of an archive in the order in which a folder would have them; `where`: how each is read."""

    listing: Listing
    where: list[Where]


def image_members(
    path: Path, members: Sequence[tuple[str, Where]], read: Callable[[Where], bytes], left_out: list[str]
) -> Members[Where]:
    """Which members of an archive are tiles, how they are called and what is said of their classes.

    A folder of the archive's own name that holds all of it, as file managers add it, is no part of the names. A label
    may lie beside a tile as `.cls` (a number or the name of a class) or `.json` (`{"label": …}`), as WebDataset has it.

    Args:
        path: of the archive.
        members: name and place of each regular file.
        read: gives the bytes of a small member.
        left_out: notes of what is no regular file.

    Raises:
        HistoError: two members have one name, or a label can't be read.
    """
    check_count(path, len(members))
    found: dict[str, Where] = {}
    for raw, where in members:
        name = posixpath.normpath(raw)
        if any(is_hidden(part) for part in name.split("/") if part != ".."):
            continue
        if name in found:
            cause = f"holds {name!r} twice, and it is unclear which one counts"
            raise HistoError(path, cause, "Write the archive again, with each file once")
        found[name] = where
    images = [name for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES]
    tops = {name.partition("/")[0] if "/" in name else "" for name in images}
    own = [top for top in tops if top.casefold() in (path.stem.casefold(), path.name.partition(".")[0].casefold())]
    shift = len(own[0]) + 1 if len(tops) == 1 and own else 0
    images.sort(key=lambda name: place_in_order(PurePosixPath(name[shift:])))
    beside = {name: where for name, where in found.items() if PurePosixPath(name).suffix.lower() in LABEL_SUFFIXES}
    labels = _labels_beside(path, images, beside, read) if beside else []
    listing = Listing([name[shift:] for name in images], labels, notes=list(left_out))
    if others := len(found) - len(images) - (len(beside) if any(labels) else 0):
        listing.notes.append(f"{path.name}: {others:,} files that are not images were left out")
    return Members(listing, [found[name] for name in images])


def _labels_beside(
    path: Path, images: Sequence[str], beside: dict[str, Where], read: Callable[[Where], bytes]
) -> list[str | None]:
    """The label that lies beside each image; None where none does."""
    found: list[str | int | None] = []
    for name in images:
        folder, _, file = name.rpartition("/")
        stems = dict.fromkeys((file.rpartition(".")[0], file.partition(".")[0]))  # WebDataset's key ends at a first dot
        labels = [posixpath.join(folder, stem + suffix) for stem in stems for suffix in LABEL_SUFFIXES]
        label = next((label for label in labels if label in beside), None)
        found.append(None if label is None else _label_of(path, label, read(beside[label])))
    numbers = named_classes(path, [label if isinstance(label, int) else None for label in found])
    return [number if isinstance(label, int) else label for label, number in zip(found, numbers, strict=True)]


def _label_of(path: Path, name: str, data: bytes) -> str | int | None:
    """What a `.cls` or `.json` file says: a number, a name, or nothing (JSON of something else)."""
    if len(data) > MAX_LABEL_BYTES:
        raise HistoError(path, f"has a label of {len(data):,} bytes ({name!r})", "Write a number or a name into it")
    try:
        text = data.decode("utf-8-sig").strip()
        if name.lower().endswith(".cls"):
            return int(text) if text.isdecimal() and len(text) < 6 else text or None
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        step = "Write a number or a name into it"
        raise HistoError(path, f"has a label that cannot be read ({name!r}: {one_line(error, 80)})", step) from error
    values = [content[key] for key in LABEL_KEYS if key in content] if isinstance(content, dict) else []
    value = values[0] if values else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
