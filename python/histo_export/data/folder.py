"""Image folders: `train|val|test/<class>/*`, or `<class>/*` to be split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from histo_export.data.class_map import ClassMap
from histo_export.data.containers import Container, ImageFiles, Listing
from histo_export.data.duplicates import duplicate_notes, identical_tiles
from histo_export.data.groups import Grouping, Groups, refuse_shared
from histo_export.data.images import SUFFIXES, BadImageError
from histo_export.data.rows import LISTED
from histo_export.data.split import DEFAULT_SPLIT, Split, check_split, split_tiles
from histo_export.data.tiles import (
    SPLIT_FOLDERS,
    SPLITS,
    TileData,
    TileSet,
    choose_classes,
    fingerprint,
    name_notes,
    need_crop,
    need_two_classes,
    size_notes,
)
from histo_export.data.walk import Entries, Walk, list_folder, walk
from histo_export.errors import HistoError, UsageError
from histo_export.system import allowed_cpus
from histo_export.trained_on import tile_hash

KEPT_BYTES = 512 << 20
"""Tiles whose pixels fit in this many bytes together are decoded once and kept; others are decoded whenever read."""


def open_folder(
    root: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
    grouping: Grouping | None = None,
    class_map: ClassMap | None = None,
) -> TileData:
    """Open a folder of images, decode every file once, and report all unusable files together.

    Args:
        root: holds `train`, `val` (or `valid`, `validation`) and `test` with a folder per class each,
            or a folder per class. Folders inside a class folder are searched too, and links are followed.
        name: of the data set, for messages and model cards.
        classes: the class folders to use, in label order; default all, sorted.
        crop: side in pixels that every tile must have at least.
        split: how to split a folder of classes; default 0.68/0.16/0.16.
        seed: of that split.
        grouping: which tiles must stay together in the split.
        class_map: folders → classes.

    Raises:
        UsageError: an unknown class, or `split` for a folder that is split already.
        HistoError: no images, one class, a class missing from a split, unreadable or too small files, tiles without a
            group, or groups in two splits.
    """
    listing = _list_images(root)
    if class_map is not None:
        listing = listing.mapped(class_map)
    chosen = _chosen_classes(root, listing, classes, split)
    paths, labels, bounds = listing.images_of(chosen)
    names = [path.relative_to(root).as_posix() for path in paths]
    groups = None if grouping is None else grouping.groups_of(names)
    if listing.is_split:
        parts = [np.arange(first, end) for first, end in pairwise(bounds)]
        refuse_shared(groups, parts, root)
    else:  # before decoding: too few tiles of a class are reported at once
        parts = list(split_tiles(labels, groups, chosen, split or DEFAULT_SPLIT, seed, root))
    notes = [*listing.left_out.notes(root), *listing.notes]
    tiles = ImageFiles(root, paths, Listing(names))
    files = TileFiles(root, tiles, range(len(names)), names, labels, chosen, parts, groups, notes)
    return files.decoded(name, crop, "" if grouping is None else grouping.source)


def open_with_test(
    root: Path,
    test: Path,
    *,
    name: str,
    classes: Sequence[str],
    crop: int,
    split: Split,
    seed: int = 0,
    grouping: Grouping | None = None,
) -> TileData:
    """Opens a folder of classes that is split into train and val, and another one of the same classes, the test.

    Args:
        root, test: a folder per class each, beside each other.
        split: fractions of `root`. The third part is trained on, too, because the test comes from the other folder.

    The other arguments and the errors are those of `open_folder`.
    """
    own, others = _list_images(root), _list_images(test)
    chosen = _chosen_classes(root, own, classes, None)
    _chosen_classes(test, others, classes, None)
    (paths, labels, _), (test_paths, test_labels, _) = own.images_of(chosen), others.images_of(chosen)
    paths, labels = paths + test_paths, np.concatenate([labels, test_labels])
    names = [path.relative_to(root.parent).as_posix() for path in paths]
    groups = None if grouping is None else grouping.groups_of(names)
    n = len(paths) - len(test_paths)
    train, val, rest = split_tiles(labels[:n], None if groups is None else groups[:n], chosen, split, seed, root)
    parts = [np.sort(np.concatenate([train, rest])), val, np.arange(n, len(paths))]
    refuse_shared(groups, parts, root.parent)
    notes = [*own.left_out.notes(root), *others.left_out.notes(test)]
    tiles = ImageFiles(root.parent, paths, Listing(names))
    files = TileFiles(root.parent, tiles, range(len(names)), names, labels, chosen, parts, groups, notes)
    return files.decoded(name, crop, "" if grouping is None else grouping.source)


@dataclass(frozen=True)
class TileFiles:
    """Labelled tiles, split, before any is read.

    Attributes:
        where: the folder, table or file, for messages.
        tiles: what reads them.
        ids: of each tile its index in `tiles`.
        names: of the tiles, for messages and groups: paths from `where`, or absolute ones as a table has them.
        labels: int64 `(n,)`, indices into `classes`.
        classes: names.
        parts: indices of the train, val and test tiles.
        groups: of the tiles, `(n,)`; None where they are unknown.
        notes: for the user.
    """

    where: Path
    tiles: Container
    ids: Sequence[int]
    names: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    parts: Sequence[NDArray[np.int64]]
    groups: Groups | None
    notes: Sequence[str]

    def decoded(self, name: str, crop: int, groups_from: str) -> TileData:
        """The data set, every file read once.

        Args:
            name: of the set.
            crop: side in pixels that every tile must have at least.
            groups_from: where the groups come from.

        Raises:
            HistoError: files that cannot be used; all of them are named.
        """
        checked = _decode_all(self.where, self.tiles, self.ids, self.names)
        sizes = [c.size for c in checked]
        smallest, largest = need_crop(sizes, self.names, crop, self.where)
        hashes = np.array([c.hash for c in checked], dtype=np.int64)
        recorded = _recorded_names(self.names, self.where)
        sets = [
            TileSet(
                self.classes,
                self.labels[part],
                [recorded[i] for i in part],
                _Tiles(self.tiles, [self.ids[i] for i in part], [checked[i].pixels for i in part]),
                hashes[part],
                None if self.groups is None else self.groups[part],
            )
            for part in self.parts
        ]
        counts = [len(part) for part in self.parts]
        notes = name_notes(self.classes) + duplicate_notes(identical_tiles(sets), counts)
        shown = f"{smallest}x{smallest}" if smallest == largest else f"{smallest} to {largest}"
        return TileData(
            name=name,
            classes=self.classes,
            train=sets[0],
            val=sets[1],
            test=sets[2],
            tile_size=smallest,
            mpp=None,
            synthetic=False,
            fingerprint=fingerprint(
                self.classes,
                [[(int(self.labels[i]), checked[i].digest) for i in part] for part in self.parts],
                [] if self.groups is None else [self.groups[part].tolist() for part in self.parts],
            ),
            description=f"{name}: {sum(counts):,} image tiles of {shown} pixels, {len(self.classes)} classes, "
            f"train/val/test {'/'.join(map(str, counts))}",
            notes=(*notes, *self.notes, *size_notes(sizes, crop)),
            one_size=smallest == largest,
            groups_from=groups_from,
        )


def _recorded_names(names: Sequence[str], folder: Path) -> list[str]:
    """Names as results and checkpoints have them, which travel: without the folders of this machine.

    An absolute path in the folder of the data becomes relative to it. Others become relative to the folder that they
    have in common, or the file's name alone where they have none.
    """
    absolute = {name: Path(name) for name in names if Path(name).is_absolute()}
    inside, outside = {}, {}
    for name, path in absolute.items():
        try:
            inside[name] = path.relative_to(folder.absolute()).as_posix()
        except ValueError:
            outside[name] = path
    try:
        common = Path(os.path.commonpath([path.parent for path in outside.values()])) if outside else folder
    except ValueError:  # on several drives of Windows
        common = Path()
    alone = common.parent == common
    short = {name: path.name if alone else path.relative_to(common).as_posix() for name, path in outside.items()}
    return [inside.get(name) or short.get(name) or name for name in names]


def _chosen_classes(
    root: Path, listing: _Listing, classes: Sequence[str] | None, split: Split | None
) -> tuple[str, ...]:
    """The classes to use; UsageError or HistoError where the folder doesn't fit the request."""
    if listing.is_split:
        if split is not None:
            raise UsageError("split", f"{root} is already split into train, val and test", "Leave --split out")
        return _classes_in_all_splits(listing, classes)
    check_split(split or DEFAULT_SPLIT)
    chosen = choose_classes(sorted(listing.parts[""]), classes, where=root)
    need_two_classes(chosen, root)
    empty = [c for c in chosen if not listing.parts[""][c]]
    if empty:
        raise HistoError(root / empty[0], f"holds no image ({_suffixes()})", "Put tiles there, or delete the folder")
    return chosen


