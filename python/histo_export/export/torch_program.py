"""What torch.export makes: ONNX through the dynamo exporter, and torch's own `.pt2`.

Both are one file with a symbolic batch and nothing but static operators.
"""

import contextlib
import io
import logging
import warnings

import onnx
import torch
from torch.export import Dim, ExportedProgram

from histo_export.model.lowering import InputKind, LoweredNet
from histo_export.spec import STAGES, ModelSpec

OPSET = 20
OPERATORS = frozenset(
    {"Add", "AveragePool", "Cast", "Conv", "Div", "Flatten", "Gemm"}
    | {"MaxPool", "Mul", "Relu", "Reshape", "Slice", "Sub", "Transpose"}
)
"""All that an exported graph may hold: no gather, no scatter, no adaptive pool."""


def exported_program(lowered: LoweredNet, spec: ModelSpec, kind: InputKind) -> ExportedProgram:
    """The network as torch.export sees it: batch symbolic (any size from 1), tiles of `spec.tile_size`."""
    side = spec.tile_size
    # Traced with two tiles: a batch of one would be frozen into the graph.
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8) if kind == "uint8" else torch.zeros(2, 3, side, side)
    return torch.export.export(lowered, (example,), dynamic_shapes={"tiles": {0: Dim("batch")}})


def onnx_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The ONNX file; input `tiles`, output `logits`; the value that leaves each stage bears the stage's name.

    Args:
        program: from `exported_program`.
        metadata: written to the model's metadata_props.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # torch's exporter warns about its own internals (copyreg, onnxscript); nothing there is the user's to mend.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.onnx.export(
            program, input_names=["tiles"], output_names=["logits"], opset_version=OPSET, dynamo=True, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    _name_stages(model.graph)
    del model.graph.value_info[:]  # inferred again below, with the batch's name
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]  # the exporter's notes: stack traces with paths of the machine at hand
        item.doc_string = ""
    del model.graph.metadata_props[:]
    model.graph.name = "histo"
    model.producer_name = "histo-export"
    model.producer_version = metadata.get("histo_export_version", "")
    onnx.helper.set_model_props(model, metadata)
    foreign = {node.op_type for node in model.graph.node} - OPERATORS
    assert not foreign, f"the exported graph holds {sorted(foreign)}, which lowering should have removed"
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    content: bytes = model.SerializeToString()
    return content


def pt2_bytes(program: ExportedProgram) -> bytes:
    """`model.pt2`, for `torch.export.load`."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


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
