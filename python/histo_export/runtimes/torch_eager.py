"""PyTorch eager: the lowered network rebuilt from `model.safetensors` alone. Also the base of the torch runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from histo_export.errors import HistoError
from histo_export.runtimes import Runtime, Tiles, to_float
from histo_export.spec import STAGES


class TorchRuntime(Runtime):
    """Runs a module whose children are the stages."""

    name = "PyTorch eager"

    def __init__(self, file: Path, threads: int, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise HistoError("--device cuda", "PyTorch sees no GPU here", "Use --device cpu, or see histo doctor")
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # TF32 keeps 10 bits of mantissa; this runtime says fp32
        self.device = device
        self.bytes = False
        self.module: Any = self.load(file)

    def load(self, file: Path) -> Any:
        """The module in `file`; sets `self.bytes` where it takes uint8."""
        from histo_export.model.native_file import read_native

        lowered, _ = read_native(file)
        return lowered.to(self.device)

    @property
    def executed(self) -> str:
        return f"{self.device} fp32"

    def _input(self, tiles: Tiles) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tiles) if self.bytes else to_float(tiles)).to(self.device)

    @torch.inference_mode()
    def forward(self, tiles: Tiles) -> torch.Tensor:
        """The logits where they were computed."""
        logits: torch.Tensor = self.module(self._input(tiles))
        return logits

    def run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.forward(tiles).float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        x = self._input(tiles)
        outputs = {}
        for stage in STAGES:
            x = getattr(self.module, stage)(x)
            outputs[stage] = x.float().cpu().numpy()
        return outputs


class ChannelsLastRuntime(TorchRuntime):
    """The same network and tiles in NHWC order in memory, which spares oneDNN and cuDNN their reorders."""

    name = "PyTorch channels-last"

    def load(self, file: Path) -> Any:
        return super().load(file).to(memory_format=torch.channels_last)

    def _input(self, tiles: Tiles) -> torch.Tensor:
        # Bytes are in this order already, so a permuted view is a channels-last tensor.
        pixels = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.device).permute(0, 3, 1, 2)
        return pixels.to(torch.float32).div_(255)


class Autocast(TorchRuntime):
    """What makes a torch runtime compute in bf16: PyTorch's autocast, which leaves the weights in float32."""

    precision = "bf16"

    @property
    def executed(self) -> str:
        """The types of what the convolutions and the linear layer give, which autocast has chosen."""
        found: set[torch.dtype] = set()
        lowered = getattr(self.module, "_orig_mod", self.module)  # of what is compiled: it traces no hooks
        layers = [layer for layer in lowered.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
        hooks = [layer.register_forward_hook(lambda _, __, output: found.add(output.dtype)) for layer in layers]
        crop = lowered.stem.crop
        with torch.inference_mode(), self.autocast():
            lowered(self._input(np.zeros((1, crop, crop, 3), np.uint8)))
        for hook in hooks:
            hook.remove()
        names = [name for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")) if dtype in found]
        return f"{self.device} {'+'.join(names)}, autocast"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16)

    def forward(self, tiles: Tiles) -> torch.Tensor:
        with self.autocast():
            return super().forward(tiles)

    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        with self.autocast():
            return super().stages(tiles)


class ChannelsLastBf16Runtime(Autocast, ChannelsLastRuntime):
    name = "PyTorch bf16 autocast, channels-last"
