"""The stages of the native engine beside what the machine can do at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_export import _core
from histo_export.bench import stages
from histo_export.bench.document import document
from histo_export.bench.made_model import made_model
from histo_export.bench.render import to_html, to_markdown
from histo_export.bench.report import Report
from histo_export.bench.stages import Limits, StageTable, measure_limits, stage_rows
from histo_export.spec import STAGES, ModelSpec

LIMITS = Limits(
    multiply_adds={"fp32": 100e9, "bf16": 400e9, "int8": 800e9, "int16": 200e9},
    instructions={"fp32": "FMA", "bf16": "DOT", "int8": "VNNI", "int16": "WORDS"},
    bytes=10e9,
)


def layer(name: str, precision: str = "fp32", convolution: str = "direct", **others: Any) -> dict[str, Any]:
    facts = {"seconds": 1e-3, "multiply_adds": 10**8, "executed_multiply_adds": 5 * 10**7, "weight_bytes": 10**6}
    return facts | {"name": name, "precision": precision, "convolution": convolution, "output": (64, 8, 8)} | others


def test_a_stage_adds_up_its_layers_and_reads_the_map_before_it() -> None:
    layers = [
        layer("stem", output=(64, 16, 16)),
        layer("layer1.0.conv1", "bf16"),
        layer("layer1.0.conv2", output=(64, 8, 8)),
        layer("head", output=(3, 1, 1), weight_bytes=2 * 10**7, executed_multiply_adds=10),
    ]
    stem, first, head, everything = stage_rows(layers, 2, 32, LIMITS)
    assert [row.stage for row in (stem, first, head, everything)] == ["stem", "layer1", "head", "all"]
    assert stem.bytes == 10**6 + 2 * 3 * 32**2, "bytes of pixels"
    assert first.bytes == 2 * 10**6 + 2 * 2 * 64 * 8 * 8, "the stem's map behind its maximum, in bf16"
    assert head.bytes == 2 * 10**7 + 2 * 4 * 64 * 8 * 8
    assert (first.multiply_adds, first.executed_multiply_adds) == (2 * 10**8, 10**8)
    assert first.seconds == 2e-3
    assert first.least_arithmetic_s == pytest.approx(2 * (5e7 / 400e9 + 5e7 / 100e9))
    assert first.least_memory_s == pytest.approx(first.bytes / 10e9)
    assert (first.bound, head.bound) == ("arithmetic", "memory")
    assert everything.seconds == pytest.approx(4e-3)
    assert everything.bytes == 23 * 10**6 + 2 * 3 * 32**2


@pytest.mark.parametrize(
    ("of", "peak"),
    [
        (("fp32", "winograd4"), 100e9),
        (("bf16", "winograd2"), 400e9),
        (("bf16x3", "direct"), 400e9 / 3),
        (("int8", "direct"), 800e9),
        (("int8", "winograd4"), 200e9),
    ],
)
def test_a_layer_is_judged_by_the_instruction_that_multiplies(of: tuple[str, str], peak: float) -> None:
    row = stage_rows([layer("stem", *of)], 1, 32, LIMITS)[0]
    assert row.least_arithmetic_s == pytest.approx(5e7 / peak)


def test_a_cpu_without_bf16_multiplies_floats_and_an_unknown_peak_is_not_guessed() -> None:
    few = LIMITS.model_copy(update={"multiply_adds": {"fp32": 100e9}})
    floats, unknown, _ = stage_rows([layer("stem", "bf16"), layer("head", "int8")], 1, 32, few)
    assert floats.least_arithmetic_s == pytest.approx(5e7 / 100e9)
    assert (unknown.least_arithmetic_s, unknown.bound) == (None, "unknown")


def test_the_limits_of_this_machine_are_those_of_its_kernels() -> None:
    limits = measure_limits(1, seconds=0.005)
    support = _core.precision_support()
    for precision in ("fp32", "bf16"):
        assert (precision in limits.multiply_adds) == (support[precision].isa is not None)
    assert next(iter(limits.multiply_adds)) == "fp32"
    assert all(1e8 < peak < 1e14 for peak in limits.multiply_adds.values())
    assert limits.instructions.keys() == limits.multiply_adds.keys()
    assert 1e8 < limits.bytes < 1e13
    portable = _core.measure_peaks(1, 0.005, "portable")
    assert [peak["products"] for peak in portable] == ["fp32"]


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), 61])
def test_an_impossible_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"seconds is not a number from 0 to 60"):
        _core.measure_peaks(1, seconds)
    with pytest.raises(ValueError, match=r"seconds is not a number from 0 to 60"):
        _core.measure_reading(1, seconds)
    with pytest.raises(ValueError, match="threads is -1"):
        _core.measure_peaks(-1)


def test_doctor_times_a_made_network(histo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One test of the whole way, which takes two seconds: a network of the true size is made and packed."""
    monkeypatch.setattr(stages, "RUNS_SECONDS", 0.0)
    monkeypatch.setattr(stages, "LEAST_RUNS", 1)
    monkeypatch.setattr("histo_export.doctor.SPEED_BATCHES", (1,))
    monkeypatch.setattr("histo_export.doctor.MADE_SPEC", ModelSpec(2, ("a", "b"), crop=32))
    monkeypatch.setattr("histo_export.bench.stages.measure_limits", lambda threads: LIMITS)
    code, out, err = histo("doctor", "--speed")
    assert code == 0, err
    title, headings, *lines = [line for line in out.splitlines() if line.strip()][1:]
    assert title.startswith("Stages of a network with random weights, pool 2: native engine, fp32, ")
    assert headings.split()[:4] == ["stage", "ms", "per", "tile"]
    assert [line.split()[0] for line in lines[:7]] == [*STAGES, "all"]
    assert "reading from memory 10.0 GB/s" in out


def test_a_made_network_is_one_that_the_engine_opens() -> None:
    model = _core.Model.from_bytes(made_model(ModelSpec(3, ("a", "b"), crop=64)))
    assert (model.pool, model.head_pool, model.crop) == (3, 2, 64)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    engine = _core.Engine(model, threads=1)
    assert all(0.01 < values.std() < 100 for values in engine.stages(tiles).values()), "neither vanishing nor exploding"
    one, two = (sum(layer["weight_bytes"] for layer in engine.layer_times(tiles[:n])) for n in (1, 2))
    assert 85e6 / 2 < one <= two
    assert "int8" not in _core.usable_precisions() or _core.Engine(model, threads=1, precision="int8")


def test_stages_are_in_every_kind_of_report() -> None:
    report = Report.read(Path(__file__).with_name("report-0.1.0.json"))
    assert report.stages == []
    rows = stage_rows([layer("stem"), layer("head", output=(3, 1, 1))], 2, 32, LIMITS)
    facts = {"precision": "fp32", "isa": "avx2", "profile": "throughput", "threads": 1, "batch": 2, "limits": LIMITS}
    report.stages = 2 * [StageTable(subject="pool 1", rows=rows, **facts)]  # type: ignore[arg-type]
    assert Report.model_validate_json(report.model_dump_json()).stages == report.stages
    for text in (to_markdown(document(report), []), to_html(document(report), [])):
        assert "Stages of pool 1: native engine, fp32, avx2, throughput, batch 2, 1 thread" in text
        assert text.count("fp32 200 (FMA)") == 1, "the limits are told once"
        assert "100.0" in text
        assert "50.0" in text
