"""Groups of tiles that must stay together in a split: the tiles of one slide or of one patient."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from histo_export.data.rows import SUFFIXES, listed, read_rows
from histo_export.data.tiles import SPLIT_FOLDERS, SPLITS
from histo_export.errors import HistoError, UsageError, one_line
from histo_export.files import home_path

Groups = NDArray[np.str_]
"""The group of each tile, `(n,)`."""

PRESETS = {"kather2016": r"CRC-Prim-HE-(\d+)"}
"""Regular expressions by name. The files of Kather et al. 2016 are named like
`1A11_CRC-Prim-HE-07_022.tif_Row_601_Col_151.tif`: slide 07, region 022."""

_USE = "Use a CSV (path,group), a regular expression with one (group), folder:1, or kather2016"


class Grouping(Protocol):
    """Which group each tile is in.

    Attributes:
        source: where groups come from, as the user typed it; of a file its name alone.
    """

    @property
    def source(self) -> str: ...

    def groups_of(self, names: Sequence[str]) -> Groups:
        """The group of each tile, by its name below the folder of the data.

        Raises:
            HistoError: tiles without a group; several are named.
        """
        ...


def grouping_named(text: str) -> Grouping:
    """What `--groups` says: the path of a CSV, "folder:N", the name of a preset, or a regular expression.

    Raises:
        UsageError: none of them.
        HistoError: the CSV can't be used.
    """
    if level := re.fullmatch(r"folder(?::([0-9]{1,3}))?", text):
        if (n := int(level[1] or 1)) < 1:
            raise UsageError(f"--groups {text}", "is no folder above a tile", "Use folder:1 for the tile's own folder")
        return ByFolder(n)
    if text in PRESETS:
        return ByName(PRESETS[text], text)
    if names_table(text):
        try:
            path = home_path(text)
            there = path.is_file()
        except (OSError, ValueError):  # a name too long, or with a NUL
            there = False
        if not there:
            raise UsageError(f"--groups {text}", "does not exist or is not a file", _USE)
        return _read_groups(path)
    try:
        count = re.compile(text).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--groups {text}", f"is not a regular expression ({one_line(error)})", _USE) from error
    if count != 1:
        raise UsageError(f"--groups {text}", f"has {count} groups in brackets, not one", _USE)
    return ByName(text, text)


def names_table(text: str) -> bool:
    """Whether `text`, as for `grouping_named`, is the path of a table."""
    return Path(text).suffix.lower() in SUFFIXES


def composed(text: str) -> str:
    """Text in Unicode's form C: macOS writes "é" as two characters, and both mean the same slide or file."""
    return unicodedata.normalize("NFC", text)


def tile_path(text: str) -> str:
    """The path of a tile in a table, as it is compared: "./a.png" is "a.png"."""
    return composed(posixpath.normpath(text))


@dataclass(frozen=True)
class ByName:
    """The part of a tile's name that the brackets of a regular expression match."""

    pattern: str
    source: str

    def groups_of(self, names: Sequence[str]) -> Groups:
        pattern = composed(self.pattern)
        found = [re.search(pattern, composed(name)) for name in names]
        groups = [(match[1] or "") if match else "" for match in found]
        return _checked(names, groups, f"--groups {self.source}", "the expression matches nothing in")


@dataclass(frozen=True)
class ByFolder:
    """The name of the folder `level` levels above a tile; 1 is the one that the tile lies in.

    The name alone, without the folders above it: a patient has a folder in each class, and those are one group.
    """

    level: int

    @property
    def source(self) -> str:
        return f"folder:{self.level}"

    def groups_of(self, names: Sequence[str]) -> Groups:
        parents = [PurePosixPath(name).parts[:-1] for name in names]
        groups = [parts[-self.level] if len(parts) >= self.level else "" for parts in parents]
        return _checked(names, groups, f"--groups {self.source}", "there are not so many folders above")


@dataclass(frozen=True)
class ByTable:
    """The groups that a table names, by `tile_path`."""

    group_of: dict[str, str]
    source: str

    def groups_of(self, names: Sequence[str]) -> Groups:
        groups = [self.group_of.get(tile_path(name), "") for name in names]
        return _checked(names, groups, f"--groups {self.source}", "it has no row with the path of")


@dataclass(frozen=True)
class Listed:
    """The groups that the table of the tiles itself names, in the order of the tiles."""

    groups: tuple[str, ...]
    source: str

    def groups_of(self, names: Sequence[str]) -> Groups:
        assert len(names) == len(self.groups)
        return np.array(list(map(composed, self.groups)))


def _read_groups(path: Path) -> ByTable:
    rows = read_rows(path, ("path", "group"))
    faults = []
    group_of: dict[str, str] = {}
    for number, name, group in zip(rows.numbers, rows.columns["path"], rows.columns["group"], strict=True):
        if not name or not group:
            faults.append(f"row {number}: no {'path' if not name else 'group'}")
            continue
        name, group = tile_path(name), composed(group)
        if group_of.setdefault(name, group) != group:
            faults.append(f"row {number}: {name} is in group {group}, but above in {group_of[name]}")
    if faults:
        raise HistoError(path, f"rows that name no group:{listed(faults)}", "Correct them")
    return ByTable(group_of, path.name)


def _checked(names: Sequence[str], groups: Sequence[str], thing: str, why: str) -> Groups:
    """The groups as an array; HistoError where a tile has none."""
    lacking = [name for name, group in zip(names, groups, strict=True) if not group]
    if lacking:
        shown = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        cause = f"{why} {len(lacking):,} of {len(names):,} tiles ({shown})"
        raise HistoError(thing, cause, "Each tile needs a group; paths count from the folder of the data")
    return np.array(list(map(composed, groups)))


def refuse_shared(groups: Groups | None, parts: Sequence[NDArray[np.int64]], where: object) -> None:
    """HistoError where data that are split already have a group in two splits, or where the splits are the groups.

    Args:
        groups: of all tiles, `(n,)`; None where they are unknown.
        parts: indices of the train, val and test tiles.
        where: the data.
    """
    if groups is None:
        return
    sides: dict[str, list[str]] = {}
    for split, part in zip(SPLITS, parts, strict=True):
        for group in np.unique(groups[part]).tolist():
            sides.setdefault(group, []).append(split)
    if all(SPLIT_FOLDERS.get(group.casefold()) in found for group, found in sides.items()):
        cause = f"the groups are the splits themselves ({', '.join(sides)}), which tells nothing of slides or patients"
        raise HistoError(where, cause, "Let --groups name slides or patients, or leave it out")
    if shared := [f"{group}: {', '.join(found)}" for group, found in sides.items() if len(found) > 1]:
        raise HistoError(
            where,
            f"{len(shared):,} of {len(sides):,} groups have tiles in more than one split:{listed(shared)}",
            "Put each group into one split, or give one folder of classes and let it be split by group",
        )
