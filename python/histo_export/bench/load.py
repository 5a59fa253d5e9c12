"""How busy other programs keep the machine while rows are timed.

The load average of the system contains the load that the measurement itself makes, so it is taken before. During the
rounds the CPU time of everything on the CPUs of this process is compared with that of this process and its workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

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


@dataclass(frozen=True)
class CpuSeconds:
    """Seconds since some time in the past: on a clock, of all programs on our CPUs, and of us and our workers."""

    wall: float
    everything: float
    ours: float


class LoadMeter:
    """Measures the `Load` of a run.

    Args:
        proc: the folder of the kernel's figures.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.proc = proc
        self.cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.average = os.getloadavg()[0]
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
        tick = os.sysconf("SC_CLK_TCK")
        try:
            lines = (self.proc / "stat").read_text(encoding="ascii").splitlines()
            mine = [line.split() for line in lines if line.startswith(tuple(f"cpu{cpu} " for cpu in self.cpus))]
            # user nice system idle iowait irq softirq steal; the guests' time after these is a part of user and nice
            everything = sum(int(field) for fields in mine for i, field in enumerate(fields[1:9]) if i not in (3, 4))
            return CpuSeconds(time.monotonic(), everything / tick, self._ours() / tick) if mine else None
        except (OSError, ValueError):
            return None

    def _ours(self) -> int:
        """Ticks of this process, of its descendants, and of those of them that have ended."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for folder in self.proc.glob("[0-9]*"):
            try:
                # The name of the program, in brackets, may contain anything.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = sum(map(int, fields[11:15]))
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sum(ticks.get(pid, 0) for pid in ours)
