"""One slide: its tissue, its grid of tiles, their probabilities, and the files of its result."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from histo_export.errors import HistoError
from histo_export.predict.grid import Grid, make_grid
from histo_export.predict.inputs import text_of
from histo_export.predict.loop import Probabilities, StageSeconds, TileLoop
from histo_export.predict.pictures import Background, class_colours, save_heat_map, save_tissue
from histo_export.predict.settings import SlideSettings
from histo_export.predict.slide import Pixels, Slide
from histo_export.predict.tissue import Tissue, find_tissue
from histo_export.spec import ModelSpec

TISSUE_UM = 8.0
"""µm per pixel of the overview in which tissue is found: about a nucleus, so that no gland is missed and the overview
of a slide has a few megapixels only."""

PICTURE_SIDE = 1200
"""Least pixels of the longer side of a picture, where the slide has as many."""


@dataclass(frozen=True)
class SlidePrediction:
    """The result of one slide.

    Attributes:
        classes: names, in the order of `probabilities`.
        grid: where the tiles are.
        probabilities: float32 `(n, classes)`.
        mpp: µm per pixel of level 0.
        area_mm2: area of tissue by the class of the tile that it is in.
        tissue: the mask.
        background: a small image of the slide, which its pictures are drawn over.
        seconds: of each stage.
        name: of the slide's file.
        facts: further plain values for summary.json.
    """

    classes: tuple[str, ...]
    grid: Grid
    probabilities: Probabilities
    mpp: float
    area_mm2: dict[str, float]
    tissue: Tissue
    background: Background
    seconds: StageSeconds
    name: str
    facts: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes tiles.csv, tiles.geojson, heatmap.png, tissue.png and summary.json into a folder that exists."""
        with (folder / "tiles.csv").open("w", newline="", encoding="utf-8") as file:
            self._write_csv(file)
        with (folder / "tiles.geojson").open("w", encoding="utf-8") as file:
            self._write_geojson(file)
        save_tissue(folder / "tissue.png", self.background, self.grid, self.mpp, self.tissue)
        save_heat_map(folder / "heatmap.png", self.background, self.grid, self.mpp, self.probabilities, self.area_mm2)
        (folder / "summary.json").write_text(
            json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def summary(self) -> dict[str, Any]:
        """The content of summary.json: plain values, the same in every run."""
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
        """Writes tiles.csv with WSInfer's columns."""
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["minx", "miny", "width", "height", *(f"prob_{name}" for name in self.classes)])
        side = self.grid.side
        for x, y, row in zip(self.grid.x.tolist(), self.grid.y.tolist(), self.probabilities, strict=True):
            writer.writerow([x, y, side, side, *(f"{p:.7f}" for p in row)])

    def _write_geojson(self, file: TextIO) -> None:
        """Writes a FeatureCollection of tile polygons as QuPath 0.4 and later read them."""
        colours = [[round(255 * part) for part in colour] for colour in class_colours(len(self.classes))]
        chosen = self.probabilities.argmax(1).tolist()
        side = self.grid.side
        file.write('{"type": "FeatureCollection", "features": [')
        for i, (x, y) in enumerate(zip(self.grid.x.tolist(), self.grid.y.tolist(), strict=True)):
            corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
            feature = {
                "type": "Feature",
                # QuPath wants an id; it is made of the tile's place, so that every run writes the same bytes.
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
    """µm per pixel of level 0; HistoError where neither the settings nor the slide state it."""
    mpp = settings.mpp or slide.mpp
    if mpp is None:
        raise HistoError(slide.path, "does not state its µm per pixel", "State it with --mpp, e.g. --mpp 0.25")
    return mpp


def predict_slide(
    slide: Slide,
    loop: TileLoop,
    settings: SlideSettings,
    progress: Callable[[int, int], None] = lambda done, tiles: None,
) -> SlidePrediction:
    """Runs a slide.

    Args:
        slide: opened.
        loop: what runs its tiles.
        settings: how the slide is cut.
        progress: told the number of tiles done and in all.

    Raises:
        HistoError: no µm per pixel, no tissue, or a part of the slide can't be read.
    """
    spec = loop.spec
    if spec.mpp is None:
        raise HistoError("The model", "does not state its µm per pixel", "Export it again with --mpp, e.g. --mpp 0.5")
    mpp = slide_mpp(slide, settings)
    background, tissue = _survey(slide, mpp, settings)
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
            raise result  # a slide that lacks a tile would look as if there were glass
        probabilities[index] = result

    positions = zip(grid.x.tolist(), grid.y.tolist(), strict=True)
    seconds = loop.run(positions, read, deliver, lambda done: progress(done, len(grid)))
    areas = np.bincount(probabilities.argmax(1), weights=cells, minlength=len(spec.classes)) * (mpp / 1000) ** 2
    name = text_of(slide.path.name)
    facts = _facts(slide, mpp, grid, spec, loop.runtime.executed)
    area_mm2 = dict(zip(spec.classes, areas.tolist(), strict=True))
    return SlidePrediction(spec.classes, grid, probabilities, mpp, area_mm2, tissue, background, seconds, name, facts)


def _survey(slide: Slide, mpp: float, settings: SlideSettings) -> tuple[Background, Tissue]:
    """An image of the slide for its pictures, and its tissue."""
    overview, downsample = slide.overview(max(1.0, TISSUE_UM / mpp))
    picture, picture_downsample = overview, downsample
    if max(overview.shape) < PICTURE_SIDE:
        picture, picture_downsample = slide.overview(max(1.0, max(slide.width, slide.height) / PICTURE_SIDE))
    if settings.everything:
        tissue = Tissue(np.ones(overview.shape[:2], np.bool_), downsample, 0)
    else:
        tissue = find_tissue(overview, downsample, mpp, settings.tissue)
    return Background(picture, picture_downsample * mpp / 1000, text_of(slide.path.name)), tissue


def _facts(slide: Slide, mpp: float, grid: Grid, spec: ModelSpec, executed: str) -> dict[str, Any]:
    """What summary.json tells of the slide and of how it was cut."""
    return {
        "slide": text_of(slide.path.name),
        "executed": executed,
        "vendor": slide.vendor,
        "width": slide.width,
        "height": slide.height,
        "mpp": mpp,
        "tile_side": grid.side,
        "stride": grid.stride,
        "resampled_from": "" if grid.side == spec.tile_size else f"{grid.side} pixels of level 0",
    }
