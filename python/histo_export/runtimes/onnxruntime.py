"""ONNX Runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    RuntimeException,
)

from histo_export.errors import HistoError, UsageError, one_line
from histo_export.extras import needs
from histo_export.files import temporary_folder
from histo_export.machine import why_no_driver
from histo_export.runtimes.base import LayerTime, Names, Runtime, Tiles, TileSide, to_float
from histo_export.runtimes.layers import of_onnx_kernels
from histo_export.spec import STAGES, Precision

PROVIDERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),  # TF32 keeps 10 bits of mantissa; this runtime says fp32
}

KERNEL = "_kernel_time"
"""Ends the name of an event that is a kernel's."""

INT8_OPERATORS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"})
FP32_OPERATORS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
"""Operators with multiply-adds, as ONNX Runtime's profile names what it made of a graph."""


class OnnxRuntime(Runtime):
    """One session, without spinning: idle threads of a session would slow whatever runs next in the process.

    In int8 it runs a QDQ file. Convolutions whose output is not quantised stay in fp32 there, so `executed` is read
    from a profile over one tile. The profiled session is the one that is used, because a second one would count in the
    peak of memory.
    """

    names: ClassVar[Names] = {"fp32": "ONNX Runtime", "int8": "ONNX Runtime int8"}
    providers: ClassVar[Mapping[str, tuple[str, dict[str, str]]]] = PROVIDERS

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        with temporary_folder() as folder:
            profile = None if precision == "fp32" else folder / "onnxruntime"
            try:
                self.session = self._session(file, profile)
            except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
                raise HistoError(
                    file, f"is not a model that ONNX Runtime runs ({one_line(error)})", "Export again"
                ) from error
            tiles = self.session.get_inputs()[0]
            self.takes_bytes = tiles.type == "tensor(uint8)"
            self._side = TileSide(tiles.shape[1] if self.takes_bytes else tiles.shape[2], fixed=True)
            self._arithmetic = "fp32"
            if profile is not None:
                self.warmup(1, self._side.pixels)
                self._arithmetic = "+".join(_kinds_of_arithmetic(_events(self.session)))

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
        # With its fallback, a session whose provider fails in some run prints to stdout and goes on on the CPU.
        arguments: dict[str, Any] = {"providers": [(provider, provider_options)], "enable_fallback": 0}
        try:
            session = ort.InferenceSession(source, options, **arguments)
        except (EPFail, RuntimeException, RuntimeError, ValueError) as error:
            if self.device == "cpu":
                raise
            raise self._not_started(provider, f" ({one_line(error)})") from error
        if session.get_providers()[0] != provider:  # if libraries are missing, it is left out
            raise self._not_started(provider)
        return session

    def _not_started(self, provider: str, reason: str = "") -> UsageError:
        cause = f"ONNX Runtime could not start its {provider}{reason}"
        return UsageError(f"--device {self.device}", cause, "Use --device cpu; histo doctor shows why")

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        provider, _ = cls.providers.get(device, ("", {}))
        if provider not in ort.get_available_providers():
            return f"this build of ONNX Runtime has no {provider or 'provider for it'}"
        return why_no_driver() if device == "cuda" else None  # without one, ONNX Runtime prints pages and goes on

    @property
    def side(self) -> TileSide:
        return self._side

    @property
    def executed(self) -> str:
        return f"{self.session.get_providers()[0]} {self._arithmetic}"

    def devices(self, tiles: Tiles) -> list[str]:
        """The providers of all kernels: a session that has a GPU's provider may still place nodes on the CPU."""
        return sorted({event["args"]["provider"] for event in self._kernels(tiles)})

    def _input(self, tiles: Tiles) -> dict[str, npt.NDArray[np.generic]]:
        return {"tiles": tiles if self.takes_bytes else to_float(tiles)}

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.session.run(["logits"], self._input(tiles))[0]
        return logits

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        needs("Comparing the stages of an ONNX file", "onnx", modules=["onnx"])  # running a file works without it
        import onnx

        # The file names the values that leave the stages; here they become outputs of a copy in memory.
        model = onnx.load(self.file)
        names = [*STAGES[:-1], "logits"]
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        outputs = self._session(model.SerializeToString()).run(names, self._input(tiles))
        return dict(zip(STAGES, outputs, strict=True))

    def layers(self, tiles: Tiles) -> list[LayerTime] | None:
        kernels = self._kernels(tiles)
        return of_onnx_kernels(
            self.file, ((event["name"].removesuffix(KERNEL), event["dur"] / 1e6) for event in kernels)
        )

    def _kernels(self, tiles: Tiles) -> list[dict[str, Any]]:
        """The events of the kernels of one run, from a second session that keeps a profile."""
        with temporary_folder() as folder:
            session = self._session(self.file, profile=folder / "onnxruntime")
            runs = 3  # the first ones allocate
            for _ in range(runs):
                session.run(["logits"], self._input(tiles))
            events = _events(session)
        kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]
        return kernels[-(len(kernels) // runs) :]


class OnnxFp16Runtime(OnnxRuntime):
    """The file in float16. On most CPUs ONNX Runtime computes it in float32, with the weights rounded to float16."""

    names: ClassVar[Names] = {"fp32": "ONNX Runtime, float16 file"}

    @property
    def executed(self) -> str:
        return f"{self.session.get_providers()[0]} float16 file"


class OnnxFixedRuntime(OnnxRuntime):
    """The file for batches of one size: tiles run in such batches, and the last one is filled up with black tiles."""

    names: ClassVar[Names] = {"fp32": "ONNX Runtime, fixed batch"}

    def _batches(self, tiles: Tiles) -> Iterator[Tiles]:
        size = self.session.get_inputs()[0].shape[0]
        for start in range(0, len(tiles), size):
            part = tiles[start : start + size]
            yield np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        run = super()._run
        return np.concatenate([run(batch) for batch in self._batches(tiles)])[: len(tiles)]

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        stages = super()._stages
        parts = [stages(batch) for batch in self._batches(tiles)]
        return {name: np.concatenate([part[name] for part in parts])[: len(tiles)] for name in STAGES}

    def _kernels(self, tiles: Tiles) -> list[dict[str, Any]]:
        return super()._kernels(next(self._batches(tiles)))


class OnnxToolRuntime(OnnxRuntime):
    """The same from the file that ONNX Runtime's own tool made, which quantises every output for its kernels."""

    names: ClassVar[Names] = {"int8": "ONNX Runtime int8, its own tool"}


class TensorRtRuntime(OnnxRuntime):
    """ONNX Runtime's TensorRT provider; it builds its engine at the first run of each batch size."""

    names: ClassVar[Names] = {"fp32": "ONNX Runtime, TensorRT"}
    providers: ClassVar[Mapping[str, tuple[str, dict[str, str]]]] = {
        "cuda": ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"})
    }

    def _session(self, model: Path | bytes, profile: Path | None = None) -> ort.InferenceSession:
        # Its provider has no option for TF32, which keeps 10 bits of mantissa. NVIDIA's libraries read this variable
        # when the first of them starts.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        return super()._session(model, profile)

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return super().unavailable(device, precision) if device == "cuda" else "TensorRT runs on NVIDIA GPUs only"


def _events(session: ort.InferenceSession) -> list[dict[str, Any]]:
    """Ends a session's profile and reads it."""
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _kinds_of_arithmetic(events: list[dict[str, Any]]) -> list[str]:
    """ "int8" and "fp32", as far as convolutions and products of matrices ran in them."""
    names = [str(event["args"].get("op_name", "")) for event in events if event.get("cat") == "Node"]
    int8 = any(name in INT8_OPERATORS for name in names)
    fp32 = any(name in FP32_OPERATORS for name in names)
    return ["int8"] * int8 + ["fp32"] * fp32
