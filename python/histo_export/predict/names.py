"""The names of results: the folder of each input in the output.

A name follows from the input's path: the name of the file without its suffix, or of the folder. Where inputs of two
paths would share that name, a hash of the whole path makes the difference: of the inputs in one run each gets the hash,
and what an earlier run has named keeps its name. So no further input renames a result, or is refused for its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histo_export.data.walk import done_record
from histo_export.predict.inputs import Input, TileSetInput, path_of, source_of
from histo_export.predict.work import shard_folder

LONGEST = 200
"""Bytes of a name. A file system allows 255; the hidden folder in which a result is written has a longer name."""
DIGITS = 8
"""Of the hash in a name."""
REFUSED = frozenset('<>:"/\\|?*')
"""Characters that Windows refuses in names."""
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, with any suffix."""
RECORDS = (".json", ".csv", ".html")
"""Ends of the names of files that a run writes beside the results."""


def name_inputs(inputs: Sequence[Input], keys: Sequence[str], out: Path) -> list[Input]:
    """The inputs, each with a name of its own.

    Args:
        inputs: of a run, each of another source.
        keys: what `done.json` of each input's result holds as its key.
        out: the output, which need not exist.
    """
    earlier = _Earlier(out)
    claims = Counter(_folded(plain_name(item)) for item in inputs)
    used: set[str] = set()
    named = []
    for item, key in zip(inputs, keys, strict=True):
        plain, source = plain_name(item), source_of(item)
        name = hashed = _hashed(plain, source, DIGITS)
        if _usable(plain) and not earlier.holds(hashed, item, key):
            sole = claims[_folded(plain)] == 1
            owned = earlier.belongs(plain, item, key)
            if owned or (owned is None and sole):
                name = plain
        if _folded(name) in used:
            name = hashed if _folded(hashed) not in used else _hashed(plain, source, 64)
        used.add(_folded(name))
        named.append(replace(item, name=name))
    return named


def plain_name(item: Input) -> str:
    """The name that follows from the input's path, made one that every system allows: results are often shared.

    It has no leading dot, no dot or space at its end, and none of Windows' names of devices.
    """
    path = path_of(item)
    if isinstance(item, TileSetInput) and item.one_by_one:
        return path.name
    name = Path(os.path.realpath(path)).name if path.is_dir() else _without_suffix(path.name)
    allowed = "".join("_" if letter in REFUSED or unicodedata.category(letter) == "Cc" else letter for letter in name)
    allowed = allowed.strip().lstrip(".").strip().rstrip(". ") or "tiles"
    return f"_{allowed}" if DEVICES.fullmatch(allowed) else allowed


def _without_suffix(name: str) -> str:
    """Cuts off the suffix; the end of a DICOM name such as 1.2.840.1 is none."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem.strip(".") and suffix.isalnum() and not suffix.isdigit() else name


def _usable(name: str) -> bool:
    return len(os.fsencode(name)) <= LONGEST and not _folded(name).endswith(RECORDS)


def _hashed(name: str, source: str, digits: int) -> str:
    """The name, cut where it is too long, and a hash of the source."""
    end = "-" + hashlib.sha256(source.encode()).hexdigest()[:digits]
    while len(os.fsencode(name + end)) > LONGEST:
        name = name[:-1]
    return name + end


def _folded(name: str) -> str:
    """The same for names that are one name on some file systems: of other cases, or of composed letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@dataclass(frozen=True)
class _Result:
    """What done.json says: the key, and the source (None in results of histo 0.1)."""

    key: str
    source: str | None


class _Earlier:
    """The folders that earlier runs left in an output."""

    def __init__(self, out: Path) -> None:
        self.out = out
        try:
            names = [entry.name for entry in os.scandir(out)]
        except OSError:
            names = []  # nothing there yet, or the run will say why not
        self._names = {_folded(name): name for name in names} | {name: name for name in names}

    def holds(self, name: str, item: Input, key: str) -> bool:
        """Whether an earlier run began or completed this input under this name."""
        return name in self._names or shard_folder(self.out, replace(item, name=name), key).is_dir()

    def belongs(self, name: str, item: Input, key: str) -> bool | None:
        """Whether the result of this name is this input's; None where there is none, or nobody knows."""
        if shard_folder(self.out, replace(item, name=name), key).is_dir():
            return True
        folder = self.out / self._names.get(name, self._names.get(_folded(name), name))
        result = _read(folder)
        if result is None:
            return None
        if result.source == source_of(item):
            return True
        if result.key == key:  # the same file at another place: a copy, or moved since
            return result.source is None or not os.path.exists(result.source)  # noqa: PTH110  it may be any text
        return None if result.source is None else False


def _read(folder: Path) -> _Result | None:
    if (done := done_record(folder)) is None:
        return None
    source = done.get("source")
    return _Result(done["key"], source if isinstance(source, str) else None)
