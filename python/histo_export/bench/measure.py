"""What a fair timing is, and the loop that takes it.

**The same work.** Every runtime gets the same bytes, uint8 tiles as a decoder gives them, and returns logits in host
memory; conversion, crop and normalisation are in the time, because a user pays for them. Before and after the timing
the logits of all golden tiles are compared with the checkpoint's in float64: a runtime that is fast because it computes
something else is an error, not a row. Below fp32 they differ by the precision's own rounding, so what is allowed is
measured on the model itself (`contestants.ROUNDINGS`).

**The same machine.** Each runtime and model has a process of its own (`worker`), with the same number of threads, and
sleeps while another is timed. That it sleeps is measured: a row tells the CPU time its worker used while it had
nothing to do.

**The same moment.** A machine's speed drifts by more than most differences that are looked for: clocks, neighbours,
temperature. So nothing is timed in one stretch. A round runs every row once for a moment, in a new random order, and
rows are compared within rounds; what slows a whole round cancels (`statistics`). The order is random because in a fixed
one each row would always run after the same row, with that row's data in the caches.

**Steady state, apart from the start.** Import, load and first call are timed once and reported apart. Then a row is
warmed up until its calls no longer get faster, and each slice of a round begins with a call that is not counted, in
which the caches fill again. The median of calls stands for a slice: an interrupted call says nothing about the runtime.

**Enough.** A row has at least `rounds` slices and `seconds` of timed calls in all. Whether that was enough for a
question is shown by the interval and by the smallest difference that the run could have found.

**Like beside like.** Rows are comparable when device, threads, batch, precision and tile agree. The precision is the
executed one, read back from the runtime after a real run, as is the device; one that was not asked for is an error.
Rows that differ in one of them stand in different tables and have no rank among each other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from histo_export.bench.contestants import Contestant, OtherPrecisionError, RowInProgress, require_memory
from histo_export.bench.load import LoadMeter
from histo_export.bench.progress import OnProgress, ProgressEstimate
from histo_export.bench.rows import Row
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject
from histo_export.bench.worker_handle import COMMAND
from histo_export.errors import HistoError
from histo_export.statistics import MIN_ROUNDS


@dataclass
class Circumstances:
    """What a reader must know about a run beside its rows.

    Attributes:
        meter: measures how busy other programs are while rows are timed.
        stopped: "after 9 of 15 rounds with 2 threads" where the user stopped it; else "".
    """

    meter: LoadMeter = field(default_factory=LoadMeter)
    stopped: str = ""


def measure(
    subjects: Sequence[Subject],
    settings: Settings,
    report: OnProgress = lambda progress: None,
    command: Sequence[str] = COMMAND,
    circumstances: Circumstances | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Times every subject in every runtime.

    Ctrl-C ends it with the rounds that are complete, if these are enough for an interval.

    Args:
        subjects: of one crop and tile size.
        settings: how.
        report: called with what is done and how long the rest will take.
        command: the worker's program.
        circumstances: filled in.

    Returns:
        The rows; and the runtimes that were left out, with the reason.

    Raises:
        HistoError: a runtime is unavailable, died, hung, ran on another device than asked for, or computes other
            logits than the checkpoint.
        KeyboardInterrupt: Ctrl-C before enough rounds of any row were complete.
    """
    estimate = ProgressEstimate(len(subjects), settings, report)
    measurement = _Measurement(subjects, settings, estimate, command, circumstances or Circumstances())
    rows: list[Row] = []
    for threads in settings.threads:
        try:
            rows += measurement.block(threads)
        except KeyboardInterrupt:
            if not rows:
                raise
            measurement.circumstances.stopped = f"before the rows with {_threads(threads)} were complete"
        if measurement.circumstances.stopped:
            break
    return rows, measurement.left_out


class _Measurement:
    """A run of `measure`; `left_out` is runtime → why it is not in the rows."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        settings: Settings,
        progress: ProgressEstimate,
        command: Sequence[str],
        circumstances: Circumstances,
    ) -> None:
        self.subjects, self.settings, self.progress, self.command = subjects, settings, progress, command
        self.circumstances = circumstances
        self.left_out: dict[str, str] = {}

    def block(self, threads: int) -> list[Row]:
        """All rows with one number of threads; the workers of a block end with it."""
        with ExitStack() as stack:
            contestants = self._open(threads, stack)
            batches = sorted(self.settings.batches)
            pending = self._prepare([RowInProgress(each, batch) for each in contestants for batch in batches])
            if not pending:
                reasons = "; ".join(self.left_out.values())
                raise HistoError("histo bench", "found no runtime that runs here", reasons)
            with self.circumstances.meter.watch():
                rounds = self._time(pending)
            if rounds < self.settings.rounds:
                self.circumstances.stopped = f"after {rounds} of {self.settings.rounds} rounds with {_threads(threads)}"
            rows = []
            for row in pending:
                self.progress.step(f"checking {row}", closed=1)
                rows.append(row.finish())
            return rows

    def _open(self, threads: int, stack: ExitStack) -> list[Contestant]:
        """Starts a worker for each runtime and model; `stack` ends them."""
        contestants: list[Contestant] = []
        for variant in self.settings.runtimes:
            for subject in self.subjects if str(variant) not in self.left_out else ():
                self.progress.step(f"starting {variant}, {subject.label}", opened=1)
                contestant = Contestant(
                    subject, variant, threads=threads, device=self.settings.device, command=self.command
                )
                stack.callback(contestant.worker.close)
                try:
                    contestant.open()
                except HistoError as error:
                    self._leave_out(contestant, error)
                    break
                contestants.append(contestant)
                require_memory(contestant.label)
        return contestants

    def _prepare(self, pending: Sequence[RowInProgress]) -> list[RowInProgress]:
        """Checks and warms up each row; returns those whose runtime was not left out."""
        for row in pending:
            self.progress.step(f"warming up {row}", warmed=1)
            if str(row.contestant.variant) not in self.left_out:
                try:
                    row.prepare()
                except OtherPrecisionError as error:
                    self._leave_out(row.contestant, error)
        return [row for row in pending if str(row.contestant.variant) not in self.left_out]

    def _leave_out(self, contestant: Contestant, error: HistoError) -> None:
        if not self.settings.may_lack:
            raise error
        self.left_out[str(contestant.variant)] = str(error)

    def _time(self, pending: Sequence[RowInProgress]) -> int:
        """Every row once a round, in a new order each time; returns the number of rounds.

        Raises:
            KeyboardInterrupt: Ctrl-C before there were enough rounds for an interval.
        """
        try:
            self._time_rounds(pending)
        except KeyboardInterrupt:
            complete = min(len(row.rounds) for row in pending)
            if complete < MIN_ROUNDS:
                raise
            for row in pending:
                del row.rounds[complete:]
        return len(pending[0].rounds)

    def _time_rounds(self, pending: Sequence[RowInProgress]) -> None:
        rounds = self.settings.rounds
        slice_s = self.settings.seconds / rounds
        self.progress.rounds_begin(sum(max(slice_s, row.call_s) + row.call_s for row in pending))
        for number, order in enumerate(orders(len(pending), rounds, self.settings.seed)):
            for place, index in enumerate(order):
                done = number + place / len(pending)
                self.progress.step(f"round {number + 1} of {rounds}", rounds_done=done)
                pending[index].time(slice_s)
        self.progress.step("rounds done", rounds_done=rounds)


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def orders(rows: int, rounds: int, seed: int) -> Iterator[list[int]]:
    """The order of the rows in each round."""
    generator = random.Random(seed)
    for _ in range(rounds):
        yield generator.sample(range(rows), rows)
