"""What a fair timing is, and the loop that takes it.

**The same work.** Every runtime gets the same bytes, uint8 tiles as a decoder gives them, and returns logits in host
memory; conversion, crop and normalisation are in the time, because a user pays for them. Before and after the timing
the logits of all golden tiles are compared with the checkpoint's in float64: a runtime that is fast because it computes
something else is an error, not a row. Below fp32 they differ by the precision's own rounding, so what is allowed is
measured on the model itself (`ROUNDINGS`).

**The same machine.** Each runtime and model has a process of its own (`worker`), with the same number of threads, and
sleeps while another is timed. That it sleeps is measured: a row tells the CPU time its worker used while it had
nothing to do.

**The same moment.** A machine's speed drifts by more than most differences that are looked for: clocks, neighbours,
temperature. So nothing is timed in one stretch. A round runs every row once for a moment, in a new random order, and
rows are compared within rounds; what slows a whole round cancels (`stats`). The order is random because a fixed one
would let each row follow the same neighbour for ever, and with it its leftovers in the caches.

**Steady state, apart from the start.** Import, load and first call are timed once and reported apart. Then a row is
warmed up until its calls no longer get faster, and each slice of a round begins with a call that is not counted, in
which the caches fill again. The median of calls stands for a slice: an interrupted call says nothing about the runtime.

**Enough.** A row has at least `rounds` slices and `seconds` of timed calls in all. Whether that was enough for a
question is told by the interval and by the smallest difference that the run could have seen.

**Like beside like.** Rows are comparable when device, threads, batch, precision and tile agree. The precision is the
executed one, read back from the runtime after a real run, as is the device; one that was not asked for is an error.
Rows that are not alike stand in different tables and have no rank among each other.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from histo_export.bench.subjects import Subject
from histo_export.bench.worker import COMMAND, Worker
from histo_export.bundle_files import GOLDEN
from histo_export.errors import HistoError, UsageError
from histo_export.export.formats import format_of
from histo_export.parity import Golden
from histo_export.runtimes import RUNTIMES
from histo_export.spec import Precision
from histo_export.statistics import MIN_ROUNDS, round_medians

DEFAULT_RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "cpu": (
        "native",
        "native-latency",
        "onnxruntime",
        "openvino",
        "libtorch",
        "torch",
        "torch-channels-last",
        "torch-compile",
    ),
    "cuda": ("onnxruntime", "onnxruntime-tensorrt", "libtorch", "torch", "torch-compile", "torch-cuda-graph"),
}
"""What is timed where nothing is named, by device; those that can't be had are left out and named.

In a lower precision these are those of them that have a form in it: `default_runtimes`.
"""

ROUNDINGS = 3.0
"""Times a precision's own error that logits below fp32 may be away from float64.