@dataclass
class _LeftOut:
    """What a folder holds besides its tiles.

    Attributes:
        ignored: files that are not images, or lie in no class.
        folders: beside train, val and test.
        own: what histo predict, train and bench wrote.
        again: links to what was reached by another path.
    """

    ignored: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)

    def notes(self, root: Path) -> list[str]:
        """A line for each kind that occurs."""
        kinds = (
            (self.ignored, f"files were ignored because they are not {_suffixes()}, or lie in no class"),
            (self.folders, "folders beside train, val and test were ignored"),
            (self.own, "results of histo were left out"),
            (self.again, "links lead to what was reached by another path; each tile of a class is taken once"),
        )
        return [
            f"{len(paths):,} {what} (for example {paths[0].relative_to(root).as_posix()})"
            for paths, what in kinds
            if paths
        ]


@dataclass
class _Listing:
    """The files of a folder.

    Attributes:
        parts: name of a split ("" where the folder is not split yet) → class → its sorted image files.
        left_out: everything else.
        notes: what a map of classes leaves out.
    """

    parts: dict[str, dict[str, list[Path]]]
    left_out: _LeftOut
    notes: Sequence[str] = ()

    @property
    def is_split(self) -> bool:
        return "" not in self.parts

    def mapped(self, class_map: ClassMap) -> _Listing:
        """The same with the classes that a map gives to the folders."""
        folders = sorted({folder for part in self.parts.values() for folder in part})
        class_of, notes = class_map.of(folders)
        parts: dict[str, dict[str, list[Path]]] = {}
        for split, images in self.parts.items():
            parts[split] = {}
            for folder in sorted(images):
                if name := class_of[folder]:
                    parts[split].setdefault(name, []).extend(images[folder])
        return _Listing(parts, self.left_out, notes)

    def images_of(self, classes: Sequence[str]) -> tuple[list[Path], NDArray[np.int64], list[int]]:
        """The images of these classes, split by split; their labels, int64 `(n,)`; and where each split begins."""
        paths: list[Path] = []
        labels: list[int] = []
        bounds = [0]
        for part in SPLITS if self.is_split else ("",):
            for label, c in enumerate(classes):
                paths += self.parts[part][c]
                labels += [label] * len(self.parts[part][c])
            bounds.append(len(paths))
        return paths, np.array(labels, dtype=np.int64), bounds


