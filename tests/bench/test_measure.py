"""Planning, interleaving, and every reason not to print a row."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_export.bench import contestants
from histo_export.bench.contestants import ROUNDINGS, precision_of, require_device
from histo_export.bench.measure import measure, orders
from histo_export.bench.progress import Progress
from histo_export.bench.rows import Conditions
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import Subject
from histo_export.bench.worker_handle import Worker
from histo_export.errors import HistoError, UsageError
from histo_export.parity import Golden
from histo_export.runtimes import Variant, default_variants, variants

Fake = Callable[..., list[str]]


def test_every_row_runs_once_a_round_in_an_order_that_changes() -> None:
    found = list(orders(6, 50, seed=1))
    assert all(sorted(order) == list(range(6)) for order in found)
    assert len({tuple(order) for order in found}) > 40
    assert found == list(orders(6, 50, seed=1)) != list(orders(6, 50, seed=2))
    # No row follows the same one for ever: each of the 30 neighbourships comes up.
    neighbours = Counter(itertools.chain.from_iterable(itertools.pairwise(order) for order in found))
    assert len(neighbours) == 30
    assert max(neighbours.values()) < 25


def test_rows_are_complete(subjects: list[Subject], settings: Settings, fake: Fake) -> None:
    rows, left_out = measure(subjects, settings, command=fake())
    assert not left_out
    assert {(row.runtime, row.subject, row.batch) for row in rows} == set(
        itertools.product(("onnxruntime", "torch"), ("pool 1", "pool 8"), (1, 4))
    )
    for row in rows:
        assert len(row.rounds) == settings.rounds
        assert row.conditions == Conditions("cpu", 1, row.batch, "fp32", 150, 128)
        assert (row.name, row.isa, row.devices) == (f"Fake {row.runtime}", "avx2", ["cpu"])
        assert np.median(row.medians) == pytest.approx(0.01 * row.batch, rel=0.3)
        assert row.max_relative < 1e-6


def test_rounds_are_interleaved(
    subjects: list[Subject], settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    original = Worker.time

    def record(self: Worker, batch: int, seconds: float, calls: int = 1) -> list[float]:
        asked.append((self.label, batch))
        return original(self, batch, seconds, calls)

    monkeypatch.setattr(Worker, "time", record)
    measure(subjects, settings, command=fake())
    rounds = [tuple(asked[start : start + 8]) for start in range(0, len(asked), 8)]
    assert len(rounds) == settings.rounds
    assert all(len(set(one)) == 8 for one in rounds)
    assert len(set(rounds)) > 1


def test_thread_counts_are_measured_one_after_the_other(subjects: list[Subject], fake: Fake) -> None:
    settings = Settings(variants("onnxruntime"), (1,), (1, 2), rounds=7, seconds=0.1)
    rows, _ = measure(subjects[:1], settings, command=fake())
    assert [row.threads for row in rows] == [1, 2]
    assert rows[0].conditions != rows[1].conditions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fault": "wrong"}, r"onnxruntime, pool 1, batch 1: computes other logits than the checkpoint before timing"),
        ({"fault": "wrong later"}, r"onnxruntime, pool 1, batch 1: computes other .* after timing"),
        ({"fault": "nan"}, r"computes other logits .* they differ by nan"),
        ({"executed": "cpu"}, r"names no precision in what it executed \(cpu\)"),
        ({"devices": "CUDAExecutionProvider"}, r"--device cpu: but it ran on CUDAExecutionProvider"),
        ({"fault": "die"}, r"onnxruntime, pool 1: died"),
        ({"fault": "refuse"}, r"fake: is not installed"),
    ],
)
def test_a_row_that_is_not_to_be_believed_is_an_error(
    subjects: list[Subject], settings: Settings, fake: Fake, options: dict[str, str], message: str
) -> None:
    with pytest.raises(HistoError, match=message):
        measure(subjects, settings, command=fake(**options))


def test_on_a_gpu_what_ran_on_the_cpu_is_an_error(subjects: list[Subject], settings: Settings, fake: Fake) -> None:
    on_gpu = replace(settings, device="cuda")
    found = "CUDAExecutionProvider,CPUExecutionProvider"
    with pytest.raises(HistoError, match=r"onnxruntime, pool 1: --device cuda: but it ran on CUDA.*, CPU"):
        measure(subjects, on_gpu, command=fake(executed="CUDAExecutionProvider fp32", devices=found))
    rows, _ = measure(subjects, on_gpu, command=fake(executed="CUDAExecutionProvider fp32", devices="cuda"))
    assert {row.conditions.device for row in rows} == {"cuda"}


@pytest.mark.parametrize(
    ("device", "found", "right"),
    [
        ("cuda", ["cuda:0"], True),
        ("cuda", ["TensorrtExecutionProvider", "CUDAExecutionProvider"], True),
        ("cuda", ["cpu"], False),
        ("cuda", [], False),
        ("cpu", ["CPUExecutionProvider"], True),
        ("cpu", ["brgconv_avx512_f32"], True),
        ("cpu", ["CPUExecutionProvider", "CUDAExecutionProvider"], False),
    ],
)
def test_the_device_that_ran_is_the_one_asked_for(device: str, found: list[str], right: bool) -> None:
    if right:
        require_device("a model", device, found)
    else:
        with pytest.raises(HistoError, match=f"a model: --device {device}: but it ran on"):
            require_device("a model", device, found)


def test_runtimes_that_nobody_asked_for_may_be_lacking(
    subjects: list[Subject], settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Worker.open

    def lack(self: Worker, variant: Variant, *paths: Path, **options: Any) -> object:
        if variant == Variant("torch"):
            raise HistoError("PyTorch", "is not installed", "Install it")
        return original(self, variant, *paths, **options)

    monkeypatch.setattr(Worker, "open", lack)
    rows, left_out = measure(subjects, replace(settings, may_lack=True), command=fake())
    assert {row.runtime for row in rows} == {"onnxruntime"}
    assert left_out == {"torch": "PyTorch: is not installed. Install it."}
    with pytest.raises(HistoError, match="found no runtime that runs here"):
        measure(subjects, replace(settings, runtimes=variants("torch"), may_lack=True), command=fake())


def test_progress_tells_what_is_done_and_ends(subjects: list[Subject], settings: Settings, fake: Fake) -> None:
    told: list[Progress] = []
    measure(subjects, settings, told.append, fake())
    assert told[0].doing == "starting onnxruntime, pool 1"
    assert "round 12 of 12" in {progress.doing for progress in told}
    assert all(0 <= progress.done <= 1 and progress.left_s >= 0 for progress in told)
    assert told[-1].left_s < 2 < told[0].left_s


def test_memory_that_runs_out_is_said(
    subjects: list[Subject], settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants, "SPARE_BYTES", 10**15)
    with pytest.raises(HistoError, match="nearly used up after starting onnxruntime, pool 1"):
        measure(subjects, settings, command=fake())


@pytest.mark.parametrize(
    ("executed", "precision"),
    [
        ("cpu fp32, avx512", "fp32"),
        ("CPU bf16+fp32", "bf16+fp32"),
        ("cuda:0 fp32, frozen", "fp32"),
        ("cpu bf16x3, avx512, latency", "bf16x3"),
        ("cpu bf16, autocast", "bf16"),
        ("int8", "int8"),
        ("CPU int8+bf16", "int8"),
        ("CPUExecutionProvider int8+fp32", "int8"),
    ],
)
def test_the_precision_is_read_from_what_was_executed(executed: str, precision: str) -> None:
    assert precision_of(executed) == precision


def test_defaults_are_the_forms_that_there_are_in_a_precision() -> None:
    fp32 = ("native", "native-latency", "onnxruntime", "openvino", "libtorch", "torch")
    assert default_variants("cpu") == variants(*fp32, "torch-channels-last", "torch-compile")
    assert default_variants("cpu", ["bf16x3"]) == variants("native-bf16x3", "native-latency-bf16x3")
    both = {str(variant) for variant in default_variants("cpu", ["bf16", "int8"])}
    assert {"openvino-bf16", "torch-channels-last-bf16", "torch-compile-bf16", "openvino-int8"} < both
    assert "onnxruntime-int8" in both
    assert "onnxruntime-bf16" not in both
    assert default_variants("cuda", ["int8"]) == variants("onnxruntime-int8")
    assert default_variants("cuda") == variants(
        *("onnxruntime", "onnxruntime-tensorrt", "libtorch", "torch", "torch-compile", "torch-cuda-graph")
    )


def test_a_precision_that_was_not_asked_for_gets_no_row(
    subjects: list[Subject], settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "rounding", lambda *_: 0.01)
    for runtime, executed in (("native", "cpu bf16"), ("native-int8", "cpu fp32"), ("openvino-bf16", "CPU bf16+fp32")):
        with pytest.raises(HistoError, match=f"was asked for .* and executed {executed.replace('+', '.')}"):
            measure(subjects, replace(settings, runtimes=variants(runtime)), command=fake(executed=executed))
    default = replace(settings, runtimes=variants("torch", "openvino-bf16"), may_lack=True)
    rows, left_out = measure(subjects, default, command=fake(executed="cpu fp32"))
    assert {row.runtime for row in rows} == {"torch"}
    assert "openvino-bf16, pool 1, batch 1: was asked for bf16 and executed cpu fp32" in left_out["openvino-bf16"]


def test_what_is_allowed_below_fp32_comes_from_the_model(
    subjects: list[Subject], settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Golden.read(subjects[0].folder / "golden.safetensors")
    wrong = golden.logits.astype(np.float32)
    wrong[0, 0] += 0.01  # as the fake worker does
    error = golden.spread_error(wrong)
    low = replace(settings, runtimes=variants("native-int8"))
    faulty = fake(executed="cpu int8", fault="wrong")
    monkeypatch.setattr(Subject, "rounding", lambda *_: 1.01 * error / ROUNDINGS)
    rows, _ = measure(subjects[:1], low, command=faulty)
    assert [row.precision for row in rows] == ["int8", "int8"]
    assert [row.tolerance for row in rows] == pytest.approx([1.01 * error] * 2, rel=1e-4)
    assert [row.spread_error for row in rows] == pytest.approx([error] * 2, rel=1e-4)
    monkeypatch.setattr(Subject, "rounding", lambda *_: 0.99 * error / ROUNDINGS)
    with pytest.raises(HistoError, match=r"native-int8, pool 1, batch 1: computes other logits .* of their spread"):
        measure(subjects[:1], low, command=faulty)


def test_errors_are_in_units_of_the_tile() -> None:
    golden = Golden(np.zeros((2, 1, 1, 3), np.uint8), np.array([[100.0, 0], [0.1, 0]]), {}, 2)
    assert golden.relative_error(np.array([[101, 0], [0.1, 0]], np.float32)) == pytest.approx(0.01)
    assert golden.relative_error(np.array([[100, 0], [0.2, 0]], np.float32)) == pytest.approx(0.1)
    again = np.array([[100, 0], [0.1, 0], [102, 0]], np.float32)
    assert golden.relative_error(again) == pytest.approx(0.02), "a row that wraps round counts"


def test_below_fp32_errors_are_those_of_real_tiles() -> None:
    golden = Golden(np.zeros((2, 1, 1, 3), np.uint8), np.array([[1.0, -1], [0.1, 0]]), {}, 1)
    assert golden.spread_error(np.array([[1.1, -1.1], [9, 9]], np.float32)) == pytest.approx(0.1)
    assert golden.spread_error(np.array([[1, -1], [9, 9], [1.2, -1.2]], np.float32)) == pytest.approx(0.2 / 2**0.5)


def test_too_few_rounds_and_no_time_are_refused() -> None:
    with pytest.raises(UsageError, match="--rounds 3"):
        Settings(variants("torch"), (1,), (1,), rounds=3)
    with pytest.raises(UsageError, match="--time 0"):
        Settings(variants("torch"), (1,), (1,), seconds=0)
