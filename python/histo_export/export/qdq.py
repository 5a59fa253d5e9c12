"""`model-int8.onnx`: the quantised model for other runtimes, with QuantizeLinear and DequantizeLinear (QDQ).

It is made from the bundle's own `model.onnx`. Each int8 map is quantised once, where it is computed; every node that
reads it, the residual connection included, reads the dequantised value. Weights are stored as int8. The stem, the head
and the maps that the search kept in bf16 are fp32 here, because bf16 in an ONNX graph is slower in most runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper

from histo_export.model.arithmetic import MAPS, Scales, quantise_weights


def qdq_bytes(model: bytes, scales: Mapping[str, Scales]) -> bytes:
    """The content of the file.

    Args:
        model: the fp32 ONNX file of the same network, from `onnx_graph.onnx_bytes`.
        scales: by convolution.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    weights = {item.name: item for item in graph.initializer}
    input_of = {node.input[1].removesuffix(".weight"): node.input[0] for node in graph.node if node.op_type == "Conv"}
    map_of = {input_of[name]: name for name in MAPS if name in scales}  # value of the graph → map

    def add(name: str, array: npt.NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    nodes: list[NodeProto] = []
    for conv, scale in scales.items():
        weight = torch.from_numpy(numpy_helper.to_array(weights[f"{conv}.weight"]).copy())
        graph.initializer.remove(weights[f"{conv}.weight"])
        stored = quantise_weights(weight, scale.weight).numpy().astype(np.int8)
        inputs = [
            add(f"{conv}.weight_int8", stored),
            add(f"{conv}.weight_scale", scale.weight.numpy()),
            add(f"{conv}.weight_zero", np.zeros(len(stored), np.int8)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{conv}.weight"], f"{conv}.weight_dq", axis=0))
    for node in graph.node:
        for i, value in enumerate(node.input):
            if value in map_of:
                node.input[i] = f"{map_of[value]}.input"
        nodes.append(node)
        for value in node.output:
            if value in map_of:
                name = f"{map_of[value]}.input"
                parameters = [
                    add(f"{name}_scale", scales[map_of[value]].input.numpy().reshape(())),
                    add(f"{name}_zero", np.zeros((), np.uint8)),
                ]
                quantised = [f"{name}_uint8"]
                nodes.append(helper.make_node("QuantizeLinear", [value, *parameters], quantised, f"{name}_q"))
                nodes.append(helper.make_node("DequantizeLinear", quantised + parameters, [name], f"{name}_dq"))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    properties = {item.key: item.value for item in proto.metadata_props}
    helper.set_model_props(proto, properties | {"histo.precision": "int8"})
    onnx.checker.check_model(proto, full_check=True)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    content: bytes = proto.SerializeToString()
    return content
