"""`model-fp16.onnx`: weights and feature maps in float16, half the size; input and output stay as in `model.onnx`.

Crop and normalisation stay in float32, because they cost nothing and a rounded pixel is an error in all that follows.
ONNX Runtime has no float16 convolution for most CPUs and computes there in float32 with rounded weights, so the file is
for GPUs and phones. `onnxruntime.transformers.float16` is not used: where nodes are to stay in float32, it puts a cast
in front of the node that it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from histo_export.bundle_files import FP16_ONNX, ONNX
from histo_export.errors import HistoError
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    (folder / FP16_ONNX).write_bytes(fp16_bytes((folder / ONNX).read_bytes()))
    return [FP16_ONNX]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    return [f"`{FP16_ONNX}` is for GPUs: weights and feature maps in float16, input and output as in `{ONNX}`.", ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None


def fp16_bytes(model: bytes) -> bytes:
    """The content of the file.

    Args:
        model: from `onnx_graph.onnx_bytes`.

    Raises:
        HistoError: a weight is too large for float16.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    weights = {name for node in layers for name in node.input[1:]}
    largest = float(np.finfo(np.float16).max)
    for item in graph.initializer:
        if item.name in weights:
            values = numpy_helper.to_array(item)
            if np.abs(values).max() > largest:
                cause = f"{item.name} has a weight of {np.abs(values).max():.3g}, and float16 ends at {largest:g}"
                raise HistoError(FP16_ONNX, cause, "Leave onnx-fp16 out of --formats")
            item.CopyFrom(numpy_helper.from_array(values.astype(np.float16), item.name))
    first, last = layers[0], layers[-1]
    pixels, logits = first.input[0], last.output[0]
    first.input[0], last.output[0] = f"{pixels}_fp16", f"{logits}_fp16"
    nodes = list(graph.node)
    nodes.insert(nodes.index(first), helper.make_node("Cast", [pixels], [first.input[0]], to=TensorProto.FLOAT16))
    nodes.append(helper.make_node("Cast", [last.output[0]], [logits], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    content: bytes = proto.SerializeToString()
    return content
