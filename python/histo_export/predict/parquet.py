"""The Parquet table of a set of tiles. It needs pyarrow, which is an extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 4096
"""Rows of a row group, which are kept in memory until it is written."""


class ParquetTable:
    """A table that is written row by row.

    Args:
        path: of the file.
        columns: their names; those that begin with "prob_" are float32, all others strings.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        kinds = [pa.float32() if name.startswith("prob_") else pa.string() for name in columns]
        self.schema = pa.schema(list(zip(columns, kinds, strict=True)))
        self.file = path.open("wb")  # pyarrow takes no path with other bytes than UTF-8
        self.writer = pq.ParquetWriter(self.file, self.schema)
        self.rows: list[list[Any]] = []

    def add(self, row: list[Any]) -> None:
        """Adds a row, with a value for each column."""
        self.rows.append(row)
        if len(self.rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self.rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)]
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        """Completes the file."""
        try:
            if self.rows:
                self._flush()
        finally:
            self.writer.close()
            self.file.close()
