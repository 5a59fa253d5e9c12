"""Finds slides and sets of tiles in what the user named.

A folder may hold both. An input that can't be used does not stop the others: it becomes a `Failure`. What is left out
is counted. `names` gives the inputs the names of their results.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from histo_export.data.containers import KINDS, UNREADABLE, Container, NoTilesError, kind_of, open_container
from histo_export.data.images import SUFFIXES
from histo_export.data.rows import GROUP_COLUMNS, read_rows
from histo_export.data.walk import walk
from histo_export.errors import HistoError
from histo_export.extras import MissingExtraError
from histo_export.predict.formats import dicom_series, is_slide, slide_format
from histo_export.predict.lists import Entry, NotAListError, TileFacts, read_list

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".tf2", ".tf8", ".qptiff"})
"""A TIFF is a slide or a tile, depending on its size."""
TIFF, GENERIC_TIFF, DICOM = "tiff", "generic-tiff", "dicom"
SLIDE_SUFFIXES = {
    ".svs": "aperio",
    ".ndpi": "hamamatsu",
    ".vms": "hamamatsu",
    ".vmu": "hamamatsu",
    ".mrxs": "mirax",
    ".scn": "leica",
    ".bif": "ventana",
    ".svslide": "sakura",
    ".czi": "zeiss",
    ".dcm": DICOM,
}
"""Suffix → OpenSlide's name of the format. The content tells the format of a file of any other suffix."""
TILE_SUFFIXES = SUFFIXES - TIFF_SUFFIXES
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv"})
KNOWN_SUFFIXES = TIFF_SUFFIXES | SLIDE_SUFFIXES.keys() | TILE_SUFFIXES | LIST_SUFFIXES | KINDS.keys()
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.]+:/")
"""How https://… begins as a path, in which the second slash is lost."""
LONGEST_SHOWN = 300
"""Characters of a path in a message."""

OTHER, HIDDEN, SPECIAL = "files of other types", "hidden files and folders", "pipes, sockets and devices"
OWN, PARTS = "results of histo", "files that belong to another file of the same slide"
AGAIN = "files and folders that were reached before"


def text_of(path: Path | str) -> str:
    """A path as text for any file format; bytes that are not UTF-8 become replacement characters.

    The same in a locale that knows only ASCII, and the same if it is applied twice.
    """
    try:
        return str(path).encode(errors="surrogateescape").decode(errors="replace")
    except UnicodeEncodeError:  # from a damaged list; no name of a file is like this
        return str(path).encode(errors="replace").decode()


@dataclass(frozen=True)
class Failure:
    """An input, or one tile of it, that could not be used; `reason` is a sentence that ends with the next step."""

    path: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """Files of one kind that were left out: how many, and the first of them."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True)
class SlideInput:
    """One slide; `name` is its folder in the output."""

    path: Path
    name: str = ""


@dataclass(frozen=True)
class TileSetInput:
    """Tiles that belong together.

    Attributes:
        source: the folder, list or container that the user named; only a name where `one_by_one`.
        files: the images; empty where the tiles are `rows` of a container.
        rows: of the file at `source` that holds tiles, see `data.containers`.
        name: its folder in the output.
        one_by_one: the user named each of the files.
        facts: what a table says of each of the files; empty where it says nothing but the paths.
        opened: what holds the tiles where they are `rows`; None on another machine, which opens it itself.
    """

    source: Path
    files: list[Path] = field(default_factory=list)
    rows: range | None = None
    name: str = ""
    one_by_one: bool = False
    facts: list[TileFacts] = field(default_factory=list)
    opened: Container | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.files if self.rows is None else self.rows)

    @cached_property
    def container(self) -> Container:
        """What holds the tiles where they are `rows`; HistoError where it can't be opened any more."""
        return open_container(self.source) if self.opened is None else self.opened

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "container"} | {"opened": None}

    def part(self, first: int, end: int) -> TileSetInput:
        """The set of the tiles `first` to `end` - 1; their names in tables stay the same."""
        rows = None if self.rows is None else self.rows[first:end]
        return replace(self, files=self.files[first:end], rows=rows, facts=self.facts[first:end])

    def label(self, i: int) -> str:
        """The name of tile `i` in tables: its path below the folder that was named, otherwise its path as named."""
        if self.rows is not None:
            return text_of(self.container.listing.names[self.rows[i]])
        path = self.files[i]
        return text_of(path.relative_to(self.source) if path.is_relative_to(self.source) else path)


