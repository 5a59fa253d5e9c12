"""`torchscript_model.pt`, the only format that QuPath and WSInfer load."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import TORCHSCRIPT
from histo_export.model.torchscript import torchscript_bytes
from histo_export.spec import InputKind, ModelSpec, describe_input

if TYPE_CHECKING:
    from histo_export.export.formats import Source

_RUN = """```python
import torch
model = torch.jit.load("{file}").eval()
logits = model({tiles})  # {shape}
```"""


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    (folder / TORCHSCRIPT).write_bytes(torchscript_bytes(source.lowered, source.metadata))
    return [TORCHSCRIPT]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    side = spec.tile_size
    shape = ", ".join(describe_input(kind, side))
    if kind == "uint8":
        tiles = f"torch.zeros(1, {side}, {side}, 3, dtype=torch.uint8)"
        loaders = "The graphs take bytes; QuPath and WSInfer feed floats and can't use this bundle."
    else:
        tiles = f"torch.zeros(1, 3, {side}, {side})"
        loaders = "QuPath and WSInfer: this folder is a model folder; config.json is WSInfer's."
    return [_RUN.format(file=TORCHSCRIPT, tiles=tiles, shape=shape), "", loaders, ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
