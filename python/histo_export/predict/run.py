"""`histo predict`: every input through one runtime, each result whole or not at all.

An input's results come into being in a hidden folder beside their place and are moved there when they are complete. So
a killed run leaves nothing half-written, and the same command again does what is missing: an input is done if its
folder holds `done.json` with the same key, a hash of the model, the settings and the input.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import CONFIG, Bundle, open_bundle
from histo_export.predict.inputs import Failure, Input, SlideInput, find_inputs, text_of
from histo_export.predict.loop import StageSeconds
from histo_export.predict.tile_set import predict_tile_set
from histo_export.runtimes import RUNTIMES, Runtime, open_runtime
from histo_export.spec import ModelSpec
from histo_export.whole import whole_folder, write_whole

DONE, RUN, FAILED = "done.json", "run.json", "failed.csv"


@dataclass(frozen=True)
class PredictSettings:
    """What may change a result, `runtime` and everything below; the rest only its speed.

    Attributes:
        runtime: of `RUNTIMES`.
        device: "cpu" or "cuda".
        resize: resample tiles of other sizes.
        slide: keyword arguments of `SlideSettings`, and of `TissueSettings` below "tissue".
        batch: tiles per call.
        threads: of the runtime, and reader threads.
    """

    runtime: str = "native"
    device: str = "cpu"
    resize: bool = False
    slide: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    threads: int = 1


@dataclass(frozen=True)
class Done:
    """One input's outcome: `tiles` predicted in `seconds`, `skipped` where an earlier run had done it."""

    name: str
    path: str
    tiles: int
    seconds: StageSeconds
    skipped: bool = False


@dataclass
class Outcome:
    """A run's: what was done and what could not be used."""

    done: list[Done]
    failures: list[Failure]
    seconds: StageSeconds
    peak_mb: float


@dataclass(frozen=True)
class Progress:
    """Input `number` of `inputs`, `done` of its `tiles`, and the tiles of all inputs that are done in this run."""

    name: str
    number: int
    inputs: int
    done: int
    tiles: int
    all_done: int


def open_model(bundle: Path, runtime: str, threads: int, device: str) -> tuple[Bundle, ModelSpec, Runtime]:
    """A bundle, every file checked, and the file that `runtime` runs, opened."""
    opened = open_bundle(bundle)
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime {runtime}", "is not known", f"Use one of {', '.join(RUNTIMES)}")
    file = RUNTIMES[runtime].file
    if file not in opened.models:
        raise HistoError(bundle, f"has no {file}, which {runtime} runs", "Export again, or use another --runtime")
    return opened, ModelSpec.from_dict(opened.config.histo.spec), open_runtime(runtime, bundle / file, threads, device)


