"""`histo predict`: every input through one runtime, each result complete or absent.

A result is written into a hidden folder beside its place, which is renamed when the result is complete. So a killed
run leaves nothing incomplete, and the same command continues it. An input is done if its folder holds `done.json` with
the same key: a hash of the model, the settings and the input. A shard of a set is done if its file lies in the hidden
folder of that key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from histo_export.bundle_files import CONFIG, hub_origin
from histo_export.data.walk import DONE
from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import Bundle, trained_on
from histo_export.export.precision_choice import remark
from histo_export.files import atomic_folder, hidden_paths, own_folder
from histo_export.predict.anndata_table import check_table, run_record
from histo_export.predict.inputs import (
    Failure,
    Input,
    Skipped,
    SlideInput,
    TileSetInput,
    find_inputs,
    source_of,
    text_of,
)
from histo_export.predict.labels import named_in, stated_facts
from histo_export.predict.lists import TileFacts
from histo_export.predict.loop import StageSeconds
from histo_export.predict.messages import collected_messages
from histo_export.predict.names import name_inputs
from histo_export.predict.per_slide import file_of
from histo_export.predict.preconditions import check_class_map, check_places, check_ray, check_slides, open_worker
from histo_export.predict.record import FailedRow, earlier_failures, write_record
from histo_export.predict.settings import PredictSettings, SlideSettings
from histo_export.predict.tile_set import files_left_out, write_tile_set
from histo_export.predict.work import (
    SHARD,
    SHARDS,
    SUMMARY,
    TRIED,
    Work,
    WorkDone,
    Worker,
    check_model,
    failure_of,
    named,
    read_done,
    read_shard,
    write_done,
)
from histo_export.runtimes import NATIVE_RUNTIMES, Variant
from histo_export.spec import AskedPrecision, ModelSpec, Precision
from histo_export.system import peak_memory

RESULTS = 2
"""The version of what results mean. A new version makes results of older ones count as those of other settings."""


@dataclass
class Done:
    """The outcome of one input.

    Attributes:
        name: of its folder below `out`.
        path: as the user named it.
        tiles: with a prediction.
        run: tiles that this run did, in `seconds`; an earlier run did the others.
        seconds: of its units added up, although with Ray they run at the same time.
        reader: what read a slide in this run, and why it did.
        summary: the content of its summary.json.
    """

    name: str
    path: str
    tiles: int = 0
    run: int = 0
    seconds: StageSeconds = field(default_factory=StageSeconds)
    reader: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrecisionRun:
    """The precision of a run: what was asked for (None: nothing), what ran, and `precision_choice.remark`."""

    asked: AskedPrecision | None
    ran: Precision
    remark: str


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        done: the inputs that are complete.
        failures: inputs and tiles that could not be used.
        executed: what the runtime executed; several where machines differ.
        earlier_failures: how many failures of other inputs, from earlier runs into the same folder, still hold.
        wall: seconds from the first unit to the last result.
        peak_mb: the largest resident memory of this process, in MB.
        skipped: what was left out of the inputs, by kind.
        notes: how lists were read, and which files are not written for want of a package.
        precision: what was asked for and what ran, and what to tell the user of it ("" for nothing).
    """

    done: list[Done]
    failures: list[Failure]
    executed: list[str]
    earlier_failures: int = 0
    wall: float = 0.0
    peak_mb: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    precision: PrecisionRun = field(default_factory=lambda: PrecisionRun(None, "fp32", ""))


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        name: of the input that is being done.
        number, inputs: it is input `number` (from 1) of `inputs`.
        done, tiles: of this input.
        all_done: tiles of all inputs that this run has done.
    """

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
        bundle: a folder that `histo export` wrote.
        paths: what the user named, see `find_inputs`.
        out: gets a folder for each input, run.json and, where something failed, failed.csv. No two runs work in it at
            the same time, whichever machines they are on.
        settings: how inputs are run.
        ray: the address of a cluster that does the work: "local" for one of this machine's own, "auto" for the one it
            belongs to. All machines must see bundle, inputs and `out` at the same paths.
        force: replace results of another model or other settings.
        command: recorded in run.json.
        report: told of progress.

    Raises:
        UsageError: `out` holds results of another model or other settings and `force` is not set, another run works in
            it, or it is no place for results; or the model can't do what is asked of it. Nothing has been written then.
        HistoError: the bundle is damaged, or `out` can't be written.
    """
    began = time.time()
    with collected_messages() as messages:
        check_ray(ray)
        if settings.table is not None:
            check_table(settings.table)
        opened, spec, variant = check_model(bundle, settings.runtime, settings.precision)
        precision = _precision_run(opened, settings, variant, ray)
        settings = replace(settings, runtime=str(variant), precision=variant.precision)
        check_places(out, settings.tiles_out)
        found = find_inputs(paths, spec.tile_size)
        check_slides(opened, spec, found.inputs, settings)
        check_class_map(spec, settings.class_map)
        run = _Run(out, spec, settings, _records(found.inputs, opened, settings, out), report, opened)
        run.check_earlier(force)
        worker = open_worker(opened, spec, out, settings) if ray is None and run.has_work() else None
        with own_folder(out) as still_own:
            run.check_earlier(force)  # another run may have ended meanwhile
            judged = [*map(named, found.inputs), *(failure.path for failure in found.failures)]
            earlier = earlier_failures(out, paths, judged)
            start = time.perf_counter()
            with _tries(out):
                for done in _outcomes(run, worker, ray, opened):
                    still_own()
                    run.receive(done)
            outcome = Outcome(run.done, [*found.failures, *run.failures], run.executed, len(earlier))
            outcome.wall, outcome.peak_mb = time.perf_counter() - start, peak_memory() / 1e6
            notes = _left_out(found.inputs) + _unused(found.inputs, settings.class_map)
            outcome.skipped, outcome.notes = found.skipped, [*found.notes, *notes]
            outcome.precision = precision
            still_own()
            failed = [FailedRow.of(failure, failure.path) for failure in found.failures] + run.failed_rows
            record = _record(opened, settings, ray, command, began, outcome) | {"messages": messages}
            write_record(out, record, [*failed, *earlier], run.results)
    return outcome


