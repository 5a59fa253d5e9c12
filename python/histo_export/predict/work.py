"""The units of a run, a slide or `SHARD` tiles of a set, and the worker that does them, here or on a machine of Ray.

The result of a unit is written into `out`, complete or not at all: a slide's folder, or a shard of its set in a hidden
folder. So machines share nothing but this folder, and an interrupted run needs nothing else to go on.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histo_export.data.walk import DONE, done_record
from histo_export.errors import HistoError, UsageError, not_written, place_of
from histo_export.export.bundle import Bundle, open_bundle, spec_of
from histo_export.extras import needs
from histo_export.files import atomic_file, atomic_folder, hidden_path, made_folder
from histo_export.predict.inputs import Failure, Input, SlideInput, TileSetInput, source_of, text_of
from histo_export.predict.loop import StageSeconds, TileLoop
from histo_export.predict.settings import PredictSettings
from histo_export.predict.tile_set import TileResults, predict_tiles
from histo_export.runtimes import Runtime, Variant, check_installed, open_runtime
from histo_export.spec import ModelSpec, Precision
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.predict.tile_images import KeepTile

SUMMARY = "summary.json"
SHARDS = ".shards-"
"""In the name of the hidden folder for the shards of a set."""
TRIED = ".tried-"
"""Prefix of a hidden file in `out` that counts how often Ray has begun a unit."""
SHARD = 4096
"""Tiles of a unit: less than a minute of work, so that little is lost with a killed process, and a large set is divided
among many machines."""


@dataclass(frozen=True)
class Work:
    """One unit.

    Attributes:
        item: a slide, or these tiles of a set.
        key: of the input that the unit belongs to; it changes with everything that could change the input's result.
        first: index of the unit's first tile in the set.
    """

    item: Input
    key: str
    first: int = 0

    def place(self, out: Path) -> Path:
        """The path of its result."""
        if isinstance(self.item, SlideInput):
            return out / self.item.name
        return shard_folder(out, self.item, self.key) / f"{self.first:010}.npz"


@dataclass(frozen=True)
class WorkDone:
    """The outcome of a unit.

    Attributes:
        work: the unit.
        tiles: how many were run.
        seconds: of each stage.
        executed: what the runtime says that it runs on this machine.
        failure: why there is no result; None where there is one.
    """

    work: Work
    tiles: int
    seconds: StageSeconds
    executed: str
    failure: Failure | None = None


def named(item: Input) -> str:
    """The input as the user named it."""
    return text_of(item.path if isinstance(item, SlideInput) else item.source)


def failure_of(error: Exception, item: Input) -> Failure:
    """Why an input has no result.

    An OSError is about the output, because readers report their errors as HistoError. Any other error is one that
    nobody foresaw: it ends this input and no other one.
    """
    if isinstance(error, OSError):
        error = not_written(named(item), error)
    if isinstance(error, HistoError):
        return Failure(text_of(error.thing), f"{error.cause}. {error.next_step}")
    if isinstance(error, MemoryError):
        reason = f"needs more memory than there is ({place_of(error)}). Use fewer --threads, or a machine with more"
    else:
        reason = f"failed unexpectedly ({place_of(error)}). Report this, and go on without this input"
    return Failure(named(item), reason)


def shard_folder(out: Path, item: Input, key: str) -> Path:
    """The hidden folder for the shards of a set, until all are complete."""
    return hidden_path(out / item.name, f"{SHARDS}{key[:16]}")


def read_shard(path: Path) -> tuple[TileResults, str]:
    """A shard's results, and what the runtime executed.

    Raises:
        HistoError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as shard:
            results = TileResults(shard["logits"], shard["hashes"], shard["enlarged"], shard["reasons"].tolist())
            return results, str(shard["executed"])
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HistoError(path, f"is damaged ({error})", "Run the same command again, it makes a new one") from error


def check_model(bundle: Path, runtime: str, precision: Precision | None) -> tuple[Bundle, ModelSpec, Variant]:
    """A bundle, every file checked, that holds what `runtime` runs in `precision`.

    Returns:
        The bundle; its spec; and the runtime in that precision, or in the bundle's where it is None.
    """
    variant = Variant.parse(runtime)
    check_installed(variant.runtime)  # before files of hundreds of megabytes are read
    opened = open_bundle(bundle)
    if precision is None and variant.precision == "fp32":  # an id that ends with a precision has chosen it already
        precision = opened.config.histo.precision
    if precision is not None:
        variant = variant.in_precision(precision)
    if variant.file not in opened.config.histo.files:
        raise UsageError(
            bundle, f"has no {variant.file}, which {variant} runs", "Export again, or use another --runtime"
        )
    return opened, spec_of(opened), variant


