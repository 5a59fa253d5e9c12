"""Tiles that a CSV or Parquet table lists: columns `path` and `label`, and where they are known `split` and a group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histo_export.data.class_map import ClassMap
from histo_export.data.containers import ImageFiles, Listing
from histo_export.data.folder import TileFiles
from histo_export.data.groups import Grouping, Listed, refuse_shared
from histo_export.data.rows import GROUP_COLUMNS, Rows, listed, read_rows
from histo_export.data.split import DEFAULT_SPLIT, Split, check_split, split_tiles
from histo_export.data.tiles import SPLIT_FOLDERS, SPLITS, TileData, choose_classes, need_two_classes
from histo_export.errors import HistoError, UsageError


def open_table(
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
    """Opens the images that a table lists. All faults of its rows are reported together, before any image is read.

    Args:
        path: of the table. Columns: `path` (relative to the table's folder), `label` (the name of the class), and
            perhaps `split` (train, val or test), and `group`, `patient` or `slide`, of which the first one that is
            there says which tiles stay together; see `rows.read_rows`.
        name: of the data set, for messages and model cards.
        classes: the labels to use, in this order; default all, sorted. Rows of others are left out.
        crop: side in pixels that every tile must have at least.
        split: how to split a table without the column `split`; default 0.68/0.16/0.16.
        seed: of that split.
        grouping: which tiles must stay together, for a table without such a column.
        class_map: labels → classes.

    Raises:
        UsageError: an unknown class, or a split or groups that the table states itself.
        HistoError: files that do not exist, empty cells, unknown splits; a class or split without tiles; images that
            cannot be used.
    """
    rows = read_rows(path, ("path", "label"), ("split", *GROUP_COLUMNS))
    columns = {column: cells for column, cells in rows.columns.items() if any(cells)}
    group = next((column for column in GROUP_COLUMNS if column in columns), "group")
    for column in GROUP_COLUMNS:
        if column != group:
            columns.pop(column, None)
    if faults := list(_faults(rows, columns)):
        raise HistoError(path, f"rows that cannot be used:{listed(faults)}{len(faults):,} faults", "Correct the table")
    for option, column, value in (("split", "split", split), ("groups", group, grouping)):
        if value is not None and column in columns:
            raise UsageError(option, f"{path} has the column {column}", f"Leave --{option} out, or rename the column")

    labels = columns["label"]
    notes: list[str] = []
    if class_map is not None:
        class_of, notes = class_map.of(sorted(set(labels)))
        labels = [class_of[label] for label in labels]
    chosen = choose_classes(sorted(set(labels) - {""}), classes, where=path)
    need_two_classes(chosen, path)
    used = [i for i, label in enumerate(labels) if label in chosen]
    left_out = sorted(set(labels) - {*chosen, ""})
    # By class and then by name, as tiles of a folder are: the order of the rows must not matter.
    used.sort(key=lambda i: (chosen.index(labels[i]), columns["path"][i]))
    names = [columns["path"][i] for i in used]
    if group in columns:
        grouping = Listed(tuple(columns[group][i] for i in used), path.name)
    groups = None if grouping is None else grouping.groups_of(names)
    numbers = np.array([chosen.index(labels[i]) for i in used], dtype=np.int64)
    if "split" in columns:
        sides = np.array([SPLITS.index(SPLIT_FOLDERS[columns["split"][i].casefold()]) for i in used])
        parts = [np.flatnonzero(sides == side) for side in range(3)]
        need_every_class(parts, numbers, chosen, path)
        refuse_shared(groups, parts, path)
    else:
        check_split(split or DEFAULT_SPLIT)
        parts = list(split_tiles(numbers, groups, chosen, split or DEFAULT_SPLIT, seed, path))
    if left_out:
        rest = f"{sum(label in left_out for label in labels):,} rows"
        notes.append(f"{rest} with other labels than --classes names were left out ({', '.join(left_out)})")
    tiles = ImageFiles(path.parent, [path.parent / name for name in names], Listing(names))
    files = TileFiles(path.parent, tiles, range(len(names)), names, numbers, chosen, parts, groups, notes)
    return files.decoded(name, crop, "" if grouping is None else grouping.source)


def _faults(rows: Rows, columns: dict[str, list[str]]) -> Iterator[str]:
    """A line for each fault of a row."""
    first: dict[str, int] = {}
    for i, number in enumerate(rows.numbers):
        cells = {column: texts[i] for column, texts in columns.items()}
        file = cells.get("path", "")
        for column in ("path", "label", *(c for c in ("split", *GROUP_COLUMNS) if c in columns)):
            if not cells.get(column):
                yield f"row {number}: no {column}{f' ({file})' if file and column != 'path' else ''}"
        if (side := cells.get("split", "")) and side.casefold() not in SPLIT_FOLDERS:
            yield f"row {number}: the split {side!r} is unknown (train, val or test)"
        if not file:
            continue
        path = rows.path.parent / file
        if (before := first.setdefault(os.path.normcase(os.path.normpath(path.absolute())), number)) != number:
            yield f"row {number}: {file} is in row {before}, too"
            continue
        try:
            if "\0" in file or not path.is_file():
                yield f"row {number}: the file {file!r} does not exist"
        except OSError as error:  # a name too long, a folder that may not be searched
            yield f"row {number}: the file {file!r} cannot be read ({error.strerror or error})"


def need_every_class(
    parts: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], classes: Sequence[str], where: Path
) -> None:
    """HistoError where a class has no tile in a split; all of them are named."""
    counts = [np.bincount(labels[part], minlength=len(classes)) for part in parts]
    lacking = [
        f"class {name}: no tile in {side}"
        for side, tiles in zip(SPLITS, counts, strict=True)
        for name, count in zip(classes, tiles, strict=True)
        if not count
    ]
    if lacking:
        cause = f"classes that are missing from a split:{listed(lacking)}"
        raise HistoError(where, cause, "Add rows, or leave these classes out with --classes")
