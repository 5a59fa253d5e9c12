"""`histo predict`: every input through one runtime, each result whole or not at all.

An input's results come into being in a hidden folder beside their place and are moved there when they are complete. So
a killed run leaves nothing half-written, and the same command again does what is missing: an input is done if its
folder holds `done.json` with the same key, a hash of the model, the settings and the input, and so is a shard of a set
if its file lies in the hidden folder of that key.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from histo_export.bundle_files import CONFIG
from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import Bundle
from histo_export.files import atomic_folder, write_atomic
from histo_export.predict.inputs import Failure, Input, SlideInput, TileSetInput, find_inputs, text_of
from histo_export.predict.loop import StageSeconds
from histo_export.predict.tile_set import write_tile_set
from histo_export.predict.work import (
    DONE,
    SHARD,
    TRIED,
    PredictSettings,
    Work,
    WorkDone,
    Worker,
    check_model,
    failure_of,
    named,
    read_shard,
    slide_settings,
    write_done,
)
from histo_export.spec import ModelSpec

RUN, FAILED = "run.json", "failed.csv"


@dataclass
class Done:
    """One input's outcome.

    Attributes:
        name: of its folder below `out`.
        path: as the user named it.
        tiles: with a prediction.
        run: tiles that this run did in `seconds`, fewer where an earlier one had begun; 0 where it had done it.
        seconds: of its units together, which with Ray run at the same time.
    """

    name: str
    path: str
    tiles: int = 0
    run: int = 0
    seconds: StageSeconds = field(default_factory=StageSeconds)


@dataclass
class Outcome:
    """A run's.

    Attributes:
        done: what is complete.
        failures: what could not be used.
        executed: what ran, of each kind of machine.
        wall: seconds from the first unit to the last result.
        peak_mb: of this process.
    """

    done: list[Done]
    failures: list[Failure]
    executed: list[str]
    wall: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Input `number` of `inputs`, `done` of its `tiles`, and the tiles of all inputs that are done in this run."""

    name: str
    number: int
    inputs: int
    done: int
    tiles: int
    all_done: int


