"""The one list of runtimes, and the ids of runtimes in a precision. Imports a runtime only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histo_export.bundle_files import (
    FIXED_ONNX,
    FP16_ONNX,
    INT8_ONNX,
    LITERT,
    MODELS,
    NATIVE,
    NCNN,
    ONNX,
    OPENVINO,
    PT2,
    TORCHSCRIPT,
)
from histo_export.errors import HistoError, UsageError, nearest
from histo_export.extras import needs
from histo_export.runtimes.base import Runtime
from histo_export.spec import PRECISIONS, Precision


@dataclass(frozen=True)
class RuntimeEntry:
    """One row of `RUNTIMES`.

    Attributes:
        module: below `histo_export.runtimes`; imported when the runtime is asked for.
        cls: the class in that module.
        files: precision → the file of a bundle that the runtime opens for it; the precisions are those of `cls.names`.
        package: the installed package that computes, whose version reports show.
        timed_on: devices on which `histo bench` times it where no runtime is named.
        needs: the extra and its modules without which the runtime cannot be imported; None where it needs no extra.
    """

    module: str
    cls: str
    files: Mapping[Precision, str]
    package: str
    timed_on: Sequence[str] = ()
    needs: tuple[str, Sequence[str]] | None = None


_NATIVE: Mapping[Precision, str] = dict.fromkeys(PRECISIONS, NATIVE)
_EAGER: Mapping[Precision, str] = {"fp32": NATIVE}
_AUTOCAST: Mapping[Precision, str] = {"fp32": NATIVE, "bf16": NATIVE}
_ONNX: Mapping[Precision, str] = {"fp32": ONNX, "int8": INT8_ONNX}
_OPENVINO: Mapping[Precision, str] = {"fp32": ONNX, "bf16": ONNX, "int8": INT8_ONNX}
_CPU, _BOTH, _CUDA = ("cpu",), ("cpu", "cuda"), ("cuda",)

DEVICES = _BOTH
"""What a runtime may run on."""
_NEEDS_ORT = "onnx", ("onnxruntime",)
_NEEDS_OPENVINO = "openvino", ("openvino",)
_NEEDS_TORCH = "train", ("torch",)
_NEEDS_NET = "train", ("torch", "torchvision")  # to build the network in Python

RUNTIMES: Mapping[str, RuntimeEntry] = {
    "native": RuntimeEntry("native", "NativeRuntime", _NATIVE, "histo-export", _CPU),
    "native-latency": RuntimeEntry("native", "NativeLatencyRuntime", _NATIVE, "histo-export", _CPU),
    "onnxruntime": RuntimeEntry("onnxruntime", "OnnxRuntime", _ONNX, "onnxruntime", _BOTH, _NEEDS_ORT),
    "onnxruntime-tensorrt": RuntimeEntry(
        "onnxruntime", "TensorRtRuntime", {"fp32": ONNX}, "onnxruntime", _CUDA, _NEEDS_ORT
    ),
    # A bundle has no such file: benchmarks/low_precision_table.py quantises model.onnx with ONNX Runtime's own tool.
    "onnxruntime-tool": RuntimeEntry(
        "onnxruntime", "OnnxToolRuntime", {"int8": "model-int8-onnxruntime.onnx"}, "onnxruntime", needs=_NEEDS_ORT
    ),
    "openvino": RuntimeEntry("openvino", "OpenVinoRuntime", _OPENVINO, "openvino", _CPU, _NEEDS_OPENVINO),
    "openvino-streams": RuntimeEntry(
        "openvino", "OpenVinoStreamsRuntime", _OPENVINO, "openvino", needs=_NEEDS_OPENVINO
    ),
    "torchscript": RuntimeEntry(
        "torchscript", "TorchScriptRuntime", {"fp32": TORCHSCRIPT}, "torch", needs=_NEEDS_TORCH
    ),
    "libtorch": RuntimeEntry("libtorch", "LibtorchRuntime", {"fp32": TORCHSCRIPT}, "torch", _BOTH, _NEEDS_TORCH),
    "torch": RuntimeEntry("torch_eager", "EagerRuntime", _EAGER, "torch", _BOTH, _NEEDS_NET),
    "torch-channels-last": RuntimeEntry("torch_eager", "ChannelsLastRuntime", _AUTOCAST, "torch", _CPU, _NEEDS_NET),
    "torch-compile": RuntimeEntry("torch_compile", "TorchCompileRuntime", _AUTOCAST, "torch", _BOTH, _NEEDS_NET),
    "torch-cuda-graph": RuntimeEntry("torch_cuda_graph", "CudaGraphRuntime", _EAGER, "torch", _CUDA, _NEEDS_NET),
    "torch-export": RuntimeEntry("torch_export", "TorchExportRuntime", {"fp32": PT2}, "torch", needs=_NEEDS_TORCH),
    # Of files that only `--formats` names.
    "onnxruntime-fixed": RuntimeEntry(
        "onnxruntime", "OnnxFixedRuntime", {"fp32": FIXED_ONNX}, "onnxruntime", needs=_NEEDS_ORT
    ),
    "onnxruntime-fp16": RuntimeEntry(
        "onnxruntime", "OnnxFp16Runtime", {"fp32": FP16_ONNX}, "onnxruntime", needs=_NEEDS_ORT
    ),
    "openvino-ir": RuntimeEntry("openvino", "OpenVinoIrRuntime", {"fp32": OPENVINO}, "openvino", needs=_NEEDS_OPENVINO),
    "ncnn": RuntimeEntry("ncnn", "NcnnRuntime", {"fp32": NCNN}, "ncnn", needs=("ncnn", ("ncnn",))),
    "litert": RuntimeEntry(
        "litert", "LiteRtRuntime", {"fp32": LITERT}, "ai-edge-litert", needs=("litert", ("ai_edge_litert",))
    ),
}


NATIVE_RUNTIMES = tuple(name for name, entry in RUNTIMES.items() if entry.package == "histo-export")
"""Those of the native engine."""


@dataclass(frozen=True)
class Variant:
    """A runtime in one precision.

    Its text is the id that users type and reports show, and nothing else in the project makes or reads that text: the
    runtime's name alone for fp32, else followed by the precision, as in `native-int8`.

    Attributes:
        runtime: a key of `RUNTIMES`.
        precision: one of `RUNTIMES[runtime].files`.
    """

    runtime: str
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise UsageError(f"runtime {self.runtime}", "is unknown", nearest(self.runtime, RUNTIMES))
        if self.precision not in PRECISIONS:
            step = f"Choose from {', '.join(PRECISIONS)}"
            raise UsageError(f"precision {str(self.precision) or repr('')}", "is unknown", step)
        if self.precision not in self.entry.files:
            able = [name for name in RUNTIMES if _runs_here(name, self.precision)]
            here = f"These can: {', '.join(able)}" if able else f"No runtime here can run {self.precision}"
            own = " or ".join(self.entry.files)
            raise UsageError(f"{self.runtime} in {self.precision}", "is unavailable", f"{here}; or use {own}")

    def __str__(self) -> str:
        return self.runtime if self.precision == "fp32" else f"{self.runtime}-{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The variant with this id; UsageError where the id is unknown."""
        if not isinstance(text, str):  # of a program
            raise UsageError(f"runtime {text!r}", "is not a name", nearest("", _BY_ID))
        if text not in _BY_ID:
            raise UsageError(f"runtime {text or repr(text)}", "is unknown", nearest(text, _BY_ID))
        return _BY_ID[text]

    @property
    def entry(self) -> RuntimeEntry:
        """The row of its runtime."""
        return RUNTIMES[self.runtime]

    @property
    def file(self) -> str:
        """The file of a bundle that it opens."""
        return self.entry.files[self.precision]

    def in_precision(self, precision: Precision) -> Variant:
        """The same runtime in another precision; UsageError where it has none."""
        return Variant(self.runtime, precision)


