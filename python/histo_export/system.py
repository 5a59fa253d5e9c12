"""What differs between operating systems: this machine's processors and memory, and the processes on it.

No other module asks the system itself, and tests/test_system.py checks that. Linux is asked through the files of its
kernel, which know what psutil does not: namespaces, the highest memory so far, other guests of the host. Other systems
are asked through psutil, which is installed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LINUX = sys.platform == "linux"

NVIDIA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The library that every program needs which uses an NVIDIA GPU."""

# --- files -----------------------------------------------------------------------------------------------------------


class SharedFile:
    """A file that several threads read at once, each at a place of its own. Dropping it closes it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size
        """Bytes of the file when it was opened."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file. OSError where they cannot be read."""
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:  # Windows has one place for all
            self._file.seek(offset)
            return self._file.read(size) or b""

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # it was opened
            self.close()


def make_room(file: int, size: int) -> None:
    """Makes an open, empty file `size` bytes long; where the system can, with the room that it needs on the disk.

    A process that writes to a memory map of a file without room is ended by a signal.

    Args:
        file: its descriptor.
        size: bytes.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


# --- processors ------------------------------------------------------------------------------------------------------


def allowed_cpus() -> list[int]:
    """Numbers of the CPUs on which this process may run; all of them where the system has no such choice (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    if sys.platform == "win32":
        return sorted(_this_process().cpu_affinity())
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """The CPU's model name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown CPU"


def cpu_caches() -> Iterator[str]:
    """Level and size of each data cache of the first CPU, e.g. "L2 1024K"; none where the system does not tell them."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            files = (folder / name for name in ("level", "type", "size"))
            level, cache_type, size = (file.read_text(encoding="utf-8").strip() for file in files)
        except OSError:
            continue
        if cache_type != "Instruction":
            yield f"L{level} {size}"


def load_average() -> float:
    """How many processes were running or waiting for a CPU, on average of the last minute.

    Windows begins to count at the first call, and answers 0 to it.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float(_psutil().getloadavg()[0])


KERNEL_FIGURES = Path("/proc")


class CpuSeconds(NamedTuple):
    """Seconds since some time in the past: on a clock, of all programs on our CPUs, and of us and our workers."""

    wall: float
    everything: float
    ours: float


def cpu_seconds(cpus: list[int], proc: Path = KERNEL_FIGURES) -> CpuSeconds | None:
    """The CPU time used so far; None where the system does not tell it.

    Args:
        cpus: whose time counts.
        proc: the folder of the kernel's figures, on Linux.
    """
    if not LINUX:
        return _cpu_seconds_by_psutil(cpus)
    tick = os.sysconf("SC_CLK_TCK")
    try:
        lines = (proc / "stat").read_text(encoding="ascii").splitlines()
        mine = [line.split() for line in lines if line.startswith(tuple(f"cpu{cpu} " for cpu in cpus))]
        # user nice system idle iowait irq softirq steal; the guests' time after these is a part of user and nice
        everything = sum(int(field) for fields in mine for i, field in enumerate(fields[1:9]) if i not in (3, 4))
        return CpuSeconds(time.monotonic(), everything / tick, _our_ticks(proc) / tick) if mine else None
    except (OSError, ValueError):
        return None


def _our_ticks(proc: Path) -> int:
    """Ticks of this process, of its descendants, and of those of them that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in proc.glob("[0-9]*"):
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


def _cpu_seconds_by_psutil(cpus: list[int]) -> CpuSeconds | None:
    psutil = _psutil()
    idle = ("idle", "iowait", "guest", "guest_nice")  # the guests' time is a part of user and nice
    times = psutil.cpu_times(percpu=True)
    if any(cpu >= len(times) for cpu in cpus):
        return None
    everything = sum(seconds for cpu in cpus for name, seconds in times[cpu]._asdict().items() if name not in idle)
    me = _this_process()
    ours = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended
            ours += sum(process.cpu_times()[:4])  # user, system, and both of the children that have ended
    return CpuSeconds(time.monotonic(), everything, ours)


# --- memory, in bytes ------------------------------------------------------------------------------------------------


def installed_memory() -> int:
    """What the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if LINUX else int(_psutil().virtual_memory().total)


def available_memory() -> int:
    """What programs can still get without swapping."""
    return _kernel_bytes("/proc/meminfo", "MemAvailable") if LINUX else int(_psutil().virtual_memory().available)


def resident_memory() -> int:
    """What this process has now."""
    return _kernel_bytes("/proc/self/status", "VmRSS") if LINUX else int(_this_process().memory_info().rss)


def peak_memory() -> int:
    """The most that this process has had so far."""
    if LINUX:  # ru_maxrss would tell the peak of the parent that forked this process
        with contextlib.suppress(StopIteration):  # some sandboxes do not tell it
            return _kernel_bytes("/proc/self/status", "VmHWM")
    if sys.platform == "win32":
        return int(_this_process().memory_info().peak_wset)
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * 1024 if LINUX else largest  # macOS counts bytes


def _kernel_bytes(file: str, field: str) -> int:
    with Path(file).open(encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# --- processes -------------------------------------------------------------------------------------------------------


def process_exists(pid: int) -> bool:
    """Whether a process of this number runs on this machine, or in this container."""
    if sys.platform == "win32":  # where os.kill() would end it
        return bool(_psutil().pid_exists(pid))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def process_space() -> str | None:
    """Eight digits that stand for all processes among which a process number means one process.

    That is a PID namespace of a running kernel; None on other systems than Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def mapped_files() -> list[str]:
    """Paths of the files that are mapped into this process, such as its libraries; none where nothing tells them."""
    if LINUX:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        parts = [line.split(maxsplit=5) for line in maps.splitlines()]
        return sorted({part[5] for part in parts if len(part) == 6})
    if sys.platform == "win32":
        return sorted({mapped.path for mapped in _this_process().memory_maps()})
    return []


def own_session() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` by which Ctrl-C reaches the parent alone."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def ending_signals() -> list[signal.Signals]:
    """Signals, besides Ctrl-C, that ask a program to end: SIGTERM, and Ctrl-Break and closed windows on Windows."""
    names = ("SIGTERM", "SIGBREAK")
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


def reloading_signals() -> list[signal.Signals]:
    """Signals that ask a server to read its files again: SIGHUP, which Windows does not have."""
    return [signal.Signals[name] for name in ("SIGHUP",) if name in signal.Signals.__members__]


def allow_open_files(count: int) -> None:
    """Lets this process have so many files and connections open at a time, or as many as the system permits it.

    Many shells give a program 1024 at first, and let it ask for more. Windows has no such limit.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _psutil() -> Any:
    import psutil

    return psutil


def _this_process() -> Any:
    return _psutil().Process()
