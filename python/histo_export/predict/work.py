"""The units of a run, a slide or `SHARD` tiles of a set, and the worker that does them, here or on a machine of Ray.

The result of a unit is written into `out`, complete or not at all: a slide's folder, or a shard of its set in a hidden
folder. So machines share nothing but this folder, and an interrupted run needs nothing else to go on.
"""

from __future__ import annotations

import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histo_export.bundle_files import CONFIG
from histo_export.data.walk import DONE, done_record
from histo_export.errors import HistoError, UsageError, not_written, place_of
from histo_export.export.bundle import Bundle, open_bundle, spec_of
from histo_export.export.formats import FORMATS
from histo_export.export.precision_choice import fastest
from histo_export.extras import needs
from histo_export.files import atomic_file, atomic_folder, hidden_path, made_folder
from histo_export.predict.anndata_table import run_record, write_slide_table
from histo_export.predict.features import write_features
from histo_export.predict.inputs import Failure, Input, SlideInput, TileSetInput, source_of, text_of
from histo_export.predict.loop import StageSeconds, TileLoop
from histo_export.predict.settings import PredictSettings
from histo_export.predict.tile_set import TileResults, predict_tiles
from histo_export.runtimes import NATIVE_RUNTIMES, Runtime, Variant, check_installed, open_runtime
from histo_export.spec import AskedPrecision, ModelSpec
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.predict.tile_images import KeepTile
    from histo_export.predict.whole_slide import PreparedSlide, SlidePrediction

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
        reader: what read a slide, and why it did; "" for tiles.
    """

    work: Work
    tiles: int
    seconds: StageSeconds
    executed: str
    failure: Failure | None = None
    reader: str = ""


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


def check_model(bundle: Path, runtime: str, precision: AskedPrecision | None) -> tuple[Bundle, ModelSpec, Variant]:
    """A bundle, every file checked, that holds what `runtime` runs in `precision`.

    Returns:
        The bundle; its spec; and the runtime in that precision, in the bundle's where it is None, or in the fastest
        that the bundle allows on this CPU where it is "auto".
    """
    variant = Variant.parse(runtime)
    if precision == "auto" and variant.runtime not in NATIVE_RUNTIMES:
        cause = f"chooses by what the native engine runs here, and {variant.runtime} is another runtime"
        raise UsageError("precision auto", cause, f"Name a precision, or use --runtime {NATIVE_RUNTIMES[0]}")
    if (bundle / CONFIG).is_file() and not any((bundle / file).exists() for file in variant.entry.files.values()):
        raise _no_file(bundle, variant)  # before a package is asked for, which would not help
    check_installed(variant.runtime)  # before files of hundreds of megabytes are read
    opened = open_bundle(bundle)
    if precision is None and variant.precision == "fp32":  # an id that ends with a precision has chosen it already
        precision = opened.config.histo.precision
    if precision == "auto":
        precision = fastest(opened.config).precision
    if precision is not None:
        variant = variant.in_precision(precision)
    if variant.file not in opened.config.histo.files:
        raise _no_file(bundle, variant)
    return opened, spec_of(opened), variant


def _no_file(bundle: Path, variant: Variant) -> UsageError:
    """What to say where a bundle lacks the file that `variant` opens."""
    named = next((f" with --formats {name}" for name, row in FORMATS.items() if row.file == variant.file), "")
    step = f"Export again{named}, or use another --runtime"
    return UsageError(bundle, f"has no {variant.file}, which {variant} runs", step)


def open_model(bundle: Bundle, variant: Variant, threads: int, device: str) -> Runtime:
    """The file of a bundle that `variant` runs, opened."""
    file = bundle.path / variant.file
    return open_runtime(variant.runtime, file, threads=threads, device=device, precision=variant.precision)


Progress = Callable[[int, int], None]
"""Told the number of a unit's tiles that are done, and in all."""