def _suffixes() -> str:
    return "png, jpg, tif, webp, bmp, jp2, avif or jxl"


def _list(folder: Path) -> Entries:
    """The entries of a folder that holds other folders: classes or splits."""
    try:
        entries = list_folder(folder)
    except PermissionError as error:
        raise HistoError(folder, "may not be read (permission denied)", "Check its permissions") from error
    except OSError as error:
        raise HistoError(folder, f"cannot be read ({error.strerror})", "Check the path and the disk") from error
    _check(entries)
    return entries


def _check(found: Entries | Walk) -> None:
    """HistoError where a part can't be read: a class that lacks tiles would look complete."""
    for path, error in found.unreadable:
        raise HistoError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    for path in found.broken:
        if path.suffix.lower() not in SUFFIXES:  # an image is reported with all others that can't be decoded
            raise HistoError(path, "is a link that leads nowhere", "Repair or delete it")


def _list_images(root: Path) -> _Listing:
    entries = _list(root)
    folders = entries.all_folders()
    if not folders:
        loose = [p for p in entries.all_files() if p.suffix.lower() in SUFFIXES]
        if loose:
            raise HistoError(
                root,
                f"holds images ({loose[0].name}, ...) but no folder per class",
                "Sort the tiles into one folder per class: <folder>/<class>/*.png",
            )
        raise HistoError(
            root,
            "holds no images and no folders" if entries.all_files() else "is empty",
            "Give a folder <class>/* or train|val|test/<class>/* of images, or .npy arrays",
        )
    left_out = _LeftOut()
    by_split: dict[str, Path] = {}
    for folder in folders:
        key = SPLIT_FOLDERS.get(folder.name.casefold())
        if key is None:
            continue
        if key in by_split:
            raise HistoError(root, f"has both {by_split[key].name} and {folder.name}", f"Keep one folder for {key}")
        by_split[key] = folder
    if "train" in by_split:
        missing = [s for s in SPLITS if s not in by_split]
        if missing:
            raise HistoError(
                root,
                f"has train but no {' and no '.join(missing)} folder",
                "Add it, or give one folder of classes and let it be split (--split)",
            )
        left_out.ignored += entries.all_files()
        left_out.folders += [folder for folder in folders if folder not in by_split.values()]
        return _Listing({s: _classes_in(_list(by_split[s]), left_out) for s in SPLITS}, left_out)
    if by_split and len(by_split) == len(folders):
        raise HistoError(root, f"has {' and '.join(by_split)} but no train folder", "Add train/<class>/* to it")
    return _Listing({"": _classes_in(entries, left_out)}, left_out)


