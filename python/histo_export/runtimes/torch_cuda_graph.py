"""PyTorch eager, recorded once per batch size as a CUDA graph and replayed: no launch overhead, same kernels."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from histo_export.runtimes.base import Names, Tiles
from histo_export.runtimes.torch_eager import EagerRuntime
from histo_export.spec import Precision

WARMUP = 3
"""Runs before the recording, in which cuDNN and the allocator settle; PyTorch's notes on CUDA graphs use as many."""


class CudaGraphRuntime(EagerRuntime):
    """One graph per batch size, with an input and an output that stay at their addresses."""

    names: ClassVar[Names] = {"fp32": "PyTorch CUDA graph"}

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        return super().unavailable(device, precision) if device == "cuda" else "CUDA graphs need a CUDA device"

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        super().__init__(file, threads=threads, device=device, precision=precision)
        self.graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def _record(self, example: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        placed = example.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.module(placed)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self.module(placed)
        return graph, placed, logits

    @torch.inference_mode()
    def forward(self, tiles: Tiles) -> torch.Tensor:
        batch = self._input(tiles)
        if (shape := tuple(batch.shape)) not in self.graphs:
            self.graphs[shape] = self._record(batch)
        graph, placed, logits = self.graphs[shape]
        placed.copy_(batch)
        graph.replay()
        return logits

    def layers(self, tiles: Tiles) -> None:
        """None: a replayed graph runs no Python, and so no hooks."""
