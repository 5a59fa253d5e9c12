"""Reads a list of inputs as spreadsheets, shells and people write them: one path a line, or one column of a table.

What the file is follows from the evidence: the separator and the column are those whose entries exist. Only where no
entry exists, the heading and the suffixes decide.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from histo_export.data.rows import GROUP_COLUMNS

SEPARATORS = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "bar"}
LOOKED_AT = 20
"""Rows that decide what a list is. Each takes several questions to the file system, which may be a slow one."""
COLUMNS = 50
"""Columns that are looked at; a list with more of them is a mistake."""
LARGEST = 256 << 20
"""Bytes. A file above is not a list of paths."""
HEADINGS = ("path", "file", "slide", "image", "tile", "wsi", "name")
"""Words in the heading of the column of paths, the most telling ones first."""
NOT_CONTROL = bytes(byte for byte in range(256) if byte >= 32 or byte in b"\t\n\v\f\r\x1b")
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\")
"""The start of an absolute path of Windows."""


class NotAListError(Exception):
    """Why a file can't be read as a list, as the predicate of a sentence, with the next step."""


@dataclass(frozen=True)
class TileFacts:
    """What a table says of a tile: its true class, the split of its data set, and its slide or patient; "" where it
    says nothing."""

    label: str = ""
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Entry:
    """A line of a list.

    Attributes:
        path: it may not exist.
        problem: why it can't even be a path, else "".
        facts: what else a table says of it.
    """

    path: Path
    problem: str = ""
    facts: TileFacts | None = None


@dataclass(frozen=True)
class PathList:
    """The entries of a list; `taken` says which column or lines they are, "" where they are all lines."""

    entries: list[Entry] = field(default_factory=list)
    taken: str = ""


@dataclass(frozen=True)
class _Table:
    """A list, read with one separator ("" where a line is one entry), and the column of its paths."""

    rows: list[tuple[int, list[str]]]
    separator: str
    column: int = 0

    def is_wide(self) -> bool:
        """Whether any row has several cells."""
        return any(len(row) > 1 for _, row in self.rows)

    def cell(self, row: list[str]) -> str:
        return row[self.column] if self.column < len(row) else ""


def read_list(path: Path, known_suffixes: frozenset[str]) -> PathList:
    """Reads a list. Relative paths are relative to its folder; `~` and `$NAME` are replaced.

    Args:
        path: UTF-8, UTF-16, or Windows' Latin-1 (cp1252).
        known_suffixes: of files that can be inputs; they tell a heading from a path.

    Raises:
        NotAListError: it can't be read, or is not text.
    """
    text, separator = _without_sep_line(_text_of_file(path))
    table = _choose(_tables(text, separator, path), path.parent, known_suffixes)
    rows = [(number, row) for number, row in table.rows if not _is_comment(row, table, path.parent)]
    heading, columns = "", {}
    if rows and _is_heading(table.cell(rows[0][1]), table, path, known_suffixes):
        names = rows.pop(0)[1]
        heading, columns = table.cell(names).strip(), _fact_columns(names, table.column)
    entries = [replace(_entry(table.cell(row), number, path), facts=facts_of(row, columns)) for number, row in rows]
    taken = f"every line below the heading {heading!r}" if heading else ""
    if table.is_wide():
        name = f" ({heading})" if heading else ""
        taken = f"column {table.column + 1}{name}, separated by {SEPARATORS.get(table.separator, table.separator)}"
        taken += "".join(f"; {fact}: column {column + 1}" for fact, column in columns.items())
    return PathList(entries, taken)


def _fact_columns(heading: Sequence[str], paths: int) -> dict[str, int]:
    """The columns of a table that say more of its tiles: label, split, and group (also called patient or slide)."""
    names = [name.strip().casefold() for name in heading]
    names[paths : paths + 1] = [""] * len(names[paths : paths + 1])
    group = next((name for name in GROUP_COLUMNS if name in names), "group")
    wanted = {"label": "label", "split": "split", "group": group}
    return {fact: names.index(name) for fact, name in wanted.items() if name in names}


def facts_of(row: Sequence[str], columns: Mapping[str, int]) -> TileFacts | None:
    """What the columns of a row say; None where there are no such columns."""
    cells = {fact: row[place].strip() for fact, place in columns.items() if place < len(row)}
    return TileFacts(**cells) if columns else None


def _text_of_file(path: Path) -> str:
    """The text of a file. Bytes that are not UTF-8 become surrogates: they may be a name as this system writes it."""
    try:
        if path.stat().st_size > LARGEST:
            raise NotAListError(f"is larger than {LARGEST >> 20} MiB, and no list. Name the files themselves")
        data = path.read_bytes()
    except PermissionError as error:
        raise NotAListError("may not be read (permission denied). Check its permissions") from error
    except OSError as error:
        raise NotAListError(f"cannot be read ({error.strerror or error}). Check the path and the disk") from error
    start = data[: 1 << 16]
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif 2 * start[1::2].count(0) > len(start[1::2]):  # UTF-16 of mostly Latin letters, without a mark of its order
        encoding = "utf-16-le"
    elif 2 * start[::2].count(0) > len(start[::2]):
        encoding = "utf-16-be"
    elif 33 * len(start.translate(None, NOT_CONTROL)) > len(start):
        raise NotAListError("is not text. Save it as UTF-8 text")
    try:
        return data.decode(encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "strict")
    except UnicodeDecodeError as error:
        raise NotAListError("is neither UTF-8 nor UTF-16 text. Save it as UTF-8 text") from error


