"""TensorRT: refused, because its engines run on one kind of GPU and one version only; the message says what to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.errors import UsageError
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`; always refused."""
    from histo_export.export.formats import TENSORRT

    raise UsageError("--formats tensorrt", *TENSORRT)


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    return []


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
