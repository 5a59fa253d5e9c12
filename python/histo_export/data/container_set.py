"""Labelled tiles in one file, or in a folder of such files: archives, arrays and tables with images inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from histo_export.data.class_map import ClassMap
from histo_export.data.containers import Container, EncodedTiles, Listing, kind_of, open_container
from histo_export.data.folder import TileFiles
from histo_export.data.groups import Grouping, Listed, refuse_shared
from histo_export.data.split import DEFAULT_SPLIT, Split, check_split, split_tiles
from histo_export.data.table import need_every_class
from histo_export.data.tiles import SPLIT_FOLDERS, SPLITS, TileData, choose_classes, need_two_classes
from histo_export.data.walk import list_folder
from histo_export.errors import HistoError, UsageError

SPLIT_NAME = re.compile(r"(train|valid|validation|val|test)(?![a-z])", re.IGNORECASE)
"""The beginning of the name of a shard that belongs to a split: train-00000-of-00002.parquet."""


def holds_containers(folder: Path) -> bool:
    """Whether a folder is to be read as files that hold tiles: they lie in it, or in its folder `data` as in data sets
    of Hugging Face, and it has no other folder."""
    try:
        return bool(_shards(folder)) and all(each.name == "data" for each in list_folder(folder).all_folders())
    except OSError:
        return False  # open_folder reports why


def _shards(folder: Path) -> list[Path]:
    files = [file for file in list_folder(folder).all_files() if kind_of(file)]
    return files or ([file for file in _files_of(folder / "data") if kind_of(file)])


def _files_of(folder: Path) -> list[Path]:
    return list_folder(folder).all_files() if folder.is_dir() else []


def open_container_set(
    path: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
    grouping: Grouping | None = None,
    class_map: ClassMap | None = None,
) -> TileData:
    """Opens the labelled tiles of a file that holds tiles, or of a folder of such files.

    The label and the split of a tile are what the file says of it, or else the folders in its name:
    `train|val|test/<class>/…` or `<class>/…`. In a folder, the name of a file may begin with its split.

    Args:
        path: of the file or folder.
        name: of the data set, for messages and model cards.
        classes: the labels to use, in this order; default all, sorted (numbers: in their order).
        crop: side in pixels that every tile must have at least.
        split: how to split tiles that are not split yet; default 0.68/0.16/0.16.
        seed: of that split.
        grouping: which tiles must stay together, where the file does not say so.
        class_map: labels or folders → classes.

    Raises:
        UsageError: an unknown class, or a split or groups that the file states itself.
        HistoError: a damaged file, no labels, a class or split without tiles, or tiles that cannot be used.
    """
    opened = open_container(path) if path.is_file() else _Joined(path, _shards(path))
    listing, notes = opened.listing, list(opened.listing.notes)
    labels, splits = _labels_and_splits(path, listing)
    if class_map is not None:
        class_of, told = class_map.of(sorted({label for label in labels if label}))
        labels, notes = [class_of.get(label, "") for label in labels], [*notes, *told]
    known = [label for label in dict.fromkeys(labels) if label]
    if not known:
        step = "Put the tiles into a folder per class, write labels, or use a folder: <folder>/<class>/*"
        raise HistoError(path, "says of no tile which class it is", step)
    available = known if known == [f"class{i}" for i in range(len(known))] else sorted(known, key=_numbers_in_order)
    chosen = choose_classes(available, classes, where=path)
    need_two_classes(chosen, path)
    used = [i for i, label in enumerate(labels) if label in chosen]
    if left_out := len(labels) - len(used):
        notes.append(f"{left_out:,} tiles without one of the classes {', '.join(chosen)} were left out")
    key = (lambda i: listing.names[i]) if isinstance(opened, EncodedTiles) else (lambda i: i)
    used.sort(key=lambda i: (chosen.index(labels[i]), key(i)))
    names = [listing.names[i] for i in used]
    if listing.groups:
        if grouping is not None:
            raise UsageError("groups", f"{path} states them itself", "Leave --groups out")
        grouping = Listed(tuple(listing.groups[i] for i in used), path.name)
    groups = None if grouping is None else grouping.groups_of(names)
    numbers = np.array([chosen.index(labels[i]) for i in used], dtype=np.int64)
    if any(splits):
        if split is not None:
            raise UsageError("split", f"{path} is already split into train, val and test", "Leave --split out")
        sides = np.array([SPLITS.index(splits[i]) if splits[i] else -1 for i in used])
        parts = [np.flatnonzero(sides == side) for side in range(3)]
        if lost := np.flatnonzero(sides < 0).tolist():
            notes.append(
                f"{len(lost):,} tiles without a split (train, val or test) were left out, such as {names[lost[0]]}"
            )
        need_every_class(parts, numbers, chosen, path)
        refuse_shared(groups, parts, path)
    else:
        check_split(split or DEFAULT_SPLIT)
        parts = list(split_tiles(numbers, groups, chosen, split or DEFAULT_SPLIT, seed, path))
    files = TileFiles(path, opened, used, names, numbers, chosen, parts, groups, notes)
    return files.decoded(name, crop, "" if grouping is None else grouping.source)


def _numbers_in_order(name: str) -> tuple[str, int, str]:
    """A sort key by which class10 comes after class9."""
    match = re.fullmatch(r"class([0-9]+)", name)
    return ("class", int(match[1]), "") if match else (name, 0, "")


def _labels_and_splits(path: Path, listing: Listing) -> tuple[list[str], list[str]]:
    """The class and the split of each tile; "" where neither the file nor the folders in its name tell it."""
    folders = [name.split("/")[:-1] for name in listing.names]
    unlabelled = [parts for parts, label in zip(folders, listing.labels, strict=True) if label is None]
    depth = _common_folders(unlabelled)
    tops = {parts[depth].casefold() for parts in unlabelled if len(parts) > depth}
    split = "train" in {SPLIT_FOLDERS.get(top) for top in tops}
    labels, splits = [], []
    for parts, label, side in zip(folders, listing.labels, listing.splits, strict=True):
        inside = parts[depth:] if label is None else []
        if split and inside:
            side = side or SPLIT_FOLDERS.get(inside.pop(0).casefold(), "none")
        labels.append(label if label is not None else (inside[0] if inside and side != "none" else ""))
        splits.append("" if side == "none" else side)
    have = set(splits) - {""}
    if have and (lacking := [each for each in SPLITS if each not in have]):
        if have == {"train"}:  # a data set of one part, which is called so
            return labels, [""] * len(splits)
        step = "Add them, or give one file that is not split yet and let it be split (--split)"
        raise HistoError(path, f"has {' and '.join(sorted(have))} but no {' and no '.join(lacking)}", step)
    return labels, splits


def _common_folders(folders: Sequence[list[str]]) -> int:
    """How many outer folders hold all tiles, in which case they are no classes: at least one is left for these."""
    depth = 0
    while (
        len({parts[depth] if len(parts) > depth + 1 else None for parts in folders}) == 1
        and all(len(parts) > depth + 1 for parts in folders)
        and folders[0][depth].casefold() not in SPLIT_FOLDERS
    ):
        depth += 1
    return depth


class _Joined(Container):
    """The tiles of several files, one after the other. Names get the file's name before them where two are alike."""

    def __init__(self, folder: Path, shards: Sequence[Path]) -> None:
        self.shards = [open_container(shard) for shard in shards]
        names = [name for shard in self.shards for name in shard.listing.names]
        if len(set(names)) < len(names):
            names = [f"{shard.path.stem}/{name}" for shard in self.shards for name in shard.listing.names]
        labels: list[str | None] = []
        splits: list[str] = []
        groups: list[str] = []
        notes: list[str] = []
        for shard in self.shards:
            match = SPLIT_NAME.match(shard.path.name)
            own = SPLIT_FOLDERS[match[1].casefold()] if match else ""
            labels += shard.listing.labels
            splits += [split or own for split in shard.listing.splits]
            groups += shard.listing.groups
            notes += shard.listing.notes
        super().__init__(folder, Listing(names, labels, splits, groups if len(groups) == len(names) else (), notes))
        self.firsts = list(accumulate((len(shard) for shard in self.shards), initial=0))

    def _shard(self, i: int) -> tuple[Container, int]:
        place = int(np.searchsorted(self.firsts, i, side="right")) - 1
        return self.shards[place], i - self.firsts[place]

    def tile(self, i: int) -> np.ndarray:
        shard, own = self._shard(i)
        return shard.tile(own)

    def checked(self, i: int) -> tuple[bytes, np.ndarray]:
        shard, own = self._shard(i)
        return shard.checked(own)

    def place(self, i: int) -> str:
        shard, own = self._shard(i)
        return shard.place(own)
