"""The bundles that are served, and how one is replaced while requests are being answered."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from histo_export.bundle_files import CONFIG, model_name
from histo_export.errors import HistoError, UsageError, place_of
from histo_export.export.card import describe_calibration
from histo_export.export.precision_choice import remark
from histo_export.predict.work import check_model, open_model
from histo_export.runtimes.native import NativeRuntime
from histo_export.serve.batching import Batcher
from histo_export.serve.refusals import Refused
from histo_export.serve.settings import ServeSettings
from histo_export.serve.telemetry import Log, QueueFigures
from histo_export.spec import ModelSpec, Precision

VERSION_DIGITS = 12
"""Of the sha256 that is a version: enough that no two bundles of a laboratory share one."""


@dataclass(eq=False)
class Model:
    """A bundle, opened.

    Attributes:
        name: the name of the bundle's folder.
        version: the first digits of the sha256 of its config.json, which has the sha256 of all its files: whoever asks
            for this version gets these weights or no answer.
        spec: of the model.
        precision: in which the engine runs it.
        executed: what the engine says that it runs.
        remark: why this precision was chosen, where the user left that to the bundle; else "".
        calibration: the temperature and a sentence on it; None where the probabilities are not calibrated.
        synthetic: it was trained on made tiles, for demonstration.
        batcher: its queue and engine.
    """

    name: str
    version: str
    spec: ModelSpec
    precision: Precision
    executed: str
    remark: str
    calibration: dict[str, Any] | None
    synthetic: bool
    batcher: Batcher
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def names(self) -> tuple[str, str]:
        """By which clients ask for it."""
        return self.name, self.version

    @contextmanager
    def in_use(self) -> Iterator[Model]:
        """In the block, the model is not closed."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def close(self) -> None:
        """Waits until nobody uses it, and ends its threads. Nobody may begin to use it."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await self.batcher.close()


@dataclass(frozen=True)
class _Opened:
    """What is read from a bundle in a thread of its own."""

    version: str
    spec: ModelSpec
    runtime: NativeRuntime
    remark: str
    calibration: dict[str, Any] | None
    synthetic: bool


def _open(path: Path, settings: ServeSettings) -> _Opened:
    config = _config_of(path)
    bundle, spec, variant = check_model(path, "native", settings.precision)
    if spec.tile_size**2 > settings.limits.pixels:
        cause = f"takes tiles of {spec.tile_size}×{spec.tile_size} pixels, more than images may have"
        raise UsageError(path, cause, "Use a larger --max-megapixels")
    runtime = open_model(bundle, variant, settings.threads, "cpu")
    assert isinstance(runtime, NativeRuntime)
    training = bundle.config.histo.training
    calibration = training.get("calibration")
    if calibration is not None:
        calibration = {"temperature": calibration["temperature"], "description": describe_calibration(calibration)}
    if config is None or _config_of(path) != config:  # so the weights may be of another config.json
        raise HistoError(path, "changed while it was read", "Open it again")
    version = hashlib.sha256(config).hexdigest()[:VERSION_DIGITS]
    told = remark(bundle.config, "auto", variant.precision) if settings.precision == "auto" else ""
    return _Opened(version, spec, runtime, told, calibration, bool(training.get("data", {}).get("synthetic")))


def _config_of(path: Path) -> bytes | None:
    """The bytes of a bundle's config.json; None where it can't be read."""
    try:
        return (path / CONFIG).read_bytes()
    except OSError:
        return None


async def open_served(path: Path, settings: ServeSettings) -> Model:
    """Opens a bundle, every file checked, and runs a batch of black tiles, so that real ones find all memory there.

    Raises:
        HistoError: as `histo predict` would.
    """
    opened = await asyncio.to_thread(_open, path, settings)
    runtime = opened.runtime
    batcher = Batcher(
        runtime.engine, batch=settings.batch, max_wait=settings.max_wait, capacity=max(settings.queue, settings.batch)
    )
    try:
        black = np.zeros((opened.spec.crop, opened.spec.crop, 3), np.uint8)
        await batcher.run([black] * settings.batch)
    except BaseException:
        await batcher.close()
        raise
    return Model(
        name=model_name(path),
        version=opened.version,
        spec=opened.spec,
        precision=runtime.precision,
        executed=runtime.executed,
        remark=opened.remark,
        calibration=opened.calibration,
        synthetic=opened.synthetic,
        batcher=batcher,
    )


@dataclass(eq=False)
class _Slot:
    """A folder, and the model that was opened from it last."""

    path: Path
    model: Model
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Repository:
    """The models by name and version. Bundles whose folders have one name are versions of one model; the last is its
    default. The log tells what is loaded later, and what can't be."""

    def __init__(self, settings: ServeSettings, log: Log) -> None:
        self._slots: list[_Slot] = []
        self._settings, self._log = settings, log
        self._reloads: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, bundles: Sequence[Path], settings: ServeSettings, log: Log) -> Repository:
        """Opens all bundles.

        Raises:
            UsageError: one is named twice, or two have the same name and version.
            HistoError: one can't be opened.
        """
        if len({path.resolve() for path in bundles}) < len(bundles):
            raise UsageError("A bundle", "is named twice", "Name each once")
        repository = cls(settings, log)
        try:
            for path in bundles:
                model = await open_served(path, settings)
                same = [slot.path for slot in repository._slots if slot.model.names == model.names]
                repository._slots.append(_Slot(path, model))
                if same:
                    cause = f"has the same name and version as {same[0]}"
                    raise UsageError(path, cause, "Name one of them, or rename a folder")
        except BaseException:
            await repository.close()
            raise
        return repository

    @property
    def models(self) -> list[Model]:
        """All models, in the order of the command line."""
        return [slot.model for slot in self._slots]

    def queues(self) -> list[QueueFigures]:
        """What the queues of all models tell."""
        return [
            QueueFigures(model.name, model.version, model.batcher.waiting, model.batcher.batches)
            for model in self.models
        ]

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """A model by its name, which may be left out where all have one name; the default version where None is given.

        Raises:
            Refused: there is none.
        """
        names = list(dict.fromkeys(model.name for model in self.models))
        if name is None:
            if len(names) > 1:
                raise Refused(400, "model", "is missing", f"Choose from {', '.join(names)}")
            name = names[0]
        found = [model for model in self.models if model.name == name]
        if not found:
            raise Refused(404, f"model {name[:80]!r}", "is not served", f"Choose from {', '.join(names)}")
        chosen = [model for model in found if version is None or model.version == version]
        if not chosen:
            versions = ", ".join(model.version for model in found)
            raise Refused(404, f"version {(version or '')[:80]!r} of {name}", "is not served", f"There is {versions}")
        return chosen[-1]

    async def reload(self, name: str) -> list[Model]:
        """Opens the bundles of a name again; each takes the place of its model at once when it is ready.

        Requests that have begun are answered by the earlier model. Where the caller is cancelled, the bundle that is
        being read is still read to its end, so that no two are read at a time.

        Raises:
            Refused: no model has this name.
            Exception: a bundle can't be opened; its earlier model stays.
        """
        self.find(name)
        chosen = [slot for slot in self._slots if name == slot.model.name]
        for slot in chosen:
            await asyncio.shield(_kept(self._reloads, self._replace(slot)))
        return [slot.model for slot in chosen]

    def reload_all(self) -> None:
        """Begins to open all bundles again, in the order of the command line; the log tells what becomes of them."""

        async def each() -> None:
            for slot in self._slots:
                with suppress(Exception):  # which the log has
                    await self._replace(slot)

        _kept(self._reloads, each())

    async def _replace(self, slot: _Slot) -> None:
        async with slot.reloading:
            try:
                model = await open_served(slot.path, self._settings)
            except Exception as error:
                self._log.event("reload failed", error=str(error) if isinstance(error, HistoError) else place_of(error))
                raise
            earlier, slot.model = slot.model, model
        self._log.event("loaded", model=model.name, version=model.version)
        _kept(self._closing, earlier.close())

    async def close(self) -> None:
        """Ends all models when their requests are answered, and bundles are read that are being read."""
        await asyncio.gather(*self._reloads, return_exceptions=True)
        await asyncio.gather(*self._closing, *(model.close() for model in self.models))


def _kept(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task for the work, which is among `tasks` until it ends. Nobody needs to ask for its error."""
    task = asyncio.create_task(work)
    tasks.add(task)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled():
            task.exception()

    task.add_done_callback(ended)
    return task
