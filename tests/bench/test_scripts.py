"""The scripts in benchmarks/, which no other test runs, follow the package's names."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEER = "wsinfer_peer"
"""Runs in WSInfer's own Python."""

SCRIPTS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - {PEER, "conftest"})


@pytest.mark.parametrize("script", [name for name in SCRIPTS if not name.startswith("test_")])
def test_a_script_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module(script)
