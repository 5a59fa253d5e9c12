"""OpenVINO, on the CPU, each precision pinned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import openvino as ov

from histo_export.errors import HistoError
from histo_export.runtimes.base import LayerTime, Names, Runtime, Tiles, TileSide, to_float
from histo_export.runtimes.layers import of_onnx_kernels
from histo_export.spec import STAGES, Precision

PRECISIONS: Mapping[str, str] = {"u8": "int8", "i8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
"""OpenVINO's word for a precision → ours."""

ARITHMETIC = ("Convolution", "FullyConnected", "MatMul")
"""The layer types that hold the multiply-accumulates; a Subgraph or a Reorder may differ without a loss."""


class OpenVinoRuntime(Runtime):
    """One compiled model with one stream, which is what latency asks for, and the precision pinned.

    Without the hint OpenVINO computes in bf16 wherever the CPU can, and says so nowhere; therefore `executed` is read
    from the layers of the compiled graph and not from the hint. What `model-int8.onnx` does not quantise runs in bf16
    where the CPU can.
    """

    names: ClassVar[Names] = {"fp32": "OpenVINO", "bf16": "OpenVINO bf16", "int8": "OpenVINO int8"}
    one_stream: ClassVar[bool] = True

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        if device != "cpu":
            return "OpenVINO does not run on NVIDIA GPUs"
        if precision == "bf16" and not _computes_bf16(_core()):
            return "OpenVINO computes in bf16 on CPUs with AVX-512 BF16 or AMX only, and this one has neither"
        return None

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        self.core = _core()
        try:
            self.model = self.core.read_model(file)
            self.compiled = self._compile(self.model)
        except RuntimeError as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise HistoError(file, f"is not a model that OpenVINO runs ({reason})", "Export again") from error
        self.request = self.compiled.create_infer_request()
        self.takes_bytes = self.model.input(0).get_element_type() == ov.Type.u8

    @property
    def side(self) -> TileSide:
        shape = self.model.input(0).get_partial_shape()
        return TileSide(shape[1 if self.takes_bytes else 2].get_length(), fixed=True)

    def _compile(self, model: ov.Model, profile: bool = False) -> ov.CompiledModel:
        options = {
            "PERFORMANCE_HINT": "LATENCY" if self.one_stream else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": self._hint(),
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1 if self.one_stream else self.threads,
            "PERF_COUNT": profile,
        }
        return self.core.compile_model(model, "CPU", options)

    def _hint(self) -> str:
        """The type of what the file does not quantise."""
        if self.precision == "int8":
            return "bf16" if _computes_bf16(self.core) else "f32"
        return "bf16" if self.precision == "bf16" else "f32"

    @property
    def executed(self) -> str:
        executed = {_info(node, "runtimePrecision") for node in self._arithmetic()}
        known = [ours for theirs, ours in PRECISIONS.items() if theirs in executed]
        precisions = [*dict.fromkeys(known), *sorted(executed - PRECISIONS.keys())]
        return f"{self.compiled.get_property('EXECUTION_DEVICES')[0]} {'+'.join(precisions)}"

    @property
    def isa(self) -> str:
        """The instruction sets of the kernels that OpenVINO chose, as it names them."""
        words = {word for node in self._arithmetic() for word in _info(node, "primitiveType").split("_")}
        return "+".join(sorted(word for word in words if word.startswith(("avx", "sse", "amx", "sve", "neon"))))

    def _arithmetic(self) -> list[ov.Node]:
        nodes = self.compiled.get_runtime_model().get_ordered_ops()
        return [node for node in nodes if _info(node, "layerType") in ARITHMETIC]

    def _input(self, tiles: Tiles) -> npt.NDArray[np.generic]:
        return np.ascontiguousarray(tiles) if self.takes_bytes else to_float(tiles)

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.request.infer([self._input(tiles)], share_inputs=True)[0]
        return logits.copy()  # the request's own buffer, which the next call overwrites

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        # The file names the values that leave the stages; here they become outputs of a copy.
        model = self.model.clone()
        model.add_outputs(list(STAGES[:-1]))
        outputs = self._compile(model).create_infer_request().infer([self._input(tiles)])
        names = (*STAGES[:-1], "logits")
        return {stage: outputs[name].copy() for stage, name in zip(STAGES, names, strict=True)}

    def layers(self, tiles: Tiles) -> list[LayerTime] | None:
        """From a second compilation, which keeps time."""
        request = self._compile(self.model, profile=True).create_infer_request()
        batch = [self._input(tiles)]
        request.infer(batch)  # kernels are chosen and weights packed at the first run of a shape
        request.infer(batch)
        executed = ov.ProfilingInfo.Status.EXECUTED
        kernels = [info for info in request.get_profiling_info() if info.status == executed]
        return of_onnx_kernels(self.file, ((info.node_name, info.real_time.total_seconds()) for info in kernels))


class OpenVinoIrRuntime(OpenVinoRuntime):
    """OpenVINO's own file, `model.xml`."""

    names: ClassVar[Names] = {"fp32": "OpenVINO, model.xml"}

    def layers(self, tiles: Tiles) -> list[LayerTime] | None:
        """None: the names of the layers are in the ONNX file."""
        return None


class OpenVinoStreamsRuntime(OpenVinoRuntime):
    """A stream for each thread, among which a batch is divided: what OpenVINO recommends for throughput."""

    names: ClassVar[Names] = {
        "fp32": "OpenVINO, a stream per thread",
        "bf16": "OpenVINO bf16, a stream per thread",
        "int8": "OpenVINO int8, a stream per thread",
    }
    one_stream = False

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        self.queue = ov.AsyncInferQueue(self.compiled, threads)
        self.parts: dict[int, npt.NDArray[np.float32]] = {}
        # Not a method of `self`: Python does not see the reference cycle through the queue and would never free it.
        parts = self.parts

        def keep(request: ov.InferRequest, part: int) -> None:
            parts[part] = request.get_output_tensor(0).data.copy()

        self.queue.set_callback(keep)

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        batch = self._input(tiles)
        parts = np.array_split(batch, max(1, min(self.threads, len(batch))))
        for i, part in enumerate(parts):
            self.queue.start_async([part], i, share_inputs=True)
        self.queue.wait_all()
        return np.concatenate([self.parts.pop(i) for i in range(len(parts))])


@cache
def _core() -> ov.Core:
    """The only `Core` of this process. It is never destroyed before the process ends.

    Each `Core` loads a CPU plugin of its own. The plugin's constructor gives the calling thread a new alternate signal
    stack (`sigaltstack`). Its destructor unmaps that stack and puts back the one that it found. When the older of two
    plugins is destroyed first, the younger one puts back a stack that is no longer mapped; when a plugin is destroyed
    in another thread, its stack stays in use although it is unmapped. The next signal with a Python handler (Ctrl-C,
    or the end of a child process after torch's `DataLoader` had workers) then ends the process with SIGSEGV.
    Seen with OpenVINO 2026.4 (src/plugins/intel_cpu/src/sigstack_manager.cpp).
    """
    return ov.Core()


def _computes_bf16(core: ov.Core) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _info(node: ov.Node, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
