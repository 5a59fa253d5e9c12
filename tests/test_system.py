"""What the package asks the operating system, and that it asks in one place, so that it runs on others than Linux."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from histo_export import _core, system

PACKAGE = Path(__file__).parents[1] / "python/histo_export"
SEAM = PACKAGE / "system.py"
POSIX_MODULES = {"fcntl", "grp", "posix", "psutil", "pty", "pwd", "resource", "select", "syslog", "termios", "tty"}
"""Those that Windows lacks, psutil, which Linux need not have, and select, which on Windows knows sockets alone."""
POSIX_NAMES = re.compile(
    r"fork\w*|get[ep]?[ug]id|getpgid|getloadavg|getpriority|getgroups|kill|killpg|lchown|chown|fchmod|mkfifo|mknod|nice"
    r"|pathconf|posix_\w+|pread|pwrite|sched_\w+|sendfile|set[eg]?[ug]id|setsid|statvfs|sync|sysconf|uname|wait[34]?|waitid"
    r"|O_(CLOEXEC|NONBLOCK|DIRECTORY|NOFOLLOW|SYNC)|W(IFEXITED|IFSIGNALED|EXITSTATUS|TERMSIG)"
)
"""Of os: what Windows lacks, and kill(), which there ends a process whatever the signal."""


def asks_the_system(source: str) -> Iterator[str]:
    """What only the seam may do: "LINE: NAME"."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names if name.name.partition(".")[0] in POSIX_MODULES]
            case ast.ImportFrom(module=str(module)):
                found = [module] if module.partition(".")[0] in POSIX_MODULES else []
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if POSIX_NAMES.fullmatch(name):
                found = [f"os.{name}"]
            case ast.Attribute(value=ast.Name(id="signal"), attr=name) if name not in ALLOWED_OF_SIGNAL:
                found = [f"signal.{name}"]
            case ast.Constant(value=str(text)) if re.match(r"/(proc|sys|dev|etc|tmp)\b", text):
                found = [text]
            case ast.keyword(arg="start_new_session" | "preexec_fn" | "pass_fds" | "process_group" as name):
                found = [name]
            case _:
                found = []
        yield from (f"{getattr(node, 'lineno', '?')}: {name}" for name in found)


ALLOWED_OF_SIGNAL = {"signal", "SIGINT", "SIG_DFL", "SIG_IGN", "getsignal", "default_int_handler", "Signals"}


def test_what_is_found() -> None:
    source = """
import resource
from fcntl import flock
import os, select
os.getloadavg()
os.kill(pid, 0)
Path("/proc/meminfo")
signal.signal(signal.SIGTERM, f)
Popen(x, start_new_session=True)
os.getpid()
signal.signal(signal.SIGINT, f)
"a /proc file"
"""
    assert sorted(asks_the_system(source)) == [
        "2: resource",
        "3: fcntl",
        "4: select",
        "5: os.getloadavg",
        "6: os.kill",
        "7: /proc/meminfo",
        "8: signal.SIGTERM",
        "9: start_new_session",
    ]


@pytest.mark.parametrize("path", sorted(set(PACKAGE.rglob("*.py")) - {SEAM}), ids=lambda path: path.name)
def test_the_system_is_asked_in_one_place(path: Path) -> None:
    assert list(asks_the_system(path.read_text(encoding="utf-8"))) == []


def test_modules_are_imported_without_what_windows_lacks() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['fcntl', 'grp', 'pwd', 'resource', 'termios'], None))\n"
        "import os; del os.sched_getaffinity, os.getloadavg, os.fork\n"
        "import histo_export.bench.load, histo_export.bench.worker_handle, histo_export.files, histo_export.machine\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- figures ---------------------------------------------------------------------------------------------------------


def check_figures() -> None:
    """The figures agree with each other."""
    assert 1 <= _core.usable_cpus() <= len(system.allowed_cpus())
    assert 0 < system.available_memory() < system.installed_memory()
    assert 1e7 < system.resident_memory() < system.installed_memory()
    assert system.load_average() >= 0
    before = system.cpu_seconds(system.allowed_cpus())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = system.cpu_seconds(system.allowed_cpus())
    assert before is not None
    assert after is not None
    assert after.ours - before.ours >= 0.05
    assert after.everything - before.everything >= 0.05
    assert any(file.endswith(".so") or ".so." in file for file in system.mapped_files()) or sys.platform == "darwin"


def test_figures_of_this_system() -> None:
    check_figures()
    block = bytearray(1 << 27)
    block[::4096] = b"1" * len(block[::4096])
    assert system.peak_memory() >= system.resident_memory() >= len(block)


@pytest.mark.skipif(sys.platform != "linux", reason="the figures of psutil are compared with the kernel's own")
def test_figures_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Windows and macOS are asked, by psutil, agrees with what the kernel of Linux tells."""
    pytest.importorskip("psutil")
    kernel = (system.installed_memory(), system.available_memory(), system.resident_memory())
    kernel_seconds = system.cpu_seconds(system.allowed_cpus())
    monkeypatch.setattr(system, "LINUX", False)
    others = (system.installed_memory(), system.available_memory(), system.resident_memory())
    assert others == pytest.approx(kernel, rel=0.2)
    seconds = system.cpu_seconds(system.allowed_cpus())
    assert seconds is not None
    assert kernel_seconds is not None
    assert seconds.ours == pytest.approx(kernel_seconds.ours, abs=1)
    assert seconds.everything == pytest.approx(kernel_seconds.everything, rel=0.05)
    monkeypatch.setattr(system.sys, "platform", "win32")
    assert system.allowed_cpus() == sorted(os.sched_getaffinity(0))
    assert system.process_exists(os.getpid())
    assert not system.process_exists(2**22 + 1)
    assert any(".so" in file for file in system.mapped_files())
    monkeypatch.delattr(os, "getloadavg")
    assert system.load_average() >= 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_open_files_are_allowed_as_far_as_the_system_permits() -> None:
    import resource

    earlier = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, earlier[1]))
        for asked, allowed in ((300, 300), (280, 300)):  # never fewer than before
            system.allow_open_files(asked)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, earlier[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, earlier)


def test_windows_is_never_asked_by_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """There os.kill(pid, 0) is Ctrl-C."""

    class Psutil:
        pid_exists = staticmethod(lambda pid: pid == 7)

    monkeypatch.setattr(system.sys, "platform", "win32")
    monkeypatch.setattr(system, "_psutil", lambda: Psutil)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was killed"))
    assert system.process_exists(7)
    assert not system.process_exists(8)


def test_signals_that_end_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.ending_signals() == [signal.SIGTERM]

    class Signals:
        __members__ = {"SIGTERM": 15, "SIGBREAK": 21}  # noqa: RUF012

        def __class_getitem__(cls, name: str) -> int:
            return cls.__members__[name]

    monkeypatch.setattr(system.signal, "Signals", Signals)
    assert system.ending_signals() == [15, 21]
