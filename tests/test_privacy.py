"""Nothing that runs a model here reports to its maker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import histo_export

PROGRAM = """
import sys
import numpy as np
import histo_export

classifier = histo_export.load(sys.argv[1], runtime="onnxruntime", threads=1)
classifier.predict(np.zeros((1, 75, 75, 3), np.uint8))
"""

SWITCHES = ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")


def test_onnxruntime_makes_no_identifier_of_this_machine(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime from 1.29 on writes an identifier to the home folder as soon as its telemetry starts.

    It never starts on continuous integration, so the variable `CI` must not be set.
    """
    environment = {name: value for name, value in os.environ.items() if name not in (*SWITCHES, "CI", "XDG_CACHE_HOME")}
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-c", PROGRAM, str(bundle)], env={**environment, "HOME": str(home)}, check=True)
    assert list(home.rglob("*onnxruntime*")) == []


def test_whoever_sets_a_switch_decides() -> None:
    program = f"import os, histo_export; print([os.environ[name] for name in {SWITCHES}])"
    for set_by_user, seen in (({}, ["1", "0"]), (dict(zip(SWITCHES, "01", strict=True)), ["0", "1"])):
        environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, **set_by_user},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{seen}\n"


def test_no_file_of_a_bundle_has_a_path_of_this_machine(bundle: Path) -> None:
    folders = [str(Path(histo_export.__file__).parent).encode(), b"site-packages"]
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert "model.pt2" in {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [folder for folder in folders if folder in content], path.name
