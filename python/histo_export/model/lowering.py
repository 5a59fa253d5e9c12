"""Lowering: the network that is shipped, which has static operators only.

Batch norm is folded into the convolutions. The head, adaptive pooling followed by a linear layer, is one linear
function of the final m×m feature map, and is lowered to an exact form that has only static operators:

- n divides m: an average pool with kernel and stride m/n (none at all when n = m), then the trained linear layer;
- otherwise (n does not divide m, or exceeds it): the linear layer folded to the map's own resolution. On a 4×4 map
  pool 8 only repeats cells, so its 196,614 parameters for six classes become 49,158.

Crop and normalisation are part of the graph: its input is what an image decoder returns.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from histo_export.spec import CHANNELS, STAGES, InputKind, ModelSpec, head_pool

if TYPE_CHECKING:  # it imports torchvision, which runtimes of exported files do not need
    from histo_export.model.net import TileNet


def pooling_matrix(pool: int, size: int) -> Tensor:
    """float64 `(pool, size)`: row p averages the cells that `adaptive_avg_pool2d` puts into bin p of one axis.

    Bin p covers the cells floor(p·size/pool) to ceil((p+1)·size/pool) - 1 (ATen's AdaptiveAveragePooling).
    """
    matrix = torch.zeros(pool, size, dtype=torch.float64)
    for p in range(pool):
        start, end = p * size // pool, -(-(p + 1) * size // pool)
        matrix[p, start:end] = 1 / (end - start)
    return matrix


def fold_head(weight: Tensor, pool: int, size: int) -> Tensor:
    """Folds adaptive pooling into the weight of the linear layer, in float64.

    Args:
        weight: `(classes, channels·pool²)`, in the order of `flatten(1)` of a `(n, channels, pool, pool)` tensor.
        pool: n of the trained pool.
        size: side of the feature map.

    Returns:
        float64 `(classes, channels·size²)`, to be applied to the flattened map itself.
    """
    matrix = pooling_matrix(pool, size)
    cells = weight.double().unflatten(1, (-1, pool, pool))
    return torch.einsum("kcpq,pi,qj->kcij", cells, matrix, matrix).flatten(1)


class Conv(nn.Conv2d):
    """A convolution under a name of ours: pnnx ends with SIGSEGV where a scripted program has PyTorch's own class."""


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Conv:
    """A float32 convolution with bias, equal to `conv` followed by `norm` in evaluation mode; computed in float64."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = _conv(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        assert folded.bias is not None
        folded.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    return folded


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> Conv:
    return Conv(inputs, outputs, kernel, stride, padding=kernel // 2)


def crop_start(side: int, crop: int) -> int:
    """Where a centre crop begins: torchvision's round((side - crop) / 2), which rounds a half to the even number.

    In integers only, because torch.export and TorchScript follow it, too.
    """
    start = (side - crop) // 2
    return start + (side - crop) % 2 * (start % 2)


class Stem(nn.Module):
    """Centre crop, normalisation, 7×7 convolution, ReLU and max pool."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec, kind: InputKind) -> None:
        super().__init__()
        self.crop, self.tile_size = spec.crop, spec.tile_size
        self.bytes = kind == "uint8"  # TorchScript files of all versions have it under this name
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1))
        self.conv = _conv(3, 64, 7, 2)

    def forward(self, tiles: Tensor) -> Tensor:
        if (tiles.dtype == torch.uint8) != self.bytes:
            raise ValueError("tiles must be uint8 (n, h, w, 3)" if self.bytes else "tiles must be float in [0, 1]")
        if self.bytes:
            tiles = tiles.permute(0, 3, 1, 2)
        if min(tiles.shape[2], tiles.shape[3]) < self.crop:
            raise ValueError(f"tiles are {tiles.shape[2]} x {tiles.shape[3]} pixels, less than the crop of {self.crop}")
        top, left = crop_start(tiles.shape[2], self.crop), crop_start(tiles.shape[3], self.crop)
        x = tiles[:, :, top : top + self.crop, left : left + self.crop]
        if self.bytes:
            x = x.to(torch.float32) / 255
        x = torch.relu(self.conv((x - self.mean) / self.std))
        return torch.max_pool2d(x, 3, 2, 1)