class Worker:
    """Does units with an open model; Ray starts one on each machine.

    While the tiles of a slide run, the next slide is opened and its tissue found, and the tables and pictures of the
    slide before are written. One slide at most is prepared ahead, and one is being written.
    """

    def __init__(self, bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings) -> None:
        self.out, self.settings, self.spec = out, settings, spec
        self.runtime = open_model(bundle, Variant.parse(settings.runtime), settings.threads, settings.device)
        if settings.features is not None and not self.runtime.features:
            raise UsageError(self.runtime.name, "gives logits only, and no feature vectors", "Use --runtime native")
        self.loop = TileLoop(self.runtime, spec, batch=settings.batch, readers=settings.threads)
        self.record = {} if settings.table is None else run_record(bundle, settings)

    def __call__(self, work: Work) -> WorkDone:
        """Does a unit and writes its result."""
        (done,) = self.run([work])
        return done

    def run(
        self,
        units: Iterable[Work],
        progress_of: Callable[[Work], Progress] = lambda unit: lambda done, tiles: None,
        skip: Callable[[Work], bool] = lambda unit: False,
    ) -> Iterator[WorkDone]:
        """Does units and writes their results; yields the outcomes, that of a slide when it is written.

        Args:
            units: in order.
            progress_of: called when the tiles of a unit begin.
            skip: asked at that time; then the unit is left out.
        """
        with _Pools(self.settings.threads) as pools:
            for unit, prepared in self._prepared(units, pools):
                if skip(unit):
                    continue
                progress = progress_of(unit)
                progress(0, 0)
                yield from pools.written()
                if prepared is None:
                    yield self._do(unit, self._shard, unit, progress)
                    continue
                predicted: list[SlidePrediction] = []
                done = self._do(unit, self._tiles, unit, prepared, predicted, progress, pools)
                if done.failure is None:
                    yield from pools.written(wait=True)
                    pools.write(self._write, done, predicted[0])
                else:
                    yield done
            yield from pools.written(wait=True)

    def _do(self, unit: Work, do: Callable[..., tuple[int, StageSeconds, str]], *arguments: Any) -> WorkDone:
        """The outcome of what `do(*arguments)` returns or raises: tiles, seconds, reader."""
        tiles, seconds, reader, failure = 0, StageSeconds(), "", None
        try:
            tiles, seconds, reader = do(*arguments)
        except Exception as error:
            failure = failure_of(error, unit.item)
        return WorkDone(unit, tiles, seconds, self.runtime.executed, failure, reader)

    def _prepared(self, units: Iterable[Work], pools: _Pools) -> Iterator[tuple[Work, Future[PreparedSlide] | None]]:
        """The units in order, slides with what is prepared of them; the next one begins before this one is given."""
        rest = iter(units)
        ahead: deque[tuple[Work, Future[PreparedSlide] | None]] = deque()
        try:
            while True:
                for unit in islice(rest, 2 - len(ahead)):
                    slide = isinstance(unit.item, SlideInput)
                    ahead.append((unit, pools.preparing.submit(self._prepare, unit, pools) if slide else None))
                if not ahead:
                    return
                given = ahead.popleft()
                try:
                    yield given
                finally:
                    _close(given[1])
        finally:
            for _, prepared in ahead:
                _close(prepared)

    def _prepare(self, unit: Work, pools: _Pools) -> PreparedSlide:
        needs("Reading slides", "slides")  # of another machine, too, to which Ray may have sent the unit
        from histo_export.predict.readers import open_slide
        from histo_export.predict.whole_slide import prepare_slide

        assert isinstance(unit.item, SlideInput)
        settings = self.settings.slide
        slide = open_slide(unit.item.path, self.settings.reader, shrinks=settings.resample == "dct")
        try:
            return prepare_slide(slide, self.spec, settings, pools.survey)
        except BaseException:
            slide.close()
            raise

    def _tiles(
        self,
        unit: Work,
        preparing: Future[PreparedSlide],
        predicted: list[SlidePrediction],
        progress: Progress,
        pools: _Pools,
    ) -> tuple[int, StageSeconds, str]:
        prepared = preparing.result()
        drawn = pools.draw(prepared)
        with self._tiles_kept(unit.item) as keep:
            prediction = prepared.run(self.loop, progress, keep, features=self.settings.features is not None)
        predicted.append(replace(prediction, drawn_tissue=drawn))
        return len(prediction.grid), prediction.seconds, prepared.slide.chosen

    def _tiles_kept(self, item: Input) -> AbstractContextManager[KeepTile]:
        """Takes the tiles of a slide, and writes them where `--tiles-out` asks for it."""
        from histo_export.predict.tile_images import tile_images

        if self.settings.tiles_out is None:
            return nullcontext(lambda corner, pixels: None)
        return tile_images(Path(self.settings.tiles_out), item.name, self.settings.tiles_format)

    def _write(self, done: WorkDone, prediction: SlidePrediction) -> WorkDone:
        """Writes a slide's result; its outcome."""
        return self._do(done.work, self._write_slide, done, prediction)

    def _write_slide(self, done: WorkDone, prediction: SlidePrediction) -> tuple[int, StageSeconds, str]:
        start = time.perf_counter()
        with atomic_folder(done.work.place(self.out)) as folder:
            try:
                if self.settings.table is not None:
                    write_slide_table(folder, self.settings.table, prediction, self.record)
                if prediction.features is not None and self.settings.features is not None:
                    write_features(folder, self.settings.features, *prediction.features)
            finally:
                if prediction.features is not None:
                    prediction.features[1].close()
            prediction.write(folder, in_run=True)
            write_done(folder, done.work.key, done.tiles, source_of(done.work.item))
        spent = time.perf_counter() - start
        done.seconds.write += spent
        done.seconds.wall += spent
        return done.tiles, done.seconds, done.reader

    def _shard(self, work: Work, progress: Progress) -> tuple[int, StageSeconds, str]:
        assert isinstance(work.item, TileSetInput)
        results, seconds = predict_tiles(work.item, self.loop, resize=self.settings.resize, progress=progress)
        start = time.perf_counter()
        place = work.place(self.out)
        with made_folder(place.parent), atomic_file(place) as partial, partial.open("wb") as file:
            executed = np.array(self.runtime.executed)
            np.savez(file, **vars(results), executed=executed)
        seconds.write += time.perf_counter() - start
        return len(work.item), seconds, ""


