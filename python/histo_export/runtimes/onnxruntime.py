"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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


class OnnxRuntime(Runtime):
    """One session, spinning off: idle threads of a session would slow whatever runs next in the process."""

    name = "ONNX Runtime"

    def __init__(self, file: Path, threads: int, device: str) -> None:
        self.file, self.threads, self.device = file, threads, device
        try:
            self.session = self._session(file)
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise HistoError(file, f"is not a model that ONNX Runtime runs ({error})", "Export again") from error
        self.bytes = self.session.get_inputs()[0].type == "tensor(uint8)"

    def _session(self, model: Path | bytes) -> ort.InferenceSession:
        provider, provider_options = PROVIDERS[self.device]
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
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