Its own error is what its definition has on the same tiles and weights (`Subject.rounding`), as `Golden.spread_error`.
Runtimes round at other places and sum in other orders, and two that round independently differ by chance. `python
benchmarks/low_precision_table.py checks`, on an untrained network and on one trained on the demo's tiles: they had 0.8
to 1.4 times it, ONNX Runtime's own quantisation among them; with any one convolution left out, doubled, or its channels
swapped in pairs the networks were off by 7 times int8's own error and more, and by 16 times that of bf16.
"""

SPARE_BYTES = 500_000_000

OPEN_S, WARM_S, CLOSE_S = 4.0, 2.0, 1.0
"""Rough seconds of steps whose length nobody knows beforehand; only the time left is computed from them."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        runtimes: keys of `RUNTIMES`.
        batches: tiles per call.
        threads: numbers of threads, each measured in a block of its own.
        rounds: of every row, at least.
        seconds: of timed calls of every row in all, at least.
        device: "cpu" or "cuda".
        seed: of the order within rounds.
        may_lack: leave out and report runtimes that can't be opened here, rather than fail.
    """

    runtimes: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int = 15
    seconds: float = 3.0
    device: str = "cpu"
    seed: int = 0
    may_lack: bool = False

    def __post_init__(self) -> None:
        if self.rounds < MIN_ROUNDS:
            raise UsageError(
                f"--rounds {self.rounds}", "are too few for an interval", f"Use --rounds {MIN_ROUNDS} or more"
            )
        if not self.seconds > 0:
            raise UsageError(f"--time {self.seconds:g}", "is not a positive number of seconds", "Use e.g. --time 3")


@dataclass(frozen=True, order=True)
class Like:
    """What two rows must share to be compared."""

    device: str
    threads: int
    batch: int
    precision: str
    tile_size: int
    crop: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"batch {self.batch}, {threads}, {self.precision}, {self.device}"


class Row(BaseModel):
    """One runtime, model, number of threads and batch.

    Attributes:
        subject, pool: the model.
        runtime, name: key of `RUNTIMES`, and what it calls itself.
        device, threads, batch, tile_size, crop: what was asked for.
        executed, precision, devices, isa: what was done, read back after a real run.
        import_s, load_s: seconds to import the runtime and to load the model, the file being in the page cache.
        first_s: seconds of the first call at this batch.
        warm_calls, warm_s, stable: of the warm-up, and whether calls had stopped getting faster at its end.
        rounds: seconds of each timed call, by round.
        max_relative: largest |Δlogit| found, in units of a tile's largest logit.
        spread_error: RMS error found, in units of the logits' spread (`Golden.spread_error`); below fp32 only.
        tolerance: allowed, of `max_relative` in fp32 and of `spread_error` below it.
        memory_before_mb, memory_peak_mb: resident memory before the model was loaded, and at most up to this batch.
        idle_cpu: share of one CPU that the worker used while it had nothing to do.
        layers: stage, layer and seconds from the runtime's profiler; None where it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    subject: str
    pool: int
    runtime: str
    name: str
    device: str
    threads: int
    batch: int
    tile_size: int
    crop: int
    executed: str
    precision: str
    devices: list[str]
    isa: str
    import_s: float
    load_s: float
    first_s: float
    warm_calls: int
    warm_s: float
    stable: bool
    rounds: list[list[float]]
    max_relative: float
    spread_error: float | None = None
    tolerance: float
    memory_before_mb: float
    memory_peak_mb: float
    idle_cpu: float
    layers: list[tuple[str, str, float]] | None

    @property
    def like(self) -> Like:
        """Rows with equal values may be compared."""
        return Like(self.device, self.threads, self.batch, self.precision, self.tile_size, self.crop)

    @property
    def medians(self) -> npt.NDArray[np.float64]:
        """Seconds of the median call of each round."""
        return round_medians(self.rounds)


@dataclass(frozen=True)
class Progress:
    """What is being done, how much of the work is done (0 to 1), and the seconds left."""

    doing: str
    done: float
    left_s: float


OnProgress = Callable[[Progress], None]


def measure(
    subjects: Sequence[Subject],
    settings: Settings,
    report: OnProgress = lambda progress: None,
    command: Sequence[str] = COMMAND,
) -> tuple[list[Row], dict[str, str]]:
    """Times every subject in every runtime.

    Args:
        subjects: of one crop and tile size.
        settings: how.
        report: told what is done and how long it will take.
        command: the worker's program.

    Returns:
        The rows; and the runtimes that were left out, with the reason.

    Raises:
        HistoError: a runtime can't be opened, died, hung, ran on another device than asked for, or computes other
            logits than the checkpoint.
    """
    plan = _Plan(len(subjects), settings, report)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for threads in settings.threads:
        with ExitStack() as stack:
            contestants: list[_Contestant] = []
            for runtime in settings.runtimes:
                for subject in subjects if runtime not in left_out else ():
                    label = f"{runtime}, {subject.label}"
                    plan.step(f"starting {label}", opened=1)
                    contestant = _Contestant(subject, runtime, threads, settings.device, label, command)
                    stack.callback(contestant.worker.close)
                    try:
                        contestant.open()
                    except HistoError as error:
                        if not settings.may_lack:
                            raise
                        left_out[runtime] = str(error)
                        break
                    contestants.append(contestant)
                    require_memory(label)
            cells = [_Cell(contestant, batch) for contestant in contestants for batch in sorted(settings.batches)]
            for cell in cells:
                plan.step(f"warming up {cell}", warmed=1)
                if cell.contestant.runtime not in left_out:
                    try:
                        cell.prepare()
                    except _OtherPrecisionError as error:
                        if not settings.may_lack:
                            raise
                        left_out[cell.contestant.runtime] = str(error)
            cells = [cell for cell in cells if cell.contestant.runtime not in left_out]
            if not cells:
                raise HistoError("histo bench", "found no runtime that runs here", "; ".join(left_out.values()))
            _run_rounds(cells, settings, plan)
            for cell in cells:
                plan.step(f"checking {cell}", closed=1)
                rows.append(cell.finish())
    return rows, left_out


