"""What the folders of a set say about its tiles: the true class, and the split of the data set that a tile belongs to.

The rules are those of `data.folder`: `<split>/<class>/…` or `<class>/…`, where folders of patients or slides may lie
before and after the class. A set may also be a part of this: `train` alone, or one class of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from histo_export.data.tiles import SPLIT_FOLDERS
from histo_export.predict.inputs import TileSetInput

Label = tuple[str, str]
"""The class of a tile, and its split: "train", "val" or "test", or "" where no folder names one."""


def labels_of(tiles: TileSetInput, classes: Sequence[str]) -> list[Label] | None:
    """The label of each tile; None where a tile lies in no folder that is named like a class."""
    if tiles.rows is not None:
        return _of_container(tiles, classes)
    parents = [file.parent for file in tiles.files]
    folders = {folder: Path(os.path.abspath(folder)) for folder in set(parents)}  # noqa: PTH100 (links keep their names)
    root = Path(os.path.abspath(tiles.source))  # noqa: PTH100
    if not all(
        folder.is_relative_to(root) for folder in folders.values()
    ):  # a list, or tiles that were named one by one
        root = Path(os.path.commonpath(folders.values()))
    labels = {name: _label(folder.relative_to(root).parts, root, classes) for name, folder in folders.items()}
    found = [label for folder in parents if (label := labels[folder]) is not None]
    return found if len(found) == len(parents) else None


def _of_container(tiles: TileSetInput, classes: Sequence[str]) -> list[Label] | None:
    """The labels that a file states of its tiles, or else those of the folders in their names."""
    listing, root = tiles.container.listing, Path(os.path.abspath(tiles.source)).with_suffix("")  # noqa: PTH100
    assert tiles.rows is not None
    labels: list[Label] = []
    by_folders: dict[tuple[str, ...], Label | None] = {}
    for i in tiles.rows:
        stated, split = listing.labels[i], listing.splits[i]
        if stated is None:
            folders = PurePosixPath(listing.names[i]).parts[:-1]
            if folders not in by_folders:
                by_folders[folders] = _label(folders, root, classes)
            label = by_folders[folders]
        else:
            label = (stated, "") if stated in classes else None
        if label is None:
            return None
        labels.append((label[0], split or label[1]))
    return labels


def _label(inside: Sequence[str], root: Path, classes: Sequence[str]) -> Label | None:
    """The label of the folder `inside` of `root`. Outer names come first, as in training."""
    for i, folder in enumerate(inside):
        name = next((name for name in inside[i + 1 :] if name in classes), None)
        if name is not None and (split := _split(folder)):  # also where `folder` is the name of a class, too
            return name, split
    name, above = next((name for name in inside if name in classes), None), root.name
    if name is None and root.name in classes:
        name, above = root.name, root.parent.name
    if name is None:
        return None
    others = (folder for folder in (*inside, above) if folder != name)
    return name, next(filter(None, map(_split, others)), "")


def _split(folder: str) -> str:
    return SPLIT_FOLDERS.get(folder.casefold(), "")
