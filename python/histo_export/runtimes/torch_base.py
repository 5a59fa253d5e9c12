"""What all runtimes of PyTorch in Python share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from histo_export.machine import why_no_cuda
from histo_export.runtimes.base import Runtime, Tiles, TileSide, to_float
from histo_export.spec import STAGES, Precision


def torch_isa() -> str:
    """The instruction set that torch's own CPU kernels are chosen for, e.g. "avx512"."""
    return str(torch.backends.cpu.get_cpu_capability()).lower()


class TorchRuntime(Runtime):
    """Runs a module whose children are the stages.

    In bf16 it runs under PyTorch's autocast, which leaves the weights in float32.
    """

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        torch.set_num_threads(threads)
        # TF32 keeps 10 bits of mantissa; this runtime says fp32. For products of matrices it is off unless a variable
        # of the environment, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, switches it on.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.takes_bytes = False
        self.module: Any = self.load(file)

    @abstractmethod
    def load(self, file: Path) -> Any:
        """The module in `file`, on `self.device`; sets `self.takes_bytes` where it takes uint8."""

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return why_no_cuda() if device == "cuda" else None

    @property
    def side(self) -> TileSide:
        return TileSide(int(self.module.stem.crop), fixed=False)

    @property
    def executed(self) -> str:
        if self.precision == "fp32":
            return f"{self.device} fp32"
        return f"{self.device} {'+'.join(self._types_of_results())}, autocast"

    def _types_of_results(self) -> list[str]:
        """The types of what the convolutions and the linear layer give, which autocast has chosen."""
        dtypes: set[torch.dtype] = set()
        lowered = self._eager_module()
        layers = [layer for layer in lowered.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
        hooks = [layer.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype)) for layer in layers]
        crop = lowered.stem.crop
        with self._arithmetic(), torch.inference_mode():
            lowered(self._input(np.zeros((1, crop, crop, 3), np.uint8)))
        for hook in hooks:
            hook.remove()
        return [name for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")) if dtype in dtypes]

    def _eager_module(self) -> Any:
        """The module as Python runs it, in which hooks work."""
        return self.module

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device, torch.bfloat16)

    @property
    def isa(self) -> str:
        return torch_isa()

    def devices(self, tiles: Tiles) -> list[str]:
        return [str(self.forward(tiles).device.type)]

    def _input(self, tiles: Tiles) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tiles) if self.takes_bytes else to_float(tiles)).to(self.device)

    def forward(self, tiles: Tiles) -> torch.Tensor:
        """The logits `(n, classes)`, where and in the type in which they were computed."""
        with self._arithmetic(), torch.inference_mode():
            logits: torch.Tensor = self.module(self._input(tiles))
        return logits

    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.forward(tiles).float().cpu().numpy()
        return logits

    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        outputs = {}
        with self._arithmetic(), torch.inference_mode():
            x = self._input(tiles)
            for stage in STAGES:
                x = getattr(self.module, stage)(x)
                outputs[stage] = x.float().cpu().numpy()
        return outputs
