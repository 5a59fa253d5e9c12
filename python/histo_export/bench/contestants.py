"""A model in a runtime while it is measured, and every reason not to believe what it gives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from histo_export.bench.rows import Row
from histo_export.bench.subjects import Subject
from histo_export.bench.worker_handle import COMMAND, Worker
from histo_export.bundle_files import GOLDEN
from histo_export.errors import HistoError
from histo_export.export.formats import format_of
from histo_export.parity import Golden
from histo_export.runtimes import Variant
from histo_export.system import available_memory

ROUNDINGS = 3.0
"""How many times a precision's own error logits below fp32 may be away from float64.

Its own error is what its definition has on the same tiles and weights (`Subject.rounding`), as `Golden.spread_error`.
Runtimes round at other places and sum in other orders, and two that round independently differ by chance. `python
benchmarks/low_precision_table.py checks`, on an untrained network and on one trained on the demo's tiles: they had 0.8
to 1.4 times it, ONNX Runtime's own quantisation among them; with any one convolution left out, doubled, or its channels
swapped in pairs the networks were off by 7 times int8's own error and more, and by 16 times that of bf16.
"""

SPARE_BYTES = 500_000_000
"""Memory that must be left, since no timing survives a system that swaps."""


class OtherPrecisionError(HistoError):
    """A runtime executed another precision than it was asked for."""


class Contestant:
    """A worker and what is known about it.

    Args:
        subject: the model.
        variant: what runs it.
        threads: of the runtime.
        device: "cpu" or "cuda".
        command: the worker's program.

    Raises:
        HistoError: the subject lacks a file.
    """

    def __init__(
        self, subject: Subject, variant: Variant, *, threads: int, device: str, command: Sequence[str] = COMMAND
    ) -> None:
        self.subject, self.variant, self.threads, self.device = subject, variant, threads, device
        self.golden_file = subject.folder / GOLDEN
        self.golden = Golden.read(self.golden_file)
        self.file = subject.file(variant.file)
        if variant.precision == "fp32":
            self.tolerance = format_of(self.file.name).tolerance
        else:
            self.tolerance = ROUNDINGS * subject.rounding(variant.precision)
        self.label = f"{variant}, {subject.label}"
        self.worker = Worker(self.label, command)
        self.opening: dict[str, Any] = {}

    def open(self) -> None:
        """Loads the model, of which `opening` keeps the facts."""
        self.opening = self.worker.open(
            self.variant, self.file, self.golden_file, threads=self.threads, device=self.device
        )


class RowInProgress:
    """A contestant at one batch, from its first call to its row."""

    def __init__(self, contestant: Contestant, batch: int) -> None:
        self.contestant, self.batch = contestant, batch
        self.facts: dict[str, Any] = {}
        self.rounds: list[list[float]] = []
        self.call_s = 0.0
        self.max_relative = 0.0
        self.spread_error: float | None = None

    def __str__(self) -> str:
        return f"{self.contestant.label}, batch {self.batch}"

    def prepare(self) -> None:
        """First call, checks of precision and logits, warm-up, memory.

        Raises:
            OtherPrecisionError: another precision was executed.
            HistoError: the logits are wrong, or the worker failed.
        """
        worker = self.contestant.worker
        self.facts["first_s"] = worker.call(self.batch)
        executed = worker.executed()
        precision = precision_of(executed["executed"])
        if precision != self.contestant.variant.precision:
            raise OtherPrecisionError(
                str(self),
                f"was asked for {self.contestant.variant.precision} and executed {executed['executed']}",
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
        """HistoError where the logits of the golden tiles are not the checkpoint's; the errors are kept."""
        golden, tolerance = self.contestant.golden, self.contestant.tolerance
        logits = self.contestant.worker.logits(self.batch)
        error = golden.relative_error(logits)
        self.max_relative = max(self.max_relative, error)
        unit = "a tile's largest"
        if self.contestant.variant.precision != "fp32":
            error, unit = golden.spread_error(logits), "their spread"
            self.spread_error = max(self.spread_error or 0.0, error)
        if not error <= tolerance:  # written so that NaN fails
            raise HistoError(
                str(self),
                f"computes other logits than the checkpoint {when}: they differ by {error:.2g} of {unit}, "
                f"where {tolerance:.2g} is allowed",
                f"Do not ship it; histo verify {shlex.quote(str(self.contestant.subject.folder))} looks for the stage",
            )

    def time(self, seconds: float) -> None:
        """One slice of a round."""
        self.rounds.append(self.contestant.worker.time(self.batch, seconds))

    def finish(self) -> Row:
        """The row, after a last check of logits and devices; HistoError where one is wrong."""
        self.check("after timing")
        contestant, worker, spec = self.contestant, self.contestant.worker, self.contestant.subject.spec
        devices = worker.devices()
        require_device(contestant.label, contestant.device, devices)
        return Row(
            subject=contestant.subject.label,
            pool=spec.pool,
            runtime=str(contestant.variant),
            device=contestant.device,
            threads=contestant.threads,
            batch=self.batch,
            tile_size=spec.tile_size,
            crop=spec.crop,
            rounds=self.rounds,
            max_relative=self.max_relative,
            spread_error=self.spread_error,
            tolerance=contestant.tolerance,
            devices=devices,
            idle_cpu=worker.idle_cpu / max(worker.idle, 1e-9),
            layers=worker.layers(self.batch),
            **contestant.opening,
            **self.facts,
        )


def precision_of(executed: str) -> str:
    """The class of the precision that a runtime says it executed; rows of different classes are not ranked.

    A mixture that has int8 in it is "int8", as is an int8 model whose stem or residual sums run in more; any other
    mixture is a class of its own. HistoError where none is named.
    """
    if named := re.search(r"\b(fp32|tf32|fp16|bf16x3|bf16|int8)(\+\w+)*\b", executed):
        return "int8" if "int8" in named[0].split("+") else named[0]
    raise HistoError("The runtime", f"names no precision in what it executed ({executed})", "Report this")


def require_device(label: str, device: str, used: Sequence[str]) -> None:
    """Raises HistoError unless all devices and providers that were `used` belong to `device`."""
    on_gpu = [name.lower().startswith(("cuda", "tensorrt")) for name in used]
    if not used or (not all(on_gpu) if device == "cuda" else any(on_gpu)):
        raise HistoError(
            f"{label}: --device {device}", f"but it ran on {', '.join(used) or 'nothing'}", "See histo doctor for why"
        )


def require_memory(label: str) -> None:
    """Raises HistoError where less than `SPARE_BYTES` of memory are left."""
    available = available_memory()
    if available < SPARE_BYTES:
        raise HistoError(
            "Memory",
            f"is nearly used up after starting {label}: {available / 1e6:.0f} MB are left",
            "Name fewer --runtimes, --pools or bundles; each has a process of its own",
        )
