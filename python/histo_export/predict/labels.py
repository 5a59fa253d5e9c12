"""What is known of the tiles of a set: the true class, the split of the data set, and the slide or patient.

A table, an archive with labels and a Parquet file state them. Elsewhere the folders tell class and split, by the rules
of `data.folder`: `<split>/<class>/…` or `<class>/…`, where folders of patients or slides may lie before and after the
class. A set may also be a part of this: `train` alone, or one class of it. A map of classes (`--class-map`) gives other
names to labels and folders; those to which it gives none are not judged.
"""

from __future__ import annotations

import os
from collections.abc import Container as Names
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from histo_export.data.tiles import SPLIT_FOLDERS
from histo_export.predict.inputs import TileSetInput
from histo_export.predict.lists import TileFacts

Label = tuple[str, str]
"""The class of a tile, and its split: "train", "val" or "test", or "" where no folder names one. The class is "" where
a map of classes leaves the tile out."""


def labels_of(
    tiles: TileSetInput, classes: Sequence[str], class_map: Mapping[str, str] | None = None
) -> list[Label] | None:
    """The label of each tile; None where one of them is unknown, or all are left out.

    Args:
        tiles: the set.
        classes: of the model.
        class_map: label or folder → class, "" where its tiles are not judged; None: each is called like its class.
    """
    class_of = {name: name for name in classes} if class_map is None else dict(class_map)
    stated = stated_facts(tiles)
    found: list[Label] = []
    for facts, by_folders in zip(stated, _by_folders(tiles, class_of), strict=True):
        by_table = (facts.label, "") if facts.label in class_of else None
        label = by_table if facts.label else by_folders
        if label is None:
            return None
        found.append((class_of[label[0]], _split(facts.split) or label[1]))
    return found if any(name for name, _ in found) else None


def groups_of(tiles: TileSetInput) -> npt.NDArray[np.str_] | None:
    """The slide or patient of each tile, `(n,)`; None where it is unknown of any of them."""
    groups = [facts.group for facts in stated_facts(tiles)]
    return np.array(groups) if groups and all(groups) else None


def label_warnings(tiles: TileSetInput, classes: Sequence[str], class_map: Mapping[str, str] | None) -> list[str]:
    """Why a set has no accuracy although its tiles have labels, and how many tiles a map of classes leaves out."""
    stated = [facts.label for facts in stated_facts(tiles)]
    known: Names[str] = classes if class_map is None else class_map
    unknown = sorted({label for label in stated if label and label not in known})
    if unknown:
        names = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        how = "is not a class of the model" if class_map is None else "is not named in --class-map"
        return [
            f"no accuracy is told: the label {names} {how} (--class-map says which class it is, or that it is none)"
        ]
    if any(stated) and not all(stated):
        return [f"no accuracy is told: {stated.count(''):,} of {len(stated):,} tiles have no label"]
    if class_map is None:
        return []
    labels = labels_of(tiles, classes, class_map)
    if labels is not None:
        left_out = sum(not name for name, _ in labels)
        return [f"{left_out:,} tiles are not judged: --class-map gives them no class"] if left_out else []
    lost = [i for i, label in enumerate(_by_folders(tiles, class_map)) if label is None and not stated[i]]
    if not lost:
        return ["no accuracy is told: --class-map gives no tile a class"]
    folders = sorted({PurePosixPath(tiles.label(i)).parent.as_posix() for i in lost} - {"."})
    which = (
        f"the folder {', '.join(folders[:5])}{', …' if len(folders) > 5 else ''}" if folders else "tiles in no folder"
    )
    return [f"no accuracy is told: --class-map does not name {which} (a row with an empty class leaves it out)"]


def named_in(tiles: TileSetInput, class_map: Mapping[str, str]) -> set[str]:
    """The labels and folders of a map of classes that the tiles of a set have."""
    stated = {facts.label for facts in stated_facts(tiles)} & class_map.keys()
    return stated | {label[0] for label in _by_folders(tiles, class_map) if label is not None}


def stated_facts(tiles: TileSetInput) -> list[TileFacts]:
    """What a table or the file that holds the tiles says of each."""
    if tiles.rows is None:
        return tiles.facts or [TileFacts()] * len(tiles)
    listing = tiles.container.listing
    groups = listing.groups or [""] * len(listing.names)
    return [TileFacts(listing.labels[i] or "", listing.splits[i], groups[i]) for i in tiles.rows]


def _by_folders(tiles: TileSetInput, names: Names[str]) -> list[Label | None]:
    """What the folders of each tile say."""
    if tiles.rows is not None:
        listing = tiles.container.listing
        inside = [PurePosixPath(listing.names[i]).parts[:-1] for i in tiles.rows]
        root = Path(os.path.abspath(tiles.source)).with_suffix("")  # noqa: PTH100
        labels = {folder: _label(folder, root, names) for folder in set(inside)}
        return [labels[folder] for folder in inside]
    parents = [file.parent for file in tiles.files]
    folders = {folder: Path(os.path.abspath(folder)) for folder in set(parents)}  # noqa: PTH100 (links keep their names)
    root = Path(os.path.abspath(tiles.source))  # noqa: PTH100
    if not all(
        folder.is_relative_to(root) for folder in folders.values()
    ):  # a list, or tiles that were named one by one
        root = Path(os.path.commonpath(folders.values()))
    found = {name: _label(folder.relative_to(root).parts, root, names) for name, folder in folders.items()}
    return [found[folder] for folder in parents]


def _label(inside: Sequence[str], root: Path, classes: Names[str]) -> Label | None:
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