def _without_sep_line(text: str) -> tuple[str, str]:
    """The text, and the separator that a first line `sep=;` names (Excel's), else ""."""
    if match := re.match(r'"?sep=([^\r\n"])"?(\r\n|\r|\n|$)', text):
        return text[match.end() :], match[1]
    return text, ""


def _tables(text: str, separator: str, path: Path) -> list[_Table]:
    """The ways to read a list, the likeliest one first."""
    if separator:
        return [_parse(text, separator)]
    lines = _parse(text, "")
    tables = [table for each in SEPARATORS if (table := _parse(text, each)).is_wide()]
    if not tables and '"' in text:  # one column, whose quoted names may hold line ends
        tables = [_parse(text, ",")]
    return [lines, *tables] if path.suffix.lower() == ".txt" else [*tables, lines]


def _parse(text: str, separator: str) -> _Table:
    """The rows that are not empty, with the number of the line on which each ends."""
    if not separator:
        lines = io.StringIO(text, newline="")  # ends lines at \n, \r\n and \r, and at nothing else
        cells = ([line.rstrip("\r\n")] for line in lines)
        return _Table([(number, row) for number, row in enumerate(cells, 1) if row[0].strip()], separator)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error:  # a field without an end: the file is not a table of this kind
        return _Table([], separator)
    return _Table(rows, separator)


def _choose(tables: Sequence[_Table], folder: Path, known_suffixes: frozenset[str]) -> _Table:
    """The table and the column whose entries exist; the first of equals."""
    best, best_score = tables[0], (0, 0, 0.0)
    for table in tables:
        sample = [row for _, row in table.rows[:LOOKED_AT]]
        for column in range(min(COLUMNS, max(map(len, sample), default=0))):
            cells = [row[column] for row in sample if column < len(row)]
            found = [path for cell in cells if (path := _existing(cell, folder))]
            typed = sum(_suffix(cell) in known_suffixes for cell in cells)
            # A column of labels may exist, too: as the folders of the classes.
            score = (len(found), sum(map(os.path.isfile, found)) if found else typed, _telling(cells[:1]))
            if score > best_score:
                best, best_score = _Table(table.rows, table.separator, column), score
    return best


def _telling(heading: Sequence[str]) -> float:
    """How likely a heading is that of the paths; 0 where no word speaks for it."""
    words = re.split(r"[^a-z]+", heading[0].casefold()) if heading else []
    joined = " ".join(words)
    places = [place for place, word in enumerate(HEADINGS) if word in words or joined.endswith(word)]
    return 1 / (1 + min(places)) if places else 0.0


def _is_comment(row: Sequence[str], table: _Table, folder: Path) -> bool:
    return row[0].lstrip().startswith("#") and _existing(table.cell(list(row)), folder) is None


def _is_heading(cell: str, table: _Table, path: Path, known_suffixes: frozenset[str]) -> bool:
    """Whether the first entry is a heading: it does not exist, does not look like a path, and the list is a table."""
    if _existing(cell, path.parent) or _suffix(cell) in known_suffixes or re.search(r"[/\\]", cell):
        return False
    return bool(table.separator) or path.suffix.lower() != ".txt" or _telling([cell]) > 0


def _entry(cell: str, number: int, path: Path) -> Entry:
    if not cell.strip():
        return Entry(path, f"has no path in line {number}. Complete the line, or take it out")
    if found := _existing(cell, path.parent):
        return Entry(found)
    meant = _meant(cell)
    if WINDOWS_PATH.match(meant):
        return Entry(Path(meant), "is a path of Windows. Write the path that this machine has for it")
    return Entry(path.parent / meant)


def _existing(cell: str, folder: Path) -> Path | None:
    """The path that a cell means, if it exists."""
    for text in _readings(cell):
        try:
            path = folder / text  # an absolute path stays as it is
            if os.path.lexists(path):
                return path
        except (OSError, ValueError):  # too long, a NUL, not to be encoded: reported when the entry is used
            continue
    return None


def _readings(cell: str) -> list[str]:
    """What a cell may mean, the most literal reading first."""
    if not cell.strip():
        return []
    meant = _meant(cell)
    readings = [cell, cell.strip(), _unquoted(cell), meant]
    # macOS decomposes letters with accents, others compose them.
    readings += [unicodedata.normalize("NFC", meant), unicodedata.normalize("NFD", meant)]
    if "\\" in meant and not WINDOWS_PATH.match(meant):
        readings.append(meant.replace("\\", "/"))
    return list(dict.fromkeys(readings))


def _meant(cell: str) -> str:
    """The likeliest reading: without quotes, `~` and `$NAME` replaced, bytes that are not UTF-8 read as cp1252."""
    text = _unquoted(cell)
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        text = text.encode("utf-8", "surrogateescape").decode("cp1252", errors="replace")
    if text.startswith("~") or "$" in text:
        text = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  Path fails where there is no such user
    return text


def _unquoted(cell: str) -> str:
    text = cell.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


def _suffix(cell: str) -> str:
    """In lower case, "" where there is none."""
    return Path(_unquoted(cell)).suffix.lower()
