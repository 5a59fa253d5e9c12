"""The lowered network as torch.export sees it, from which ONNX and `.pt2` are made."""

import torch
from torch.export import Dim, ExportedProgram

from histo_export.model.lowering import LoweredNet
from histo_export.spec import InputKind, ModelSpec


def exported_program(lowered: LoweredNet, spec: ModelSpec, kind: InputKind) -> ExportedProgram:
    """The program: batch symbolic (any size from 1), tiles of `spec.tile_size`, static operators only."""
    side = spec.tile_size
    # Traced with two tiles: a batch of one would be frozen into the graph.
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8) if kind == "uint8" else torch.zeros(2, 3, side, side)
    program = torch.export.export(lowered, (example,), dynamic_shapes={"tiles": {0: Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which a .pt2 file would hold
    return program