class _Pools:
    """The threads that work beside the runtime; all have ended at the end of the block, also after an error.

    Attributes:
        preparing: opens one slide after another.
    """

    def __init__(self, threads: int) -> None:
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._surveying = ThreadPoolExecutor(threads, thread_name_prefix="survey")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._written: deque[Future[WorkDone]] = deque()

    def survey(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """As `map`, but no call is running any more when it ends, also by an error: then the slide may be closed."""
        futures = [self._surveying.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                if not future.cancel():
                    future.exception()

    def write(self, function: Callable[[WorkDone, SlidePrediction], WorkDone], *arguments: Any) -> None:
        """Begins to write a result."""
        self._written.append(self._writing.submit(function, *arguments))

    def draw(self, prepared: PreparedSlide) -> Future[bytes]:
        """Begins to draw the tissue, which does not need the tiles."""
        return self._writing.submit(prepared.tissue_picture)

    def written(self, wait: bool = False) -> Iterator[WorkDone]:
        """The outcomes of what has been written."""
        while self._written and (wait or self._written[0].done()):
            yield self._written.popleft().result()

    def __enter__(self) -> _Pools:
        return self

    def __exit__(self, *error: object) -> None:
        # What is being written is complete in a moment; what is being prepared is stopped.
        for pool in (self._surveying, self.preparing, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self._surveying, self.preparing, self._writing):
            pool.shutdown()


def _close(preparing: Future[PreparedSlide] | None) -> None:
    """Closes a slide whose tiles have run or will not run, as soon as it is open."""

    def close(future: Future[PreparedSlide]) -> None:
        if not future.cancelled() and future.exception() is None:
            future.result().close()

    if preparing is not None:
        preparing.cancel()
        preparing.add_done_callback(close)


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
