"""`model.xml` and `model.bin`, OpenVINO's own format, by its own converter; in float32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import ONNX, OPENVINO
from histo_export.export.converters import not_converted
from histo_export.spec import InputKind, ModelSpec, describe_input

if TYPE_CHECKING:
    from histo_export.export.formats import Source


def write(folder: Path, source: Source) -> Sequence[str]:
    """See `formats.Writer`."""
    import openvino

    try:
        # Reading loads no plugin, so this is not the second one that `runtimes.openvino` warns of.
        model = openvino.Core().read_model(folder / ONNX)
        openvino.save_model(model, folder / OPENVINO, compress_to_fp16=False)
    except RuntimeError as error:
        raise not_converted("OpenVINO", error) from error
    return [OPENVINO, "model.bin"]


def usage(spec: ModelSpec, kind: InputKind, files: Collection[str]) -> Sequence[str]:
    """See `formats.Writer`."""
    shape = ", ".join(describe_input(kind, spec.tile_size))
    return [f'OpenVINO: `openvino.compile_model("{OPENVINO}")` takes {shape}.', ""]


def next_step(out: Path) -> str | None:
    """See `formats.Writer`."""
    return None
