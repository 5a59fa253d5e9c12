"""Squares at places that another tool has chosen: patch files of CLAM and TRIDENT (HDF5), and tables (CSV).

A patch file states the upper left corner of each patch in pixels of level 0. A tile of the model's size is read around
the centre of each patch, so that patches of another size can be used, too.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError, one_line
from histo_export.extras import needs
from histo_export.predict.grid import MAX_SQUARES, Axis, Floats, Grid, Integers, Layout
from histo_export.predict.inputs import text_of
from histo_export.predict.per_slide import check_files, file_of
from histo_export.predict.slide import Pair
from histo_export.predict.tissue import Tissue

HDF5_SUFFIXES = frozenset({".h5", ".hdf5"})
ENDINGS = (".h5", "_patches.h5", ".hdf5", ".csv")
"""Of the names of patch files in a folder, after the name of the slide without its suffix: CLAM's, then TRIDENT's."""
KIND = "patch file"
CSV_COLUMNS = (("x", "y"), ("minx", "miny"))
"""Names of the columns of a table, in any case; the second ones are WSInfer's and those of our tiles.csv."""
DAMAGED_HDF5: tuple[type[Exception], ...] = (OSError, KeyError, RuntimeError, TypeError, ValueError)
"""What h5py raises where a file can't be read or is damaged."""
FARTHEST = 1 << 31
"""Pixels; no slide is as large."""
SAME_SIZE = 0.02
"""A patch that differs from the model's tile by less than this fraction has the same size."""


@dataclass(frozen=True)
class PatchFile:
    """What a patch file states.

    Attributes:
        path: of the file.
        corners: int64 `(n, 2)`, x and y of each patch's upper left corner in pixels of level 0.
        size: width and height of a patch in pixels of level 0; None where the file does not state it.
    """

    path: Path
    corners: Integers
    size: Pair | None


@dataclass(frozen=True)
class Patches(Grid):
    """Squares at any places. Where they overlap, the later one covers the earlier one."""

    def index_at(self, x: Floats, y: Floats) -> Integers:
        """See `Grid.index_at`; x and y must ascend."""
        index = np.full((len(y), len(x)), -1, np.int64)
        left, right = (np.searchsorted(x, edge).tolist() for edge in (self.columns.low, self.columns.high))
        top, bottom = (np.searchsorted(y, edge).tolist() for edge in (self.rows.low, self.rows.high))
        for i, (column, row) in enumerate(zip(self.column.tolist(), self.row.tolist(), strict=True)):
            index[top[row] : bottom[row], left[column] : right[column]] = i
        return index


def check_coords(coords: str, slides: int) -> None:
    """UsageError where `--coords` can't be used for this number of slides; nothing is read."""
    for file in check_files("--coords", coords, slides, KIND):
        if file.suffix.lower() in HDF5_SUFFIXES:
            needs(f"Reading {file.name}", "features")


def coords_file(coords: str, slide: Path) -> Path:
    """The patch file of a slide: `coords` itself, or the file in this folder that is named like the slide.

    Raises:
        HistoError: the folder has none.
    """
    return file_of(coords, slide, ENDINGS, KIND)


def read_coords(path: Path) -> PatchFile:
    """Reads a patch file.

    Raises:
        HistoError: it can't be read, or does not hold the places of patches.
        MissingExtraError: it is HDF5, and h5py is not installed.
    """
    read, faults = (_read_hdf5, DAMAGED_HDF5) if path.suffix.lower() in HDF5_SUFFIXES else (_read_csv, (OSError,))
    try:
        found = read(path)
    except faults as error:
        raise HistoError(path, f"can't be read ({one_line(error)})", "Check what wrote it") from error
    if not len(found.corners):
        raise HistoError(path, "holds no patch", "Check what wrote it")
    if np.abs(found.corners).max() > FARTHEST:
        raise HistoError(path, "holds a place that no slide has", "Check that coordinates are pixels of level 0")
    return found


def _read_hdf5(path: Path) -> PatchFile:
    needs(f"Reading {path.name}", "features")
    import h5py

    with h5py.File(path, "r") as file:
        link = file.get("coords", getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file["coords"], h5py.Dataset):
            raise HistoError(path, "holds no dataset `coords`", "Name a patch file of CLAM or TRIDENT")
        places = file["coords"]
        if places.is_virtual or places.external:  # they would be read from another file
            raise HistoError(path, "keeps its coordinates in another file", "Write them into this one")
        _check_shape(path, places.shape, places.dtype)
        return PatchFile(path, places[:].astype(np.int64), _stated_size(path, dict(places.attrs)))


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 2 or shape[1] != 2 or dtype.kind not in "iu":
        found = f"{dtype} {'×'.join(map(str, shape))}"
        raise HistoError(path, f"holds coordinates as {found}", "Write integers (patches, 2), x and y")
    if shape[0] > MAX_SQUARES:
        raise HistoError(path, f"holds {shape[0]:,} patches, more than {MAX_SQUARES:,}", "Use fewer")


def _stated_size(path: Path, attributes: dict[str, Any]) -> Pair | None:
    """The side of a patch in pixels of level 0, by the attributes that TRIDENT and CLAM write."""
    try:
        if "patch_size_level0" in attributes:
            side = float(attributes["patch_size_level0"])
            size = side, side
        elif "patch_size" not in attributes:
            return None
        else:
            side = float(attributes["patch_size"])
            level = int(attributes.get("patch_level", 0))
            if level and "downsample" not in attributes:
                return None
            steps = np.broadcast_to(np.asarray(attributes["downsample"] if level else 1.0, np.float64), (2,))
            size = side * float(steps[0]), side * float(steps[1])
    except (TypeError, ValueError) as error:
        raise HistoError(path, f"states an impossible patch size ({one_line(error)})", "Check what wrote it") from error
    return _checked_size(path, size)


