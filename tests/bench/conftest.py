"""Models that only the fake worker runs, and reports made from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histo_export.bench.measure import measure
from histo_export.bench.report import Report, SubjectFacts
from histo_export.bench.rows import Row
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import CLASSES, Subject
from histo_export.machine import this_machine, versions
from histo_export.parity import Golden
from histo_export.runtimes import variants
from histo_export.spec import ModelSpec

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def fake() -> Callable[..., list[str]]:
    """The fake worker's command."""

    def command(**options: object) -> list[str]:
        return [sys.executable, str(FAKE), *(f"--{name}={value}" for name, value in options.items())]

    return command


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    """Two models whose files hold nothing; the second one is in a folder that the fake worker may slow down."""
    rng = np.random.default_rng(0)
    golden = Golden(rng.integers(0, 256, (4, 8, 8, 3), np.uint8), rng.normal(0, 3, (4, 6)), {}, 2)
    found = []
    for name, pool in (("quick", 1), ("slow", 8)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "golden.safetensors").write_bytes(golden.to_bytes())
        for file in ("model.onnx", "model.safetensors", "model-int8-onnxruntime.onnx"):
            (folder / file).touch()
        spec = ModelSpec(pool, CLASSES)
        found.append(Subject(f"pool {pool}", folder, spec, (0.8 + pool / 100, 0.75, 0.9)))
    return found


@pytest.fixture
def settings() -> Settings:
    return Settings(variants("onnxruntime", "torch"), (1, 4), (1,), rounds=12, seconds=0.1)


@pytest.fixture
def make_report(subjects: list[Subject], fake: Callable[..., list[str]]) -> Callable[..., Report]:
    """A concluded report from the fake worker."""

    def make(settings: Settings, **options: object) -> Report:
        rows, left_out = measure(subjects, settings, command=fake(**options))
        return report_of(rows, left_out, subjects, settings)

    return make


def report_of(rows: list[Row], left_out: dict[str, str], subjects: list[Subject], settings: Settings) -> Report:
    report = Report(
        created="2026-01-01T00:00:00+00:00",
        command="histo bench",
        machine=this_machine(),
        versions=versions(),
        rounds=settings.rounds,
        seconds=settings.seconds,
        seed=settings.seed,
        subjects=[SubjectFacts(label=s.label, pool=s.spec.pool, accuracy=s.accuracy) for s in subjects],
        rows=rows,
        left_out=left_out,
    )
    report.conclude()
    return report
