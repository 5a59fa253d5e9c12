"""benchmarks/serve_load.py for some seconds: the command as a process, clients in others, SIGTERM in the middle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import serve_load


@pytest.mark.slow
def test_no_answer_is_lost_or_mixed_under_load(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [bundle, "--clients", 8, "--seconds", 4, "--threads", 1, "--alone", 0.2, "--peer"]
    monkeypatch.setattr(sys, "argv", ["serve_load.py", *map(str, arguments)])
    assert serve_load.measure(serve_load.parser().parse_args(), tmp_path), capsys.readouterr().out
    printed = capsys.readouterr().out
    assert printed.count("wrong, mixed or lost answers: 0") == 2
    assert printed.count(" requests (200: ") == 2
    assert "0 answered by the server but not received" in printed
