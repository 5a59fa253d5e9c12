"""`model.pt2`, torch.export's own file: one program with a symbolic batch and static operators only."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from histo_export.bundle_files import PT2
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    buffer = io.BytesIO()
    torch.export.save(source.program, buffer, extra_files=source.metadata)
    (folder / PT2).write_bytes(buffer.getvalue())
    return [PT2]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    return []


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
