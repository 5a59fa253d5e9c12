"""Finds slides and sets of tiles in what the user named.

A folder may hold both. An input that can't be used does not stop the others: it becomes a `Failure`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi", ".tif", ".tiff"}
)
"""Suffixes of the formats that OpenSlide 4 reads."""
TILE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
LIST_SUFFIXES = frozenset({".txt", ".csv"})
LARGEST_TILE = 1024
"""Pixels. A TIFF whose longer side exceeds this, and four sides of the model's tiles, is a slide, otherwise a tile."""


def text_of(path: Path | str) -> str:
    """A path as text for any file format; bytes that are not UTF-8 become replacement characters.

    The same in a locale that knows only ASCII, and the same if it is applied twice.
    """
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


@dataclass(frozen=True)
class Failure:
    """An input, or one tile of it, that could not be used; `reason` is a sentence that ends with the next step."""

    path: str
    reason: str


@dataclass
class SlideInput:
    """One slide; `name` is its folder in the output."""

    path: Path
    name: str = ""


@dataclass
class TileSetInput:
    """Tiles that belong together.

    Attributes:
        source: the folder, list or array that the user named.
        files: the images; empty where the tiles are `rows` of an array.
        rows: of the .npy array at `source`, uint8 `(n, side, side, 3)`.
        name: its folder in the output.
    """

    source: Path
    files: list[Path] = field(default_factory=list)
    rows: range | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.files if self.rows is None else self.rows)

    def part(self, first: int, end: int) -> TileSetInput:
        """The set of the tiles `first` to `end` - 1; their names in tables stay the same."""
        return replace(self, files=self.files[first:end], rows=None if self.rows is None else self.rows[first:end])

    def label(self, i: int) -> str:
        """The name of tile `i` in tables: its path below the folder that was named, otherwise its path as named."""
        if self.rows is not None:
            return f"{text_of(self.source.name)}[{self.rows[i]}]"
        path = self.files[i]
        return text_of(path.relative_to(self.source) if path.is_relative_to(self.source) else path)

    def folder(self, i: int) -> str:
        """The name of the folder that holds tile `i`, which may be its class."""
        return "" if self.rows is not None else text_of(self.files[i].parent.name)


Input = SlideInput | TileSetInput


def find_inputs(paths: Sequence[Path], tile_size: int) -> tuple[list[Input], list[Failure]]:
    """Slides and sets of tiles in the order in which the user named them; a file that is named twice is taken once.

    Args:
        paths: tiles, slides, folders, lists of paths (.txt, or the first column of a .csv), .npy arrays.
        tile_size: side of the model's tiles in pixels.

    Returns:
        The inputs, and what could not be used.
    """
    search = _Search(tile_size)
    for path in paths:
        search.add(path)
    if search.single_tiles:
        search.inputs.append(TileSetInput(Path("tiles"), search.single_tiles))
    _name(search.inputs)
    return search.inputs, search.failures


class _Search:
    """Collects inputs; `single_tiles` are the images that the user named one by one."""

    def __init__(self, tile_size: int) -> None:
        self.tile_size = tile_size
        self.inputs: list[Input] = []
        self.failures: list[Failure] = []
        self.single_tiles: list[Path] = []
        self._seen: set[Path] = set()

    def add(self, path: Path) -> None:
        suffix = path.suffix.lower()
        try:
            if not path.exists():
                self.fail(path, "does not exist. Check the path")
            elif path.is_dir():
                self._add_files(path, list(self._walk(path)), explicit=False)
            elif suffix in LIST_SUFFIXES:
                self._add_files(path, list(self._read_list(path)), explicit=True)
            elif suffix == ".npy":
                self._add_array(path)
            else:
                self._add_file(path, self.single_tiles, explicit=True)
        except OSError as error:
            self.fail(path, f"cannot be read ({error.strerror or error}). Check its permissions")

    def fail(self, path: Path | str, reason: str) -> None:
        self.failures.append(Failure(text_of(path), reason))

    def _walk(self, root: Path) -> Iterator[Path]:
        """All files below a folder, sorted; only one of a folder of DICOM files, because OpenSlide finds the others."""

        def unreadable(error: OSError) -> None:
            self.fail(error.filename, f"cannot be read ({error.strerror}). Check its permissions")

        for parent, folders, files in os.walk(root, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            dicom = False
            for name in sorted(files):
                is_dicom = name.lower().endswith(".dcm")
                if not name.startswith(".") and not (is_dicom and dicom):
                    yield Path(parent, name)
                dicom |= is_dicom

    def _read_list(self, path: Path) -> Iterator[Path]:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines):
                text = line.strip()
                if path.suffix.lower() == ".csv":
                    text = text.split(",")[0].strip().strip('"')
                    if number == 0 and Path(text).suffix == "":  # a heading
                        continue
                if text and not text.startswith("#"):
                    yield path.parent / text  # an absolute path stays as it is

    def _add_files(self, source: Path, files: Sequence[Path], explicit: bool) -> None:
        tiles: list[Path] = []
        before = len(self.inputs), len(self.failures)
        for file in files:
            self._add_file(file, tiles, explicit)
        if tiles:
            self.inputs.append(TileSetInput(source, tiles))
        if before == (len(self.inputs), len(self.failures)):
            self.fail(source, "holds neither tiles nor slides. Name images, slides or a folder of them")

    def _add_file(self, path: Path, tiles: list[Path], explicit: bool) -> None:
        """Adds a slide, or appends a tile to `tiles`. Any other file is a failure if the user named it (`explicit`)."""
        suffix = path.suffix.lower()
        if path.resolve() in self._seen:
            return
        self._seen.add(path.resolve())
        if explicit and not path.exists():
            self.fail(path, "does not exist. Check the path")
        elif suffix in TILE_SUFFIXES and not (suffix in SLIDE_SUFFIXES and self._is_large(path)):
            tiles.append(path)
        elif suffix in SLIDE_SUFFIXES:
            self.inputs.append(SlideInput(path))
        elif explicit:
            self.fail(path, f"is of an unknown type ({suffix or 'no suffix'}). Name images or slides")

    def _is_large(self, path: Path) -> bool:
        try:
            with Image.open(path, formats=("TIFF",)) as image:
                return max(image.size) > max(LARGEST_TILE, 4 * self.tile_size)
        except Image.DecompressionBombError:
            return True
        except Exception:  # PIL may raise anything; the error is reported when the tile is read
            return False

    def _add_array(self, path: Path) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            return self.fail(path, f"is not a .npy array ({error}). Save it with numpy.save")
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2]:
            shape = "×".join(map(str, array.shape))
            return self.fail(path, f"holds {array.dtype} {shape}. Save uint8 (tiles, side, side, 3)")
        if not len(array):
            return self.fail(path, "holds no tile. Check the program that wrote it")
        self.inputs.append(TileSetInput(path, rows=range(len(array))))
        return None


def _name(inputs: Sequence[Input]) -> None:
    """Gives each input another folder name for the output, the same in every run over the same inputs."""
    used: set[str] = set()
    for item in inputs:
        path = item.path if isinstance(item, SlideInput) else item.source
        base = path.resolve().name if path.is_dir() else path.stem
        base = base or "tiles"
        name, number = base, 1
        while name.casefold() in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name.casefold())
        item.name = name
