"""A checkpoint of weights that were trained elsewhere, so that they are exported like those of `histo train`."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.data.demo import CLASSES, make_tile
from histo_export.errors import HistoError, UsageError
from histo_export.model.checkpoint import GOLDEN_TILES, KEY, Checkpoint
from histo_export.model.foreign import HEAD, ForeignWeights, read_resnet34
from histo_export.spec import CHANNELS, ModelSpec


def checkpoint_of_weights(file: Path, spec: ModelSpec, pool: int | None = None) -> Checkpoint:
    """The weights in `file` as a checkpoint.

    Args:
        file: PyTorch or safetensors, see `foreign.read_resnet34`.
        spec: the model; its pool is replaced by the one that the shape of fc gives.
        pool: what the user believes it to be; None: unknown.

    Returns:
        A checkpoint without accuracies and without a record of tiles. Its golden tiles are drawn: a parity check needs
        tiles with the colours of tissue, and the file holds none.

    Raises:
        UsageError: the file does not exist, is a checkpoint of histo train, or contradicts `spec` or `pool`.
        HistoError: the file cannot be read, is not a ResNet34's, or has no head that can be exported.
    """
    found = read_resnet34(file)
    if KEY in found.entries:
        raise UsageError(f"--weights {file}", "is a checkpoint of histo train", f"Use --checkpoint {file} alone")
    true_pool = _pool_of(file, found, pool)
    outputs = len(found.state[HEAD[0]])
    if outputs != len(spec.classes):
        cause = f"are {len(spec.classes)} names, and fc in {file} has {outputs} outputs"
        step = f"Name {outputs} classes, in the order of the outputs"
        raise UsageError(f"--classes {','.join(spec.classes)}", cause, step)
    spec = replace(spec, pool=true_pool)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    training: dict[str, Any] = {
        "trained_elsewhere": True,
        "weights": file.name,
        "weights_sha256": digest,
        "weights_notes": list(found.notes),
        "golden": "synthetic",
        "data": {"name": file.name.partition(".")[0] or "model", "description": "unknown, trained elsewhere"},
    }
    return Checkpoint(spec, found.state, _drawn_tiles(spec.tile_size), training)


def _pool_of(file: Path, found: ForeignWeights, wanted: int | None) -> int:
    """The pool that the number of fc's inputs gives."""
    if found.headless:
        raise HistoError(file, f"cannot be exported as it is: {found.headless}", "Train its head with --data")
    if found.beside:
        cause = f"holds layers that a ResNet34 has not, such as {found.beside[0]}"
        raise HistoError(file, cause, "Only a ResNet34 with another pool and head can be exported")
    inputs = found.state[HEAD[0]].shape[1]
    pool = math.isqrt(inputs // CHANNELS)
    if pool < 1 or CHANNELS * pool * pool != inputs:
        cause = f"has fc with {inputs:,} inputs, which is not {CHANNELS} × n² for any n×n average pool"
        raise HistoError(file, cause, "Only a ResNet34 with a square average pool can be exported")
    if wanted not in (None, pool):
        raise UsageError(
            f"--pool {wanted}", f"contradicts {file}, whose fc has {inputs:,} inputs", f"Use --pool {pool}"
        )
    return pool


def _drawn_tiles(side: int) -> npt.NDArray[np.uint8]:
    """uint8 `(16, side, side, 3)`: the demo's tiles, resized."""
    tiles = [make_tile(0, 2, i % len(CLASSES), i // len(CLASSES)) for i in range(GOLDEN_TILES)]
    filters = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(tile).resize((side, side), filters)) for tile in tiles])