def _classes_in(entries: Entries, left_out: _LeftOut) -> dict[str, list[Path]]:
    """Class → its images, for each folder of these entries except those that hold nothing but results of histo."""
    left_out.ignored += entries.all_files()
    classes = {}
    for each in entries.all_folders():
        own = len(left_out.own)
        images = _images_under(each, left_out)
        if images or len(left_out.own) == own:
            classes[each.name] = images
    return classes


def _images_under(folder: Path, left_out: _LeftOut) -> list[Path]:
    found = walk(folder)
    _check(found)
    left_out.own += found.own
    left_out.again += found.again
    images: list[Path] = []
    for path in [*found.files.values(), *found.broken, *found.special]:
        (images if path.suffix.lower() in SUFFIXES else left_out.ignored).append(path)
    # By text, not by Path: Windows paths compare without case, and the order must not depend on that.
    return sorted(images, key=lambda p: p.relative_to(folder).as_posix())


def _classes_in_all_splits(listing: _Listing, wanted: Sequence[str] | None) -> tuple[str, ...]:
    union = sorted({c for part in listing.parts.values() for c in part})
    if not union:
        raise HistoError("train", "has no folder per class", "Sort the tiles into train/<class>/*")
    chosen = choose_classes(union, wanted, where="the folder")
    counts = {c: [len(listing.parts[s].get(c, ())) for s in SPLITS] for c in chosen}
    if not any(n for per_split in counts.values() for n in per_split):
        raise HistoError("train, val and test", f"hold no image ({_suffixes()})", "Put tiles into <split>/<class>/")
    need_two_classes(chosen, "the folder")
    for c, per_split in counts.items():
        have = [s for s, n in zip(SPLITS, per_split, strict=True) if n]
        lack = [s for s, n in zip(SPLITS, per_split, strict=True) if not n]
        if lack:
            cause = f"has images in {', '.join(have)} but none in {', '.join(lack)}" if have else "has no image"
            raise HistoError(f"class {c}", cause, f"Add tiles to {lack[0]}/{c}, or leave the class out with --classes")
    return chosen


