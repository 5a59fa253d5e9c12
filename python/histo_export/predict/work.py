"""The units of a run, a slide or so many tiles of a set, and what does them: in this process, or on machines of Ray.

What a unit finds goes into `out`, whole or not at all: a slide's folder, or a shard of its set in a hidden folder. So
the folder is all that machines share and all that a run that was killed needs to go on.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from histo_export.errors import HistoError
from histo_export.export.bundle import Bundle, open_bundle
from histo_export.files import atomic_file, atomic_folder
from histo_export.predict.inputs import Failure, Input, SlideInput, TileSetInput, text_of
from histo_export.predict.loop import StageSeconds
from histo_export.predict.tile_set import predict_tiles
from histo_export.runtimes import Runtime, Variant, open_runtime
from histo_export.spec import ModelSpec, Precision

DONE = "done.json"
TRIED = ".tried-"
"""Begins the name of a hidden file in `out` that counts how often Ray has begun a unit."""
SHARD = 4096
"""Tiles: less than a minute of work, so that a kill costs little and a large set keeps many machines busy."""


@dataclass(frozen=True)
class PredictSettings:
    """How to predict. All but `batch` and `threads`, which change the speed only, may change a result.

    Attributes:
        runtime: the id of a `Variant`, e.g. "native" or "native-int8".
        precision: in which it is to run; None for that which the bundle is made for.
        device: "cpu" or "cuda".
        resize: resample tiles of other sizes.
        slide: keyword arguments of `SlideSettings`, and of `TissueSettings` below "tissue".
        batch: tiles per call of the runtime.
        threads: of the runtime, and reader threads.
    """

    runtime: str = "native"
    precision: Precision | None = None
    device: str = "cpu"
    resize: bool = False
    slide: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    threads: int = 1


@dataclass(frozen=True)
class Work:
    """One unit.

    Attributes:
        item: a slide, or these tiles of a set.
        key: changes with whatever could change the result of the whole input.
        first: the number of its first tile in the set.
    """

    item: Input
    key: str
    first: int = 0

    def place(self, out: Path) -> Path:
        """Where its result will be."""
        if isinstance(self.item, SlideInput):
            return out / self.item.name
        return shard_folder(out, self.item, self.key) / f"{self.first:010}.npz"


@dataclass(frozen=True)
class WorkDone:
    """What came of `work`: `tiles` were run, or `failure` tells why there is no result.

    Attributes:
        executed: what the runtime says that it runs on this machine.
    """

    work: Work
    tiles: int
    seconds: StageSeconds
    executed: str
    failure: Failure | None = None


def named(item: Input) -> str:
    """The input as the user named it."""
    return text_of(item.path if isinstance(item, SlideInput) else item.source)


def failure_of(error: HistoError | OSError, item: Input) -> Failure:
    """Why an input has no result; an OSError is one of the output, because readers report theirs as HistoError."""
    if isinstance(error, HistoError):
        return Failure(text_of(error.thing), f"{error.cause}. {error.next_step}")
    reason = f"could not be written ({error.strerror or error}). Free some space or choose another --out"
    return Failure(named(item), reason)


def shard_folder(out: Path, item: Input, key: str) -> Path:
    """The hidden folder in which the shards of a set wait for each other."""
    return out / f".{item.name}.shards-{key[:16]}"


def read_shard(path: Path) -> tuple[Any, Any, str]:
    """A shard's probabilities, float32 `(n, classes)`; for each tile why it was lost, "" where not; and what ran.

    Raises:
        HistoError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as shard:
            return shard["probabilities"], shard["reasons"], str(shard["executed"])
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HistoError(path, f"is damaged ({error})", "Run the same command again, it makes a new one") from error