def _precision_run(bundle: Bundle, settings: PredictSettings, variant: Variant, ray: str | None) -> PrecisionRun:
    """What is told of the precision. On a cluster nothing is proposed, because its machines may have other CPUs."""
    asked = settings.precision
    by_name = asked is None and Variant.parse(settings.runtime).precision != "fp32"  # as in native-int8
    silent = by_name or variant.runtime not in NATIVE_RUNTIMES or (ray is not None and asked != "auto")
    return PrecisionRun(asked, variant.precision, "" if silent else remark(bundle.config, asked, variant.precision))


def _left_out(inputs: Sequence[Input]) -> list[str]:
    return files_left_out() if any(isinstance(item, TileSetInput) for item in inputs) else []


def _unused(inputs: Sequence[Input], class_map: Mapping[str, str] | None) -> list[str]:
    """A note on what a map of classes names and no tile has: it may be misspelt."""
    sets = [item for item in inputs if isinstance(item, TileSetInput)] if class_map else []
    unused = sorted(set(class_map or {}).difference(*(named_in(item, class_map or {}) for item in sets)))
    return [f"--class-map names what no tile has: {', '.join(unused)}"] if unused else []


def _records(inputs: Sequence[Input], bundle: Bundle, settings: PredictSettings, out: Path) -> list[_InputRun]:
    model = hashlib.sha256((bundle.path / CONFIG).read_bytes()).hexdigest()
    keys = [_key(item, model, settings) for item in inputs]
    items = name_inputs(inputs, keys, out)
    return [_InputRun(item, number, key) for number, (item, key) in enumerate(zip(items, keys, strict=True), 1)]


