"""Where the time goes: one table of layers per runtime, all with the same names.

Every runtime has its own profiler and its own names for kernels. They are translated to the names of the lowered
network (`layer2.0.conv1`, `head.linear`), through the ONNX graph where the runtime knows no others, so that tables can
be laid side by side and the head's share can be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histo_export.extras import installed
from histo_export.runtimes.base import LayerTime
from histo_export.spec import STAGES

if TYPE_CHECKING:
    import torch

HEAD_OPERATORS = {"AveragePool": "head.pool", "Reshape": "head.flatten", "Flatten": "head.flatten"}
"""ONNX operators that only the head of this network has → their layer."""

_RANGE = "histo:"
"""Begins the name of each range that `of_torch_module` adds to a profile."""


def by_layer(times: Iterable[tuple[str, float]]) -> list[LayerTime]:
    """Adds up layer and seconds pairs; one entry a layer, at the place where it came first."""
    seconds_of: dict[str, float] = {}
    for layer, seconds in times:
        seconds_of[layer] = seconds_of.get(layer, 0.0) + seconds
    return [(_stage(layer), layer, seconds) for layer, seconds in seconds_of.items()]


def of_onnx_kernels(file: Path, kernels: Iterable[tuple[str, float]]) -> list[LayerTime] | None:
    """Translates kernels to layers; None where the package onnx is not installed, which reads the graph.

    A kernel that a runtime inserted on its own (a reorder of memory) belongs to the layer before it.

    Args:
        file: the ONNX file.
        kernels: names, which begin with that of a node or of a value of the graph, and seconds.
    """
    if not installed("onnx"):
        return None
    layer_of = _layers_by_name(file)

    def layers() -> Iterable[tuple[str, float]]:
        layer = "stem.preprocess"
        for kernel, seconds in kernels:
            # Runtimes append to names: "node_conv2d/WithoutBiases", "relu_1_nchwc". The longest known beginning counts.
            for end in range(len(kernel), 0, -1):
                if kernel[:end] in layer_of and (end == len(kernel) or not kernel[end].isalnum()):
                    layer = layer_of[kernel[:end]]
                    break
            yield layer, seconds

    return by_layer(layers())


def of_torch_module(module: torch.nn.Module, run: Callable[[], object], device: str) -> list[LayerTime]:
    """The layers of a module as torch.profiler sees them; a layer's own time is its range less those within it.

    Args:
        module: the network as Python runs it; hooks do not reach into compiled or scripted modules.
        run: one run of the module.
        device: whose time counts, "cpu" or "cuda".
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    open_ranges: list[Any] = []

    def enter(name: str) -> None:
        open_ranges.append(record_function(_RANGE + name))
        open_ranges[-1].__enter__()

    def leave() -> None:
        open_ranges.pop().__exit__(None, None, None)

    hooks = []
    for name, layer in module.named_modules():
        if name and not isinstance(layer, torch.nn.Identity):
            hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(layer.register_forward_hook(lambda *_: leave()))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    try:
        run()
        with profile(activities=activities) as profiler:
            run()
    finally:
        for hook in hooks:
            hook.remove()

    def spent(event: Any) -> float:
        return float(event.device_time_total if device == "cuda" else event.cpu_time_total)

    def layers() -> Iterable[tuple[str, float]]:
        ranges = [e for e in profiler.events() if e.name.startswith(_RANGE) and e.device_type.name == "CPU"]
        for event in sorted(ranges, key=lambda event: event.time_range.start):
            own = spent(event) - sum(spent(child) for child in event.cpu_children if child.name.startswith(_RANGE))
            yield event.name.removeprefix(_RANGE), max(0.0, own) / 1e6

    return by_layer(layers())


def _layers_by_name(file: Path) -> dict[str, str]:
    """Names of nodes and of the values they compute → layer; activations and sums go to the convolution before.

    A layer is known by the names of its weights, because a quantised graph computes them from others:
    "layer1.0.conv1.weight_int8" and the like.
    """
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    names: dict[str, str] = {}
    for node in graph.node:
        owned = [name.partition(".weight")[0] for name in node.input if ".weight" in name]
        before = [names[name] for name in node.input if name in names]
        if owned:
            layer = owned[0]
        elif node.op_type == "MaxPool":
            layer = "stem.maxpool"
        elif node.op_type in HEAD_OPERATORS:
            layer = HEAD_OPERATORS[node.op_type]
        else:
            layer = before[0] if before else "stem.preprocess"
        names[node.name] = layer
        names.update(dict.fromkeys(node.output, layer))
    return names


def _stage(layer: str) -> str:
    stage = layer.partition(".")[0]
    return stage if stage in STAGES else STAGES[0]