def _run_rounds(cells: Sequence[_Cell], settings: Settings, plan: _Plan) -> None:
    """Every cell once a round, in a new order each time."""
    slice_s = settings.seconds / settings.rounds
    plan.know(sum(max(slice_s, cell.call_s) + cell.call_s for cell in cells))
    for number, order in enumerate(orders(len(cells), settings.rounds, settings.seed)):
        for done, index in enumerate(order):
            plan.step(f"round {number + 1} of {settings.rounds}", rounds=number + done / len(cells))
            cells[index].time(slice_s)
    plan.step("rounds done", rounds=settings.rounds)


def orders(cells: int, rounds: int, seed: int) -> Iterator[list[int]]:
    """The order of the cells in each round."""
    generator = random.Random(seed)
    for _ in range(rounds):
        yield generator.sample(range(cells), cells)


def default_runtimes(device: str, precisions: Sequence[Precision]) -> tuple[str, ...]:
    """The ids of `DEFAULT_RUNTIMES` in each precision that they have a form in."""
    forms = (
        f"{name}-{precision}".removesuffix("-fp32") for precision in precisions for name in DEFAULT_RUNTIMES[device]
    )
    return tuple(name for name in forms if name in RUNTIMES)


def precision_of(executed: str) -> str:
    """The class of the precision that a runtime says it executed; rows of different classes are not ranked.

    A mixture that has int8 in it is "int8", as is an int8 model whose stem or residual sums run in more; any other
    mixture is a class of its own. HistoError where none is named.
    """
    if found := re.search(r"\b(fp32|tf32|fp16|bf16x3|bf16|int8)(\+\w+)*\b", executed):
        return "int8" if "int8" in found[0].split("+") else found[0]
    raise HistoError("The runtime", f"names no precision in what it executed ({executed})", "Report this")


def require_device(label: str, device: str, found: Sequence[str]) -> None:
    """Raises HistoError unless all that was computed was computed on `device`."""
    on_gpu = [name.lower().startswith(("cuda", "tensorrt")) for name in found]
    if not found or (not all(on_gpu) if device == "cuda" else any(on_gpu)):
        raise HistoError(
            f"{label}: --device {device}", f"but it ran on {', '.join(found) or 'nothing'}", "See histo doctor for why"
        )


def require_memory(label: str) -> None:
    """Raises HistoError where so little memory is left that the system would soon swap, which no timing survives."""
    with Path("/proc/meminfo").open() as facts:
        available = next(int(line.split()[1]) * 1024 for line in facts if line.startswith("MemAvailable:"))
    if available < SPARE_BYTES:
        raise HistoError(
            "Memory",
            f"is nearly used up after starting {label}: {available / 1e6:.0f} MB are left",
            "Name fewer --runtimes, --pools or bundles; each has a process of its own",
        )


class _OtherPrecisionError(HistoError):
    """A runtime executed another precision than it was asked for."""


class _Contestant:
    """A worker and what is known about it."""

    def __init__(
        self, subject: Subject, runtime: str, threads: int, device: str, label: str, command: Sequence[str]
    ) -> None:
        self.subject, self.runtime, self.threads, self.device = subject, runtime, threads, device
        self.golden = Golden.read(subject.folder / GOLDEN)
        self.file = subject.file(RUNTIMES[runtime].file)
        self.precision = RUNTIMES[runtime].precision
        low = self.precision != "fp32"
        self.allowed = ROUNDINGS * subject.rounding(self.precision) if low else format_of(self.file.name).tolerance
        self.worker = Worker(label, command)
        self.facts: dict[str, Any] = {}

    def open(self) -> None:
        golden = self.subject.folder / GOLDEN
        self.facts = self.worker.open(self.runtime, self.file, golden, self.threads, self.device)


