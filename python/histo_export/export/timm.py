"""`timm/`: the network as timm loads it, with timm's names of the weights, which for ResNet34 are torchvision's.

A folder of its own, because timm wants the names `config.json` and `model.safetensors`, which the bundle itself has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from histo_export.bundle_files import CONFIG, NATIVE
from histo_export.errors import HistoError
from histo_export.spec import CHANNELS, InputKind, ModelSpec
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.export.formats import Source

TIMM = "timm"


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`. The weights are those of the checkpoint, bit by bit; batch norms are not folded.

    Raises:
        HistoError: the pool is not 1: timm's ResNet34 has a linear layer of 512 inputs and no other.
    """
    spec = source.spec
    if spec.pool != 1:
        inputs = CHANNELS * spec.pool**2
        cause = f"can't have pool {spec.pool}: its linear layer has {CHANNELS} inputs, this one {inputs}"
        raise HistoError("timm's resnet34", cause, "Leave timm out of --formats, or train with --pool 1")
    home = folder / TIMM
    home.mkdir()
    state = {name: tensor.contiguous() for name, tensor in source.checkpoint.net().state_dict().items()}
    safetensors.torch.save_file(state, home / NATIVE, metadata={"format": "pt", **source.metadata})
    (home / CONFIG).write_text(dump_json(_config(spec), indent=2) + "\n", encoding="utf-8")
    return [f"{TIMM}/{CONFIG}", f"{TIMM}/{NATIVE}"]


def _config(spec: ModelSpec) -> dict[str, Any]:
    """timm's configuration: the architecture, and how pixels become what it takes."""
    return {
        "architecture": "resnet34",
        "num_classes": len(spec.classes),
        "num_features": CHANNELS,
        "global_pool": "avg",
        "label_names": list(spec.classes),
        "pretrained_cfg": {
            "input_size": [3, spec.crop, spec.crop],
            "pool_size": [spec.map_size, spec.map_size],
            # timm resizes a picture to floor(crop / crop_pct), and takes the centre. The half keeps a tile as it is:
            # without it the quotient, rounded, may be just below the tile, such as 74.99… for crop 42 of tile 75.
            "crop_pct": spec.crop / (spec.tile_size + 0.5),
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(spec.classes),
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "unknown",
        },
    }


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    load = f'timm.create_model("local-dir:FOLDER/{TIMM}", pretrained=True)'
    return [
        f"timm: `{load}`. Crop and normalisation are not inside; "
        "`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them. The weights are a copy "
        "of the checkpoint's, and were run in no runtime.",
        "",
    ]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