def _checked_size(path: Path, size: Pair) -> Pair:
    if not all(1 <= side <= FARTHEST for side in size):  # NaN is neither
        raise HistoError(path, f"states patches of {size[0]:g} × {size[1]:g} pixels", "Check what wrote it")
    return size


def _read_csv(path: Path) -> PatchFile:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.reader(file)
            heading = [name.strip().lower() for name in next(rows, [])]
            names = next((names for names in CSV_COLUMNS if set(names) <= set(heading)), None)
            if names is None:
                raise HistoError(path, "has no columns x and y, nor minx and miny", "Name them in its first line")
            sized = {"width", "height"} <= set(heading)
            columns = [heading.index(name) for name in (*names, *(("width", "height") if sized else ()))]
            values = [_numbers(path, number, row, columns) for number, row in enumerate(rows, 2) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise HistoError(path, f"is not a table ({one_line(error)})", "Write it as UTF-8 CSV") from error
    if len(values) > MAX_SQUARES:
        raise HistoError(path, f"holds {len(values):,} patches, more than {MAX_SQUARES:,}", "Use fewer")
    table = np.array(values, np.float64).reshape(len(values), len(columns))
    if sized and len(table) and (table[:, 2:] != table[0, 2:]).any():
        raise HistoError(path, "holds patches of several sizes", "Give each size a table of its own")
    size = _checked_size(path, (table[0, 2], table[0, 3])) if sized and len(table) else None
    return PatchFile(path, np.rint(table[:, :2]).astype(np.int64), size)


def _numbers(path: Path, line: int, row: list[str], columns: list[int]) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except (ValueError, IndexError):
        values = [np.nan]
    if not np.isfinite(values).all() or max(map(abs, values)) > FARTHEST:
        raise HistoError(path, f"holds no place in line {line}", "Write x and y in pixels of level 0")
    return values


def patch_grid(
    size: tuple[int, int], layout: Layout, patches: PatchFile, tissue: Tissue
) -> tuple[Grid, npt.NDArray[np.float64], tuple[str, ...]]:
    """The squares around the patches' centres, the area of tissue in each one's cell, and warnings.

    A cell is the part of the square that no later one covers; its area is counted in pixels of the mask.

    Args:
        size: width and height of the slide.
        layout: of the model's tiles on the slide.
        patches: the places.
        tissue: the mask.

    Returns:
        As `make_grid`, all patches in their order; and sentences.

    Raises:
        HistoError: a patch lies outside of the slide.
    """
    corners, order = np.unique(patches.corners, axis=0, return_index=True)
    corners = patches.corners[np.sort(order)]
    patch = patches.size or (float(layout.tile[0]), float(layout.tile[1]))
    outside = (corners + np.array(patch) <= 0) | (corners >= np.array(size))
    if outside.any():
        x, y = corners[outside.any(1).argmax()].tolist()
        raise HistoError(
            patches.path, f"has a patch at x {x:,}, y {y:,}, outside of the slide", "Check that it is of this slide"
        )
    start = corners + (np.array(patch) - np.array(layout.tile)) / 2 + np.array(layout.offset)
    columns, column = _axis(start[:, 0], layout.square[0])
    rows, row = _axis(start[:, 1], layout.square[1])
    grid = Patches(layout, columns, rows, column, row)
    index = grid.index_at(
        *(_centres(length, step) for length, step in zip(tissue.mask.shape[::-1], tissue.downsample, strict=True))
    )
    counted = index[tissue.mask & (index >= 0)]
    pixel = tissue.downsample[0] * tissue.downsample[1]
    cells: Floats = np.bincount(counted, minlength=len(grid)) * np.float64(pixel)
    return grid, cells, tuple(_warnings(patches, len(corners), layout))


def _axis(start: Floats, side: float) -> tuple[Axis, Integers]:
    """The places of all squares along an axis, each once, and that of each square."""
    unique, place = np.unique(start, return_inverse=True)
    return Axis(unique, unique, unique + side), place.astype(np.int64)


def _centres(length: int, step: float) -> Floats:
    centres: Floats = (np.arange(length, dtype=np.float64) + 0.5) * np.float64(step)
    return centres


def _warnings(patches: PatchFile, used: int, layout: Layout) -> list[str]:
    warnings, name = [], text_of(patches.path.name)
    if patches.size is None:
        warnings.append(f"{name} does not state the size of its patches: that of the model's tiles is taken.")
    elif any(abs(side / own - 1) > SAME_SIZE for side, own in zip(patches.size, layout.tile, strict=True)):
        sizes = [f"{width:g} × {height:g}" for width, height in (patches.size, layout.tile)]
        warnings.append(
            f"{name} has patches of {sizes[0]} pixels of level 0, and the model's tiles are {sizes[1]}: "
            "each tile is the centre of its patch, or reaches beyond it."
        )
    if (again := len(patches.corners) - used) > 0:
        warnings.append(f"{again:,} patches are listed again at the same place, and were taken once.")
    return warnings


def without_stride(facts: dict[str, Any]) -> dict[str, Any]:
    """What summary.json tells of a grid, for squares that have no stride."""
    return {name: value for name, value in facts.items() if not name.startswith("stride_")}
