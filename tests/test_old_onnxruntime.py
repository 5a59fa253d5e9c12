"""The ONNX files run in old releases of ONNX Runtime, and give what the installed one gives.

python -m venv old && old/bin/pip install onnxruntime==1.15.1 'numpy<2'
HISTO_OLD_ONNXRUNTIME=old/bin/python pytest tests/test_old_onnxruntime.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from histo_export.bench.subjects import noise_scales
from histo_export.bundle_files import GOLDEN, INT8_ONNX, ONNX
from histo_export.export.qdq import qdq_bytes
from histo_export.model.checkpoint import Checkpoint
from histo_export.parity import FP32_TOLERANCE, Golden
from histo_export.runtimes import open_runtime, to_float

OLD_PYTHON = os.environ.get("HISTO_OLD_ONNXRUNTIME")

RUN = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")
tiles = numpy.load(sys.argv[1])
for file in sys.argv[2:]:
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    numpy.save(file + ".npy", session.run(["logits"], {"tiles": tiles})[0])
print(onnxruntime.__version__)
"""


@pytest.mark.skipif(OLD_PYTHON is None, reason="HISTO_OLD_ONNXRUNTIME names no interpreter with an old ONNX Runtime")
def test_an_old_onnx_runtime_computes_the_same(bundle: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    golden = Golden.read(bundle / GOLDEN)
    content = (bundle / ONNX).read_bytes()
    (tmp_path / ONNX).write_bytes(content)
    (tmp_path / INT8_ONNX).write_bytes(qdq_bytes(content, noise_scales(checkpoint)))
    np.save(tmp_path / "tiles.npy", to_float(golden.tiles))
    files = [tmp_path / "tiles.npy", tmp_path / ONNX, tmp_path / INT8_ONNX]
    assert OLD_PYTHON is not None
    done = subprocess.run([OLD_PYTHON, "-c", RUN, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert golden.relative_error(np.load(tmp_path / f"{ONNX}.npy")) < FP32_TOLERANCE
    expected = open_runtime("onnxruntime", tmp_path / INT8_ONNX, threads=2, precision="int8").run(golden.tiles)
    found = np.load(tmp_path / f"{INT8_ONNX}.npy")
    # Two int8 computations may round a value to different neighbours, see `low_precision.ONNX_ALLOWED`.
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)
    print(done.stdout.strip(), np.abs(found - expected).max() / np.ptp(expected))
