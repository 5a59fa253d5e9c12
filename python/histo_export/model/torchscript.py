"""TorchScript, the only format that QuPath and WSInfer load.

Deprecated upstream (torch warns since 2.11), so everything that touches `torch.jit` lives in this module and the
warnings are silenced here and nowhere else.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from histo_export.errors import HistoError, one_line

if TYPE_CHECKING:  # it needs torchvision, and reading a file does not
    from histo_export.model.lowering import LoweredNet


@contextmanager
def _without_deprecation_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated", category=FutureWarning)
        yield


def torchscript_bytes(lowered: LoweredNet, metadata: Mapping[str, str] | None = None) -> bytes:
    """The scripted network as the bytes of a file that `torch.jit.load` reads; its children are the stages.

    The program has no branch and takes tiles of `tile_size` only (see `lowering.FixedStem`), in batches of any size.
    `metadata` become extra files of the archive, which readers that do not ask for them pass over.
    """
    buffer = io.BytesIO()
    with _without_deprecation_warnings():
        torch.jit.save(torch.jit.script(lowered.of_fixed_size()), buffer, _extra_files=dict(metadata or {}))
    return buffer.getvalue()


def load_torchscript(path: Path, device: str = "cpu") -> torch.jit.ScriptModule:
    """Reads a TorchScript file. It holds a program: check its sha256 first (`bundle.open_bundle` does)."""
    try:
        with _without_deprecation_warnings():
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
            module.eval()
            return module
    except (RuntimeError, ValueError, OSError) as error:
        raise HistoError(path, f"is not readable TorchScript ({one_line(error)})", "Export again") from error
