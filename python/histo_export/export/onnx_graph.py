"""`model.onnx`, through torch's dynamo exporter: one file with a symbolic batch and static operators only."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shlex
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch.export import ExportedProgram

import histo_export
from histo_export.bundle_files import INT8_ONNX, ONNX
from histo_export.export.formats import LOWEST_OPSET
from histo_export.export.qdq import qdq_bytes
from histo_export.spec import STAGES, InputKind, ModelSpec, describe_input

if TYPE_CHECKING:
    from histo_export.export.formats import Source

OPERATORS = frozenset(
    {"Add", "AveragePool", "Cast", "Conv", "Div", "Flatten", "Gemm"}
    | {"MaxPool", "Mul", "Relu", "Reshape", "Slice", "Sub", "Transpose"}
)
"""The only operators that an exported graph may hold: no gather, no scatter, no adaptive pool."""

EXPORTER_OPSET = 18
"""The lowest opset that torch's exporter writes."""

_RUN = """```python
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {{"tiles": {tiles}}})[0]  # {shape}
```"""


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`; a model with scales is written as `model-int8.onnx` too."""
    content = onnx_bytes(source.program, _metadata(source), source.opset)
    (folder / ONNX).write_bytes(content)
    if not source.scales:
        return [ONNX]
    (folder / INT8_ONNX).write_bytes(qdq_bytes(content, source.scales))
    return [ONNX, INT8_ONNX]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    side = spec.tile_size
    uint8 = f"np.zeros((1, {side}, {side}, 3), np.uint8)"
    tiles = uint8 if kind == "uint8" else f"np.zeros((1, 3, {side}, {side}), np.float32)"
    return [_RUN.format(file=ONNX, tiles=tiles, shape=", ".join(describe_input(kind, side))), ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    file = json.dumps(str(out / ONNX), ensure_ascii=False)  # in double quotes, because the shell has single ones
    code = f"import onnxruntime as o; print(o.InferenceSession({file}).get_inputs()[0])"
    return f"python -c {shlex.quote(code)}"


def _metadata(source: Source) -> dict[str, str]:
    """The file's metadata_props: what someone needs who has this file and nothing else."""
    spec = source.spec
    return {
        "histo_export_version": histo_export.__version__,
        **source.metadata,
        "histo.output": "float32 (n, classes) logits",
        "class_names": json.dumps(spec.classes),
        "training_data": str(source.checkpoint.training.get("data", {}).get("name", "unknown")),
    }


def onnx_bytes(program: ExportedProgram, metadata: dict[str, str], opset: int = LOWEST_OPSET) -> bytes:
    """The content of the ONNX file: input `tiles`, output `logits`; the output of each stage has the stage's name.

    Args:
        program: from `torch_program.exported_program`.
        metadata: written to the model's metadata_props.
        opset: from `formats.LOWEST_OPSET` to `formats.HIGHEST_OPSET`.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # torch's exporter warns about its own internals (copyreg, onnxscript); the user can change nothing about that.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.onnx.export(
            program,
            input_names=["tiles"],
            output_names=["logits"],
            opset_version=EXPORTER_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    foreign = {node.op_type for node in model.graph.node} - OPERATORS
    assert not foreign, f"the exported graph holds {sorted(foreign)}, which lowering should have removed"
    declare_opset(model, opset)
    _name_stages(model.graph)
    del model.graph.value_info[:]  # inferred again below, with the batch's name
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]  # the exporter's stack traces, which hold paths of this machine
        item.doc_string = ""
    del model.graph.metadata_props[:]
    model.graph.name = "histo"
    model.producer_name = "histo-export"
    model.producer_version = metadata.get("histo_export_version", "")
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    content: bytes = model.SerializeToString()
    return content


def declare_opset(model: onnx.ModelProto, opset: int) -> None:
    """Declares an opset of `formats.LOWEST_OPSET` to `HIGHEST_OPSET`, and the lowest IR version that may hold it.

    `OPERATORS` compute the same in all of these opsets: later definitions add types, and attributes whose defaults
    change nothing. The only one that the exporter sets is Reshape's `allowzero` (opset 14), and no shape here has a 0.
    """
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _name_stages(graph: onnx.GraphProto) -> None:
    """Renames the last value of each stage but the head, whose output is `logits`."""
    leaving: dict[str, str] = {}  # stage → the last value computed in it
    for node in graph.node:
        scopes = next(p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
        leaving.update({stage: node.output[0] for stage in STAGES[:-1] if f"'{stage}'" in scopes})
    new_name = {value: stage for stage, value in leaving.items()}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, value in enumerate(names):
                names[i] = new_name.get(value, value)
