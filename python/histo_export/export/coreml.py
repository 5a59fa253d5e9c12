"""`model.mlpackage`, for Core ML on Macs and iPhones, by coremltools from the TorchScript file; in float32.

coremltools converts on Linux, too, but Core ML runs on Apple's systems alone. No file of a bundle states that it was
checked there, and the model card says so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import COREML, TORCHSCRIPT
from histo_export.export.converters import not_converted
from histo_export.spec import InputKind, ModelSpec

if TYPE_CHECKING:
    from histo_export.export.formats import Source

LARGEST_BATCH = 64
"""Core ML asks for a limit of each free dimension."""


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    # It warns of versions of packages that it was not tried with, and draws bars.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        import coremltools

        from histo_export.model.torchscript import load_torchscript

        side = source.spec.tile_size
        shape = (coremltools.RangeDim(1, LARGEST_BATCH, default=1), 3, side, side)
        try:
            model = coremltools.convert(
                load_torchscript(folder / TORCHSCRIPT),
                convert_to="mlprogram",
                inputs=[coremltools.TensorType("tiles", shape)],
                outputs=[coremltools.TensorType("logits")],
                compute_precision=coremltools.precision.FLOAT32,
                minimum_deployment_target=coremltools.target.iOS16,
                skip_model_load=True,
            )
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            raise not_converted("coremltools", error) from error
        model.user_defined_metadata.update(source.metadata)
        model.save(str(folder / COREML))
    return sorted(path.relative_to(folder).as_posix() for path in (folder / COREML).rglob("*") if path.is_file())


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    side = spec.tile_size
    return [
        f"Core ML: `{COREML}` takes `tiles`, float32 (n, 3, {side}, {side}), RGB in [0, 1], n up to {LARGEST_BATCH}. "
        "It was converted and not run: compare some logits with those of another file on your Mac.",
        "",
    ]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