@dataclass
class _Checked:
    """A decoded file: sha256 of its bytes, `tile_hash`, (height, width), and its pixels where they are kept."""

    digest: bytes
    hash: int
    size: tuple[int, int]
    pixels: NDArray[np.uint8] | None


def _decode_all(root: Path, tiles: Container, ids: Sequence[int], names: Sequence[str]) -> list[_Checked]:
    """Decode every tile with as many threads as this process may use CPUs (PIL releases the GIL).

    Raises:
        HistoError: listing all files that cannot be used, with reasons.
    """
    kept = 0
    keep = True

    def check(i: int) -> _Checked | BadImageError:
        try:
            digest, pixels = tiles.checked(i)
        except BadImageError as error:
            return error
        return _Checked(digest, tile_hash(pixels), (pixels.shape[0], pixels.shape[1]), pixels if keep else None)

    cpus = len(allowed_cpus())
    checked: list[_Checked] = []
    bad: list[tuple[str, BadImageError]] = []
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(cpus, 16), thread_name_prefix="decode")
    try:
        results: Iterable[tuple[str, _Checked | BadImageError]] = zip(names, pool.map(check, ids), strict=True)
        if console.is_terminal and len(ids) >= 500:  # a disabled bar of rich 13 or 14 leaves an empty line
            results = track(results, "Checking tiles", len(ids), console=console, transient=True)
        for name, result in results:
            if isinstance(result, BadImageError):
                bad.append((name, result))
                continue
            checked.append(result)
            kept += 0 if result.pixels is None else result.pixels.nbytes
            if keep and kept > KEPT_BYTES:
                keep = False
                for c in checked:
                    c.pixels = None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if bad:
        raise _unusable(root, bad, len(ids))
    if not keep:  # of files that were decoded before the limit was noticed
        for c in checked:
            c.pixels = None
    return checked


def _unusable(root: Path, bad: Sequence[tuple[str, BadImageError]], files: int) -> HistoError:
    """The error for these of so many files, with the reason of each."""
    if len(bad) == 1:
        return HistoError(root / bad[0][0], str(bad[0][1]), "Repair or delete it and run again")
    lines = [f"  {name} {error}" for name, error in bad[:LISTED]]
    if len(bad) > LISTED:
        lines.append(f"  and {len(bad) - LISTED:,} more")
    return HistoError(
        root,
        "files that cannot be used:\n" + "\n".join(lines) + f"\n{len(bad):,} of {files:,} files",
        "Repair or delete them and run again",
    )


class _Tiles:
    """Some tiles of a container, or the pixels kept when they were checked."""

    def __init__(self, tiles: Container, ids: list[int], pixels: Sequence[NDArray[np.uint8] | None]) -> None:
        self._tiles, self._ids, self._pixels = tiles, ids, pixels

    def __call__(self, i: int) -> NDArray[np.uint8]:
        pixels = self._pixels[i]
        if pixels is not None:
            return pixels.copy()
        try:
            return self._tiles.tile(self._ids[i])
        except BadImageError as error:
            raise HistoError(
                self._tiles.place(self._ids[i]),
                f"{error}, though it was fine when checked",
                "Do not change tiles during a run",
            ) from error

    def __getstate__(self) -> dict[str, object]:
        # A spawned worker reads the tiles again: sending it every pixel would cost more.
        return {"_tiles": self._tiles, "_ids": self._ids, "_pixels": [None] * len(self._ids)}