def variants(*ids: str) -> tuple[Variant, ...]:
    """The variants with these ids, as in `variants("native", "native-int8")`; UsageError where one is unknown."""
    return tuple(map(Variant.parse, ids))


def all_variants() -> tuple[Variant, ...]:
    """Every runtime in every precision that it has, from the most exact precision to the fastest."""
    return tuple(_BY_ID.values())


def default_variants(device: str, precisions: Sequence[Precision] = ("fp32",)) -> tuple[Variant, ...]:
    """What `histo bench` times where no runtime is named, for each precision the runtimes that have it."""
    return tuple(
        Variant(name, precision)
        for precision in precisions
        for name, entry in RUNTIMES.items()
        if device in entry.timed_on and precision in entry.files
    )


def check_installed(runtime: str) -> None:
    """MissingExtraError where a runtime needs a package that is not installed. Imports nothing."""
    if (needed := RUNTIMES[runtime].needs) is not None:
        extra, modules = needed
        needs(f"Runtime {runtime}", extra, modules=modules)


def runtime_class(runtime: str) -> type[Runtime]:
    """The class of `RUNTIMES[runtime]`; MissingExtraError where it needs a package that is not installed."""
    check_installed(runtime)
    entry = RUNTIMES[runtime]
    cls: type[Runtime] = getattr(importlib.import_module(f"histo_export.runtimes.{entry.module}"), entry.cls)
    return cls


def open_runtime(
    runtime: str, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32"
) -> Runtime:
    """Opens a model file in one of `RUNTIMES`; see `Runtime` for the arguments and the errors."""
    one_device(device)
    cls = runtime_class(runtime)
    if reason := cls.unavailable(device, precision):
        other = "--device cpu or another --runtime" if device != "cpu" else "another --runtime or --precision"
        raise UsageError(f"{cls.names[precision]}, --device {device}", reason, f"Use {other}, or see histo doctor")
    return cls(file, threads=threads, device=device, precision=precision)


def one_device(device: str) -> None:
    """UsageError unless `device` is one of `DEVICES`."""
    if device not in DEVICES:
        raise UsageError(f"device {device or repr(device)}", "is unknown", f"Use {' or '.join(DEVICES)}")


def _runs_here(runtime: str, precision: Precision) -> bool:
    """Whether a runtime opens a bundle's file in a precision on some device of this machine.

    It imports what the runtime needs, so it is for messages only.
    """
    entry = RUNTIMES[runtime]
    if entry.files.get(precision) not in MODELS:
        return False
    if entry.package == "histo-export":
        from histo_export import _core

        return precision in _core.usable_precisions()
    try:
        cls = runtime_class(runtime)
    except HistoError:  # a package is missing
        return False
    return any(cls.unavailable(device, precision) is None for device in DEVICES)


_BY_ID: Mapping[str, Variant] = {
    str(variant): variant
    for variant in (
        Variant(name, precision)
        for precision in PRECISIONS
        for name, entry in RUNTIMES.items()
        if precision in entry.files
    )
}
