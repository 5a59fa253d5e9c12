"""A set of tiles: a table with one row per tile, and the accuracy where the tiles' folders are named like classes."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from histo_export.data.images import BadImageError, decode_image, read_image_bytes
from histo_export.errors import HistoError
from histo_export.predict.inputs import Failure, TileSetInput, text_of
from histo_export.predict.loop import Pixels, Probabilities, StageSeconds, TileLoop
from histo_export.predict.pictures import save_mistakes
from histo_export.spec import ModelSpec

ROWS = 4096
"""Rows of a Parquet row group, which are kept in memory until it is written."""
MISTAKES = 24
"""Tiles in mistakes.png."""


def open_tiles(tiles: TileSetInput, side: int, resize: bool) -> Callable[[int], Pixels]:
    """A function that reads tile `i` of a set as uint8 `(side, side, 3)`.

    It raises HistoError where the tile is not an image, or has another size and `resize` is not set.

    Raises:
        HistoError: the array that holds the tiles can't be opened any more.
    """
    if tiles.rows is not None:
        try:
            array = np.load(tiles.source, mmap_mode="r", allow_pickle=False)[tiles.rows.start : tiles.rows.stop]
        except (OSError, ValueError) as error:
            raise HistoError(tiles.source, f"can't be opened ({error})", "Check what wrote it") from error

    def raw(index: int) -> Pixels:
        if tiles.rows is not None:
            return np.array(array[index])
        try:
            return decode_image(read_image_bytes(tiles.files[index]))
        except BadImageError as error:
            raise HistoError(tiles.label(index), str(error), "Repair or delete it") from error

    def read(index: int) -> Pixels:
        pixels = raw(index)
        if pixels.shape[:2] == (side, side):
            return pixels
        if not resize:
            height, width = pixels.shape[:2]
            raise HistoError(
                tiles.label(index),
                f"is {width}×{height} pixels, and the model takes {side}×{side}",
                "Add --resize to resample it, if it shows the same field of view",
            )
        return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))

    return read


def predict_tiles(
    tiles: TileSetInput,
    loop: TileLoop,
    *,
    resize: bool,
    progress: Callable[[int, int], None] = lambda done, tiles: None,
) -> tuple[Probabilities, list[str], StageSeconds]:
    """Runs every tile.

    Args:
        tiles: the set.
        loop: what runs its tiles.
        resize: resample tiles of other sizes than the model's.
        progress: told the number of tiles done and in all.

    Returns:
        Probabilities, float32 `(n, classes)`, NaN where a tile could not be used; why not, for each tile, else "";
        the seconds of each stage.
    """
    spec = loop.spec
    probabilities = np.full((len(tiles), len(spec.classes)), np.nan, np.float32)
    reasons = [""] * len(tiles)

    def deliver(index: int, result: Probabilities | HistoError) -> None:
        if isinstance(result, HistoError):
            reasons[index] = f"{result.cause}. {result.next_step}"
        else:
            probabilities[index] = result

    read = open_tiles(tiles, spec.tile_size, resize)
    seconds = loop.run(range(len(tiles)), read, deliver, lambda done: progress(done, len(tiles)))
    return probabilities, reasons, seconds


def write_tile_set(
    tiles: TileSetInput,
    spec: ModelSpec,
    shards: Iterable[tuple[Probabilities, Sequence[str], str]],
    folder: Path,
    *,
    resize: bool,
) -> list[Failure]:
    """Writes tiles.csv, tiles.parquet and summary.json of a set into `folder`.

    Where every folder that holds tiles has the name of a class, confusion.png and mistakes.png too.

    Args:
        tiles: the set.
        spec: of the model.
        shards: probabilities and reasons of `predict_tiles`, and what the runtime executed, shard by shard in the order
            of the set.
        folder: exists.
        resize: resample tiles of other sizes for mistakes.png.

    Returns:
        The tiles that could not be used, which have no row.

    Raises:
        HistoError: no tile at all could be used.
    """
    truth = [tiles.folder(i) for i in range(len(tiles))]
    labelled = bool(truth) and set(truth) <= set(spec.classes)
    failures: list[Failure] = []
    counts = np.zeros(len(spec.classes), np.int64)
    executed: set[str] = set()
    index = 0
    kept: list[tuple[npt.NDArray[np.int64], Probabilities]] = []
    with closing(_Writer(folder, spec.classes, labelled)) as writer:
        for probabilities, reasons, ran in shards:
            executed.add(ran)
            usable = np.array([not reason for reason in reasons])
            for row, reason in zip(probabilities, reasons, strict=True):
                if reason:
                    failures.append(Failure(tiles.label(index), str(reason)))
                else:
                    writer.add(tiles.label(index), row, truth[index] if labelled else None)
                index += 1
            counts += np.bincount(probabilities[usable].argmax(1), minlength=len(counts))
            if labelled:
                kept.append((index - len(usable) + np.flatnonzero(usable), probabilities[usable]))
    if not counts.any():
        first = f"{failures[0].path}: {failures[0].reason}"
        raise HistoError(tiles.source, f"holds no tile that could be used ({first})", "Repair them")
    summary: dict[str, Any] = {
        "tiles": int(counts.sum()),
        "failed": len(failures),
        "executed": "; ".join(sorted(executed)),
        "classes": dict(zip(spec.classes, counts.tolist(), strict=True)),
    }
    if labelled:
        indices, rows = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        summary["test"] = _judge(tiles, spec, indices, rows, folder, resize)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return failures


class _Writer:
    """Writes tiles.csv and tiles.parquet row by row."""

    def __init__(self, folder: Path, classes: tuple[str, ...], labelled: bool) -> None:
        self.columns = ["path", "class", *(f"prob_{name}" for name in classes), *(["label"] if labelled else [])]
        self.classes = classes
        self.file = (folder / "tiles.csv").open("w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.file, lineterminator="\n")
        self.csv.writerow(self.columns)
        kinds = [pa.float32() if name.startswith("prob_") else pa.string() for name in self.columns]
        self.schema = pa.schema(list(zip(self.columns, kinds, strict=True)))
        self.parquet_file = (folder / "tiles.parquet").open("wb")  # pyarrow takes no path with other bytes than UTF-8
        self.parquet = pq.ParquetWriter(self.parquet_file, self.schema)
        self.rows: list[list[Any]] = []

    def add(self, path: str, probabilities: Probabilities, label: str | None) -> None:
        name = self.classes[int(probabilities.argmax())]
        values = probabilities.tolist()
        end = [] if label is None else [label]
        self.csv.writerow([path, name, *(f"{p:.7f}" for p in values), *end])
        self.rows.append([path, name, *values, *end])
        if len(self.rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self.rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)]
        self.parquet.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        try:
            if self.rows:
                self._flush()
        finally:
            self.parquet.close()
            self.parquet_file.close()
            self.file.close()


def _judge(
    tiles: TileSetInput,
    spec: ModelSpec,
    indices: npt.NDArray[np.int64],
    probabilities: Probabilities,
    folder: Path,
    resize: bool,
) -> dict[str, Any]:
    """The accuracy as plain values, and its pictures; `probabilities` `(n, classes)` belong to the tiles `indices`."""
    from histo_export.figures import save_confusion
    from histo_export.metrics import report_of  # imports torch, which nothing else here needs

    labels = np.array([spec.classes.index(tiles.folder(index)) for index in indices.tolist()], np.int64)
    # Logarithms of probabilities are logits that give the same probabilities.
    report = report_of(spec.classes, np.log(np.maximum(probabilities, 1e-30)), labels)
    save_confusion(folder / "confusion.png", report, title=f"{text_of(tiles.source.name)}: {report.tiles:,} tiles")
    chosen = probabilities.argmax(1)
    wrong = np.flatnonzero(chosen != labels).tolist()
    worst = heapq.nlargest(MISTAKES, wrong, key=lambda i: float(probabilities[i, chosen[i]]))
    if worst:
        read = open_tiles(tiles, spec.tile_size, resize)
        save_mistakes(
            folder / "mistakes.png",
            [read(int(indices[i])) for i in worst],
            [
                f"{spec.classes[labels[i]]}, predicted {spec.classes[chosen[i]]}\nat {probabilities[i, chosen[i]]:.1%}"
                for i in worst
            ],
            title=f"{text_of(tiles.source.name)}: the surest of {len(wrong):,} mistakes in {report.tiles:,} tiles",
        )
    return report.to_dict()
