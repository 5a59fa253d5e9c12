"""What a checkpoint records of the run that made it, and whether a run to resume is the same run."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

import histo_export
from histo_export.data.tiles import SPLITS
from histo_export.errors import HistoError, UsageError
from histo_export.machine import package_versions
from histo_export.model.checkpoint import Checkpoint, read_checkpoint
from histo_export.model.provenance import best_row
from histo_export.spec import ModelSpec
from histo_export.statistics import FEW_GROUPS
from histo_export.system import cpu_name
from histo_export.training.recipes import TrainConfig

if TYPE_CHECKING:
    from histo_export.data import TileData

ADDED_SINCE_0_1_0: Mapping[str, Any] = {
    "keep": "best",
    "balance": False,
    "settings": {"schedule": "cosine", "zero_residual": False, "ema_decay": 0.999},
    "augmentation": {"random_crop": True, "flips": True, "turns": True, "grey": 0.0},
}
"""What older checkpoints lack of `TrainConfig.identity`, and the values that their runs had.

Those of version 0.1.0 lack all strengths of the augmentation, which are then not compared.
"""
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
        "split": split_facts(data),
        "groups": None if data.groups is None else dict(zip(SPLITS, data.groups, strict=True)),
        "notes": list(data.notes),
        **({"licence": data.licence, "citation": data.citation} if data.citation else {}),
    }


def split_facts(data: TileData) -> str:
    """How tiles of one slide or patient were kept together, and what it means where they were not, as a sentence."""
    if data.groups is None:
        if data.synthetic:
            return "synthetic tiles, each made for itself: there are no slides"
        return "tiles without groups: tiles of one slide may be on both sides; the interval is too narrow"
    train, val, test = data.groups
    text = (
        f"by {train + val + test:,} groups ({data.groups_from}): {train:,} in train, {val:,} in val, {test:,} in test"
    )
    if test < FEW_GROUPS:
        text += f"; an interval over {test:,} group{'' if test == 1 else 's'} says little"
    return text


def run_notes(spec: ModelSpec, train_labels: NDArray[np.int64], balance: bool = False) -> list[str]:
    """What the user should know before the first epoch, as sentences.

    Args:
        spec: the network.
        train_labels: int64 `(n,)`, of the training tiles.
        balance: each class is drawn equally often.
    """
    notes = []
    if spec.resized_from is not None:
        notes.append(f"tiles are resized from {spec.resized_from} to {spec.tile_size} pixels")
    if spec.crop != spec.tile_size:
        notes.append(
            f"tiles of {spec.tile_size} pixels: the network sees the centre {spec.crop} pixels, {spec.seen_share} of "
            f"the area; --crop {spec.tile_size} uses all"
        )
    tiles = np.bincount(train_labels, minlength=len(spec.classes))
    largest = int(tiles.argmax())
    if few := [i for i, count in enumerate(tiles) if count * IMBALANCE <= tiles[largest]]:
        small = ", ".join(f"{spec.classes[i]} {tiles[i]:,}" for i in few)
        follows = (
            "Each class is drawn equally often (--balance), so tiles of small classes are repeated"
            if balance
            else "A network can ignore small classes and still have a high accuracy: add tiles of them, or draw each "
            "class equally often with --balance"
        )
        notes.append(
            f"imbalance: {spec.classes[largest]} has {tiles[largest]:,} training tiles, but {small}. {follows}, and "
            "judge by balanced accuracy and F1"
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
    checkpoint = _read_last(last)
    recorded = checkpoint.training
    try:
        before, now = checkpoint.spec.to_dict(), spec.to_dict()
        earlier = _with_new_entries(recorded)
        for key, value in config.identity(config.epochs or recorded["epochs"]).items():
            if key != "augmentation" or key in recorded:
                before[key], now[key] = earlier[key], value
        before["settings"] = {key: value for key, value in before["settings"].items() if key != "epochs"}
        executed = recorded["precision"]["executed"]
        if config.autocast not in ("auto", executed):
            before["autocast"], now["autocast"] = executed, config.autocast
        asked, had = now["epochs"], before["epochs"]
        if extend:
            now["epochs"] = had
        changed = [f"{key} is {now[key]} now, but was {value}" for key, value in before.items() if now[key] != value]
        if data.fingerprint != recorded["data"]["fingerprint"]:
            changed.append(_other_tiles(data_facts(data), recorded["data"]))
        held = _held(recorded)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # ValueError: no epoch
        raise HistoError(last, f"lacks the record of its run ({error})", "Train again without --resume") from error
    if changed:
        ways = "Use the same tiles and options, replace the run with --force, or choose another --out"
        raise UsageError(last.parent, f"holds a run with other tiles or options: {'; '.join(changed)}", ways)
    if asked < had:
        done = f"{recorded['epoch']} of the {had} epochs of the run in {last.parent} are done"
        cause = f"is less than the run has ({done}), and a run can only grow"
        ways = f"Leave --epochs out for {had}, or start a new run with another --out"
        raise UsageError(f"--epochs {asked}", cause, ways)
    if not (best := last.with_name("best.ckpt")).is_file():
        cause = f"is missing, which held {held}"
        export = shlex.join(["histo", "export", str(last)])
        raise HistoError(best, cause, f"Copy it back, export the last epoch ({export}), or train again with --force")
    return recorded


def _held(recorded: Mapping[str, Any]) -> str:
    """What best.ckpt held of a run, in words."""
    keep = recorded.get("keep", "best")
    if keep == "ema":
        return f"the moving average of the weights after epoch {recorded['epoch']}"
    if keep == "last":
        return f"the weights of epoch {recorded['epoch']}"
    return f"the best epoch so far ({best_row(recorded['history'])['epoch']})"


def _with_new_entries(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a run with the entries of its identity that a run of an older version lacks."""
    complete = dict(recorded)
    for name, entry in ADDED_SINCE_0_1_0.items():
        if not isinstance(entry, Mapping):
            complete.setdefault(name, entry)
        elif recorded.get(name):  # None: no augmentation
            complete[name] = recorded[name] | {key: v for key, v in entry.items() if key not in recorded[name]}
    return complete


def _read_last(last: Path) -> Checkpoint:
    """The checkpoint; HistoError, with what is left of the run, where it is damaged."""
    try:
        return read_checkpoint(last)
    except HistoError as error:
        step = f"{error.next_step}, or train again with --force"
        if last.with_name("best.ckpt").is_file():
            step += f"; best.ckpt can be exported: {shlex.join(['histo', 'export', str(last.parent)])}"
        raise HistoError(error.thing, error.cause, step) from error


def _other_tiles(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How tiles differ from those of a run; both are `data_facts`."""
    here, there = (
        f"{facts['name']} ({', '.join(f'{count:,} {split}' for split, count in facts.get('tiles', {}).items())})"
        for facts in (now, before)
    )
    if here == there:
        return f"the tiles of {here} are as many as before, but others, or in other groups or classes"
    return f"the tiles are {here} now, but were {there}"