class FixedStem(nn.Module):
    """The stem of TorchScript files: the same values for tiles of `tile_size`, and no branch in the program.

    Converters (Core ML, pnnx) take neither control flow nor arithmetic on shapes. Without a branch there is no text of
    ours about wrong tiles, so the operators are those that refuse them: a split into one part fails for any other
    height and width, an operation in place for any other number of channels and for bytes where floats are due, and one
    on bits for floats where bytes are due.
    """

    __constants__ = ("bytes", "side", "start", "end")
    mean: Tensor
    std: Tensor

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.crop, self.tile_size, self.bytes, self.conv = stem.crop, stem.tile_size, stem.bytes, stem.conv
        self.register_buffer("mean", stem.mean[None])  # pnnx wants the batch's dimension, too
        self.register_buffer("std", stem.std[None])
        self.side, self.start = stem.tile_size, crop_start(stem.tile_size, stem.crop)
        self.end = self.start + stem.crop

    def forward(self, tiles: Tensor) -> Tensor:
        if self.bytes:  # a constant: only one of both is in the program
            crops = self._cropped(tiles.permute(0, 3, 1, 2)).bitwise_and(255)
            return self._features(crops.to(torch.float32).div_(255))
        return self.of_floats(tiles)

    @torch.jit.export
    def of_floats(self, tiles: Tensor) -> Tensor:
        """`forward` for float32 `(n, 3, tile_size, tile_size)` in [0, 1], in files that take bytes, too."""
        return self._features(self._cropped(tiles).clone())

    def _cropped(self, planes: Tensor) -> Tensor:
        (rows,) = planes.split_with_sizes([self.side], 2)
        (whole,) = rows.split_with_sizes([self.side], 3)
        return whole[:, :, self.start : self.end, self.start : self.end]

    def _features(self, x: Tensor) -> Tensor:
        """Of crops that are overwritten."""
        x = torch.relu(self.conv(x.sub_(self.mean).div_(self.std)))
        return torch.max_pool2d(x, 3, 2, 1)


class Block(nn.Module):
    """Two 3×3 convolutions, and a shortcut that is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(y + self.shortcut(x))


class Head(nn.Module):
    """Average pooling with a static kernel, if any is left, and the linear layer."""

    def __init__(self, pool: int, size: int, classes: int) -> None:
        super().__init__()
        kept = head_pool(pool, size)
        self.pool = nn.AvgPool2d(size // kept) if kept < size else nn.Identity()
        self.linear = nn.Linear(CHANNELS * kept * kept, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


class LoweredNet(nn.Module):
    """The shipped network in float32: tiles as `kind` says, any batch, sides of at least the crop → logits.

    Its children have the names of `spec.STAGES`: every exported file is compared with the checkpoint stage by stage.
    """

    def __init__(self, spec: ModelSpec, kind: InputKind = "float") -> None:
        super().__init__()
        self.stem = Stem(spec, kind)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), *(Block(128, 128, 1) for _ in range(3)))
        self.layer3 = nn.Sequential(Block(128, 256, 2), *(Block(256, 256, 1) for _ in range(5)))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1), Block(512, 512, 1))
        self.head = Head(spec.pool, spec.map_size, len(spec.classes))

    def forward(self, tiles: Tensor) -> Tensor:
        x = self.stem(tiles)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.head(x)
        return logits

    def of_fixed_size(self) -> "LoweredNet":
        """The same network with a `FixedStem`; it shares the weights."""
        fixed = copy.copy(self)
        fixed._modules = {**self._modules, "stem": FixedStem(self.stem)}
        return fixed


def lower(net: "TileNet", spec: ModelSpec, kind: InputKind = "float") -> LoweredNet:
    """A trained network, lowered, in evaluation mode."""
    lowered = LoweredNet(spec, kind).eval()
    lowered.stem.conv = fold_batch_norm(net.conv1, net.bn1)
    for name in STAGES[1:-1]:
        for target, block in zip(getattr(lowered, name), getattr(net, name), strict=True):
            target.conv1 = fold_batch_norm(block.conv1, block.bn1)
            target.conv2 = fold_batch_norm(block.conv2, block.bn2)
            if block.downsample is not None:
                target.shortcut = fold_batch_norm(block.downsample[0], block.downsample[1])
    size = spec.map_size
    weight = net.fc.weight.detach()
    if head_pool(spec.pool, size) != spec.pool:
        weight = fold_head(weight, spec.pool, size)
    with torch.no_grad():
        lowered.head.linear.weight.copy_(weight)
        lowered.head.linear.bias.copy_(net.fc.bias)
    return lowered.requires_grad_(False)