def predict(
    bundle: Path,
    paths: Sequence[Path],
    out: Path,
    settings: PredictSettings,
    *,
    force: bool = False,
    command: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Predicts every input into a folder of its own below `out`.

    Raises:
        UsageError: `out` holds results of another model or other settings and `force` is not set.
        HistoError: the bundle can't be opened, or `out` can't be written.
    """
    began = time.time()
    opened, spec, runtime = open_model(bundle, settings.runtime, settings.threads, settings.device)
    inputs, failures = find_inputs(paths, spec.tile_size)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HistoError(out, f"can't be made ({error.strerror})", "Choose another --out") from error
    model = hashlib.sha256((bundle / CONFIG).read_bytes()).hexdigest()
    keys = {item.name: _key(item, model, settings) for item in inputs}
    _check_earlier(out, keys, force)
    outcome = Outcome([], failures, StageSeconds(), 0.0)
    for number, item in enumerate(inputs, 1):
        _one(item, number, len(inputs), keys[item.name], out, runtime, spec, settings, outcome, report)
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    _write_record(out, opened, runtime, settings, command, began, outcome)
    return outcome


def _one(
    item: Input,
    number: int,
    inputs: int,
    key: str,
    out: Path,
    runtime: Runtime,
    spec: ModelSpec,
    settings: PredictSettings,
    outcome: Outcome,
    report: Callable[[Progress], None],
) -> None:
    """Predicts one input, or adds why not to the failures."""
    path = text_of(item.path if isinstance(item, SlideInput) else item.source)
    before = sum(done.tiles for done in outcome.done if not done.skipped)

    def progress(done: int, tiles: int) -> None:
        report(Progress(text_of(item.name), number, inputs, done, tiles, before + done))

    if (tiles := _tiles_done(out / item.name, key)) is not None:
        outcome.done.append(Done(text_of(item.name), path, tiles, StageSeconds(), skipped=True))
        return
    progress(0, 0)
    try:
        with whole_folder(out / item.name) as folder:
            loop = {"batch": settings.batch, "readers": settings.threads, "progress": progress}
            if isinstance(item, SlideInput):
                seconds, tiles = _predict_slide(item, runtime, spec, settings, folder, **loop)
            else:
                seconds, failed = predict_tile_set(item, runtime, spec, folder, resize=settings.resize, **loop)  # type: ignore[arg-type]
                outcome.failures += failed
                tiles = len(item) - len(failed)
            (folder / DONE).write_text(json.dumps({"key": key, "tiles": tiles}) + "\n")
    except UsageError:
        raise  # an impossible option is no fault of the input
    except HistoError as error:
        outcome.failures.append(Failure(text_of(error.thing), f"{error.cause}. {error.next_step}"))
        return
    except OSError as error:  # of the output: readers report theirs as HistoError
        reason = f"could not be written ({error.strerror or error}). Free some space or choose another --out"
        outcome.failures.append(Failure(path, reason))
        return
    outcome.done.append(Done(text_of(item.name), path, tiles, seconds))
    outcome.seconds.add(seconds)


def _predict_slide(
    item: SlideInput, runtime: Runtime, spec: ModelSpec, settings: PredictSettings, folder: Path, **loop: Any
) -> tuple[StageSeconds, int]:
    # Only here, because the packages that read slides are an extra.
    from histo_export.predict.slide import open_slide
    from histo_export.predict.whole_slide import predict_slide

    slide = open_slide(item.path)
    try:
        prediction = predict_slide(slide, runtime, spec, slide_settings(settings.slide), **loop)
    finally:
        slide.close()
    start = time.perf_counter()
    prediction.write(folder)
    prediction.seconds.write += time.perf_counter() - start
    prediction.seconds.wall += time.perf_counter() - start
    return prediction.seconds, len(prediction.grid)


def slide_settings(values: dict[str, Any]) -> Any:
    """`SlideSettings` from plain values."""
    from histo_export.predict.tissue import TissueSettings
    from histo_export.predict.whole_slide import SlideSettings

    return SlideSettings(**(values | {"tissue": TissueSettings(**values.get("tissue", {}))}))


def _key(item: Input, model: str, settings: PredictSettings) -> str:
    """Changes with whatever could change the result."""
    chosen = {"runtime": settings.runtime, "device": settings.device}
    if isinstance(item, SlideInput):
        facts: Any = [item.path.name, _size(item.path), settings.slide]
    else:
        files = [item.source] if item.array is not None else item.files
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
    runtime: Runtime,
    settings: PredictSettings,
    command: str,
    began: float,
    outcome: Outcome,
) -> None:
    from histo_export.bench.machine import this_machine, versions

    record = {
        "command": command,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "executed": runtime.executed,
        "settings": asdict(settings),
        "bundle": {"path": str(bundle.path), "files": {k: v.sha256 for k, v in bundle.config.histo.files.items()}},
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "peak_memory_mb": round(outcome.peak_mb),
        "inputs": [asdict(done) for done in outcome.done],
        "failures": [asdict(failure) for failure in outcome.failures],
    }
    try:
        write_whole(out / RUN, json.dumps(record, indent=2) + "\n")
        if outcome.failures:
            table = io.StringIO()
            rows = [("path", "reason"), *((failure.path, failure.reason) for failure in outcome.failures)]
            csv.writer(table, lineterminator="\n").writerows(rows)
            write_whole(out / FAILED, table.getvalue())
        else:
            (out / FAILED).unlink(missing_ok=True)
    except OSError as error:
        raise HistoError(out, f"could not be written ({error.strerror})", "Free some space") from error
