"""A model repository of NVIDIA's Triton Inference Server, made around the bundle's ONNX file.

    triton/NAME/config.pbtxt    names, types and shapes of the ONNX file, and how requests are batched
    triton/NAME/labels.txt      the classes, in the order of the logits
    triton/NAME/1/model.onnx    a copy of the bundle's model.onnx

A copy and not a link: `triton/` may be mounted, copied or served from object storage alone, and a program that changes
one of two hard links changes the other.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from histo_export.bundle_files import ONNX
from histo_export.errors import HistoError
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source

TRITON = "triton"
"""The folder within the bundle."""

MAX_BATCH = 64
"""Tiles of a batch at most. Beyond 32 tiles the throughput no longer grows (docs/benchmarks), but memory does."""

QUEUE_DELAY_US = 2000
"""How long (µs) a request may wait for others: a fraction of the time of a single tile on a CPU, and long enough to
batch the requests of clients that send one tile each."""

_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.UINT8: "TYPE_UINT8"}

_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
  {{
    name: "{input.name}"
    data_type: {input_type}
    dims: {input_dims}
  }}
]
output [
  {{
    name: "{output.name}"
    data_type: {output_type}
    dims: {output_dims}
    label_filename: "labels.txt"
  }}
]
instance_group [
  {{
    kind: KIND_AUTO
    count: 1
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
}}
"""


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    return write_repository(folder, source.name, source.spec.classes)


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    (name,) = (file.split("/")[1] for file in files if file.endswith("/config.pbtxt"))
    return [f"Triton Inference Server: `tritonserver --model-repository {TRITON}` serves it as `{name}`.", ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return f"tritonserver --model-repository {shlex.quote(str(out / TRITON))}"


def write_repository(bundle: Path, name: str, classes: Sequence[str]) -> list[str]:
    """Adds the repository to a bundle that has its `model.onnx`.

    Args:
        bundle: the bundle's folder.
        name: of the model, from `bundle_files.model_name`.
        classes: in the order of the logits.

    Returns:
        The new files' paths within the bundle.

    Raises:
        HistoError: a class name can't be a line of a text file.
    """
    if broken := [label for label in classes if label.splitlines() != [label]]:
        raise HistoError(
            f"class {broken[0]!r}", "can't be a line of labels.txt", "Name the class's folder without line breaks"
        )
    home = bundle / TRITON / name
    model = home / "1" / ONNX
    model.parent.mkdir(parents=True)
    shutil.copyfile(bundle / ONNX, model)
    (home / "config.pbtxt").write_text(_config(model, name), encoding="utf-8")
    (home / "labels.txt").write_text("".join(f"{label}\n" for label in classes), encoding="utf-8")
    return [path.relative_to(bundle).as_posix() for path in (home / "config.pbtxt", home / "labels.txt", model)]


def _config(model: Path, name: str) -> str:
    """`config.pbtxt`; Triton puts the batch in front of `dims` itself."""
    graph = onnx.load(model).graph
    (tiles,), (logits,) = graph.input, graph.output

    def type_and_dims(value: onnx.ValueInfoProto) -> tuple[str, list[int]]:
        tensor = value.type.tensor_type
        return _TYPES[tensor.elem_type], [dim.dim_value for dim in tensor.shape.dim[1:]]

    (input_type, input_dims), (output_type, output_dims) = type_and_dims(tiles), type_and_dims(logits)
    return _CONFIG.format(
        name=name,
        max_batch=MAX_BATCH,
        delay=QUEUE_DELAY_US,
        input=tiles,
        input_type=input_type,
        input_dims=input_dims,
        output=logits,
        output_type=output_type,
        output_dims=output_dims,
    )
