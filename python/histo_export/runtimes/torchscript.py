"""TorchScript in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from histo_export.model.torchscript import load_torchscript
from histo_export.runtimes.base import Names, TileSide
from histo_export.runtimes.torch_base import TorchRuntime


class TorchScriptRuntime(TorchRuntime):
    """`torch.jit.load`, not frozen, so that the stages stay reachable."""

    names: ClassVar[Names] = {"fp32": "TorchScript"}

    def load(self, file: Path) -> Any:
        module: Any = load_torchscript(file, self.device)
        self.takes_bytes = bool(module.stem.bytes)
        return module

    @property
    def side(self) -> TileSide:
        """Files of older versions take every tile that is not smaller than the crop."""
        stem = self.module.stem
        return TileSide(int(stem.tile_size), fixed=True) if hasattr(stem, "tile_size") else super().side
