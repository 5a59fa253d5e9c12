"""A set of tiles: a table with one row per tile, and the accuracy where the tiles' folders are named like classes.

A tile that the network was trained on is never counted in a test: `trained_on.TrainedOn` knows it by its pixels.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from histo_export.data.containers import Container, ImageFiles, Listing
from histo_export.data.images import BadImageError, resampled
from histo_export.errors import HistoError
from histo_export.extras import install, installed
from histo_export.predict.anndata_table import TileSetTable
from histo_export.predict.inputs import Failure, TileSetInput, text_of
from histo_export.predict.judge import Judge
from histo_export.predict.labels import groups_of, label_warnings, labels_of
from histo_export.predict.loop import Logits, Pixels, Probabilities, StageSeconds, TileLoop, softmax
from histo_export.predict.pages.samples import SampleChoice, read_samples, seen_part
from histo_export.predict.pages.tile_set import write_set_page
from histo_export.predict.settings import MAX_ENLARGED, WARN_ENLARGED, Resample, TableFormat
from histo_export.spec import ModelSpec
from histo_export.strict_json import dump_json
from histo_export.trained_on import Hashes, TrainedOn, tile_hash

if TYPE_CHECKING:
    from histo_export.predict.parquet import ParquetTable


@dataclass(frozen=True)
class TileResults:
    """What a runtime made of some tiles.

    Attributes:
        logits: float32 `(n, classes)`, NaN where a tile could not be used.
        hashes: int64 `(n,)`, `tile_hash` of the pixels before any resampling; 0 where a tile could not be read.
        enlarged: float32 `(n,)`, how many times the tile's pixels were enlarged for the model; below 1 where they were
            made smaller.
        reasons: why a tile could not be used, else "".
    """

    logits: Logits
    hashes: Hashes
    enlarged: npt.NDArray[np.float32]
    reasons: list[str]

    @classmethod
    def empty(cls, tiles: int, classes: int) -> TileResults:
        """Of tiles that have not been read yet."""
        logits = np.full((tiles, classes), np.nan, np.float32)
        return cls(logits, np.zeros(tiles, np.int64), np.ones(tiles, np.float32), [""] * tiles)


def open_tiles(
    tiles: TileSetInput, spec: ModelSpec, resize: Resample | None, results: TileResults | None = None
) -> Callable[[int], Pixels]:
    """A function that reads tile `i` of a set as uint8 `(side, side, 3)`, where side is `spec.tile_size`.

    It puts what it learns of the tile into `results`. `resize` is the filter for a tile of another size. It raises
    HistoError where the tile is not an image, or `fitted` refuses it.

    Raises:
        HistoError: the file that holds the tiles can't be opened any more.
    """
    if tiles.rows is None:
        listing, first = Listing([str(file) for file in tiles.files]), 0
        source: Container = ImageFiles(tiles.source, tiles.files, listing)
    else:
        source, first = tiles.container, tiles.rows.start
        source.check_unchanged()

    def read(index: int) -> Pixels:
        try:
            pixels = source.tile(first + index)
        except BadImageError as error:
            raise HistoError(tiles.label(index), str(error), "Repair or delete it") from error
        if results is not None:
            results.hashes[index], results.enlarged[index] = tile_hash(pixels), spec.tile_size / min(pixels.shape[:2])
        return fitted(pixels, spec, resize, tiles.label(index), "Add --resize")

    return read


def fitted(pixels: Pixels, spec: ModelSpec, resize: Resample | None, name: object, how_to_resize: str) -> Pixels:
    """A tile in the size that the model takes.

    Args:
        pixels: uint8 `(height, width, 3)`.
        spec: of the model. A tile of the size that its training tiles had before they were resized is resized as those
            were, unless `resize` says how.
        resize: the filter for a tile of another size; None refuses it.
        name: of the tile, for messages.
        how_to_resize: how the user chooses a filter, for messages.

    Raises:
        HistoError: the tile has another size and `resize` is None, or it is far too small.
    """
    height, width = pixels.shape[:2]
    side = spec.tile_size
    judge_size(width, height, spec, resize, name, how_to_resize)
    if (height, width) == (side, side):
        return pixels
    return resampled(pixels, side) if resize is None else resampled(pixels, side, resize)


def judge_size(
    width: int, height: int, spec: ModelSpec, resize: Resample | None, name: object, how_to_resize: str
) -> None:
    """Raises what `fitted` would for a tile of this size."""
    side = spec.tile_size
    if (height, width) == (side, side) or (resize is None and height == width == spec.resized_from):
        return
    if resize is None:
        raise HistoError(
            name,
            f"is {width}×{height} pixels, and the model takes {side}×{side}",
            f"{how_to_resize} to resample it, if it shows as many µm",
        )
    if (enlarged := side / max(1, min(height, width))) > MAX_ENLARGED:
        raise HistoError(
            name,
            f"is {width}×{height} pixels, which would be enlarged {enlarged:.3g} times (at most {MAX_ENLARGED:g})",
            f"Give tiles of {side}×{side} pixels",
        )


def predict_tiles(
    tiles: TileSetInput,
    loop: TileLoop,
    *,
    resize: Resample | None,
    progress: Callable[[int, int], None] = lambda done, tiles: None,
) -> tuple[TileResults, StageSeconds]:
    """Runs every tile.

    Args:
        tiles: the set.
        loop: what runs its tiles.
        resize: the filter for tiles of other sizes than the model's; None refuses them.
        progress: told the number of tiles done and in all.

    Returns:
        The results, and the seconds of each stage.
    """
    results = TileResults.empty(len(tiles), len(loop.spec.classes))

    def deliver(index: int, result: Logits | HistoError) -> None:
        if isinstance(result, HistoError):
            results.reasons[index] = f"{result.cause}. {result.next_step}"
        else:
            results.logits[index] = result

    read = open_tiles(tiles, loop.spec, resize, results)
    seconds = loop.run(range(len(tiles)), read, deliver, lambda done: progress(done, len(tiles)))
    return results, seconds


def write_tile_set(
    tiles: TileSetInput,
    spec: ModelSpec,
    shards: Iterable[tuple[TileResults, str]],
    folder: Path,
    *,
    resize: Resample | None,
    trained_on: TrainedOn | None,
    class_map: Mapping[str, str] | None = None,
    table: tuple[TableFormat, Mapping[str, str]] | None = None,
) -> list[Failure]:
    """Writes the files of a set into `folder`: tiles.csv, tiles.parquet, a table for AnnData where it is
    asked for, summary.json, index.html, thumbnail.jpg, and pictures where `Judge` draws some.

    Some need an extra, see `files_left_out`.

    Args:
        tiles: the set.
        spec: of the model.
        shards: results, and what the runtime executed, shard by shard in the order of the set.
        folder: exists.
        resize: as in `predict_tiles`, for mistakes.png.
        trained_on: the tiles that the network was trained on; None where that is unknown.
        class_map: see `labels.labels_of`.
        table: the format of the table for AnnData, and the record of the run; None for no such table.

    Returns:
        The tiles that could not be used, which have no row.

    Raises:
        HistoError: no tile at all could be used.
    """
    labels = labels_of(tiles, spec.classes, class_map)
    judge = None if labels is None else Judge(spec, labels, groups_of(tiles))
    failures: list[Failure] = []
    executed: set[str] = set()
    counts = np.zeros(len(spec.classes), np.int64)
    used: Counter[str] = Counter()
    enlarged: list[float] = []
    choice = SampleChoice(len(spec.classes))
    first = 0
    with closing(_Writer(folder, spec.classes, judge is not None, table)) as writer:
        for results, ran in shards:
            executed.add(ran)
            failures += [Failure(tiles.label(first + i), str(r)) for i, r in enumerate(results.reasons) if r]
            usable = np.flatnonzero([not reason for reason in results.reasons])
            logits = results.logits[usable]
            chosen = logits.argmax(1)
            enlarged += [times for times in results.enlarged[usable].tolist() if times > WARN_ENLARGED - 1e-6]
            counts += np.bincount(chosen, minlength=len(counts))
            roles = None if trained_on is None else trained_on.splits(results.hashes[usable])
            used.update([] if roles is None else roles.tolist())
            ends: Sequence[Sequence[str]] = judge.add(first + usable, logits, roles) if judge else [()] * len(logits)
            probabilities = softmax(logits)
            choice.add(first + usable, probabilities)
            for i, name, row, end in zip(usable.tolist(), chosen.tolist(), probabilities, ends, strict=True):
                writer.add(tiles.label(first + i), spec.classes[name], row, end)
            first += len(results.reasons)
    if not counts.any():
        reason = f"{failures[0].path}: {failures[0].reason}"
        raise HistoError(tiles.source, f"holds no tile that could be used ({reason})", "Repair them")
    seen = {split: used[split] for split in ("train", "val")}
    read = open_tiles(tiles, spec, resize)
    if judge is not None:
        verdict = judge.write(folder, tiles, read)
    else:
        verdict = {"warnings": _seen_warnings(sum(seen.values()), int(counts.sum()))}
    verdict["warnings"] += label_warnings(tiles, spec.classes, class_map)
    verdict["warnings"] += _enlarged_warnings(enlarged, int(counts.sum()))
    facts = {"tiles": int(counts.sum()), "failed": len(failures), "executed": "; ".join(sorted(executed))}
    classes = dict(zip(spec.classes, counts.tolist(), strict=True))
    summary = {**facts, "classes": classes, "seen_in_training": "unknown" if trained_on is None else seen, **verdict}
    (folder / "summary.json").write_text(dump_json(summary, indent=2) + "\n", encoding="utf-8")
    samples = read_samples(choice, lambda index: seen_part(read(index), spec))
    write_set_page(folder, text_of(tiles.source.name), samples, tiles.label, summary)
    return failures


def _seen_warnings(seen: int, tiles: int) -> list[str]:
    """What to say of tiles without labels that the network was trained on."""
    return [f"{seen:,} of {tiles:,} tiles were used in training or validation"] if seen else []


def _enlarged_warnings(enlarged: Sequence[float], tiles: int) -> list[str]:
    """What to say of tiles whose pixels were enlarged, each so many times."""
    if not enlarged:
        return []
    how_far = f"{len(enlarged):,} of {tiles:,} tiles are enlarged, up to {max(enlarged):.3g} times"
    return [f"{how_far}, and lack details that the model learned from. Check their µm per pixel."]


def files_left_out() -> list[str]:
    """A sentence on the files of a set that are not written, because their packages are not installed here; or none."""
    files = {"pyarrow": "tiles.parquet", "matplotlib": "the pictures of labelled tiles"}
    lacking = [file for module, file in files.items() if not installed(module)]
    how = f"run {install('report')}, then the same command with --force"
    return [f"not written: {' and '.join(lacking)}; to get them, {how}"] if lacking else []


class _Writer:
    """Writes tiles.csv row by row, tiles.parquet where pyarrow is installed, and `table` where one is asked for."""

    def __init__(
        self,
        folder: Path,
        classes: tuple[str, ...],
        labelled: bool,
        table: tuple[TableFormat, Mapping[str, str]] | None,
    ) -> None:
        further = ["label", "split"] if labelled else []
        columns = ["path", "class", *(f"prob_{name}" for name in classes), *further]
        self.file = (folder / "tiles.csv").open("w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.file, lineterminator="\n")
        self.csv.writerow(columns)
        self.parquet: ParquetTable | None = None
        if installed("pyarrow"):
            from histo_export.predict.parquet import ParquetTable

            self.parquet = ParquetTable(folder / "tiles.parquet", columns)
        kind, record = table or (None, {})
        self.anndata = None if kind is None else TileSetTable(folder, kind, classes, further, record)

    def add(self, path: str, name: str, probabilities: Probabilities, label: Sequence[str]) -> None:
        values = probabilities.tolist()
        self.csv.writerow([path, name, *(f"{p:.7f}" for p in values), *label])
        if self.parquet is not None:
            self.parquet.add([path, name, *values, *label])
        if self.anndata is not None:
            self.anndata.add(path, probabilities, label)

    def close(self) -> None:
        try:
            if self.parquet is not None:
                self.parquet.close()
            if self.anndata is not None:
                self.anndata.close()
        finally:
            self.file.close()
