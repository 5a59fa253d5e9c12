"""What a checkpoint records of the run that made it, and whether a run to resume is the same run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

import histo_export
from histo_export.errors import HistoError, UsageError
from histo_export.machine import package_versions
from histo_export.model.checkpoint import read_checkpoint
from histo_export.spec import ModelSpec
from histo_export.system import cpu_name
from histo_export.training.recipes import TrainConfig

if TYPE_CHECKING:
    from histo_export.data import TileData

ADDED_SINCE_0_1_0 = ("augmentation",)
"""Entries of `TrainConfig.identity` that checkpoints of version 0.1.0 lack."""
IMBALANCE = 5
"""How many times more tiles the largest class has than a class that is named as small."""


def data_facts(data: TileData) -> dict[str, Any]:
    """Plain values that tell which tiles these are."""
    return {
        "name": data.name,
        "description": data.description,
        "synthetic": data.synthetic,
        "fingerprint": data.fingerprint,
        "tiles": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "tile_size": data.tile_size,
        "mpp": data.mpp,
        "notes": list(data.notes),
    }


def run_notes(spec: ModelSpec, train_labels: NDArray[np.int64]) -> list[str]:
    """What the user should know before the first epoch, as sentences.

    Args:
        spec: the network.
        train_labels: int64 `(n,)`, of the training tiles.
    """
    notes = []
    if spec.crop != spec.tile_size:
        notes.append(
            f"tiles of {spec.tile_size} pixels: the network sees the centre {spec.crop} pixels, {spec.seen_share} of "
            f"the area; --crop {spec.tile_size} uses all"
        )
    tiles = np.bincount(train_labels, minlength=len(spec.classes))
    largest = int(tiles.argmax())
    if few := [i for i, count in enumerate(tiles) if count * IMBALANCE <= tiles[largest]]:
        small = ", ".join(f"{spec.classes[i]} {tiles[i]:,}" for i in few)
        notes.append(
            f"imbalance: {spec.classes[largest]} has {tiles[largest]:,} training tiles, but {small}. A network can "
            "ignore small classes and still have a high accuracy: add tiles of them or use fewer of the large ones, "
            "and judge by balanced accuracy and F1"
        )
    return notes


def training_versions() -> dict[str, str]:
    """Package → version of what computes in training; torch's version includes that of CUDA."""
    return {
        "histo-export": histo_export.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        **package_versions(["pytorch-lightning"]),
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """In words."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {cpu_name()}, {torch.get_num_threads()} threads"


def run_to_resume(
    data: TileData, spec: ModelSpec, config: TrainConfig, last: Path, *, extend: bool = True
) -> dict[str, Any]:
    """The provenance in `last`, the `last.ckpt` of a run.

    Args:
        data, spec, config: what is asked for now.
        last: the file.
        extend: more epochs than the run had are allowed.

    Raises:
        UsageError: there is no such file, or the run had other tiles, another network or other settings.
        HistoError: the checkpoint is damaged.
    """
    if not last.is_file():
        raise UsageError(last, "does not exist, so there is no run to resume", "Train without --resume")
    checkpoint = read_checkpoint(last)
    recorded = checkpoint.training
    try:
        before = {**checkpoint.spec.to_dict(), "data": recorded["data"]["fingerprint"]}
        now = {**spec.to_dict(), "data": data.fingerprint}
        for key, value in config.identity(config.epochs or recorded["epochs"]).items():
            if key in recorded or key not in ADDED_SINCE_0_1_0:
                before[key], now[key] = recorded[key], value
        executed = recorded["precision"]["executed"]
        if config.autocast not in ("auto", executed):
            before["autocast"], now["autocast"] = executed, config.autocast
        if extend and now["epochs"] > before["epochs"]:
            now["epochs"] = before["epochs"]
    except (KeyError, TypeError) as error:
        raise HistoError(last, f"lacks the record of its run ({error})", "Train again without --resume") from error
    changed = [f"{key} is {now[key]} now, but was {value}" for key, value in before.items() if now[key] != value]
    if changed:
        ways = "Use the same options, replace the run with --force, or choose another --out"
        raise UsageError(last.parent, f"holds a run with other options: {'; '.join(changed)}", ways)
    return recorded