@contextmanager
def _tries(out: Path) -> Iterator[None]:
    """Removes the files in which Ray's workers count how often a unit has been begun, before the block and after it."""

    def remove() -> None:
        for file in out.glob(f"{TRIED}*"):
            file.unlink(missing_ok=True)

    remove()
    try:
        yield
    finally:
        remove()


def _outcomes(run: _Run, worker: Worker | None, ray: str | None, bundle: Bundle) -> Iterator[WorkDone]:
    """Does the units that are left, with Ray or here, and yields their outcomes."""
    work = run.begin()
    if ray is not None:
        from histo_export.predict.on_ray import on_ray

        yield from on_ray(ray, work, bundle, run.spec, run.out, run.settings)
    elif work:
        yield from run.do(work, worker or open_worker(bundle, run.spec, run.out, run.settings))


@dataclass
class _InputRun:
    """One input, and how far it is.

    Attributes:
        item: the input.
        number: its place among the inputs, from 1.
        key: see `_key`.
        done: what is reported of it.
        units_left: units whose outcome is not known yet.
        tiles_before: in shards that an earlier run left.
        failures: why the input, or single tiles of it, could not be used.
        failed: the input has no result.
        complete: its result is in its place.
    """

    item: Input
    number: int
    key: str
    done: Done = field(init=False)
    units_left: int = 0
    tiles_before: int = 0
    failures: list[Failure] = field(default_factory=list)
    failed: bool = False
    complete: bool = False

    def __post_init__(self) -> None:
        self.done = Done(text_of(self.item.name), named(self.item))

    def fail(self, failure: Failure) -> None:
        """The input gets no result."""
        self.failed = True
        self.failures.append(failure)


