"""`model.pt2`, torch.export's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from histo_export.errors import HistoError, one_line
from histo_export.runtimes.base import Names, TileSide
from histo_export.runtimes.torch_base import TorchRuntime


class TorchExportRuntime(TorchRuntime):
    """`torch.export.load`, unflattened so that the stages stay reachable."""

    names: ClassVar[Names] = {"fp32": "torch.export"}

    def load(self, file: Path) -> Any:
        try:
            program = torch.export.load(file)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise HistoError(file, f"is not a readable .pt2 ({one_line(error)})", "Export again") from error
        placeholder = next(n for n in program.graph.nodes if n.name == program.graph_signature.user_inputs[0])
        self.takes_bytes = placeholder.meta["val"].dtype == torch.uint8
        self._pixels = int(placeholder.meta["val"].shape[1 if self.takes_bytes else 2])
        for node in program.graph.nodes:
            # torch.export notes the device of the export and lets the program refuse all others.
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                node.kwargs = {name: value for name, value in node.kwargs.items() if name != "device"}
        return torch.export.unflatten(program).to(self.device)

    @property
    def side(self) -> TileSide:
        return TileSide(self._pixels, fixed=True)
