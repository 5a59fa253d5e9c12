"""How busy other programs keep the machine while rows are timed.

The load average of the system contains the load that the measurement itself makes, so it is taken before. During the
rounds the CPU time of everything on the CPUs of this process is compared with that of this process and its workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from histo_export.system import KERNEL_FIGURES, CpuSeconds, allowed_cpus, cpu_seconds, load_average

BUSY = 0.1
"""Share of the CPUs that other programs may use; a report warns above it."""
BUSY_BEFORE = 0.5
"""Load average per CPU above which a run warns at its start."""


class Load(BaseModel):
    """How busy the machine was.

    Attributes:
        cpus: that this process may use.
        average: the load average of the last minute when the run began.
        others: how many of `cpus` other programs, and other guests of the host (steal), kept busy while rows were
            timed; None where the system does not tell it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    cpus: int
    average: float
    others: float | None

    def warning(self) -> str:
        """One sentence where the machine was busy, else ""."""
        if self.others is not None and self.others > BUSY * self.cpus:
            used = f"other programs used {self.others:.1f} of {self.cpus} CPUs while rows were timed"
            return (
                f"The machine was busy: {used}. Intervals are wide, and rows with all threads are slower than on a "
                "quiet machine. Measure again."
            )
        return ""


class LoadMeter:
    """Measures the `Load` of a run.

    Args:
        proc: the folder of the kernel's figures, on Linux.
    """

    def __init__(self, proc: Path = KERNEL_FIGURES) -> None:
        self.proc = proc
        self.cpus = allowed_cpus()
        self.average = load_average()
        self.wall = self.others = 0.0

    def warning(self) -> str:
        """One sentence where the machine was busy before the run, else ""."""
        if self.average > BUSY_BEFORE * max(1, len(self.cpus)):
            return (
                f"The machine is busy: its load is {self.average:.1f} on {len(self.cpus)} CPUs. Close other programs, "
                "or intervals will be wide."
            )
        return ""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Adds what happens in the block, in which rows are timed."""
        begin = self.read()
        try:
            yield
        finally:
            if begin and (end := self.read()):
                self.wall += end.wall - begin.wall
                self.others += max(0.0, end.everything - begin.everything - (end.ours - begin.ours))

    def load(self) -> Load:
        """The load of all blocks."""
        others = self.others / self.wall if self.wall > 0 else None
        return Load(cpus=max(1, len(self.cpus)), average=self.average, others=others)

    def read(self) -> CpuSeconds | None:
        """The figures of now; None where the system does not tell them."""
        return cpu_seconds(self.cpus, self.proc)