Input = SlideInput | TileSetInput


def path_of(item: Input) -> Path:
    """The file or folder that an input is."""
    return item.path if isinstance(item, SlideInput) else item.source


def source_of(item: Input) -> str:
    """The whole path of what an input was made from, without links; the same in every run, and different for others."""
    if isinstance(item, TileSetInput) and item.one_by_one:
        paths = sorted(os.path.realpath(path) for path in item.files)
        if len(paths) == 1:
            return text_of(paths[0])
        digest = hashlib.sha256("\0".join(map(text_of, paths)).encode()).hexdigest()[:10]
        return f"{text_of(os.path.commonpath(paths))} ({len(paths)} single tiles, {digest})"
    return text_of(os.path.realpath(path_of(item)))


@dataclass(frozen=True)
class Found:
    """What the user's paths hold.

    Attributes:
        inputs: slides and sets of tiles in the order in which the user named them.
        failures: what could not be used.
        skipped: what was left out on purpose, by kind.
        notes: how lists were read, where that is not obvious.
    """

    inputs: list[Input]
    failures: list[Failure]
    skipped: list[Skipped]
    notes: list[str]


def find_inputs(paths: Sequence[Path], tile_size: int) -> Found:
    """Finds slides and sets of tiles; a file that several paths lead to is taken once.

    Args:
        paths: tiles, slides, folders, lists of paths (.txt, .csv, .tsv), files that hold tiles. Linked
            folders are followed.
        tile_size: side of the model's tiles in pixels.
    """
    search = _Search(tile_size)
    single_tiles: list[Path] = []
    for path in paths:
        search.add(path, single_tiles)
    if single_tiles:
        search.inputs.append(TileSetInput(Path("tiles"), single_tiles, one_by_one=True))
    skipped = [Skipped(kind, count, example) for kind, (count, example) in search.skipped.items()]
    return Found(search.inputs, search.failures, skipped, search.notes)


