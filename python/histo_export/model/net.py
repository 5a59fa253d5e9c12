"""The model: torchvision's ResNet34 with adaptive average pooling to n×n before the linear layer.

State-dict keys are torchvision's, so weights move freely between this class and `torchvision.models.resnet34`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from histo_export._core import BLOCK_COUNTS
from histo_export.spec import CHANNELS, STAGES, ModelSpec


class TileNet(ResNet):
    """ResNet34 with `AdaptiveAvgPool2d(pool)`, an optional dropout and a linear layer of 512·pool² inputs.

    Input: float `(n, 3, h, w)`, normalised, RGB. Output: logits `(n, num_classes)`.
    """

    def __init__(self, pool: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(BasicBlock, list(BLOCK_COUNTS), num_classes=num_classes)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(CHANNELS * pool * pool, num_classes)

    def begin_shallow(self) -> None:
        """Makes each residual block the identity (and ReLU), by the gain of its last batch norm."""
        for module in self.modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    @classmethod
    def of(cls, spec: ModelSpec) -> TileNet:
        """The untrained network that `spec` describes."""
        return cls(spec.pool, len(spec.classes), spec.dropout)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and the output of each of `STAGES`; the last output is the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        yield "stem", x
        for name in STAGES[1:-1]:
            x = getattr(self, name)(x)
            yield name, x
        yield "head", self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))

    def forward(self, x: Tensor) -> Tensor:
        for _, out in self.stages(x):
            x = out
        return x


def normalise(tiles: Tensor, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 `(n, 3, h, w)` → what `TileNet` takes: in [0, 1], minus the mean, over the standard deviation."""
    mean = torch.tensor(spec.mean, dtype=dtype, device=tiles.device).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=dtype, device=tiles.device).view(3, 1, 1)
    return (tiles.to(dtype) / 255 - mean) / std
