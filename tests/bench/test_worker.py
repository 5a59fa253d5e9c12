"""The handle, against a worker that keeps the protocol and against every way to break it; and the real worker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histo_export.bench.subjects import Subject
from histo_export.bench.worker_handle import COMMAND, Worker
from histo_export.errors import HistoError
from histo_export.parity import Golden
from histo_export.runtimes import Variant

Fake = Callable[..., list[str]]


def opened(worker: Worker, subject: Subject) -> dict[str, object]:
    return worker.open(
        Variant("onnxruntime"),
        subject.folder / "model.onnx",
        subject.folder / "golden.safetensors",
        threads=1,
        device="cpu",
    )


def test_a_worker_answers(fake: Fake, subjects: list[Subject]) -> None:
    golden = Golden.read(subjects[0].folder / "golden.safetensors")
    with Worker("fake", fake()) as worker:
        assert opened(worker, subjects[0]) == {"name": "Fake onnxruntime", "import_s": 0.1, "load_s": 0.2}
        assert worker.call(2) == pytest.approx(0.02, rel=0.5)
        assert worker.executed() == {"executed": "cpu fp32", "isa": "avx2"}
        np.testing.assert_allclose(worker.logits(2), golden.logits.astype(np.float32))
        assert worker.warm(2)["stable"]
        assert len(worker.time(2, 0.1)) == 5
        assert worker.layers(2) == [("stem", "stem.conv", 0.009), ("head", "head.linear", 0.001)]
        assert worker.devices() == ["cpu"]
        assert worker.memory() == {"before": 100.0, "peak": 200.0}
        assert (worker.idle_cpu, worker.idle) == (0.0, 9.0)


def test_an_answer_that_ctrl_c_left_unread_is_not_taken_for_the_next_one(
    fake: Fake, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with Worker("fake", fake()) as worker:
        opened(worker, subjects[0])
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "_read_line", interrupted)
            with pytest.raises(KeyboardInterrupt):
                worker.time(2, 0.1)
        assert worker.devices() == ["cpu"]
        assert worker.executed() == {"executed": "cpu fp32", "isa": "avx2"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", r"^fake: is not installed\. Install it\.$"),
        ("die", r"^a model: died when asked to open \(out of luck\)"),
        ("kill", r"^a model: died when asked to open \(signal 9\)"),
        ("nonsense", r"^a model: answered b'Hello!' when asked to open"),
    ],
)
def test_a_failure_names_the_model_and_the_reason(
    fake: Fake, subjects: list[Subject], fault: str, message: str
) -> None:
    with Worker("a model", fake(fault=fault)) as worker, pytest.raises(HistoError, match=message):
        opened(worker, subjects[0])


def test_a_worker_that_died_before_it_was_asked(subjects: list[Subject]) -> None:
    with Worker("a model", [sys.executable, "-c", "raise SystemExit('no such module')"]) as worker:
        worker._process.wait()
        with pytest.raises(HistoError, match=r"a model: died when asked to open \(no such module\)"):
            opened(worker, subjects[0])


def test_a_worker_that_hangs_is_given_up_and_ended(fake: Fake, subjects: list[Subject]) -> None:
    start = time.monotonic()
    with Worker("a model", fake(fault="hang"), patience=1) as worker:
        with pytest.raises(HistoError, match="a model: did not answer within 1 s when asked to open"):
            opened(worker, subjects[0])
        process = worker._process
    assert process.poll() is not None
    assert time.monotonic() - start < 20


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed closes the pipe, and that is what the worker waits on."""
    code = f"import subprocess, sys; p = subprocess.Popen({list(COMMAND)!r}, stdin=subprocess.PIPE); print(p.pid)"
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    pid = int(parent.stdout)
    for _ in range(300):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2]:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} outlived its parent")


RUNTIME = """
import sys, threading, time
import numpy as np
from histo_export import runtimes
from histo_export.runtimes import base
from histo_export.bench import worker

class Made(runtimes.Runtime):
    names = {{"fp32": "made"}}
    def __init__(self, file, **options):
        super().__init__(file, **options)
        print("libraries print what they like")
        self.calls = 0
        if {spin}:
            threading.Thread(target=self.spin, daemon=True).start()
    def spin(self):
        while True: pass
    @property
    def executed(self): return "cpu fp32"
    @property
    def side(self): return base.TileSide(1, fixed=False)
    def _run(self, tiles):
        self.calls += 1
        time.sleep(0.05 if self.calls < 6 else 0.001)
        return tiles.reshape(len(tiles), -1)[:, :2].astype(np.float32)
    def _stages(self, tiles): return {{}}

runtimes.runtime_class = lambda name: Made
runtimes.open_runtime = lambda name, file, **options: Made(file, **options)
worker.serve()
"""


def made(spin: bool = False) -> list[str]:
    return [sys.executable, "-c", RUNTIME.format(spin=spin)]


def test_the_real_worker_around_a_made_runtime(subjects: list[Subject]) -> None:
    tiles = Golden.read(subjects[0].folder / "golden.safetensors").tiles
    with Worker("made", made()) as worker:
        facts = opened(worker, subjects[0])
        assert facts["name"] == "made"
        assert worker.call(3) >= 0.05
        # All four tiles, in calls of exactly three; the last one goes on with the first tiles, and all places are told.
        wrapped = np.take(tiles, range(6), axis=0, mode="wrap")
        np.testing.assert_array_equal(worker.logits(3), wrapped.reshape(6, -1)[:, :2].astype(np.float32))
        warm = worker.warm(1)
        assert warm["stable"]
        assert warm["call_s"] < 0.02, "the slow first calls must be over when warm-up ends"
        times = worker.time(1, 0.1, calls=3)
        assert sum(times) == pytest.approx(0.1, rel=0.5)
        assert len(worker.time(1, 0.0, calls=3)) == 3
        seconds, logits = worker.loop(batch=3, tiles=10)
        wrapped = np.take(tiles, range(10), axis=0, mode="wrap")
        np.testing.assert_array_equal(logits, wrapped.reshape(10, -1)[:, :2].astype(np.float32))
        assert seconds >= 4 * 0.001  # ten tiles by three are four calls
        assert worker.layers(1) is None
        assert worker.devices() == ["cpu"]
        memory = worker.memory()
        assert 10 < memory["before"] <= memory["peak"] < 2000


def test_a_sleeping_worker_is_told_from_one_that_spins(subjects: list[Subject]) -> None:
    """In CPU seconds and not in shares of a CPU, because other processes may leave a spinning worker little of one."""
    with Worker("made", made(spin=True)) as worker:
        opened(worker, subjects[0])
        deadline = time.monotonic() + 60
        while worker.idle_cpu < 0.5:
            assert time.monotonic() < deadline, "the CPU time of a worker that spins is not counted"
            time.sleep(0.05)
            worker.memory()
    with Worker("made", made()) as worker:
        opened(worker, subjects[0])
        before = worker.idle_cpu, worker.idle
        time.sleep(0.5)
        worker.memory()
        assert worker.idle_cpu - before[0] < 0.25  # answering takes some 20 to 50 ms
        assert worker.idle - before[1] > 0.4


def test_the_protocol_is_one_json_line_each_way(subjects: list[Subject]) -> None:
    done = subprocess.run(made(), input='{"do": "memory"}\n', capture_output=True, text=True, check=True, timeout=120)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"]["peak"] > 0


def test_starting_a_worker_imports_no_runtime() -> None:
    heavy = ("torch", "onnxruntime", "pydantic")
    code = f"import sys, histo_export.bench.worker; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