class _Search:
    """Collects inputs; `skipped`: kind → how many, and the first one."""

    def __init__(self, tile_size: int) -> None:
        self.tile_size = tile_size
        self.inputs: list[Input] = []
        self.failures: list[Failure] = []
        self.skipped: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []
        self._seen: set[str] = set()
        self._series: set[tuple[str, str]] = set()

    def add(self, path: Path, tiles: list[Path]) -> None:
        """Adds what a path that the user named holds; a single tile goes to `tiles`."""
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            self.fail(path, _why_not(path, error))
            return
        if stat.S_ISDIR(mode):
            self._add_folder(path)
        elif not stat.S_ISREG(mode):
            self.fail(path, "is a pipe, a socket or a device. Name a file")
        elif self._is_new(path, os.path.realpath(path)):
            self._add_named_file(path, tiles)

    def _add_named_file(self, path: Path, tiles: list[Path]) -> None:
        suffix = path.suffix.lower()
        if suffix in LIST_SUFFIXES:
            self._add_list(path)
        elif kind_of(path):
            self._add_container(path)
        elif not self._add_image(path, tiles):
            if _is_image(path):
                tiles.append(path)
            else:
                unknown = f"is of an unknown type ({suffix or 'no suffix'}). Name images, slides or lists of them"
                self.fail(path, UNREADABLE.get(suffix, unknown))

    def fail(self, path: Path | str, reason: str) -> None:
        text = text_of(path)
        if len(text) > LONGEST_SHOWN:
            text = f"{text[: LONGEST_SHOWN // 2]}…{text[-LONGEST_SHOWN // 2 :]}"
        self.failures.append(Failure(text, reason))

    def _skip(self, kind: str, paths: Collection[Path]) -> None:
        for path in paths:
            count, example = self.skipped.get(kind, (0, text_of(path)))
            self.skipped[kind] = count + 1, example

    def _is_new(self, path: Path, real: str) -> bool:
        """Whether a file was not reached before; `real` is its path without links."""
        if real in self._seen:
            self._skip(AGAIN, [path])
            return False
        self._seen.add(real)
        return True

    def _add_folder(self, root: Path) -> None:
        found = walk(root)
        before = len(self.inputs) + len(self.failures)
        for path in found.broken:
            self.fail(path, "is a link that leads nowhere. Repair or delete it")
        for path, error in found.unreadable:
            self.fail(path, _why_not(path, error))
        for kind, paths in ((HIDDEN, found.hidden), (OWN, found.own), (AGAIN, found.again), (SPECIAL, found.special)):
            self._skip(kind, paths)
        parts = _parts_of_slides(found.files.values())
        tiles: list[Path] = []
        again = bool(found.again)
        for real, path in found.files.items():
            if path in parts or path.parent in parts:
                self._skip(PARTS, [path])
            elif not self._is_new(path, real):
                again = True
            elif not (self._add_image(path, tiles) or self._add_container(path, named=False)):
                self._skip(OTHER, [path])
        if tiles:
            self.inputs.append(TileSetInput(root, tiles))
        elif before == len(self.inputs) + len(self.failures) and not again:
            cause = "is a result of histo predict" if found.own == [root] else "holds neither tiles nor slides"
            step = "Name images, slides or a folder of them"
            if root.suffix.lower() == ".zarr":
                cause, step = "is OME-Zarr, which is not read", "Convert it to OME-TIFF"
            self.fail(root, f"{cause}. {step}")

    def _add_list(self, path: Path) -> None:
        try:
            read = read_list(path, KNOWN_SUFFIXES)
        except NotAListError as error:
            self.fail(path, str(error))
            return
        if read.taken:
            self.notes.append(f"{text_of(path)}: {read.taken}")
        self._add_entries(path, read.entries)

    def _add_table(self, path: Path) -> None:
        """Adds what the column `path` of a Parquet file names."""
        try:
            rows = read_rows(path, ("path",), ("label", "split", *GROUP_COLUMNS))
        except HistoError as error:
            self.fail(path, f"{error.cause}. {error.next_step}")
            return
        columns = {name: cells for name, cells in rows.columns.items() if any(cells)}
        group = next((name for name in GROUP_COLUMNS if name in columns), "group")
        nothing = [""] * len(rows.numbers)
        facts = zip(*(columns.get(name, nothing) for name in ("label", "split", group)), strict=True)
        stated = [TileFacts(*each) for each in facts]
        self._add_entries(
            path,
            [
                Entry(path.parent / cell, "" if cell else f"has no path in row {number}. Complete it", each)
                for cell, number, each in zip(columns.get("path", nothing), rows.numbers, stated, strict=True)
            ],
        )

    def _add_entries(self, path: Path, entries: Sequence[Entry]) -> None:
        """Adds what the entries of a list name."""
        if not entries:
            self.fail(path, "holds no path. Write one in each line")
        tiles: list[Path] = []
        facts: list[TileFacts] = []
        unused: list[Path] = []
        for entry in entries:
            if entry.problem:
                self.fail(entry.path, entry.problem)
                continue
            before, inputs = len(tiles), len(self.inputs)
            self.add(entry.path, tiles)
            if len(self.inputs) > inputs and entry.facts and entry.facts.label:
                unused.append(entry.path)
            facts += [entry.facts or TileFacts()] * (len(tiles) - before)
        if unused:
            which = f"{len(unused):,} entries are not used, because these are not single tiles: {text_of(unused[0])}"
            self.notes.append(f"{text_of(path)}: labels of {which}{', …' if len(unused) > 1 else ''}")
        if tiles:
            self.inputs.append(
                TileSetInput(path, tiles, facts=facts if any(each != TileFacts() for each in facts) else [])
            )

    def _add_image(self, path: Path, tiles: list[Path]) -> bool:
        """Adds a slide, or appends a tile to `tiles`; False where the file is neither."""
        suffix = path.suffix.lower()
        if suffix in TILE_SUFFIXES:
            tiles.append(path)
            return True
        if suffix in TIFF_SUFFIXES:
            kind: str | None = TIFF
        else:
            kind = SLIDE_SUFFIXES.get(suffix) or slide_format(path)
        if kind in (TIFF, GENERIC_TIFF) and not is_slide(path, self.tile_size):
            tiles.append(path)
        elif kind == DICOM:
            self._add_dicom(path)
        elif kind:
            self.inputs.append(SlideInput(path))
        return bool(kind)

    def _add_dicom(self, path: Path) -> None:
        """Adds the first file of each series, because the reader finds the others, which lie beside it."""
        series = dicom_series(path)
        place = os.path.realpath(path.parent), series or path.name
        if place in self._series:
            self._skip(PARTS, [path])
        else:
            self._series.add(place)
            self.inputs.append(SlideInput(path))

    def _add_container(self, path: Path, *, named: bool = True) -> bool:
        """Adds the tiles of a file that holds some; False where it can't hold any, or lies in a folder and holds none.

        What the user `named` is reported where it holds no tiles.
        """
        if kind_of(path) is None:
            return False
        try:
            container = open_container(path)
        except NoTilesError as error:
            if not named:
                return False
            if path.suffix.lower() == ".parquet":
                self._add_table(path)
                return True
            self.fail(path, f"{error.cause}. {error.next_step}")
        except MissingExtraError as error:
            if not named:  # it may hold something else: nobody can tell
                self.notes.append(f"{text_of(path)} was left out: {error.cause}; {error.next_step}")
                return False
            self.fail(path, f"{error.cause}. {error.next_step}")
        except HistoError as error:
            self.fail(path, f"{error.cause}. {error.next_step}")
        else:
            self.notes += container.listing.notes
            self.inputs.append(TileSetInput(path, rows=range(len(container)), opened=container))
        return True


