"""`model.tflite`, for LiteRT (TensorFlow Lite), by onnx2tf from the ONNX file.

onnx2tf and not litert-torch: both ask for other versions of packages than ours, but onnx2tf is a command that may live
in an environment of its own, while litert-torch must share one with the PyTorch that made the network, below 2.15.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import LITERT, ONNX
from histo_export.export.converters import convert
from histo_export.files import temporary_folder
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`. The weights stay in float32."""
    with temporary_folder() as place:
        shutil.copyfile(folder / ONNX, place / ONNX)
        made = "made/model_float32.tflite"
        convert("onnx2tf", ["-i", ONNX, "-o", "made", "-n"], place, [made])
        shutil.copyfile(place / made, folder / LITERT)
    return [LITERT]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    side = spec.tile_size
    return [
        f'LiteRT: `Interpreter("{LITERT}")` takes float32 (n, {side}, {side}, 3), RGB in [0, 1], channels last.',
        "",
    ]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
