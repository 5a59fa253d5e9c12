"""PyTorch eager: the lowered network rebuilt from `model.safetensors` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from histo_export.model.native_file import read_native
from histo_export.runtimes.base import LayerTime, Names, Tiles
from histo_export.runtimes.layers import of_torch_module
from histo_export.runtimes.torch_base import TorchRuntime


class EagerRuntime(TorchRuntime):
    """The network, operator by operator."""

    names: ClassVar[Names] = {"fp32": "PyTorch eager"}

    def load(self, file: Path) -> Any:
        lowered, _ = read_native(file)
        return lowered.to(self.device)

    def layers(self, tiles: Tiles) -> list[LayerTime] | None:
        return of_torch_module(self.module, lambda: self.run(tiles), self.device)


class ChannelsLastRuntime(EagerRuntime):
    """The same network and tiles in NHWC order in memory, which spares oneDNN and cuDNN their reorders."""

    names: ClassVar[Names] = {"fp32": "PyTorch channels-last", "bf16": "PyTorch bf16 autocast, channels-last"}

    def load(self, file: Path) -> Any:
        return super().load(file).to(memory_format=torch.channels_last)

    def _input(self, tiles: Tiles) -> torch.Tensor:
        # Bytes are in this order already, so a permuted view is a channels-last tensor.
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2)
        return pixels.to(torch.float32).div_(255)
