"""A busy machine is told, from the kernel's figures."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from histo_export.bench.document import document
from histo_export.bench.load import Load, LoadMeter
from histo_export.bench.render import to_html, to_markdown
from histo_export.system import CpuSeconds


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four CPUs, of which this process may use 1 and 2."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    monkeypatch.setattr(os, "getloadavg", lambda: (20.0, 10.0, 5.0))
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    write_ticks(tmp_path, everything=0, ours=0)
    return tmp_path


def write_ticks(proc: Path, everything: int, ours: int) -> None:
    """Ticks of 10 ms: of all programs on each CPU, and of each of three processes of ours."""
    busy = everything // 4
    (proc / "stat").write_text(
        f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 9 9 9 9 9 9 9 9 9 9\n"
        f"cpu1 {busy} 0 {busy} 777 555 0 0 0 {busy} 0\ncpu2 0 {busy} 0 777 555 0 0 {busy} 0 0\ncpu10 9 9 9\nintr 1\n"
    )
    me = os.getpid()
    for pid, parent in ((me, 1), (me + 1, me), (me + 2, me + 1), (1, 0), (me + 3, 1)):
        (proc / str(pid)).mkdir(exist_ok=True)
        mine = ours if me <= pid <= me + 2 else 5000
        (proc / str(pid) / "stat").write_text(f"{pid} (a) name (x) S {parent} 0 0 0 0 0 0 0 0 0 {mine} 0 0 0 20 0\n")


def test_other_programs_are_what_neither_we_nor_our_workers_use(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = LoadMeter(proc)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with meter.watch():
        now += 10
        write_ticks(proc, everything=1600, ours=200)  # 16 s of two CPUs, 3 times 2 s of ours
    load = meter.load()
    assert (load.cpus, load.average, load.others) == (2, 20.0, pytest.approx(1.0))
    assert "load is 20.0 on 2 CPUs" in meter.warning()
    assert "other programs used 1.0 of 2 CPUs" in meter.load().warning()
    with meter.watch():
        now += 30
    assert meter.load().others == pytest.approx(0.25)


def test_a_quiet_machine_gives_no_warning(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.9, 0.0, 0.0))
    meter = LoadMeter(proc)
    assert meter.warning() == meter.load().warning() == ""
    assert Load(cpus=2, average=9, others=0.19).warning() == ""
    assert Load(cpus=2, average=9, others=None).warning() == ""


def test_a_system_without_these_figures_is_measured_too(proc: Path) -> None:
    for content in ("", "cpu1 a b c", None):
        if content is None:
            (proc / "stat").unlink()
        else:
            (proc / "stat").write_text(content)
        meter = LoadMeter(proc)
        with meter.watch():
            pass
        assert meter.load().others is None


def test_this_machine_tells_its_figures() -> None:
    meter = LoadMeter()
    before = meter.read()
    assert isinstance(before, CpuSeconds)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = meter.read()
    assert after is not None
    assert after.ours - before.ours >= 0.05
    assert after.everything - before.everything >= 0.05


def test_a_busy_machine_is_on_top_of_the_report(make_report, settings) -> None:
    report = make_report(settings)
    report.load, report.host = Load(cpus=2, average=20.0, others=1.7), "here"
    doc = document(report)
    for text in (to_markdown(doc, []), to_html(doc, [])):
        places = [
            text.index(part) for part in ("ResNet34 inference", "used 1.7 of 2 CPUs", "UTC, here", "Command: histo")
        ]
        assert places == sorted(places)
        assert places[-1] < text.index(doc.sections[0].title)
        assert all(text.index(conclusion.split(":")[0]) < places[-2] for conclusion in doc.conclusions)
    assert "takes" in doc.conclusions[0]
