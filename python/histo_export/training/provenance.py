"""What a checkpoint records of the run that made it, and whether a run to resume is the same run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision

import histo_export
from histo_export.errors import HistoError, UsageError
from histo_export.machine import cpu_name, package_versions
from histo_export.model.checkpoint import read_checkpoint
from histo_export.spec import ModelSpec
from histo_export.training.recipes import TrainConfig

if TYPE_CHECKING:
    from histo_export.data import TileData

ADDED_SINCE_0_1_0 = ("augmentation",)
"""Entries of `TrainConfig.identity` that checkpoints of version 0.1.0 lack."""


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


def run_notes(spec: ModelSpec) -> list[str]:
    """What the user should know before the first epoch, as sentences."""
    if spec.crop == spec.tile_size:
        return []
    return [
        f"tiles of {spec.tile_size} pixels: the network sees the centre {spec.crop} pixels, {spec.seen_share} of the "
        f"area; --crop {spec.tile_size} uses all"
    ]


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


def run_to_resume(data: TileData, spec: ModelSpec, config: TrainConfig, last: Path) -> dict[str, Any]:
    """The provenance in `last`, the `last.ckpt` of a run.

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
    except (KeyError, TypeError) as error:
        raise HistoError(last, f"lacks the record of its run ({error})", "Train again without --resume") from error
    for key, value in now.items():
        if before[key] != value:
            raise changed(key, before[key], value)
    return recorded


def changed(key: str, before: object, now: object) -> UsageError:
    """The error of a resumed run with another value than before."""
    return UsageError(
        "--resume",
        f"{key} is {now} now, but was {before} in the run to resume",
        f"Use the same {key}, or start anew",
    )
