"""Tiles in a Parquet file as Hugging Face `datasets` writes them: a column of `{bytes, path}`, or of bytes."""

from __future__ import annotations

import bisect
import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histo_export.data.containers.base import (
    EncodedTiles,
    Listing,
    NoTilesError,
    check_count,
    check_size,
    file_errors,
    named_classes,
    tile_errors,
)
from histo_export.data.images import BadImageError
from histo_export.data.rows import GROUP_COLUMNS
from histo_export.data.tiles import SPLIT_FOLDERS
from histo_export.errors import HistoError
from histo_export.extras import needs

IMAGE_COLUMNS = ("image", "img", "tile", "patch", "bytes", "png", "jpg", "jpeg")
"""Names of columns of bytes; one of `{bytes, path}` may have any name."""
LABEL_COLUMNS = ("label", "labels", "class")
MAX_GROUP = 1 << 30
"""Bytes of the images of one row group, which is read as a whole."""
KEPT_GROUPS = 3
"""Row groups in memory."""


class ParquetTiles(EncodedTiles):
    """Tile `i` is the image of row `i`."""

    kept = 2

    def __init__(self, path: Path, column: str, rows: Sequence[int], listing: Listing) -> None:
        super().__init__(path, listing)
        self.column = column
        self.firsts = np.cumsum([0, *rows]).tolist()

    def _open(self) -> tuple[Any, OrderedDict[int, Any]]:
        """The description of the file, and the row groups in memory."""
        import pyarrow.parquet as pq

        with self.path.open("rb") as file:
            return pq.read_metadata(file), OrderedDict()

    def data(self, i: int) -> bytes:
        group = bisect.bisect_right(self.firsts, i) - 1
        with tile_errors():
            value = self._images(group)[i - self.firsts[group]]
            if not value.is_valid:
                raise BadImageError("has no bytes (the row is empty)")
            check_size(value.as_buffer().size)
            data: bytes = value.as_py()
            return data

    def _images(self, group: int) -> Any:
        """The images of a row group."""
        with self._lock:
            metadata, kept = self.handle
            if group not in kept:
                import pyarrow.parquet as pq

                with self.path.open("rb") as opened:
                    file = pq.ParquetFile(opened, metadata=metadata)
                    images = file.read_row_group(group, columns=[self.column], use_threads=False).column(0)
                if images.num_chunks and hasattr(images.chunk(0), "field"):
                    images = images.combine_chunks()
                    images = (images.chunk(0) if hasattr(images, "chunk") else images).field("bytes")
                kept[group] = images
                while len(kept) > KEPT_GROUPS:
                    kept.popitem(last=False)
            kept.move_to_end(group)
            return kept[group]


def open_parquet(path: Path) -> ParquetTiles:
    """Opens a Parquet file; HistoError where it is damaged, and NoTilesError where it has no column of images."""
    needs("A Parquet table", "report", modules=["pyarrow"])
    import pyarrow.parquet as pq

    with (
        file_errors(path, "Parquet file"),
        path.open("rb") as opened,
    ):  # pyarrow takes no path with other bytes than UTF-8
        file = pq.ParquetFile(opened)
        schema = file.schema_arrow
        column = _image_column(schema)
        if column is None:
            step = f"Name a column of images {IMAGE_COLUMNS[0]}, or columns path and label for a table of files"
            raise NoTilesError(path, f"has no column of images (it has {', '.join(schema.names[:8])})", step)
        check_count(path, file.metadata.num_rows)
        _check_groups(path, file.metadata, column)
        rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return ParquetTiles(
            path, f"{column}.bytes" if _is_struct(schema, column) else column, rows, _listing(path, file, column)
        )


def _is_struct(schema: Any, column: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(schema.field(column).type))


def _image_column(schema: Any) -> str | None:
    """The column that holds images: of `{bytes, path}`, or of bytes with a name that says so."""
    import pyarrow as pa

    for field in schema:
        if pa.types.is_struct(field.type) and any(part.name == "bytes" and _is_bytes(part.type) for part in field.type):
            return str(field.name)
    names = {field.name.lower(): field.name for field in schema if _is_bytes(field.type)}
    return next((names[name] for name in IMAGE_COLUMNS if name in names), None)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_groups(path: Path, metadata: Any, column: str) -> None:
    """HistoError where a row group is too large to be read as a whole."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        parts = (group.column(j) for j in range(group.num_columns))
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
        if size > MAX_GROUP:
            step = "Write it with smaller row groups: datasets: to_parquet(batch_size=100)"
            raise HistoError(path, f"has a row group with {size >> 20:,} MiB of images", step)


def _listing(path: Path, file: Any, column: str) -> Listing:
    """Names, labels, splits and groups of all rows; no image is read."""
    columns = {name.lower(): name for name in file.schema_arrow.names}

    def texts(name: str | None) -> list[str]:
        if name is None:
            return []
        found = file.read(columns=[name], use_threads=False).column(0).to_pylist()
        return ["" if value is None else str(value).strip() for value in found]

    numbered = [f"{path.name}[{i}]" for i in range(file.metadata.num_rows)]
    names = _paths(file, column) or numbered
    if "" in names or max(Counter(names).values(), default=0) > 1:
        names = numbered
    label = next((columns[name] for name in LABEL_COLUMNS if name in columns), None)
    splits = [SPLIT_FOLDERS.get(text.casefold(), "") for text in texts(columns.get("split"))]
    group = next((columns[name] for name in GROUP_COLUMNS if name in columns), None)
    return Listing(names, _labels(path, file, label), splits, texts(group))


def _paths(file: Any, column: str) -> list[str]:
    """The `path` of each image; none where the column has no such part."""
    if not _is_struct(file.schema_arrow, column) or all(
        part.name != "path" for part in file.schema_arrow.field(column).type
    ):
        return []
    rows = file.read(columns=[f"{column}.path"], use_threads=False).column(0).to_pylist()
    return ["" if row is None or not row["path"] else str(row["path"]) for row in rows]


def _labels(path: Path, file: Any, column: str | None) -> list[str | None]:
    """The class of each row. Numbers are named by the schema (ClassLabel), or by a list beside the file."""
    if column is None:
        return []
    values = file.read(columns=[column], use_threads=False).column(0).to_pylist()
    if any(isinstance(value, str) for value in values):
        return [value.strip() or None if isinstance(value, str) else None for value in values]
    if any(value is not None and (isinstance(value, bool) or not isinstance(value, int)) for value in values):
        raise HistoError(path, f"has a column {column} of neither names nor integers", "Write one of both")
    numbers = [None if value is None or value < 0 else value for value in values]  # -1: datasets' mark of no label
    if (names := _class_names(file.schema_arrow.metadata or {}, column)) is None:
        return named_classes(path, numbers)
    if max((number for number in numbers if number is not None), default=0) >= len(names):
        raise HistoError(path, f"has labels above the {len(names)} names in its schema", "Write it again")
    return [None if number is None else names[number] for number in numbers]


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    """The names of a ClassLabel, in the metadata that `datasets` writes."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