class _Run:
    """All inputs of a run; `executed`: what the runtime executed, several where machines differ."""

    def __init__(
        self,
        out: Path,
        spec: ModelSpec,
        settings: PredictSettings,
        inputs: Sequence[_InputRun],
        report: Callable[[Progress], None],
        bundle: Bundle,
    ) -> None:
        self.out, self.spec, self.settings, self.report = out, spec, settings, report
        self.trained_on = trained_on(bundle)
        self.table = None if settings.table is None else (settings.table, run_record(bundle, settings))
        self.inputs = {each.item.name: each for each in inputs}
        self.executed: list[str] = []
        self.tiles_done: dict[tuple[str, int], int] = {}

    @property
    def done(self) -> list[Done]:
        """What is complete, in the order of the inputs, whichever ended first."""
        return [each.done for each in self.inputs.values() if each.complete]

    @property
    def results(self) -> list[str]:
        """The folders of what is complete, in the same order."""
        return [name for name, each in self.inputs.items() if each.complete]

    @property
    def failures(self) -> list[Failure]:
        """What could not be used, in the order of the inputs."""
        return list(chain.from_iterable(each.failures for each in self.inputs.values()))

    @property
    def failed_rows(self) -> list[FailedRow]:
        """The same for failed.csv."""
        return [FailedRow.of(failure, each.done.path) for each in self.inputs.values() for failure in each.failures]

    def has_work(self) -> bool:
        """Whether any input is not done yet."""
        return any(read_done(self.out / name, each.key) is None for name, each in self.inputs.items())

    def check_earlier(self, force: bool) -> None:
        """UsageError where an input's place is taken: by another result, unless `force` is set, or by other files."""
        for name, each in self.inputs.items():
            folder = self.out / name
            if not folder.exists() or read_done(folder, each.key) is not None:
                continue
            if not (folder / DONE).is_file():
                raise UsageError(folder, "exists and is not a result of histo predict", "Choose another --out")
            if not force:
                raise UsageError(
                    folder,
                    "holds the result of another model, other settings or a changed input",
                    "Add --force to replace it, or choose another --out",
                )

    def begin(self) -> list[Work]:
        """The units that are still to do; inputs that are done already become complete."""
        return [unit for each in self.inputs.values() for unit in self._units(each)]

    def _units(self, each: _InputRun) -> list[Work]:
        item, key = each.item, each.key
        if (before := read_done(self.out / item.name, key)) is not None:
            each.done.tiles, lost = before
            each.failures += lost
            self._complete(each)
            return []
        units = []
        if isinstance(item, SlideInput):
            units.append(Work(item, key))
        else:
            for first in range(0, len(item), SHARD):
                part = item.part(first, first + SHARD)
                unit = Work(part, key, first)
                if unit.place(self.out).is_file():
                    each.tiles_before += len(part)
                else:
                    units.append(unit)
        each.units_left = len(units)
        if not units:  # an earlier run ended after the last shard
            self._finish(each)
        return units

    def do(self, work: Sequence[Work], worker: Worker) -> Iterator[WorkDone]:
        """Does the units here, but none of an input that has failed; yields their outcomes."""
        return worker.run(work, self._progress_of, lambda unit: self.inputs[unit.item.name].failed)

    def _progress_of(self, unit: Work) -> Callable[[int, int], None]:
        """A function that reports the tiles of a unit that are done, and in all (a slide's are known only later)."""
        each = self.inputs[unit.item.name]
        before = each.tiles_before + each.done.run
        place = unit.item.name, unit.first

        def progress(done: int, tiles: int) -> None:
            total = len(each.item) if isinstance(each.item, TileSetInput) else tiles
            self.tiles_done[place] = done
            shown = text_of(each.item.name), each.number, len(self.inputs)
            self.report(Progress(*shown, before + done, total, sum(self.tiles_done.values())))

        return progress

    def receive(self, unit: WorkDone) -> None:
        """Takes the outcome of a unit; the last one of an input makes it complete."""
        each = self.inputs[unit.work.item.name]
        if unit.executed and unit.executed not in self.executed:
            self.executed.append(unit.executed)
        each.units_left -= 1
        if each.failed:
            return
        if unit.failure:
            each.fail(unit.failure)
            return
        self._progress_of(unit.work)(unit.tiles, unit.tiles)
        each.done.run += unit.tiles
        each.done.reader = unit.reader
        each.done.seconds.add(unit.seconds)
        if each.units_left:
            return
        if isinstance(each.item, SlideInput):
            each.done.tiles = unit.tiles
            self._complete(each)
        else:
            self._finish(each)

    def _finish(self, each: _InputRun) -> None:
        """Makes a set's result of its shards."""
        item, key = each.item, each.key
        assert isinstance(item, TileSetInput)
        start = time.perf_counter()
        places = (Work(item, key, first).place(self.out) for first in range(0, len(item), SHARD))
        try:
            with atomic_folder(self.out / item.name) as folder:
                shards, resize = map(read_shard, places), self.settings.resize
                lost = write_tile_set(
                    item,
                    self.spec,
                    shards,
                    folder,
                    resize=resize,
                    trained_on=self.trained_on,
                    class_map=self.settings.class_map,
                    table=self.table,
                )
                each.done.tiles = len(item) - len(lost)
                write_done(folder, key, each.done.tiles, source_of(item), lost)
        except Exception as error:
            each.fail(failure_of(error, item))
            if not isinstance(error, HistoError):
                return  # the shards stay for the next run
        else:
            each.failures += lost
            self._complete(each)
        for old in hidden_paths(self.out / item.name, SHARDS):
            shutil.rmtree(old, ignore_errors=True)
        seconds = time.perf_counter() - start
        each.done.seconds.write += seconds
        each.done.seconds.wall += seconds

    def _complete(self, each: _InputRun) -> None:
        """The input's result is in its place."""
        try:
            each.done.summary = json.loads((self.out / each.item.name / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            step = "Remove this folder and run the same command again"
            each.fail(Failure(each.done.path, f"has a result whose {SUMMARY} cannot be read ({error}). {step}"))
        else:
            each.complete = True


def _key(item: Input, model: str, settings: PredictSettings) -> str:
    """A hash that changes with everything that could change an input's result. The runtime's id names the precision."""
    chosen = {"runtime": settings.runtime, "device": settings.device}
    if isinstance(item, SlideInput):
        chosen_slide = asdict(settings.slide)
        regions = {name: place for name in ("roi", "mask") if (place := chosen_slide.pop(name)) is not None}
        facts: Any = [item.path.name, _size_and_time(item.path), chosen_slide]
        if regions:
            facts.append([regions, _region_facts(settings.slide, item.path)])
        if settings.slide.resample == "dct":  # which OpenSlide cannot do: the reader decides the pixels
            facts.append(settings.reader == "openslide")
        if settings.slide.coords is not None:
            facts.append(_coords_facts(settings.slide.coords, item.path))
        if settings.features is not None:
            facts.append(settings.features)
        if settings.tiles_out is not None:
            facts.append([settings.tiles_out, settings.tiles_format])
    else:
        files = [item.source] if item.rows is not None else item.files
        digest = hashlib.sha256()
        for i, file in enumerate(files):
            digest.update(f"{item.label(i)}\0{_size_and_time(file)}\0".encode(errors="surrogateescape"))
        stated = stated_facts(item)
        if any(each != TileFacts() for each in stated):  # a table may change, and its files may not
            digest.update(repr(stated).encode(errors="surrogateescape"))
        facts = [digest.hexdigest(), settings.resize]
        if settings.class_map is not None:
            facts.append(settings.class_map)
    if settings.table is not None:
        facts.append(["table", settings.table])
    return hashlib.sha256(json.dumps([RESULTS, model, chosen, facts], sort_keys=True).encode()).hexdigest()


def _coords_facts(coords: str, slide: Path) -> list[int]:
    """Of the slide's patch file; nothing where there is none, which is reported when the slide is run."""
    from histo_export.predict.coords import coords_file

    try:
        return _size_and_time(coords_file(coords, slide))
    except HistoError:
        return []


def _region_facts(settings: SlideSettings, slide: Path) -> list[list[int]]:
    """Of the slide's areas and its mask; nothing of a file that is not there, which is reported when it is run."""
    from histo_export.predict.regions import MASK, MASK_ENDINGS, ROI, ROI_ENDINGS

    facts = []
    for place, endings, kind in ((settings.roi, ROI_ENDINGS, ROI), (settings.mask, MASK_ENDINGS, MASK)):
        try:
            facts.append([] if place is None else _size_and_time(file_of(place, slide, endings, kind)))
        except HistoError:
            facts.append([])
    return facts


def _size_and_time(path: Path) -> list[int]:
    """A file's bytes and time of change (ns). Hashing its content would take as long as reading it."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _record(
    bundle: Bundle, settings: PredictSettings, ray: str | None, command: str, began: float, outcome: Outcome
) -> dict[str, Any]:
    """The content of run.json: plain values."""
    from histo_export.machine import this_machine, versions

    inputs = [asdict(done) for done in outcome.done]
    for each in inputs:
        del each["summary"]  # it is in the input's own folder
    return {
        "command": text_of(command),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "executed": outcome.executed,
        "precision": asdict(outcome.precision),
        "ray": ray,
        "settings": asdict(settings),
        "bundle": {
            "path": text_of(bundle.path),
            "hub": hub_origin(bundle.path),
            "files": {name: entry.sha256 for name, entry in bundle.config.histo.files.items()},
        },
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "peak_memory_mb": round(outcome.peak_mb),
        "inputs": inputs,
        "failures": [asdict(failure) for failure in outcome.failures],
        "skipped": [asdict(kind) for kind in outcome.skipped],
        "notes": outcome.notes,
    }