def open_model(bundle: Bundle, variant: Variant, threads: int, device: str) -> Runtime:
    """The file of a bundle that `variant` runs, opened."""
    file = bundle.path / variant.file
    return open_runtime(variant.runtime, file, threads=threads, device=device, precision=variant.precision)


class Worker:
    """Does one unit after another with an open model; Ray starts one on each machine."""

    def __init__(self, bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings) -> None:
        self.out, self.settings = out, settings
        self.runtime = open_model(bundle, Variant.parse(settings.runtime), settings.threads, settings.device)
        self.loop = TileLoop(self.runtime, spec, batch=settings.batch, readers=settings.threads)

    def __call__(self, work: Work, progress: Callable[[int, int], None] = lambda done, tiles: None) -> WorkDone:
        """Does a unit and writes its result.

        Args:
            work: the unit.
            progress: told the number of tiles done and in all.
        """
        tiles, seconds, failure = 0, StageSeconds(), None
        try:
            do = self._slide if isinstance(work.item, SlideInput) else self._shard
            tiles, seconds = do(work, progress)
        except Exception as error:
            failure = failure_of(error, work.item)
        return WorkDone(work, tiles, seconds, self.runtime.executed, failure)

    def _slide(self, work: Work, progress: Callable[[int, int], None]) -> tuple[int, StageSeconds]:
        needs("Reading slides", "slides")  # of another machine, too, to which Ray may have sent the unit
        from histo_export.predict.readers import open_slide
        from histo_export.predict.whole_slide import predict_slide

        assert isinstance(work.item, SlideInput)
        with atomic_folder(work.place(self.out)) as folder:
            slide = open_slide(work.item.path)
            try:
                with self._tiles_kept(work.item) as keep:
                    prediction = predict_slide(slide, self.loop, self.settings.slide, progress, keep)
            finally:
                slide.close()
            start = time.perf_counter()
            prediction.write(folder, in_run=True)
            write_done(folder, work.key, len(prediction.grid), source_of(work.item))
        prediction.seconds.write += time.perf_counter() - start
        prediction.seconds.wall += time.perf_counter() - start
        return len(prediction.grid), prediction.seconds

    def _tiles_kept(self, item: SlideInput) -> AbstractContextManager[KeepTile]:
        """Takes the tiles of a slide, and writes them where `--tiles-out` asks for it."""
        from histo_export.predict.tile_images import tile_images

        if self.settings.tiles_out is None:
            return nullcontext(lambda corner, pixels: None)
        return tile_images(Path(self.settings.tiles_out), item.name, self.settings.tiles_format)

    def _shard(self, work: Work, progress: Callable[[int, int], None]) -> tuple[int, StageSeconds]:
        assert isinstance(work.item, TileSetInput)
        results, seconds = predict_tiles(work.item, self.loop, resize=self.settings.resize, progress=progress)
        start = time.perf_counter()
        place = work.place(self.out)
        with made_folder(place.parent), atomic_file(place) as partial, partial.open("wb") as file:
            executed = np.array(self.runtime.executed)
            np.savez(file, **vars(results), executed=executed)
        seconds.write += time.perf_counter() - start
        return len(work.item), seconds


def write_done(folder: Path, key: str, tiles: int, source: str, lost: Sequence[Failure] = ()) -> None:
    """Marks a result as complete.

    Args:
        folder: of the result.
        key: of the input, see `Work`.
        tiles: with a prediction.
        source: the whole path of the input.
        lost: the tiles without one.
    """
    content = {"key": key, "tiles": tiles, "source": source, "lost": [asdict(failure) for failure in lost]}
    (folder / DONE).write_text(dump_json(content, ascii_only=True) + "\n", encoding="utf-8")


def read_done(folder: Path, key: str) -> tuple[int, list[Failure]] | None:
    """Tiles and lost tiles of a folder that holds the result of this key; None where it does not."""
    done = done_record(folder)
    if done is None or done["key"] != key:
        return None
    try:
        return int(done["tiles"]), [Failure(**failure) for failure in done["lost"]]
    except (ValueError, KeyError, TypeError):
        return None
