"""`model.ncnn.param` and `model.ncnn.bin`, for ncnn on phones, by pnnx from the TorchScript file."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import NCNN, TORCHSCRIPT
from histo_export.export.converters import convert
from histo_export.files import temporary_folder
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source

FILES = (NCNN, "model.ncnn.bin")


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`. The weights stay in float32."""
    side = source.spec.tile_size
    with temporary_folder() as place:  # pnnx leaves a dozen files beside its input
        shutil.copyfile(folder / TORCHSCRIPT, place / "model.pt")
        convert("pnnx", ["model.pt", f"inputshape=[1,3,{side},{side}]", "fp16=0"], place, FILES)
        for name in FILES:
            shutil.copyfile(place / name, folder / name)
    return FILES


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    side = spec.tile_size
    return [
        f'ncnn: `net.load_param("{NCNN}"); net.load_model("{FILES[1]}")`; `in0` is one tile, float32 '
        f"(3, {side}, {side}), RGB in [0, 1], and `out0` its logits.",
        "",
    ]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
