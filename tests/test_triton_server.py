"""The real Triton server of PyPI's `nvidia-pytriton` reads the repository.

That server brings the Python backend only, so a model of ten lines stands in for the onnxruntime backend. It opens the
ONNX file; no logits are compared. Configuration and protocol are those of the server. Skipped where the package is not
installed: `pip install --no-deps nvidia-pytriton`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http as triton

STAND_IN = """
import os
import sys
sys.path[:0] = PATHS  # the server's Python does not look at PYTHONPATH
import onnxruntime
import triton_python_backend_utils as backend

class TritonPythonModel:
    def initialize(self, args):
        file = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        tiles = [backend.get_input_tensor_by_name(request, "tiles").as_numpy() for request in requests]
        logits = [self.session.run(["logits"], {"tiles": each})[0] for each in tiles]
        return [backend.InferenceResponse([backend.Tensor("logits", each)]) for each in logits]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _with_stand_in(bundle: Path, repository: Path) -> None:
    """The bundle's repository, but for the backend."""
    shutil.copytree(bundle / "triton", repository)
    config = repository / "bundle" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    assert 'backend: "onnxruntime"' in text
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'), encoding="utf-8")
    (repository / "bundle" / "1" / "model.py").write_text(STAND_IN.replace("PATHS", repr(sys.path)), encoding="utf-8")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        pytest.skip("nvidia-pytriton is not installed")
    home = Path(spec.origin).parent / "tritonserver"
    stub = home / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip("nvidia-pytriton has no Python backend for this Python")
    place = tmp_path_factory.mktemp("triton")
    _with_stand_in(bundle, place / "models")
    backend = place / "backends" / "python"
    shutil.copytree(home / "backends" / "python", backend)
    shutil.copyfile(stub, backend / stub.name)
    (backend / stub.name).chmod(0o755)
    libraries = [sysconfig.get_config_var("LIBDIR"), str(home.parents[1] / "nvidia_pytriton.libs")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)}
    port = free_port()
    options = {"model-repository": place / "models", "backend-directory": place / "backends", "http-port": port}
    options |= {"http-address": "127.0.0.1", "allow-grpc": "false", "allow-metrics": "false"}
    with (place / "log").open("w") as log:
        command = [str(home / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        end = time.monotonic() + 120
        while not _ready(client):
            assert process.poll() is None, (place / "log").read_text()[-3000:]
            assert time.monotonic() < end, (place / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def _ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_model_ready("bundle"))
    except OSError:
        return False


@pytest.mark.foreign
def test_the_server_reads_the_repository(bundle: Path, server: triton.InferenceServerClient) -> None:
    """It says what it has read, and that the model is ready: the stand-in has opened the ONNX file."""
    config = server.get_model_config("bundle")
    assert config["max_batch_size"] == 64
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert config["output"][0]["label_filename"] == "labels.txt"
    told = server.get_model_metadata("bundle")
    assert [(each["name"], each["datatype"], each["shape"]) for each in told["inputs"]] == [
        ("tiles", "FP32", [-1, 3, 75, 75])
    ]
    assert [(each["name"], each["datatype"]) for each in told["outputs"]] == [("logits", "FP32")]
