"""How large the network is: parameters and multiply-accumulates of each layer, as trained and as exported.

Everything follows from the spec, so nothing here needs torch. `net.TileNet` is the network itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from histo_export._core import BLOCK_COUNTS
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
    """Convolutions, batch norms, pools and the linear layer of the unfolded network, in order of execution."""
    side = _halved(spec.crop)
    table = [*_convolution("conv1", "bn1", 3, 64, 7, side)]
    side = _halved(side)
    table.append(LayerInfo("maxpool", "MaxPool2d", (64, side, side), 0, 0))
    inputs = 64
    for stage, blocks in enumerate(BLOCK_COUNTS):
        outputs = 64 << stage
        side = _halved(side) if stage else side
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            table += _convolution(f"{block}.conv1", f"{block}.bn1", inputs, outputs, 3, side)
            table += _convolution(f"{block}.conv2", f"{block}.bn2", outputs, outputs, 3, side)
            if inputs != outputs:
                table += _convolution(f"{block}.downsample.0", f"{block}.downsample.1", inputs, outputs, 1, side)
            inputs = outputs
    table.append(LayerInfo("avgpool", "AdaptiveAvgPool2d", (CHANNELS, spec.pool, spec.pool), 0, 0))
    weights = CHANNELS * spec.pool**2 * len(spec.classes)
    table.append(LayerInfo("fc", "Linear", (len(spec.classes),), weights + len(spec.classes), weights))
    return table


def _halved(side: int) -> int:
    """The side of a map after a convolution or a pool of stride 2 with padding."""
    return (side + 1) // 2


def _convolution(name: str, norm: str, inputs: int, outputs: int, kernel: int, side: int) -> Iterator[LayerInfo]:
    """A square convolution without bias, and its batch norm; `side` is that of the output."""
    weights = inputs * outputs * kernel**2
    yield LayerInfo(name, "Conv2d", (outputs, side, side), weights, weights * side**2)
    yield LayerInfo(norm, "BatchNorm2d", (outputs, side, side), 2 * outputs, 0)


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
