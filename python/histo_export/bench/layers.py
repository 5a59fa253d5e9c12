"""Where the time goes: one table of layers per runtime, all with the same names.

Every runtime has its own profiler and its own names for kernels. They are translated to the names of the lowered
network (`layer2.0.conv1`, `head.linear`), through the ONNX graph where the runtime has no others, so that tables
can be laid side by side and the head's share can be added up. A profiler slows what it watches, so these figures are
shares, and nothing is ranked by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.spec import STAGES

Layer = tuple[str, str, float]
"""Stage, layer, seconds."""

HEAD_OPERATORS = {"AveragePool": "head.pool", "Reshape": "head.flatten", "Flatten": "head.flatten"}
"""In this network only the head has them."""


def layer_times(runtime: Any, file: Path, tiles: npt.NDArray[np.uint8]) -> list[Layer] | None:
    """The layers of one run over `tiles` in order of execution; None where the runtime offers no table.

    Args:
        runtime: an opened `Runtime`.
        file: what it was opened from.
        tiles: uint8 `(n, side, side, 3)`.
    """
    if hasattr(runtime, "layer_times"):  # the network's own names already
        return _merged((_stage(name), name, seconds) for name, seconds in runtime.layer_times(tiles))
    if hasattr(runtime, "kernels"):
        return _through_graph(file, runtime.kernels(tiles))
    if _is_lowered(getattr(runtime, "module", None)):
        return _torch_profile(runtime, tiles)
    return None


def head_share(layers: Sequence[Layer]) -> float:
    """The head's part of the time of all layers."""
    total = sum(seconds for _, _, seconds in layers)
    return sum(seconds for stage, _, seconds in layers if stage == "head") / total


def _is_lowered(module: Any) -> bool:
    """Whether it is the network as Python runs it; hooks don't reach into compiled or scripted modules."""
    return type(module).__name__ == "LoweredNet"


def _through_graph(file: Path, kernels: Iterable[tuple[str, str, float]]) -> list[Layer]:
    """Translates kernels, named after nodes or values of the ONNX graph in `file`, to layers.

    A kernel that a runtime inserted on its own (a reorder of memory) belongs to the layer before it.
    """
    names = _layers_by_name(file)
    layers: list[Layer] = []
    layer = "stem.preprocess"
    for kernel, _, seconds in kernels:
        # Runtimes append to names: "node_conv2d/WithoutBiases", "relu_1_nchwc". The longest known beginning counts.
        for end in range(len(kernel), 0, -1):
            if kernel[:end] in names and (end == len(kernel) or not kernel[end].isalnum()):
                layer = names[kernel[:end]]
                break
        layers.append((_stage(layer), layer, seconds))
    return _merged(layers)


def _layers_by_name(file: Path) -> dict[str, str]:
    """Names of nodes and of the values they compute → layer; activations and sums go to the convolution before.

    Weights are told by their names, since a quantised graph computes them: "layer1.0.conv1.weight_int8" and others.
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


def _torch_profile(runtime: Any, tiles: npt.NDArray[np.uint8]) -> list[Layer]:
    """torch.profiler, with a range around each module; a module's own time is its range less those within."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    prefix = "histo:"
    open_ranges: list[Any] = []

    def enter(name: str) -> None:
        open_ranges.append(record_function(prefix + name))
        open_ranges[-1].__enter__()

    def leave() -> None:
        open_ranges.pop().__exit__(None, None, None)

    hooks = []
    for name, module in runtime.module.named_modules():
        if name and not isinstance(module, torch.nn.Identity):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (runtime.device == "cuda")
    try:
        runtime.run(tiles)
        with profile(activities=activities) as profiler:
            runtime.run(tiles)
    finally:
        for hook in hooks:
            hook.remove()

    def spent(event: Any) -> float:
        return float(event.device_time_total if runtime.device == "cuda" else event.cpu_time_total)

    layers: list[Layer] = []
    ranges = [event for event in profiler.events() if event.name.startswith(prefix) and event.device_type.name == "CPU"]
    for event in sorted(ranges, key=lambda event: event.time_range.start):
        name = event.name.removeprefix(prefix)
        own = spent(event) - sum(spent(child) for child in event.cpu_children if child.name.startswith(prefix))
        layers.append((_stage(name), name, max(0.0, own) / 1e6))
    return _merged(layers)


def _stage(layer: str) -> str:
    stage = layer.partition(".")[0]
    return stage if stage in STAGES else STAGES[0]


def _merged(layers: Iterable[Layer]) -> list[Layer]:
    """One entry a layer, at the place where it came first; several kernels may serve one layer."""
    times: dict[tuple[str, str], float] = {}
    for stage, layer, seconds in layers:
        times[stage, layer] = times.get((stage, layer), 0.0) + seconds
    return [(stage, layer, seconds) for (stage, layer), seconds in times.items()]
