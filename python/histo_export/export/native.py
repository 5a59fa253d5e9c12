"""`model.safetensors`, the native engine's file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import NATIVE
from histo_export.model.native_file import native_bytes
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`; the file gets the scales."""
    (folder / NATIVE).write_bytes(native_bytes(source.lowered, source.spec, source.scales, source.precision))
    return [NATIVE]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    return []


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
