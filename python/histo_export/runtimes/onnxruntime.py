"""ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

from histo_export.errors import HistoError
from histo_export.runtimes import Runtime, Tiles, to_float
from histo_export.spec import STAGES

PROVIDERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # TF32 keeps 10 bits of mantissa; this runtime says fp32
}


INT8_OPERATORS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"})
FP32_OPERATORS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
"""Those with multiply-adds, as ONNX Runtime's profile names what it made of a graph."""


class OnnxRuntime(Runtime):
    """One session, spinning off: idle threads of a session would slow whatever runs next in the process."""

    name = "ONNX Runtime"
    providers: ClassVar[Mapping[str, tuple[str, dict[str, str]]]] = PROVIDERS

    def __init__(self, file: Path, threads: int, device: str) -> None:
        self.file, self.threads, self.device = file, threads, device
        try:
            self.session = self._session(file)
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise HistoError(file, f"is not a model that ONNX Runtime runs ({error})", "Export again") from error
        self.bytes = self.session.get_inputs()[0].type == "tensor(uint8)"

    def _session(self, model: Path | bytes, profile: Path | None = None) -> ort.InferenceSession:
        provider, provider_options = self.providers[self.device]
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Where the CPU has no VNNI, int8 products would else be summed in 16 bits, which overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if self.device == "cuda":
            ort.preload_dlls()  # the CUDA libraries that came with PyTorch; no torch is imported here
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=[(provider, provider_options)])
        if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU without an error
            raise HistoError(
                f"--device {self.device}", f"ONNX Runtime could not start its {provider}", "See histo doctor for why"
            )
        return session

    @property
    def executed(self) -> str:
        return f"{self.session.get_providers()[0]} fp32"

    def _input(self, tiles: Tiles) -> dict[str, npt.NDArray[np.generic]]:
        return {"tiles": tiles if self.bytes else to_float(tiles)}

    def run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.session.run(["logits"], self._input(tiles))[0]
        return logits

    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        # The file names the values that leave the stages; here they become outputs of a copy in memory.
        model = onnx.load(self.file)
        names = [*STAGES[:-1], "logits"]
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        outputs = self._session(model.SerializeToString()).run(names, self._input(tiles))
        return dict(zip(STAGES, outputs, strict=True))

    def kernels(self, tiles: Tiles) -> list[tuple[str, str, float]]:
        """Name, provider and seconds of each kernel of one run, from a second session that keeps a profile.

        A session that has a GPU's provider may still place nodes on the CPU; only the profile tells.
        """
        with tempfile.TemporaryDirectory(prefix="histo-profile-") as folder:
            session = self._session(self.file, profile=Path(folder) / "onnxruntime")
            runs = 3  # the first ones allocate
            for _ in range(runs):
                session.run(["logits"], self._input(tiles))
            events = json.loads(Path(session.end_profiling()).read_text())
        ending = "_kernel_time"
        kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(ending)]
        last = kernels[-(len(kernels) // runs) :]
        return [(e["name"].removesuffix(ending), e["args"]["provider"], e["dur"] / 1e6) for e in last]


class OnnxInt8Runtime(OnnxRuntime):
    """A QDQ file. Convolutions whose output is not quantised stay in fp32, so `executed` is read from a profile.

    It is that of the session itself, over one tile while it is opened: a second session would be in the memory's peak.
    """

    name = "ONNX Runtime int8"
    precision = "int8"

    def __init__(self, file: Path, threads: int, device: str) -> None:
        with tempfile.TemporaryDirectory(prefix="histo-profile-") as folder:
            self._first: Path | None = Path(folder) / "onnxruntime"
            super().__init__(file, threads, device)
            self._first = None
            shape = self.session.get_inputs()[0].shape
            self.warmup(1, shape[1] if self.bytes else shape[2])
            self._kinds = _kinds_of_arithmetic(json.loads(Path(self.session.end_profiling()).read_text()))

    def _session(self, model: Path | bytes, profile: Path | None = None) -> ort.InferenceSession:
        return super()._session(model, self._first or profile)

    @property
    def executed(self) -> str:
        return f"{self.session.get_providers()[0]} {'+'.join(self._kinds)}"


class OnnxToolInt8Runtime(OnnxInt8Runtime):
    """The same from the file that ONNX Runtime's own tool made, which quantises every output for its kernels."""

    name = "ONNX Runtime int8, its own tool"


def _kinds_of_arithmetic(events: list[dict[str, Any]]) -> list[str]:
    """ "int8" and "fp32", as far as convolutions and products of matrices ran in them."""
    names = [str(event["args"].get("op_name", "")) for event in events if event.get("cat") == "Node"]
    whole = any(name in INT8_OPERATORS for name in names)
    real = any(name in FP32_OPERATORS for name in names)
    return ["int8"] * whole + ["fp32"] * real


class TensorRtRuntime(OnnxRuntime):
    """ONNX Runtime's TensorRT provider; it builds its engine at the first run of each batch size."""

    name = "ONNX Runtime, TensorRT"
    providers: ClassVar[Mapping[str, tuple[str, dict[str, str]]]] = {
        "cuda": ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"})
    }

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if device != "cuda":
            return "TensorRT runs on NVIDIA GPUs only"
        if "TensorrtExecutionProvider" not in ort.get_available_providers():
            return "this build of ONNX Runtime has no TensorRT provider"
        return None

    def __init__(self, file: Path, threads: int, device: str) -> None:
        if reason := self.unavailable(device):
            raise HistoError(f"--device {device}", reason, "Use another runtime, or see histo doctor")
        super().__init__(file, threads, device)
