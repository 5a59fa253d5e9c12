"""How large the network is: parameters and multiply-accumulates of each layer, as trained and as exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histo_export.model.net import TileNet
from histo_export.spec import CHANNELS, ModelSpec, head_pool


@dataclass(frozen=True)
class LayerInfo:
    """One line of `histo inspect`: output shape for one tile, parameters, multiply-accumulates per tile."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(spec: ModelSpec) -> list[LayerInfo]:
    """Convolutions, batch norms, pools and the linear layer of the unfolded network, in order of execution.

    Nothing is allocated or computed: the network runs on torch's meta device.
    """
    with torch.device("meta"):
        net = TileNet.of(spec).eval()
    table: list[LayerInfo] = []

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = output[0].numel() * (module.in_channels // module.groups) * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            macs = module.in_features * module.out_features
        parameters = sum(p.numel() for p in module.parameters())
        table.append(LayerInfo(name, type(module).__name__, shape, parameters, macs))

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
    net(torch.empty(1, 3, spec.crop, spec.crop, device="meta"))
    return table


@dataclass(frozen=True)
class Size:
    """The size of the network and of its head.

    Attributes:
        parameters: of all layers.
        macs: multiply-accumulates of one tile.
        head_parameters: of the linear layer.
    """

    parameters: int
    macs: int
    head_parameters: int


def size_as_trained(table: Sequence[LayerInfo]) -> Size:
    """The size of the network in `layer_table`."""
    return Size(sum(layer.parameters for layer in table), sum(layer.macs for layer in table), table[-1].parameters)


def size_as_exported(spec: ModelSpec, table: Sequence[LayerInfo]) -> Size:
    """The size after lowering: batch norms become the biases of convolutions, and the head keeps `head_pool`.

    Args:
        spec: of the model.
        table: its `layer_table`.
    """
    trained = size_as_trained(table)
    norms = [layer for layer in table if layer.kind == "BatchNorm2d"]
    biases = sum(layer.output[0] for layer in norms)  # one for each channel that a batch norm scales
    inputs = CHANNELS * head_pool(spec.pool, spec.map_size) ** 2
    head = (inputs + 1) * len(spec.classes)
    return Size(
        parameters=trained.parameters
        - sum(layer.parameters for layer in norms)
        + biases
        - trained.head_parameters
        + head,
        macs=trained.macs - table[-1].macs + inputs * len(spec.classes),
        head_parameters=head,
    )
