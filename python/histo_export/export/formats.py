"""The one table of export formats.

To add a format, write its module with the functions of `Writer`, and add one line to `FORMATS`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from histo_export.bundle_files import (
    COREML,
    FIXED_ONNX,
    FP16_ONNX,
    INT8_ONNX,
    LITERT,
    NATIVE,
    NCNN,
    ONNX,
    OPENVINO,
    PT2,
    TORCHSCRIPT,
)
from histo_export.errors import UsageError
from histo_export.export.agreement import INPUT, SPEC
from histo_export.export.converters import Converter
from histo_export.spec import InputKind, ModelSpec, Precision, describe_input
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from histo_export.model.arithmetic import Scales
    from histo_export.model.checkpoint import Checkpoint
    from histo_export.model.lowering import LoweredNet


LOWEST_OPSET, HIGHEST_OPSET = 13, 22
"""Of ONNX files. 13 is the first in which weights have a scale per channel, which model-int8.onnx needs; model.onnx
could do with less, but one number for both files is simpler. 22 is the last in which all operators were compared."""


FP16_TOLERANCE = 1e-2
"""Allowed error of the logits of model-fp16.onnx, in the unit of `parity.FP32_TOLERANCE`. A number of 11 bits has an
error of 5e-4, and 37 layers add up; the top class of each golden tile must be the same, too."""

TENSORRT = (
    "is built on the GPU that runs it, for that GPU alone",
    "Export onnx, and run there, with S for the tile size: trtexec --onnx=model.onnx --saveEngine=model.plan "
    "--minShapes=tiles:1x3xSxS --optShapes=tiles:32x3xSxS --maxShapes=tiles:64x3xSxS --noTF32",
)


class Source:
    """What is written in every format: a checkpoint, lowered once for all of them.

    Attributes:
        checkpoint: the trained network.
        kind: what the graphs take, see `lowering.InputKind`.
        scales: of an int8 model, by convolution; None for a model without.
        name: what a server calls the model, see `bundle_files.model_name`.
        opset: of ONNX files, from `LOWEST_OPSET` to `HIGHEST_OPSET`.
        precision: that the bundle is made for.
        batch_size: of the ONNX file with a fixed batch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: InputKind = "float",
        scales: Mapping[str, Scales] | None = None,
        name: str = "model",
        opset: int = LOWEST_OPSET,
        precision: Precision = "fp32",
        batch_size: int = 1,
    ) -> None:
        self.checkpoint, self.kind, self.scales, self.name = checkpoint, kind, scales, name
        self.opset, self.precision, self.batch_size = opset, precision, batch_size

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        return self.checkpoint.spec

    @property
    def metadata(self) -> dict[str, str]:
        """What ONNX, TorchScript and `.pt2` files say of themselves; `agreement` compares it with `config.json`."""
        return {SPEC: dump_json(self.spec.to_dict()), INPUT: " ".join(describe_input(self.kind, self.spec.tile_size))}

    @cached_property
    def lowered(self) -> LoweredNet:
        """The network with static operators only, float32, in evaluation mode."""
        from histo_export.model.lowering import lower

        return lower(self.checkpoint.net(), self.spec, self.kind)

    @cached_property
    def program(self) -> ExportedProgram:
        """The lowered network as torch.export sees it."""
        from histo_export.export.torch_program import exported_program

        return exported_program(self.lowered, self.spec, self.kind)


