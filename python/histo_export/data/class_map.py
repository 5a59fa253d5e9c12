"""A table that maps folders, or labels, to classes: many folders to one class, and some to none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from histo_export.data.rows import listed, read_rows
from histo_export.errors import HistoError, UsageError
from histo_export.files import home_path


@dataclass(frozen=True)
class ClassMap:
    """Folder → class; "" where its tiles are left out.

    Attributes:
        path: of the table.
        classes: the mapping.
    """

    path: Path
    classes: Mapping[str, str]

    def of(self, folders: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """The class of each of these folders or labels, and notes on what is left out.

        Raises:
            HistoError: the table does not name one of them; all of them are named.
        """
        folders = list(folders)
        if unnamed := [f"{folder}" for folder in folders if folder not in self.classes]:
            cause = f"does not name {len(unnamed):,} of the folders:{listed(unnamed)}"
            raise HistoError(self.path, cause, "Add a row for each, with an empty class where its tiles are left out")
        found = {folder: self.classes[folder] for folder in folders}
        empty = [folder for folder, name in found.items() if not name]
        notes = [f"{self.path.name} leaves out {', '.join(empty)}"] if empty else []
        if unused := [folder for folder in self.classes if folder not in found]:
            notes.append(f"{self.path.name} names folders that the tiles do not have: {', '.join(unused)}")
        return found, notes


def read_class_map(text: str | Path) -> ClassMap:
    """Reads a table with the columns `folder` and `class`, in CSV or Parquet.

    Raises:
        UsageError: there is no such file.
        HistoError: it can't be read, or names a folder twice or none.
    """
    path = home_path(text)
    if not path.is_file():
        raise UsageError(f"--class-map {text}", "does not exist or is not a file", "Give a CSV with folder,class")
    rows = read_rows(path, ("folder", "class"))
    faults: list[str] = []
    classes: dict[str, str] = {}
    for number, folder, name in zip(rows.numbers, rows.columns["folder"], rows.columns["class"], strict=True):
        if not folder:
            faults.append(f"row {number}: no folder")
        elif classes.setdefault(folder, name) != name:
            faults.append(f"row {number}: {folder} is {classes[folder]!r} above, and {name!r} here")
    if faults:
        raise HistoError(path, f"rows that cannot be used:{listed(faults)}", "Correct them")
    return ClassMap(path, classes)
