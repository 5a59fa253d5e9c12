"""A whole slide: tissue, grid, probabilities, and what is written about it."""

from __future__ import annotations

import csv
import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError, UsageError
from histo_export.predict.inputs import text_of
from histo_export.predict.loop import Probabilities, StageSeconds, run_tiles
from histo_export.predict.pictures import class_colours, save_heat_map, save_tissue
from histo_export.predict.slide import Pixels, Slide
from histo_export.predict.tissue import Tissue, TissueSettings, find_tissue
from histo_export.runtimes import Runtime
from histo_export.spec import ModelSpec

TISSUE_UM = 8.0
"""µm per pixel of the overview in which tissue is found: a nucleus, so that no gland is lost and a slide is a few
megapixels."""

PICTURE_SIDE = 1200
"""Pixels that the longer side of a picture has at least, where the slide is as large."""


@dataclass(frozen=True)
class SlideSettings:
    """How a slide is cut.

    Attributes:
        mpp: µm per pixel of level 0, where the slide doesn't tell or is wrong.
        overlap: of neighbouring tiles, as a fraction of their side, 0 to 0.95.
        stride_um: from tile to tile in µm, in place of `overlap`.
        min_tissue: fraction of a tile that must be tissue.
        everything: no tissue is looked for; every tile of the slide counts.
        tissue: how it is found.
    """

    mpp: float | None = None
    overlap: float = 0.0
    stride_um: float | None = None
    min_tissue: float = 0.1
    everything: bool = False
    tissue: TissueSettings = field(default_factory=TissueSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.95:
            raise UsageError(f"--overlap {self.overlap:g}", "is not in 0 to 0.95", "Use e.g. --overlap 0.5")
        if self.stride_um is not None and not self.stride_um > 0:
            raise UsageError(f"--stride {self.stride_um:g}", "is not a positive number of µm", "Use e.g. --stride 50")
        if not 0 <= self.min_tissue <= 1:
            raise UsageError(f"--min-tissue {self.min_tissue:g}", "is not in 0 to 1", "Use e.g. --min-tissue 0.1")
        if self.mpp is not None and not self.mpp > 0:
            raise UsageError(f"--mpp {self.mpp:g}", "is not a positive number of µm", "Use e.g. --mpp 0.25")


@dataclass(frozen=True)
class Grid:
    """Tiles in pixels of level 0, row by row.

    Attributes:
        x, y: int64 `(n,)`, of the upper left corners.
        side: of a tile; the last of a row and of a column may reach over the slide, where it is white.
        stride: between neighbours; not rounded, so that positions don't drift.
        column, row: int64 `(n,)`, in the grid.
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    side: int
    stride: float
    column: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class SlidePrediction:
    """What was found on one slide.

    Attributes:
        classes: names, in the order of `probabilities`.
        grid: where the tiles are.
        probabilities: float32 `(n, classes)`.
        mpp: µm per pixel of level 0.
        area_mm2: tissue by the class of the tile it is in.
        tissue: the mask.
        picture: RGB of the slide, small, for pictures.
        picture_downsample: pixels of level 0 for one of it.
        seconds: of each stage.
    """

    classes: tuple[str, ...]
    grid: Grid
    probabilities: Probabilities
    mpp: float
    area_mm2: dict[str, float]
    tissue: Tissue
    picture: Pixels
    picture_downsample: float
    seconds: StageSeconds
    name: str
    facts: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes tiles.csv, tiles.geojson, heatmap.png, tissue.png and summary.json into a folder that exists."""
        with (folder / "tiles.csv").open("w", newline="", encoding="utf-8") as file:
            self._write_csv(file)
        with (folder / "tiles.geojson").open("w", encoding="utf-8") as file:
            self._write_geojson(file)
        save_tissue(folder / "tissue.png", self)
        save_heat_map(folder / "heatmap.png", self)
        (folder / "summary.json").write_text(
            json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def summary(self) -> dict[str, Any]:
        """Plain values, the same in every run."""
        chosen = self.probabilities.argmax(1)
        return {
            **self.facts,
            "tiles": len(self.grid),
            "classes": {
                name: {"tiles": int((chosen == i).sum()), "area_mm2": round(self.area_mm2[name], 6)}
                for i, name in enumerate(self.classes)
            },
            "tissue_mm2": round(float(self.tissue.mask.sum()) * (self.tissue.downsample * self.mpp / 1000) ** 2, 6),
            "tissue_threshold": self.tissue.threshold,
        }

    def _write_csv(self, file: TextIO) -> None:
        """WSInfer's columns."""
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["minx", "miny", "width", "height", *(f"prob_{name}" for name in self.classes)])
        side = self.grid.side
        for x, y, row in zip(self.grid.x.tolist(), self.grid.y.tolist(), self.probabilities, strict=True):
            writer.writerow([x, y, side, side, *(f"{p:.7f}" for p in row)])

    def _write_geojson(self, file: TextIO) -> None:
        """A FeatureCollection of tile polygons as QuPath 0.4 and later read them."""
        colours = [[round(255 * part) for part in colour] for colour in class_colours(len(self.classes))]
        chosen = self.probabilities.argmax(1).tolist()
        side = self.grid.side
        file.write('{"type": "FeatureCollection", "features": [')
        for i, (x, y) in enumerate(zip(self.grid.x.tolist(), self.grid.y.tolist(), strict=True)):
            corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
            feature = {
                "type": "Feature",
                # QuPath wants an id; made of the place, so that every run writes the same bytes.
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}/{x}/{y}/{side}")),
                "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {
                    "objectType": "tile",
                    "classification": {"name": self.classes[chosen[i]], "color": colours[chosen[i]]},
                    "measurements": {
                        f"prob_{name}": round(float(p), 7)
                        for name, p in zip(self.classes, self.probabilities[i], strict=True)
                    },
                },
            }
            file.write(("\n" if i == 0 else ",\n") + json.dumps(feature, ensure_ascii=False))
        file.write("\n]}\n")


