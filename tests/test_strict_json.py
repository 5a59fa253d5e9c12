"""What is written is JSON as RFC 8259 has it, and what is read has to be."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest

import histo_export
from histo_export.cli import show
from histo_export.strict_json import dump_json, load_json, read_json


def test_a_number_that_is_not_finite_is_written_as_null() -> None:
    written = dump_json({"a": [math.nan, 1.5], "b": (math.inf, -math.inf), "c": {"d": np.float64("nan")}})
    assert load_json(written) == {"a": [None, 1.5], "b": [None, None], "c": {"d": None}}


def test_results_on_the_screen_are_strict_too(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_json({"loss": math.nan, "name": "Größe"})
    assert load_json(capsys.readouterr().out) == {"loss": None, "name": "Größe"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "it has the key 'c' twice"),
        ('{"a": NaN}', "it holds NaN, which is not a finite number"),
        ("[-Infinity]", "it holds -Infinity, which is not a finite number"),
        ("1e999", "it holds 1e999, which is not a finite number"),
        ("[" * 100_000, "it is nested too deeply"),
        (" " * 200_000, "it has more than 0 MB"),
    ],
)
def test_json_that_others_read_otherwise_is_refused(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histo_export.strict_json.MOST_BYTES", 150_000)
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_json(tmp_path / "file.json")


def test_nothing_else_writes_json_that_people_read() -> None:
    """json.dump and json.dumps write NaN. What remains are hashes, pipes between our own processes, and metadata."""
    allowed = {"bench/worker.py", "bench/worker_handle.py", "export/onnx_graph.py", "model/native_file.py"}
    allowed |= {"bench/made_model.py"}
    allowed |= {"parity.py", "predict/run.py", "strict_json.py"}
    package = Path(histo_export.__file__).parent
    writers = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps", "model_dump_json"):
                writers.add(file.relative_to(package).as_posix())
    assert writers <= allowed, "write with strict_json.dump_json"
