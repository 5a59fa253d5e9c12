"""torch.compile: the eager network through Inductor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from histo_export.runtimes.base import Names, Tiles
from histo_export.runtimes.torch_eager import EagerRuntime


class TorchCompileRuntime(EagerRuntime):
    """Inductor with frozen weights, which lets it fold and repack them.

    Each batch size is compiled for itself when it first comes (`dynamic=False`): kernels for any size would be slower
    at every size, and a deployment has one or two. On CUDA Inductor also replays CUDA graphs ("reduce-overhead").
    The stages are run without compilation.
    """

    names: ClassVar[Names] = {"fp32": "torch.compile", "bf16": "torch.compile, bf16 autocast"}

    def load(self, file: Path) -> Any:
        module = super().load(file)
        options: dict[str, Any] = {"freezing": True}
        if self.device == "cuda":
            options["triton.cudagraphs"] = True
        torch._dynamo.config.recompile_limit = 64  # sizes, not the default 8: a batch sweep has more
        return torch.compile(module, dynamic=False, options=options)

    def _eager_module(self) -> Any:
        return self.module._orig_mod

    def layers(self, tiles: Tiles) -> None:
        """None: hooks do not reach into compiled code."""
