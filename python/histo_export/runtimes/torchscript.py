"""TorchScript in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histo_export.model.torchscript import load_torchscript
from histo_export.runtimes.torch_eager import TorchRuntime


class TorchScriptRuntime(TorchRuntime):
    """`torch.jit.load`, not frozen, so that the stages stay reachable."""

    name = "TorchScript"

    def load(self, file: Path) -> Any:
        module: Any = load_torchscript(file, self.device)
        self.bytes = bool(module.stem.bytes)
        return module