def slide_mpp(slide: Slide, settings: SlideSettings) -> float:
    """µm per pixel of level 0; HistoError where nobody knows."""
    mpp = settings.mpp or slide.mpp
    if mpp is None:
        raise HistoError(slide.path, "does not tell its µm per pixel", "State it with --mpp, e.g. --mpp 0.25")
    return mpp


def make_grid(
    slide: Slide, spec: ModelSpec, mpp: float, settings: SlideSettings, tissue: Tissue
) -> tuple[Grid, npt.NDArray[np.float64]]:
    """The tiles with enough tissue, and the tissue (pixels² of level 0) in the cell that each stands for.

    A tile's cell is as wide as the stride and lies in its middle, so that cells tile the slide and areas add up.
    """
    assert spec.mpp is not None
    side = max(1, round(spec.tile_size * spec.mpp / mpp))
    stride = max(1.0, settings.stride_um / mpp if settings.stride_um else side * (1 - settings.overlap))
    columns, rows = math.ceil(slide.width / stride), math.ceil(slide.height / stride)
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    x, y = (np.rint(axis * stride).astype(np.int64) for axis in (column, row))
    keep = (x < slide.width) & (y < slide.height)
    if not settings.everything:
        inside = tissue.areas(x, y, side, side)
        keep &= (inside > 0) & (inside >= settings.min_tissue * side**2)
    x, y, column, row = x[keep], y[keep], column[keep], row[keep]
    margin = round((side - stride) / 2)
    return Grid(x, y, side, stride, column, row), tissue.areas(x + margin, y + margin, round(stride), round(stride))


def predict_slide(
    slide: Slide,
    runtime: Runtime,
    spec: ModelSpec,
    settings: SlideSettings,
    *,
    batch: int,
    readers: int,
    progress: Callable[[int, int], None] = lambda done, tiles: None,
) -> SlidePrediction:
    """Runs a slide.

    Args:
        progress: told the number of tiles done and in all.

    Raises:
        HistoError: no µm per pixel, no tissue, or a part of the slide can't be read.
    """
    if spec.mpp is None:
        raise HistoError("The model", "does not tell its µm per pixel", "Export it again with --mpp, e.g. --mpp 0.5")
    mpp = slide_mpp(slide, settings)
    overview, downsample = slide.overview(max(1.0, TISSUE_UM / mpp))
    picture, picture_downsample = overview, downsample
    if max(overview.shape) < PICTURE_SIDE:
        picture, picture_downsample = slide.overview(max(1.0, max(slide.width, slide.height) / PICTURE_SIDE))
    if settings.everything:
        mask = np.ones(overview.shape[:2], np.bool_)
        tissue = Tissue(mask, downsample, 0)
    else:
        tissue = find_tissue(overview, downsample, mpp, settings.tissue)
    grid, cells = make_grid(slide, spec, mpp, settings, tissue)
    if not len(grid):
        raise HistoError(
            slide.path, "has no tile with enough tissue", "Look at it, or use --everything or --tissue-threshold"
        )
    probabilities = np.empty((len(grid), len(spec.classes)), np.float32)

    def read(position: tuple[int, int]) -> Pixels:
        return slide.tile(*position, grid.side, spec.tile_size)

    def deliver(index: int, result: Probabilities | HistoError) -> None:
        if isinstance(result, HistoError):
            raise result  # a slide with a hole in it would look as if the hole were glass
        probabilities[index] = result

    seconds = run_tiles(
        runtime,
        len(spec.classes),
        zip(grid.x.tolist(), grid.y.tolist(), strict=True),
        read,
        deliver,
        side=spec.tile_size,
        batch=batch,
        readers=readers,
        progress=lambda done: progress(done, len(grid)),
    )
    chosen = probabilities.argmax(1)
    areas = np.bincount(chosen, weights=cells, minlength=len(spec.classes)) * (mpp / 1000) ** 2
    facts = {
        "slide": text_of(slide.path.name),
        "executed": runtime.executed,
        "vendor": slide.vendor,
        "width": slide.width,
        "height": slide.height,
        "mpp": mpp,
        "tile_side": grid.side,
        "stride": grid.stride,
        "resampled_from": "" if grid.side == spec.tile_size else f"{grid.side} pixels of level 0",
    }
    return SlidePrediction(
        spec.classes,
        grid,
        probabilities,
        mpp,
        dict(zip(spec.classes, areas.tolist(), strict=True)),
        tissue,
        picture,
        picture_downsample,
        seconds,
        text_of(slide.path.name),
        facts,
    )
