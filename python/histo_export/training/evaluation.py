"""The logits of a trained network on a split of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from histo_export.model.net import TileNet, normalise
from histo_export.spec import ModelSpec
from histo_export.training.precision import without_tf32

if TYPE_CHECKING:
    from histo_export.data.transforms import TorchTiles


def predict(
    net: TileNet,
    spec: ModelSpec,
    tiles: TorchTiles,
    device: torch.device,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> npt.NDArray[np.float32]:
    """Logits `(len(tiles), classes)` in fp32 (TF32 off) and evaluation mode, in the order of the tiles."""
    net = net.to(device, memory_format=torch.channels_last).eval()
    logits = []
    done = 0
    with torch.inference_mode(), without_tf32():
        for batch, _ in DataLoader(tiles, batch_size, num_workers=workers, pin_memory=device.type == "cuda"):
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            logits.append(net(normalise(batch, spec)).float().cpu().numpy())
            done += len(batch)
            on_batch(done)
    return np.concatenate(logits)