def check_model(bundle: Path, runtime: str, precision: Precision | None) -> tuple[Bundle, ModelSpec, Variant]:
    """A bundle, every file checked, that holds what `runtime` runs in `precision`.

    Returns:
        The bundle; its spec; and the runtime in that precision, or in the bundle's where it is None.
    """
    opened = open_bundle(bundle)
    variant = Variant.parse(runtime)
    if precision is None and variant.precision == "fp32":  # an id that ends with a precision has chosen it already
        precision = opened.config.histo.precision
    if precision is not None:
        variant = variant.in_precision(precision)
    if variant.file not in opened.config.histo.files:
        raise HistoError(
            bundle, f"has no {variant.file}, which {variant} runs", "Export again, or use another --runtime"
        )
    return opened, ModelSpec.from_dict(opened.config.histo.spec), variant


def open_model(bundle: Bundle, variant: Variant, threads: int, device: str) -> Runtime:
    """The file of a bundle that `variant` runs, opened."""
    file = bundle.path / variant.file
    return open_runtime(variant.runtime, file, threads=threads, device=device, precision=variant.precision)


def slide_settings(values: dict[str, Any]) -> Any:
    """`SlideSettings` from plain values; UsageError where one is impossible."""
    from histo_export.predict.tissue import TissueSettings
    from histo_export.predict.whole_slide import SlideSettings

    return SlideSettings(**(values | {"tissue": TissueSettings(**values.get("tissue", {}))}))


class Worker:
    """Does one unit after another with an open model."""

    def __init__(self, bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings) -> None:
        self.spec, self.out, self.settings = spec, out, settings
        self.runtime = open_model(bundle, Variant.parse(settings.runtime), settings.threads, settings.device)

    def __call__(self, work: Work, progress: Callable[[int, int], None] = lambda done, tiles: None) -> WorkDone:
        """Puts the unit's result in its place, or says why there is none.

        Args:
            work: what to do.
            progress: told the tiles done and in all.
        """
        tiles, seconds, failure = 0, StageSeconds(), None
        try:
            do = self._slide if isinstance(work.item, SlideInput) else self._shard
            tiles, seconds = do(work, progress)
        except (HistoError, OSError) as error:
            failure = failure_of(error, work.item)
        return WorkDone(work, tiles, seconds, self.runtime.executed, failure)

    def _loop(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        return {"batch": self.settings.batch, "readers": self.settings.threads, "progress": progress}

    def _slide(self, work: Work, progress: Callable[[int, int], None]) -> tuple[int, StageSeconds]:
        # Only here, because the packages that read slides are an extra.
        from histo_export.predict.slide import open_slide
        from histo_export.predict.whole_slide import predict_slide

        assert isinstance(work.item, SlideInput)
        chosen = slide_settings(self.settings.slide)
        with atomic_folder(work.place(self.out)) as folder:
            slide = open_slide(work.item.path)
            try:
                prediction = predict_slide(slide, self.runtime, self.spec, chosen, **self._loop(progress))
            finally:
                slide.close()
            start = time.perf_counter()
            prediction.write(folder)
            write_done(folder, work.key, len(prediction.grid))
        prediction.seconds.write += time.perf_counter() - start
        prediction.seconds.wall += time.perf_counter() - start
        return len(prediction.grid), prediction.seconds

    def _shard(self, work: Work, progress: Callable[[int, int], None]) -> tuple[int, StageSeconds]:
        assert isinstance(work.item, TileSetInput)
        probabilities, reasons, seconds = predict_tiles(
            work.item, self.runtime, self.spec, resize=self.settings.resize, **self._loop(progress)
        )
        start = time.perf_counter()
        place = work.place(self.out)
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(place) as partial, partial.open("wb") as file:
            executed = np.array(self.runtime.executed)
            np.savez(file, probabilities=probabilities, reasons=np.array(reasons), executed=executed)
        seconds.write += time.perf_counter() - start
        return len(work.item), seconds


def write_done(folder: Path, key: str, tiles: int) -> None:
    """Marks a result as complete."""
    (folder / DONE).write_text(json.dumps({"key": key, "tiles": tiles}) + "\n")