class Writer(Protocol):
    """The functions of a format's module."""

    def write(self, folder: Path, source: Source) -> Sequence[str]:
        """Writes the format's files into a bundle's folder, which has those of `Format.needs` already.

        Returns:
            Their paths within the bundle.

        Raises:
            HistoError: the model can't be written in this format.
            OSError: a file can't be written.
        """

    def usage(self, spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
        """Lines of Markdown for the model card: how to run the files. `files` are all files of the bundle."""

    def next_step(self, out: Path) -> str | None:
        """A shell command that a user may run next on the bundle `out`; None where none comes to mind."""


@dataclass(frozen=True)
class Format:
    """One row of `FORMATS`.

    Attributes:
        module: below `histo_export.export`, with the functions of `Writer`; imported when the format is written.
        file: the model file that it makes; None where it makes none of its own.
        checked_by: ids of the runtimes that check `file` against the checkpoint, in fp32.
        own_tolerance: allowed error of the logits where it is not `parity.FP32_TOLERANCE`, in the same unit.
        needs: names of the formats whose files it is made from, which are written too.
        further: matches the names of all other files that it may make.
        named_only: not every model can have it, so that "all" leaves it out.
        converter: the program of other people that makes the files; None where ours does.
    """

    module: str
    file: str | None
    checked_by: tuple[str, ...] = ()
    own_tolerance: float | None = None
    needs: tuple[str, ...] = ()
    further: re.Pattern[str] | None = None
    named_only: bool = False
    converter: Converter | None = None

    @property
    def tolerance(self) -> float:
        """Allowed error of the logits, in the unit of `parity.FP32_TOLERANCE`."""
        from histo_export.parity import FP32_TOLERANCE  # imports NumPy, which the command line's help does not need

        return FP32_TOLERANCE if self.own_tolerance is None else self.own_tolerance

    @property
    def writer(self) -> Writer:
        """The functions of its module; HistoError where that needs a package which is not installed."""
        return cast(Writer, importlib.import_module(f"histo_export.export.{self.module}"))

    def makes(self, name: str) -> bool:
        """Whether a file of a bundle with this name is from this format."""
        return name == self.file or bool(self.further and self.further.fullmatch(name))


_TRITON_FILES = re.compile(r"triton/[A-Za-z0-9_-]+/(config\.pbtxt|labels\.txt|1/model\.onnx)")

_COREML_FILES = re.compile(rf"{re.escape(COREML)}/(Manifest\.json|Data/com\.apple\.CoreML(/\w[\w.]*)+)", re.ASCII)

FORMATS: dict[str, Format] = {
    "onnx": Format("onnx_graph", ONNX, ("onnxruntime",), further=re.compile(re.escape(INT8_ONNX))),
    "torchscript": Format("torchscript", TORCHSCRIPT, ("torchscript", "libtorch")),
    "native": Format("native", NATIVE, ("native", "torch")),
    "pt2": Format("pt2", PT2, ("torch-export",)),
    "triton": Format("triton", None, needs=("onnx",), further=_TRITON_FILES),
    "onnx-fixed": Format("onnx_fixed", FIXED_ONNX, ("onnxruntime-fixed",), needs=("onnx",)),
    "onnx-fp16": Format("onnx_fp16", FP16_ONNX, ("onnxruntime-fp16",), FP16_TOLERANCE, needs=("onnx",)),
    "timm": Format("timm", None, further=re.compile(r"timm/(config\.json|model\.safetensors)"), named_only=True),
    "openvino": Format(
        "openvino_ir",
        OPENVINO,
        ("openvino-ir",),
        needs=("onnx",),
        further=re.compile(r"model\.bin"),
        converter=Converter("openvino", takes_bytes=True),
    ),
    "ncnn": Format(
        "ncnn",
        NCNN,
        ("ncnn",),
        needs=("torchscript",),
        further=re.compile(r"model\.ncnn\.bin"),
        converter=Converter("ncnn"),
    ),
    "litert": Format(
        "litert",
        LITERT,
        ("litert",),
        needs=("onnx",),
        converter=Converter("litert", apart="onnx2tf"),
    ),
    "coreml": Format(
        "coreml",
        None,
        needs=("torchscript",),
        further=_COREML_FILES,
        converter=Converter("coreml"),
    ),
    "tensorrt": Format("tensorrt", None, needs=("onnx",), converter=Converter(refused=TENSORRT)),
}
"""What `--formats` names, in the order in which the files are written and listed."""

DEFAULT_FORMATS = ("onnx", "torchscript", "native")
OWN_FORMATS = tuple(name for name, row in FORMATS.items() if row.converter is None and not row.named_only)
"""Which `--formats all` names: every model can have them, and nothing else has to be installed."""


def check_formats(names: Collection[str], kind: InputKind) -> None:
    """UsageError where no format has a model file, or a format's converter is not installed or can't take the model."""
    if not any(FORMATS[name].file for name in with_needs(names)):
        cause = "makes no file that histo runs, so that nothing could check the bundle"
        raise UsageError(f"--formats {','.join(names)}", cause, f"Add native: --formats native,{','.join(names)}")
    for name in names:
        if (converter := FORMATS[name].converter) is not None:
            converter.check(f"--formats {name}", kind)


def with_needs(names: Collection[str]) -> list[str]:
    """The formats, and those that they are made from, in the order of `FORMATS`."""
    wanted = set(names).union(*(FORMATS[name].needs for name in names))
    return [name for name in FORMATS if name in wanted]


def format_of(file: str) -> Format:
    """The format whose model file has this name; KeyError where no format has."""
    return {entry.file: entry for entry in FORMATS.values()}[file]


def write_formats(
    folder: Path, names: Iterable[str], source: Source, report: Callable[[str], None] = lambda step: None
) -> list[str]:
    """Writes formats into a folder; nothing is checked yet.

    Args:
        folder: exists.
        names: from `with_needs`.
        source: the model.
        report: told of each step.

    Returns:
        The paths of all files within the folder.

    Raises:
        HistoError: the model can't be written in one of the formats.
        OSError: a file can't be written.
    """
    written: list[str] = []
    for name in names:
        report(f"writing {FORMATS[name].file or name}")
        written += FORMATS[name].writer.write(folder, source)
    return written
