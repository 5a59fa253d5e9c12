"""The probabilities of a slide as OME-TIFF: a channel for each class, a pixel for each square of the grid."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from histo_export.predict.grid import Axis, Grid
from histo_export.predict.slide import Pair
from histo_export.predict.smooth import MOST_SUMS

PROBABILITIES = "probabilities.ome.tiff"


def write_probabilities(
    path: Path, grid: Grid, probabilities: npt.NDArray[np.float32], classes: Sequence[str], mpp: Pair
) -> bool:
    """Writes float32 `(classes, rows, columns)`: NaN where a square was not used.

    A pixel's size is the stride of the grid. The position of each plane is the corner of the first square in µm from
    that of level 0.

    Args:
        path: of the file.
        grid: the squares.
        probabilities: float32 `(n, classes)` of the squares.
        classes: names of the channels.
        mpp: µm per pixel of level 0.

    Returns:
        Whether the squares lie in a grid of one stride. If not, nothing is written.

    Raises:
        OSError: it can't be written.
    """
    strides = [
        _stride(axis, stride) for axis, stride in zip((grid.columns, grid.rows), grid.layout.stride, strict=True)
    ]
    shape = len(grid.rows.start), len(grid.columns.start)
    if None in strides or shape[0] * shape[1] > MOST_SUMS:
        return False

    def planes() -> Iterator[npt.NDArray[np.float32]]:
        for i in range(len(classes)):  # one at a time: all of a large grid would take gigabytes
            plane = np.full(shape, np.nan, np.float32)
            plane[grid.row, grid.column] = probabilities[:, i]
            yield plane

    # Of the first cell: a pixel is a stride wide, and shows the middle of its square.
    corner = [
        (float(axis.start[0]) + (square - float(stride or 0)) / 2) * um
        for axis, square, stride, um in zip((grid.columns, grid.rows), grid.layout.square, strides, mpp, strict=True)
    ]
    size = [float(stride or 0) * um for stride, um in zip(strides, mpp, strict=True)]
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": list(classes)},
        **dict(zip(("PhysicalSizeX", "PhysicalSizeY"), size, strict=True)),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "Plane": {
            **{f"Position{axis}": [um] * len(classes) for axis, um in zip("XY", corner, strict=True)},
            **{f"Position{axis}Unit": ["µm"] * len(classes) for axis in "XY"},
        },
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, PROBABILITIES)),  # a random one would change the bytes of each run
    }
    with tifffile.TiffWriter(path, ome=True, bigtiff=4 * len(classes) * shape[0] * shape[1] > 1 << 31) as writer:
        writer.write(
            planes(),
            shape=(len(classes), *shape),
            dtype=np.float32,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata,
        )
    return True


def _stride(axis: Axis, stride: float) -> float | None:
    """From square to square along an axis; None where it differs. A single square has the layout's."""
    steps = np.diff(axis.start)
    if not len(steps):
        return stride
    return float(steps.mean()) if np.allclose(steps, steps[0], rtol=1e-6, atol=1e-6) else None
