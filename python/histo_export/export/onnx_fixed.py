"""`model-fixed.onnx`: `model.onnx` for batches of one size, for tools that want every dimension to be a number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from histo_export.bundle_files import FIXED_ONNX, ONNX
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    (folder / FIXED_ONNX).write_bytes(fixed_bytes((folder / ONNX).read_bytes(), source.batch_size))
    return [FIXED_ONNX]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    return [f"`{FIXED_ONNX}` is the same network for batches of exactly one size, which its input states.", ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None


def fixed_bytes(model: bytes, batch_size: int) -> bytes:
    """The content of the file: every value has the shape that it has at this batch, and Reshape knows it, too.

    Args:
        model: from `onnx_graph.onnx_bytes`.
        batch_size: of all runs.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch_size
    del graph.value_info[:]
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for item in graph.initializer:
        if item.name in shapes:
            shape = onnx.numpy_helper.to_array(item).copy()
            shape[0] = batch_size
            item.CopyFrom(onnx.numpy_helper.from_array(shape, item.name))
    onnx.checker.check_model(proto, full_check=True)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    content: bytes = proto.SerializeToString()
    return content