class _Cell:
    """A contestant at one batch: a row to be."""

    def __init__(self, contestant: _Contestant, batch: int) -> None:
        self.contestant, self.batch = contestant, batch
        self.facts: dict[str, Any] = {}
        self.rounds: list[list[float]] = []
        self.call_s = 0.0
        self.max_relative = 0.0
        self.spread_error: float | None = None

    def __str__(self) -> str:
        return f"{self.contestant.worker.label}, batch {self.batch}"

    def prepare(self) -> None:
        """First call, check, warm-up, memory."""
        worker = self.contestant.worker
        self.facts["first_s"] = worker.call(self.batch)
        executed = worker.executed()
        precision = precision_of(executed["executed"])
        if precision != self.contestant.precision:
            raise _OtherPrecisionError(
                str(self),
                f"was asked for {self.contestant.precision} and executed {executed['executed']}",
                "Leave it out with --runtimes",
            )
        self.facts |= executed | {"precision": precision}
        self.check("before timing")
        warm = worker.warm(self.batch)
        self.call_s = warm["call_s"]
        self.facts |= {"warm_calls": warm["calls"], "warm_s": warm["seconds"], "stable": warm["stable"]}
        memory = worker.memory()
        self.facts |= {"memory_before_mb": memory["before"], "memory_peak_mb": memory["peak"]}

    def check(self, when: str) -> None:
        golden, allowed = self.contestant.golden, self.contestant.allowed
        logits = self.contestant.worker.logits(self.batch)
        error = golden.relative_error(logits)
        self.max_relative = max(self.max_relative, error)
        unit = "a tile's largest"
        if self.contestant.precision != "fp32":
            error, unit = golden.spread_error(logits), "their spread"
            self.spread_error = max(self.spread_error or 0.0, error)
        if not error <= allowed:  # written so that NaN fails
            raise HistoError(
                str(self),
                f"computes other logits than the checkpoint {when}: they differ by {error:.2g} of {unit}, "
                f"where {allowed:.2g} is allowed",
                f"Do not ship it; histo verify {self.contestant.subject.folder} looks for the stage",
            )

    def time(self, seconds: float) -> None:
        self.rounds.append(self.contestant.worker.time(self.batch, seconds))

    def finish(self) -> Row:
        self.check("after timing")
        worker, subject = self.contestant.worker, self.contestant.subject
        devices = worker.devices()
        require_device(worker.label, self.contestant.device, devices)
        return Row(
            subject=subject.label,
            pool=subject.spec.pool,
            runtime=self.contestant.runtime,
            device=self.contestant.device,
            threads=self.contestant.threads,
            batch=self.batch,
            tile_size=subject.spec.tile_size,
            crop=subject.spec.crop,
            rounds=self.rounds,
            max_relative=self.max_relative,
            spread_error=self.spread_error,
            tolerance=self.contestant.allowed,
            devices=devices,
            idle_cpu=worker.idle_cpu / max(worker.idle, 1e-9),
            layers=worker.layers(self.batch),
            **self.contestant.facts,
            **self.facts,
        )


class _Plan:
    """The steps left and their rough length, for the report of progress."""

    def __init__(self, subjects: int, settings: Settings, report: OnProgress) -> None:
        self.report = report
        self.start = time.monotonic()
        self.blocks = len(settings.threads)
        contestants = subjects * len(settings.runtimes) * self.blocks
        cells = contestants * len(settings.batches)
        self.left = {"opened": float(contestants), "warmed": float(cells), "closed": float(cells)}
        self.cost = {"opened": OPEN_S, "warmed": WARM_S, "closed": CLOSE_S}
        self.rounds_left = float(settings.rounds * self.blocks)
        self.settings = settings
        self.round_s = cells / self.blocks * (settings.seconds / settings.rounds + 0.3)

    def know(self, round_s: float) -> None:
        """The true length of a round, once calls have been timed; runtimes that were left out need none."""
        self.round_s = round_s
        self.left["opened"] = self.left["opened"] if self.blocks > 1 else 0
        self.left["warmed"] = self.left["warmed"] if self.blocks > 1 else 0
        self.blocks -= 1

    def step(self, doing: str, rounds: float | None = None, **begun: int) -> None:
        """Reports that a step begins; `rounds` counts those done in this block."""
        if rounds is not None:
            self.rounds_left = self.blocks * self.settings.rounds + self.settings.rounds - rounds
        left_s = self.rounds_left * self.round_s + sum(self.left[kind] * self.cost[kind] for kind in self.left)
        for kind, count in begun.items():
            self.left[kind] = max(0.0, self.left[kind] - count)
        spent = time.monotonic() - self.start
        self.report(Progress(doing, spent / max(spent + left_s, 1e-9), left_s))