def predict(
    bundle: Path,
    paths: Sequence[Path],
    out: Path,
    settings: PredictSettings,
    *,
    ray: str | None = None,
    force: bool = False,
    command: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Predicts every input into a folder of its own below `out`.

    Args:
        ray: the address of a cluster that does the work: "local" for one of this machine's own, "auto" for the one it
            belongs to. All machines must see bundle, inputs and `out` at the same paths.

    Raises:
        UsageError: an impossible setting, or `out` holds results of another model or other settings and `force` is not
            set.
        HistoError: the bundle can't be opened, or `out` can't be written.
    """
    began = time.time()
    opened, spec, variant = check_model(bundle, settings.runtime, settings.precision)
    settings = replace(settings, runtime=str(variant), precision=variant.precision)
    inputs, failures = find_inputs(paths, spec.tile_size)
    if any(isinstance(item, SlideInput) for item in inputs):
        try:
            slide_settings(settings.slide)
        except UsageError:
            raise  # an impossible option is no fault of a slide
        except HistoError:
            pass  # the packages that read slides are absent: each slide will say so, and the tiles go on
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoError(out, f"can't be made ({error.strerror})", "Choose another --out") from error
    model = hashlib.sha256((bundle / CONFIG).read_bytes()).hexdigest()
    keys = {item.name: _key(item, model, settings) for item in inputs}
    _check_earlier(out, keys, force)
    run = _Run(out, spec, settings, inputs, keys, failures, report)
    for old in out.glob(f"{TRIED}*"):
        old.unlink()
    start = time.perf_counter()
    work = [unit for item in inputs for unit in run.begin(item)]
    if ray is not None:
        from histo_export.predict.on_ray import on_ray

        for done in on_ray(ray, work, opened, spec, out, settings):
            run.receive(done)
    elif work:
        worker = Worker(opened, spec, out, settings)
        for unit in work:
            if run.wanted(unit):
                progress = run.progress_of(unit)
                progress(0, 0)
                run.receive(worker(unit, progress))
    outcome = run.outcome()
    outcome.wall = time.perf_counter() - start
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    _write_record(out, opened, settings, ray, command, began, outcome)
    return outcome


class _Run:
    """What is done, what is awaited, and the sets whose shards are all there."""

    def __init__(
        self,
        out: Path,
        spec: ModelSpec,
        settings: PredictSettings,
        inputs: Sequence[Input],
        keys: dict[str, str],
        failures: list[Failure],
        report: Callable[[Progress], None],
    ) -> None:
        self.out, self.spec, self.settings, self.report = out, spec, settings, report
        self.inputs = {item.name: item for item in inputs}
        self.numbers = {item.name: number for number, item in enumerate(inputs, 1)}
        self.keys = keys
        self.results = {item.name: Done(text_of(item.name), named(item)) for item in inputs}
        self.awaited = dict.fromkeys(self.inputs, 0)
        self.there = dict.fromkeys(self.inputs, 0)  # tiles of shards that an earlier run has left
        self.lost: dict[str, list[Failure]] = {name: [] for name in self.inputs}
        self.failed: set[str] = set()
        self.complete: set[str] = set()
        self.found = failures
        self.executed: list[str] = []

    def begin(self, item: Input) -> list[Work]:
        """The units of an input that are still to do."""
        key = self.keys[item.name]
        if (tiles := _tiles_done(self.out / item.name, key)) is not None:
            self.results[item.name].tiles = tiles
            self.complete.add(item.name)
            return []
        units = []
        if isinstance(item, SlideInput):
            units.append(Work(item, key))
        else:
            for first in range(0, len(item), SHARD):
                part = item.part(first, first + SHARD)
                unit = Work(part, key, first)
                if unit.place(self.out).is_file():
                    self.there[item.name] += len(part)
                else:
                    units.append(unit)
        self.awaited[item.name] = len(units)
        if not units:  # an earlier run ended between the last shard and the whole
            self._finish(item)
        return units

    def wanted(self, unit: Work) -> bool:
        """Whether the unit's input can still become complete."""
        return unit.item.name not in self.failed

    def progress_of(self, unit: Work) -> Callable[[int, int], None]:
        """What reports the tiles of the unit that are done, and of a slide how many there are."""
        name, item = unit.item.name, self.inputs[unit.item.name]
        before = self.there[name] + self.results[name].run
        before_all = sum(done.run for done in self.results.values())

        def progress(done: int, tiles: int) -> None:
            whole = len(item) if isinstance(item, TileSetInput) else tiles
            shown = text_of(name), self.numbers[name], len(self.inputs)
            self.report(Progress(*shown, before + done, whole, before_all + done))

        return progress

    def receive(self, unit: WorkDone) -> None:
        """Takes what came of a unit."""
        name = unit.work.item.name
        item, result = self.inputs[name], self.results[name]
        if unit.executed and unit.executed not in self.executed:
            self.executed.append(unit.executed)
        self.awaited[name] -= 1
        if name in self.failed:
            return
        if unit.failure:
            self._fail(name, unit.failure)
            return
        self.progress_of(unit.work)(unit.tiles, unit.tiles)
        result.run += unit.tiles
        result.seconds.add(unit.seconds)
        if not self.awaited[name]:
            if isinstance(item, SlideInput):
                result.tiles = unit.tiles
                self.complete.add(name)
            else:
                self._finish(item)

    def _fail(self, name: str, failure: Failure) -> None:
        self.failed.add(name)
        self.lost[name].append(failure)

    def outcome(self) -> Outcome:
        """What is done and what is not, in the order of the inputs, whichever ended first."""
        done = [result for name, result in self.results.items() if name in self.complete]
        return Outcome(done, [*self.found, *chain.from_iterable(self.lost.values())], self.executed)

    def _finish(self, item: Input) -> None:
        """Makes a set's result of its shards."""
        assert isinstance(item, TileSetInput)
        result, key = self.results[item.name], self.keys[item.name]
        start = time.perf_counter()
        places = (Work(item, key, first).place(self.out) for first in range(0, len(item), SHARD))
        try:
            with atomic_folder(self.out / item.name) as folder:
                lost = write_tile_set(item, self.spec, map(read_shard, places), folder, resize=self.settings.resize)
                result.tiles = len(item) - len(lost)
                write_done(folder, key, result.tiles)
        except HistoError as error:
            self._fail(item.name, failure_of(error, item))
        except OSError as error:
            self._fail(item.name, failure_of(error, item))
            return  # the shards stay for the next run
        else:
            self.lost[item.name] += lost
            self.complete.add(item.name)
        for old in self.out.glob(f".{glob.escape(item.name)}.shards-*"):
            shutil.rmtree(old, ignore_errors=True)
        seconds = time.perf_counter() - start
        result.seconds.write += seconds
        result.seconds.wall += seconds


def _key(item: Input, model: str, settings: PredictSettings) -> str:
    """Changes with whatever could change the result; the runtime's id names the precision."""
    chosen = {"runtime": settings.runtime, "device": settings.device}
    if isinstance(item, SlideInput):
        facts: Any = [item.path.name, _size(item.path), settings.slide]
    else:
        files = [item.source] if item.rows is not None else item.files
        digest = hashlib.sha256()
        for i, file in enumerate(files):
            digest.update(f"{item.label(i)}\0{_size(file)}\0".encode(errors="surrogateescape"))
        facts = [digest.hexdigest(), settings.resize]
    return hashlib.sha256(json.dumps([model, chosen, facts], sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> list[int]:
    """Bytes and time of change; hashing the content of an archive would take as long as reading it."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _tiles_done(folder: Path, key: str) -> int | None:
    """The number of tiles, if the folder holds this very result."""
    try:
        done = json.loads((folder / DONE).read_text())
        return int(done["tiles"]) if done["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_earlier(out: Path, keys: dict[str, str], force: bool) -> None:
    """What is at an input's place must be its own result, or be replaced on purpose."""
    for name, key in keys.items():
        folder = out / name
        if not folder.exists() or _tiles_done(folder, key) is not None:
            continue
        if not (folder / DONE).is_file():
            raise UsageError(folder, "exists and is no result of histo predict", "Choose another --out")
        if not force:
            raise UsageError(
                folder,
                "holds the result of another model, other settings or a changed input",
                "Add --force to replace it, or choose another --out",
            )


def _write_record(
    out: Path,
    bundle: Bundle,
    settings: PredictSettings,
    ray: str | None,
    command: str,
    began: float,
    outcome: Outcome,
) -> None:
    from histo_export.machine import this_machine, versions

    record = {
        "command": command,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "executed": outcome.executed,
        "ray": ray,
        "settings": asdict(settings),
        "bundle": {"path": str(bundle.path), "files": {k: v.sha256 for k, v in bundle.config.histo.files.items()}},
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "peak_memory_mb": round(outcome.peak_mb),
        "inputs": [asdict(done) for done in outcome.done],
        "failures": [asdict(failure) for failure in outcome.failures],
    }
    try:
        write_atomic(out / RUN, json.dumps(record, indent=2) + "\n")
        if outcome.failures:
            table = io.StringIO()
            rows = [("path", "reason"), *((failure.path, failure.reason) for failure in outcome.failures)]
            csv.writer(table, lineterminator="\n").writerows(rows)
            write_atomic(out / FAILED, table.getvalue())
        else:
            (out / FAILED).unlink(missing_ok=True)
    except OSError as error:
        raise HistoError(out, f"could not be written ({error.strerror})", "Free some space") from error
