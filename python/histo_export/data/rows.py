"""Tables that users give: rows of text from a CSV or Parquet file, with every fault named by its row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from histo_export.errors import HistoError, one_line
from histo_export.extras import needs

SUFFIXES = (".csv", ".parquet")
GROUP_COLUMNS = ("group", "patient", "slide")
"""Of a table of tiles: which tiles must stay together. The first that is there counts: a patient has several slides."""
LISTED = 20
"""Rows, files or tiles that one message names."""


@dataclass(frozen=True)
class Rows:
    """The columns of a table that were asked for.

    Attributes:
        path: of the file.
        numbers: of each row, as a text editor or a spreadsheet shows it: in a CSV the first row below the header is 2.
        columns: name → the text of each row without blanks at its ends; "" where it is empty.
    """

    path: Path
    numbers: list[int]
    columns: dict[str, list[str]]


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Reads a table. Its other columns are ignored; upper and lower case of the names of columns count as equal.

    Args:
        path: a CSV (UTF-8, with a header) or a Parquet file.
        required: the names of columns that must be there.
        optional: the names of further ones.

    Raises:
        HistoError: the file can't be read, lacks a column or has no row.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    numbers, columns = read(path, partial(_places, path, required, optional))
    if not numbers:
        raise HistoError(path, "has no row", "Give a table with one row per tile")
    return Rows(path, numbers, columns)


Places = Callable[[Sequence[str]], dict[str, int]]
"""Where the columns are that were asked for: name → index in the header."""


def _places(path: Path, required: Sequence[str], optional: Sequence[str], header: Sequence[str]) -> dict[str, int]:
    """See `Places`; HistoError where a required one is missing, or one of them is there twice."""
    names = [name.strip().casefold() for name in header]
    for name in (*required, *optional):
        if names.count(name) > 1:
            raise HistoError(path, f"has two columns {name}", "Rename one of them")
    if missing := [name for name in required if name not in names]:
        has = ", ".join(name for name in header if name.strip()) or "none"
        cause = f"has no column {' and no column '.join(missing)} (it has {has})"
        raise HistoError(path, cause, f"Name the columns {', '.join([*required, *optional])} in its first row")
    return {name: names.index(name) for name in (*required, *optional) if name in names}


def listed(faults: Sequence[str]) -> str:
    """Lines below a message: the first `LISTED` of some faults and how many more there are."""
    more = [f"and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
    return "".join(f"\n  {line}" for line in [*faults[:LISTED], *more]) + "\n"


def _read_csv(path: Path, places: Places) -> tuple[list[int], dict[str, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        found = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise HistoError(path, "is not a table in UTF-8", "Save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise HistoError(path, f"is not a CSV ({one_line(error)})", "Save it as CSV again") from error
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror or error})", "Check the path") from error
    if wrong := [f"row {number}: {len(row)} cells" for number, row in found if len(row) != len(header)]:
        raise HistoError(path, f"rows without the {len(header)} cells of the header:{listed(wrong)}", "Correct them")
    columns = {name: [row[place].strip() for _, row in found] for name, place in places(header).items()}
    return [number for number, _ in found], columns


def _read_parquet(path: Path, places: Places) -> tuple[list[int], dict[str, list[str]]]:
    needs("A Parquet table", "report", modules=["pyarrow"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # pyarrow takes no path with other bytes than UTF-8
            source = pq.ParquetFile(file)
            header = source.schema_arrow.names
            found = places(header)
            table = source.read(columns=[header[place] for place in found.values()])
        columns = {name: list(map(_text, table.column(header[place]).to_pylist())) for name, place in found.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise HistoError(path, f"is not a readable Parquet file ({one_line(error)})", "Write it again") from error
    return list(range(1, table.num_rows + 1)), columns


def _text(value: object) -> str:
    """A value of a Parquet column; pandas writes NaN where a cell of a column of numbers is empty."""
    return "" if value is None or value != value else str(value).strip()