def _why_not(path: Path, error: OSError | ValueError) -> str:
    """Why a path can't be used, as the predicate of a sentence, with the next step."""
    number = getattr(error, "errno", None)
    if isinstance(error, ValueError):
        return "is not a path (it holds a character that no path may hold). Check the program that wrote it"
    if number == errno.ELOOP:
        return "is a link that leads to itself. Repair or delete it"
    if number in (errno.ENOENT, errno.ENOTDIR):
        if ADDRESS.match(str(path)):
            return "is an address, and only files are read. Download it, and name the file"
        if path.is_symlink():
            return "is a link that leads nowhere. Repair or delete it"
        return "does not exist. Check the path"
    if number == errno.ENAMETOOLONG:
        return "is longer than a path may be. Check the program that wrote it"
    if number in (errno.EACCES, errno.EPERM):
        return "may not be read (permission denied). Check its permissions"
    return f"cannot be read ({error.strerror or error}). Check the disk or the network"


def _parts_of_slides(files: Iterable[Path]) -> set[Path]:
    """Files, and folders whose files belong to slides among these files: MIRAX's data, and what a VMS file names."""
    parts = set()
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".mrxs" and (path.with_suffix("") / "Slidedat.ini").is_file():
            parts.add(path.with_suffix(""))
        elif suffix in (".vms", ".vmu"):
            parts |= {path.parent / name for name in _named_in(path)}
    return parts


def _named_in(index: Path) -> list[str]:
    """The values of a Hamamatsu index, some of which are file names."""
    try:
        with index.open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return []  # the reader will say why
    return [value.strip() for value in re.findall(r"=([^\r\n]+)", text)]


def _is_image(path: Path) -> bool:
    """Whether a file starts like a PNG or a JPEG."""
    try:
        with path.open("rb") as file:
            return file.read(8).startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))
    except OSError:
        return False
