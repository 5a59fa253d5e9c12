"""Checkpoints: what `histo train` writes and `histo export` reads.

A checkpoint is PyTorch Lightning's own file with torchvision's state-dict keys and one more entry, `histo`,
that holds all that an export needs. It contains tensors and plain values only and loads with
`weights_only=True`.
This module does not import Lightning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from histo_export.errors import HistoError, not_written, one_line, system_error
from histo_export.files import atomic_file
from histo_export.model.net import TileNet
from histo_export.model.provenance import checked_training
from histo_export.model.tensor_file import COUNTER, check_values, float32, load_torch_file
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn

FORMAT = 1
KEY = "histo"
GOLDEN_TILES = 16
"""Real tiles kept in a checkpoint, so that an export can be checked where the data are not at hand."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and where it came from.

    Attributes:
        spec: the model.
        state_dict: torchvision's keys, float32, on the CPU.
        golden: uint8 `(g, tile_size, tile_size, 3)` RGB, real tiles of the test split.
        training: provenance as plain values (recipe, epochs, seed, data name and fingerprint, accuracies, …).
        trained_on: the tiles; None in checkpoints of older versions.
    """

    spec: ModelSpec
    state_dict: dict[str, Tensor]
    golden: npt.NDArray[np.uint8]
    training: dict[str, Any]
    trained_on: TrainedOn | None = None

    def net(self, dtype: torch.dtype = torch.float32) -> TileNet:
        """The network in evaluation mode."""
        net = TileNet.of(self.spec)
        net.load_state_dict(self.state_dict)
        net.to(dtype).eval()
        return net

    def calibrated(self) -> Checkpoint:
        """The same network with its logits divided by the temperature in its record; itself where there is none.

        The division is in float64 and rounded once. Dividing the weights and the bias of a linear layer divides its
        outputs, so every file that is made from the result has calibrated probabilities and the same top class.
        """
        record = self.training.get("calibration")
        if not record:
            return self
        head = {key: self.state_dict[key].double() / record["temperature"] for key in ("fc.weight", "fc.bias")}
        return replace(self, state_dict=self.state_dict | {key: value.float() for key, value in head.items()})

    def block(self) -> dict[str, Any]:
        """The `histo` entry of the file."""
        block = {
            "format": FORMAT,
            "spec": self.spec.to_dict(),
            "golden": torch.from_numpy(self.golden),
            "training": self.training,
        }
        if self.trained_on is not None:
            block["trained_on"] = {split: torch.from_numpy(keys) for split, keys in vars(self.trained_on).items()}
        return block


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of `histo train`.

    Raises:
        HistoError: the file is damaged, from elsewhere, of a newer format, or its weights don't fit
            its own spec or hold values that no network can have.
    """
    content = load_torch_file(path)
    block = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(block, dict) or not isinstance(content.get("state_dict"), dict):
        raise HistoError(
            path,
            "is not a checkpoint of histo train",
            "For bare ResNet34 weights use --weights with --data; here give a .ckpt of histo train",
        )
    if block.get("format") != FORMAT:
        raise HistoError(
            path,
            f"has checkpoint format {block.get('format')!r}, this version reads {FORMAT}",
            "Update histo-export",
        )
    try:
        spec = ModelSpec.from_dict(block["spec"])
        golden = block["golden"].numpy()
        training = _training(path, block["training"])
        hashes = block.get("trained_on")
        trained_on = None if hashes is None else TrainedOn.of(hashes["train"].numpy(), hashes["val"].numpy())
        checkpoint = Checkpoint(spec, content["state_dict"], golden, training, trained_on)
        state = {str(key): value for key, value in content["state_dict"].items() if not str(key).endswith(COUNTER)}
        check_values(path, {key: float32(path, key, value) for key, value in state.items()})
        checkpoint.net()
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise HistoError(
            path, f"does not fit together ({one_line(error)})", "Train again, or use another file"
        ) from error
    if golden.dtype != np.uint8 or golden.shape[1:] != (spec.tile_size, spec.tile_size, 3) or len(golden) == 0:
        raise HistoError(path, f"has golden tiles of shape {golden.shape} {golden.dtype}", "Train again")
    return checkpoint


def _training(path: Path, value: Any) -> dict[str, Any]:
    try:
        return dict(checked_training(value))
    except ValueError as error:
        raise HistoError(path, f"has a wrong record of its training ({error})", "Use another file") from error


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file atomically: after a kill or on a full disk the previous file is still there, unchanged.

    Raises:
        HistoError: the file cannot be written.
    """
    try:
        with atomic_file(path) as partial, partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as either
        cause = system_error(error)
        if cause is None:
            raise
        raise not_written(path, cause) from error


def add_training_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Adds plain values (the test accuracy) to the `training` entry of a checkpoint, atomically."""
    content = load_torch_file(path)
    content[KEY]["training"] = {**content[KEY]["training"], **facts}
    write_checkpoint(path, content)
