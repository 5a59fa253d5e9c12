"""What every source of tiles becomes: three `TileSet`s in one `TileData`."""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from histo_export.data.images import resampled
from histo_export.errors import HistoError, UsageError
from histo_export.trained_on import Hashes, TrainedOn, tile_hash

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders, and of splits in tables, in lower case → the split."""


class TileSet:
    """The tiles of one split, read one at a time.

    Args:
        classes: class names; a label is an index into them.
        labels: int64 `(n,)`.
        names: a human name per tile, such as `"train/AC/image_3.jpg"` or `"arrays[17]"`.
        source: gives tile `i` as uint8 RGB `(h, w, 3)`. It must be picklable, because data-loading
            workers get a copy.
        hashes: int64 `(n,)`, `tile_hash` of each tile; None: computed when first asked for.
        groups: the slide or patient of each tile, `(n,)`; None where that is unknown.

    Iteration order is by class and then by name, so shuffling is left to whoever trains.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        labels: NDArray[np.int64],
        names: Sequence[str],
        source: Callable[[int], NDArray[np.uint8]],
        hashes: Hashes | None = None,
        groups: NDArray[np.str_] | None = None,
    ) -> None:
        if len(labels) != len(names):
            raise ValueError(f"{len(labels)} labels for {len(names)} tiles")
        self.classes = classes
        self.labels = labels
        self.names = names
        self._source = source
        self._hashes = hashes
        self.groups = groups

    def __len__(self) -> int:
        return len(self.labels)

    def tile(self, i: int) -> NDArray[np.uint8]:
        """Tile `i` as uint8 RGB `(h, w, 3)`, C-contiguous; a fresh array, the caller's to change.

        Raises:
            IndexError: unless `0 <= i < len(self)`.
            HistoError: if the file behind it has changed or gone since it was opened.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"tile {i} of {len(self)}")
        return self._source(int(i))

    @property
    def hashes(self) -> Hashes:
        """int64 `(n,)`: `tile_hash` of each tile."""
        if self._hashes is None:
            self._hashes = np.array([tile_hash(self.tile(i)) for i in range(len(self))], dtype=np.int64)
        return self._hashes

    def preload(self) -> None:
        """Generate all tiles that are generated once and kept (the demo's), so that forked workers inherit them."""
        if hasattr(self._source, "preload"):
            self._source.preload()

    def resized(self, side: int) -> TileSet:
        """The same tiles, resampled to `side` by `side` pixels. `hashes` stay those of the tiles as they were."""
        return TileSet(self.classes, self.labels, self.names, _Resized(self, side), self.hashes, self.groups)

    def __repr__(self) -> str:
        return f"TileSet({len(self)} tiles, classes={', '.join(self.classes)})"


@dataclass(frozen=True)
class _Resized:
    """A source of tiles: those of a set, resampled."""

    tiles: TileSet
    side: int

    def __call__(self, i: int) -> NDArray[np.uint8]:
        return resampled(self.tiles.tile(i), self.side)

    def preload(self) -> None:
        self.tiles.preload()


@dataclass(frozen=True)
class TileData:
    """A labelled, split, checked collection of tiles.

    Every file behind it was opened and decoded once, and every class has tiles in every split.
    """

    name: str
    """`"demo"`, the name of a public set, or the name of the folder or file, without its path."""
    classes: tuple[str, ...]
    """Class names in label order."""
    train: TileSet
    val: TileSet
    test: TileSet
    tile_size: int
    """Smallest tile side in pixels over all splits; exported files are declared for it."""
    mpp: float | None
    """Micrometres per pixel, if the source states it."""
    synthetic: bool
    """True for generated tiles. Shown with every result."""
    fingerprint: str
    """sha256 hex over classes, split membership and content. It does not depend on the machine, nor on the
    place, name or time of the files."""
    description: str
    """One line for model cards."""
    notes: tuple[str, ...] = ()
    """What the user should know before trusting a result: tiles in two splits, ignored files."""
    one_size: bool = True
    """Whether every tile is a square of `tile_size`."""
    resized_from: int | None = None
    """Side in pixels that the tiles had before they were resampled to `tile_size`; None where they were not."""
    groups_from: str = ""
    """Where the groups of the tiles come from, as the user named it; "" where no groups are known."""
    licence: str = ""
    """Of a public set, as its publisher names it."""
    citation: str = ""
    """Of a public set: what to cite."""

    @property
    def trained_on(self) -> TrainedOn:
        """What a network has learnt from that is trained on these tiles."""
        return TrainedOn.of(self.train.hashes, self.val.hashes)

    @property
    def groups(self) -> tuple[int, int, int] | None:
        """Groups in train, val and test; None where no groups are known."""
        counts = [len(np.unique(own)) for part in (self.train, self.val, self.test) if (own := part.groups) is not None]
        return (counts[0], counts[1], counts[2]) if len(counts) == 3 else None

    def resized(self, side: int) -> TileData:
        """The same data with each tile resampled to `side` by `side` pixels: the network sees more of each tile.

        `tile_size` and µm per pixel are those of the new tiles.

        Raises:
            UsageError: the tiles are smaller, or of several sizes, which would have several µm per pixel then.
        """
        if not self.one_size:
            cause = f"needs square tiles of one size, and those of {self.name} differ"
            raise UsageError(f"--resize {side}", cause, "Cut all tiles to one size, or leave --resize out")
        if side > self.tile_size:
            cause = f"is larger than the tiles ({self.tile_size} pixels), and enlarging adds nothing to see"
            raise UsageError(f"--resize {side}", cause, f"Use --resize {self.tile_size} or less")
        if side == self.tile_size:
            return self
        train, val, test = (part.resized(side) for part in (self.train, self.val, self.test))
        return replace(
            self,
            train=train,
            val=val,
            test=test,
            tile_size=side,
            mpp=None if self.mpp is None else self.mpp * self.tile_size / side,
            resized_from=self.tile_size,
            description=f"{self.description}; resized from {self.tile_size} to {side} pixels",
        )


def choose_classes(
    available: Sequence[str],
    wanted: Sequence[str] | None,
    *,
    where: object,
    match: Callable[[str], str] = str.casefold,
) -> tuple[str, ...]:
    """The classes to use, in the order asked for (default: all, in the order available).

    Args:
        available: the names that exist.
        wanted: the names asked for; upper and lower case count as equal, and so do composed and decomposed letters.
        where: the thing that messages name.
        match: maps a name to the text that is compared.

    Raises:
        UsageError: an unknown or repeated name, or a single one.
        HistoError: a name that exists is not text, so that no file could hold it; or two names look alike.
    """
    for name in available:
        if not name.isprintable() and (text := name.encode(errors="surrogateescape").decode(errors="replace")) != name:
            step = "Rename it, or use a UTF-8 locale (LC_ALL=C.UTF-8)"
            raise HistoError(f"class {text}", "has a name that is not text in this locale", step)
    _refuse_lookalikes(available, where)
    if wanted is None:
        return tuple(available)
    if isinstance(wanted, str):
        raise UsageError(f"classes {wanted!r}", "is one text, not a list of names", 'Write ["A", "B"]')
    known = {match(_composed(name)): name for name in available}
    if len(known) < len(available):  # names that differ in case only, so that case matters
        known = {_composed(name): name for name in available}
        match = str
    chosen: list[str] = []
    for name in wanted:
        spelling = known.get(match(_composed(name)))
        if spelling is None:
            near = difflib.get_close_matches(match(_composed(name)), list(known), n=1, cutoff=0.5)
            step = f"Did you mean {known[near[0]]}? " if near else ""
            raise UsageError(f"class {name!r}", f"is not in {where}", f"{step}The classes are {', '.join(available)}")
        if spelling in chosen:
            raise UsageError(f"class {name!r}", "is asked for twice", "Name each class once")
        chosen.append(spelling)
    if len(chosen) < 2:
        raise UsageError(
            f"classes {', '.join(chosen) or '(none)'}",
            "a classifier needs at least two",
            f"Choose two or more of {', '.join(available)}",
        )
    return tuple(chosen)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _refuse_lookalikes(names: Sequence[str], where: object) -> None:
    """HistoError for two names that differ only in how their letters are composed: macOS writes "é" as two characters.

    Nobody can tell such names apart on a screen, so they are one class that was copied from two systems.
    """
    first: dict[str, str] = {}
    for name in names:
        twin = first.setdefault(_composed(name), name)
        if twin != name:
            raise HistoError(
                where,
                f"has two classes whose names look alike: {twin!a} and {name!a}, which both show as {name}",
                "Put their tiles into one folder",
            )


def name_notes(classes: Sequence[str]) -> list[str]:
    """A line for classes whose names differ in upper and lower case or in spaces only."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [
        f"classes {' and '.join(map(repr, names))} differ in upper and lower case or spaces only; they are trained as "
        f"{len(names)} classes"
        for names in alike.values()
        if len(names) > 1
    ]


def need_two_classes(classes: Sequence[str], where: object) -> None:
    """Raise HistoError for a set with a single class, because a classifier needs two."""
    if len(classes) == 1:
        raise HistoError(where, f"holds one class only ({classes[0]})", "Add tiles of at least one more class")


def need_crop(sizes: Sequence[tuple[int, int]], names: Sequence[str], crop: int, where: object) -> tuple[int, int]:
    """Check that every tile holds a `crop` by `crop` square; return the smallest and the largest tile side.

    Args:
        sizes: (height, width) per tile, in pixels.
        names: tile names, for the message.
        crop: side of the square, in pixels.
        where: folder or file that holds the tiles.

    Raises:
        HistoError: naming the first tile that is too small, and how many more there are.
    """
    small = [i for i, size in enumerate(sizes) if min(size) < crop]
    smallest = min(min(size) for size in sizes)
    if small:
        h, w = sizes[small[0]]
        more = f" (and {len(small) - 1:,} more of {len(sizes):,} tiles)" if len(small) > 1 else ""
        raise HistoError(
            f"{where}: {names[small[0]]}",
            f"is {w}x{h} pixels (widthxheight), smaller than the crop of {crop}{more}",
            f"Use --crop {smallest} or less, or remove the small tiles",
        )
    return smallest, max(max(size) for size in sizes)


def size_notes(sizes: Sequence[tuple[int, int]], crop: int) -> list[str]:
    """A line where not all tiles are squares of one size: a network can be trained on them, but not run on all.

    Args:
        sizes: (height, width) per tile, in pixels.
        crop: side in pixels of what training uses.
    """
    smallest, largest = min(map(min, sizes)), max(map(max, sizes))
    if smallest == largest:
        return []
    others = sum(size != (smallest, smallest) for size in sizes)
    return [
        f"tile sides range from {smallest} to {largest} pixels: training uses the centre {crop} pixels of each, but "
        f"the exported model is for tiles of {smallest}x{smallest}, and {others:,} of these {len(sizes):,} are not; "
        "histo predict refuses such tiles unless --resize scales them, so cut all tiles to one size"
    ]


def fingerprint(
    classes: Sequence[str], splits: Sequence[Iterable[tuple[int, bytes]]], groups: Sequence[Iterable[str]] = ()
) -> str:
    """sha256 hex of class names, and per split of the sorted (label, content digest) pairs.

    Where groups are known, the group of each tile is a part of it: intervals are by group.
    """
    total = hashlib.sha256(b"histo-export tiles 1\n")
    for name in classes:
        total.update(f"class {name}\n".encode())
    for index, (split, tiles) in enumerate(zip(SPLITS, splits, strict=True)):
        total.update(f"split {split}\n".encode())
        lines = [f"{label} {digest.hex()}" for label, digest in tiles]
        if groups:
            lines = [f"{line} group {group}" for line, group in zip(lines, groups[index], strict=True)]
        # Labels sort as numbers, as they did before there were groups.
        for line in sorted(lines, key=lambda line: (int(line.partition(" ")[0]), line)):
            total.update(f"{line}\n".encode(errors="surrogateescape"))
    return total.hexdigest()
