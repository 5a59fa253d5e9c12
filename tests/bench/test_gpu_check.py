"""benchmarks/gpu_check.py: what becomes of its rows and its file whatever happens, and its rows themselves on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from histo_export.errors import HistoError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

FAKE = """
import json, os, signal, sys, time
from pathlib import Path

name, device, folder, result = sys.argv[1:]
print("about to run", name)
told = json.loads(Path(__file__).with_name("out.json").read_text())  # complete at any time
figures = {"running": told["running"], "before": [row["row"] for row in told["rows"]]}
if name == "crashes":
    os.kill(os.getpid(), signal.SIGSEGV)
elif name == "exits":
    sys.exit(3)
elif name == "hangs":
    time.sleep(20)
status, reason = {"lacks": ("not run", "needs a thing"), "wrong": ("failed", "is wrong")}.get(name, ("passed", None))
Path(result).write_text(json.dumps({"status": status, "reason": reason, "figures": figures}))
"""

PROGRAM = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import gpu_check
from gpu_rows import Row

gpu_check.ROWS = tuple(Row(name, name, None, 60, after=()) for name in ("good", "hangs", "never"))
signal.signal(signal.SIGTERM, gpu_check._interrupt)
sys.exit(gpu_check.main(["--device", "cpu", "--out", sys.argv[3]], [sys.executable, sys.argv[2]]))
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """`gpu_check` and `gpu_rows`."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_check"), importlib.import_module("gpu_rows")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed check leaves its folder there
    return tmp_path / "out.json"


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    """A program of rows, in which each name stands for what happens to it."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    return [sys.executable, str(tmp_path / "fake.py")]


def written(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return content


def test_without_a_gpu_no_row_is_run_and_nothing_has_failed(
    modules: tuple[ModuleType, ModuleType], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, rows = modules
    monkeypatch.setattr(check, "why_no_driver", lambda: "no driver")
    assert check.main(["--out", str(out)], ["a program that is never started"]) == 0
    content = written(out)
    assert (content["state"], content["running"], content["device"]) == ("complete", None, "cuda")
    assert [row["row"] for row in content["rows"]] == [row.name for row in rows.ROWS]
    assert {(row["status"], row["reason"]) for row in content["rows"]} == {("not run", "no device: no driver")}


def test_every_end_of_a_row_is_told_and_the_next_one_runs(
    modules: tuple[ModuleType, ModuleType], out: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, rows = modules
    limits = {"hangs": 0.2, "long": 1000.0}
    after = {"after wrong": ("good", "wrong"), "after lacks": ("lacks",)}
    needs = {"package": ("json", "a_package_that_nobody_has")}
    names = ("good", "lacks", "wrong", "crashes", "exits", "hangs", "long", "after wrong", "after lacks", "package")
    made = [
        rows.Row(name, name, None, limits.get(name, 20.0), needs.get(name, ()), after.get(name, ())) for name in names
    ]
    monkeypatch.setattr(check, "ROWS", tuple(made))
    assert check.main(["--device", "cpu", "--minutes", "5", "--out", str(out)], fake) == 1
    content = written(out)
    assert content["state"] == "complete"
    assert {row["row"]: (row["status"], row["reason"]) for row in content["rows"]} == {
        "good": ("passed", None),
        "lacks": ("not run", "needs a thing"),
        "wrong": ("failed", "is wrong"),
        "crashes": ("failed", f"signal {signal.SIGSEGV.value} ended it"),
        "exits": ("failed", "it ended with exit code 3"),
        "hangs": ("failed", "it took more than 1 s"),
        "long": ("not run", content["rows"][6]["reason"]),
        "after wrong": ("not run", "the row wrong failed"),
        "after lacks": ("not run", "needs a thing"),
        "package": ("not run", "needs a_package_that_nobody_has"),
    }
    assert content["rows"][6]["reason"].startswith("may take 5000 s, and 2")
    figures = {row["row"]: row["figures"] for row in content["rows"]}
    assert figures["wrong"] == {"running": "wrong", "before": ["good", "lacks"]}
    logs = {row["row"]: row["log"] for row in content["rows"] if row["log"]}
    assert logs == {name: [f"about to run {name}"] for name in ("wrong", "crashes", "exits")} | {
        "hangs": logs.get("hangs")
    }


@pytest.mark.parametrize(
    ("number", "code", "state", "rows"),
    [
        (signal.SIGKILL, -9, "running", [("good", "passed")]),
        (signal.SIGTERM, 130, "interrupted", [("good", "passed"), ("hangs", "not run")]),
    ],
)
def test_a_check_that_is_ended_leaves_the_rows_so_far(
    out: Path, fake: list[str], number: signal.Signals, code: int, state: str, rows: list[tuple[str, str]]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, BENCHMARKS, fake[1], out], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (out.exists() and written(out)["running"] == "hangs") and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == code
    content = written(out)
    assert content["state"] == state
    assert [(row["row"], row["status"]) for row in content["rows"]] == rows


def test_rows_bring_what_they_need_and_unknown_ones_are_refused(
    modules: tuple[ModuleType, ModuleType], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check, _ = modules
    assert [row.name for row in check.chosen("bench")] == ["device", "model", "bench"]
    assert check.main(["--rows", "bench,speed", "--out", str(out)]) == 2
    assert "--rows speed: is unknown. Choose from device, model, torchscript" in capsys.readouterr().err
    assert not out.exists()
    assert check.main(["--out", str(out / "none" / "out.json")]) == 1
    assert "could not be written" in capsys.readouterr().err


def _raising(error: Exception) -> Callable[[object], dict[str, Any]]:
    def run(_: object) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (HistoError("a file", "is damaged", "Export again"), "failed", "a file: is damaged. Export again."),
        (ModuleNotFoundError("", name="torchvision.models"), "not run", "needs torchvision.models"),
        (ModuleNotFoundError("gone", name="histo_export.gone"), "failed", "ModuleNotFoundError: gone"),
        (RuntimeError("CUDA error: no kernel image"), "failed", "RuntimeError: CUDA error: no kernel image"),
    ],
)
def test_an_error_becomes_a_row(
    modules: tuple[ModuleType, ModuleType], error: Exception, status: str, reason: str
) -> None:
    _, rows = modules
    row = rows.Row("row", "row", _raising(error), 1.0)
    assert rows.outcome_of(row, None) == {"status": status, "reason": reason, "figures": {}}


ONLY_ON_A_GPU = {
    "torch-cuda-graph": "CUDA graphs need a CUDA device",
    "onnxruntime-tensorrt": "needs TensorRT (libnvinfer)",
}


@pytest.mark.slow
def test_every_row_passes_on_the_cpu_or_says_why_it_cannot_be_run(
    modules: tuple[ModuleType, ModuleType], out: Path
) -> None:
    """The code of the rows, with the smallest tiles. All packages are installed here.

    torch.compile is left out: it would compile the network for six sizes, and test_runtimes.py runs it.
    """
    names = ",".join(row.name for row in modules[1].ROWS if row.name != "torch-compile")
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--device", "cpu", "--rows", names, "--out", out]
    done = subprocess.run(command, check=False)
    rows = {row["row"]: row for row in written(out)["rows"]}
    assert {name: row["reason"] for name, row in rows.items() if row["status"] != "passed"} == ONLY_ON_A_GPU
    assert done.returncode == 0
    assert rows["torchscript"]["figures"]["max_relative"] < 5e-5
    assert rows["train"]["figures"]["epochs"] == 2
    for runtime in ("torchscript", "libtorch"):
        coarse, fine = (rows[f"{runtime}-{precision}"]["figures"]["spread_error"] for precision in ("bf16", "fp16"))
        assert 0 < fine < coarse / 4, "fp16 has three more bits"


@pytest.mark.slow
def test_coarser_arithmetic_than_that_of_the_row_is_a_failure(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    _, rows = modules
    place = rows.Place("cpu", tmp_path)
    rows.model_row(place)
    exact = rows.sixteen_bit_row(place, "torchscript", "bf16")
    (tmp_path / "torchscript-bf16.pt").rename(tmp_path / "torchscript-fp16.pt")
    with pytest.raises(rows.FailedError, match=r"logits differ by .* of their spread where .* is allowed") as failed:
        rows.sixteen_bit_row(place, "torchscript", "fp16")
    assert failed.value.figures == exact | {"allowed": exact["allowed"] / 8}


HIDE = """
import importlib.machinery as m
find = m.PathFinder.find_spec
hidden = {"torchvision", "pytorch_lightning", "tensorboard", "matplotlib", "onnx", "onnxscript",
          "onnxruntime", "openvino", "pyarrow", "scipy", "openslide", "tifffile", "pydicom", "ray"}
m.PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.partition(".")[0] in hidden else find(name, *more)
)
"""


@pytest.mark.slow
def test_torch_and_a_light_installation_are_enough(out: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    names = "torchscript,train,torchscript-bf16,onnxruntime,predict,bench,events"
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--device", "cpu", "--rows", names, "--out", out]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    reasons = {row["row"]: row["reason"] for row in written(out)["rows"]}
    assert reasons.pop("train").startswith("needs torchvision, pytorch_lightning")
    assert reasons.pop("onnxruntime") == "needs onnxruntime, onnx, onnxscript"
    assert set(reasons.values()) == {None}
