"""One slide: its tissue, its grid of squares, their probabilities, and the files of its result."""

from __future__ import annotations

import csv
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError
from histo_export.predict.colours import class_colours
from histo_export.predict.coords import coords_file, patch_grid, read_coords, without_stride
from histo_export.predict.features import FeaturePlaces, VectorStore
from histo_export.predict.grid import Floats, Grid, Integers, Layout, make_grid, make_layout
from histo_export.predict.inputs import text_of
from histo_export.predict.loop import Logits, Probabilities, StageSeconds, TileLoop, softmax
from histo_export.predict.ome_tiff import PROBABILITIES, write_probabilities
from histo_export.predict.pages.samples import PassingSamples, Samples
from histo_export.predict.pages.slide import SlideView, write_slide_page
from histo_export.predict.pictures import Areas, Background, heat_map, tissue_picture
from histo_export.predict.regions import RegionAreas, draw_regions, inside_regions, region_areas
from histo_export.predict.settings import MAX_ENLARGED, WARN_ENLARGED, SlideSettings
from histo_export.predict.slide import NO_SCALE, MapAll, Pair, Pixels, Slide
from histo_export.predict.smooth import can_average
from histo_export.predict.tile_images import KeepTile
from histo_export.predict.tissue import Tissue, find_tissue
from histo_export.spec import ModelSpec
from histo_export.strict_json import dump_json

TISSUE_UM = 8.0
"""µm per pixel of the overview in which tissue is found: about a nucleus, so that no gland is missed and the overview
of a slide has a few megapixels only."""

PICTURE_SIDE = 1200
"""Least pixels of the longer side of a picture, where the slide has as many."""

PART = 4096
"""Squares that are written at a time."""

MAX_READ_PIXELS = 1 << 26
"""Of one tile, in the level that it is read from: 256 MB in each reader thread."""


@dataclass(frozen=True, repr=False)
class SlidePrediction:
    """The result of one slide.

    Attributes:
        classes: names, in the order of `probabilities`.
        grid: where the squares are.
        probabilities: float32 `(n, classes)`.
        mpp: µm per pixel of level 0, in x and y.
        area_mm2: area of tissue by the class of the cell that it is in.
        unanalysed_mm2: area of tissue in no cell. With the areas of the classes it adds up to all tissue.
        tissue: the mask.
        background: a small image of the slide, which its pictures are drawn over.
        seconds: of each stage.
        name: of the slide's file.
        facts: further plain values for summary.json.
        geojson_origin: x and y, in pixels of level 0, of the point that is (0, 0) in tiles.geojson.
        warnings: sentences about what may make the result worse than it looks.
        cell_mm2: float64 `(n,)`, tissue in the cell of each square.
        samples: tiles that the result's page shows as pictures.
        smooth: paint the mean of overlapping squares.
        features: the feature vectors, and where their tiles are; None if they were not asked for.
        drawn_tissue: tissue.png, if it has been drawn before.
        regions: what of each named region is in which square; None where no regions have names.
    """

    classes: tuple[str, ...]
    grid: Grid
    probabilities: Probabilities
    mpp: Pair
    area_mm2: dict[str, float]
    unanalysed_mm2: float
    tissue: Tissue
    background: Background
    cell_mm2: Floats
    samples: Samples
    seconds: StageSeconds
    name: str
    facts: dict[str, Any]
    geojson_origin: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()
    smooth: bool = False
    features: tuple[FeaturePlaces, VectorStore] | None = None
    drawn_tissue: Future[bytes] | None = None
    regions: RegionAreas | None = None

    def __repr__(self) -> str:
        return f"<SlidePrediction of {self.name}: {len(self.grid):,} squares, {len(self.classes)} classes>"

    def write(self, folder: str | Path, *, in_run: bool = False) -> None:
        """Writes tiles.csv, tiles.geojson, probabilities.ome.tiff (unless squares have no common stride), heatmap.png,
        tissue.png, summary.json, index.html and thumbnail.jpg.

        Args:
            folder: made if it does not exist.
            in_run: whether the folder above gets the page of a run, to which index.html then leads.

        Raises:
            OSError: it can't be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "tiles.csv").open("w", newline="", encoding="utf-8") as file:
            self._write_csv(file)
        with (folder / "tiles.geojson").open("w", encoding="utf-8") as file:
            self._write_geojson(file)
        write_probabilities(folder / PROBABILITIES, self.grid, self.probabilities, self.classes, self.mpp)
        drawn = self.drawn_tissue
        picture = drawn.result() if drawn else tissue_picture(self.background, self.grid, self.tissue)
        (folder / "tissue.png").write_bytes(picture)
        areas = Areas(self.area_mm2, self.unanalysed_mm2)
        squares = self.background, self.grid, self.tissue, self.probabilities
        (folder / "heatmap.png").write_bytes(heat_map(*squares, areas, smooth=self.smooth))
        summary = self.summary()
        (folder / "summary.json").write_text(dump_json(summary, indent=2) + "\n", encoding="utf-8")
        write_slide_page(folder, self._view(), summary, in_run=in_run)

    def _view(self) -> SlideView:
        """What the result's page shows."""
        where = self.background, self.grid, self.tissue
        return SlideView(*where, self.probabilities, self.cell_mm2, self.samples, self.smooth)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json: plain values, the same in every run."""
        chosen = self.probabilities.argmax(1)
        areas = [round(self.area_mm2[name], 6) for name in self.classes]
        unanalysed = round(self.unanalysed_mm2, 6)
        return {
            **self.facts,
            "tiles": len(self.grid),
            "classes": {
                name: {"tiles": int((chosen == i).sum()), "area_mm2": areas[i]} for i, name in enumerate(self.classes)
            },
            "unanalysed_mm2": unanalysed,
            "tissue_mm2": round(sum(areas) + unanalysed, 6),  # of the rounded values, so that they add up
            "tissue_threshold": self.tissue.threshold,
            **self._regions(chosen),
            "warnings": list(self.warnings),
        }

    def _regions(self, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
        """What summary.json tells of each region; `chosen`: the class of each square."""
        if self.regions is None:
            return {}
        mm2 = self.mpp[0] * self.mpp[1] / 1e6
        rows = []
        for i, (name, tissue) in enumerate(zip(self.regions.names, self.regions.tissue.tolist(), strict=True)):
            squares, areas = self.regions.parts[i]
            own = self.regions.of_square == i
            sums = np.bincount(chosen[squares], weights=areas, minlength=len(self.classes)) * mm2
            classes = {
                each: {"tiles": int((chosen[own] == c).sum()), "area_mm2": round(float(sums[c]), 6)}
                for c, each in enumerate(self.classes)
            }
            rows.append(
                {"name": name, "tiles": int(own.sum()), "tissue_mm2": round(tissue * mm2, 6), "classes": classes}
            )
        return {"regions": rows}

    def _write_csv(self, file: TextIO) -> None:
        """Writes tiles.csv with WSInfer's columns, in pixels of level 0, and `region` where regions have names."""
        writer = csv.writer(file, lineterminator="\n")
        columns = ["minx", "miny", "width", "height", *(f"prob_{name}" for name in self.classes)]
        writer.writerow(columns if self.regions is None else [*columns, "region"])
        size = self.grid.size
        rows = ([x, y, *size, *[f"{p:.7f}" for p in row]] for x, y, _, row in self._squares())
        if self.regions is not None:
            names = (self.regions.names[i] for i in self.regions.of_square.tolist())
            rows = ([*row, name] for row, name in zip(rows, names, strict=True))
        writer.writerows(rows)

    def _squares(self) -> Iterator[tuple[int, int, int, list[float]]]:
        """Corner, class and probabilities of each square, as numbers of Python, which take much more memory."""
        chosen, x, y = self.probabilities.argmax(1), self.grid.x, self.grid.y
        for first in range(0, len(self.grid), PART):
            some = slice(first, first + PART)
            columns = (values[some].tolist() for values in (x, y, chosen, self.probabilities))
            yield from zip(*columns, strict=True)

    def _write_geojson(self, file: TextIO) -> None:
        """Writes a FeatureCollection of polygons as QuPath 0.4 and later read them."""
        names = [dump_json(f"prob_{name}") for name in self.classes]
        colours = [[round(255 * part) for part in colour] for colour in class_colours(len(self.classes))]
        classes = [
            dump_json({"objectType": "tile", "classification": {"name": name, "color": colour}})[:-1]
            for name, colour in zip(self.classes, colours, strict=True)
        ]
        width, height = self.grid.size
        x_of, y_of = self.geojson_origin
        file.write('{"type": "FeatureCollection", "features": [')
        for i, (x, y, chosen, row) in enumerate(self._squares()):
            left, top = x - x_of, y - y_of
            right, bottom = left + width, top + height
            # QuPath wants an id; it is made of the square's place, so that every run writes the same bytes.
            name = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}/{x}/{y}/{width}/{height}")
            values = ", ".join([f"{key}: {round(p, 7)!r}" for key, p in zip(names, row, strict=True)])
            # Text, because json takes three times as long for what is the same in each feature.
            file.write(
                f'{"," if i else ""}\n{{"type": "Feature", "id": "{name}", "geometry": {{"type": "Polygon", '
                f'"coordinates": [[[{left}, {top}], [{right}, {top}], [{right}, {bottom}], [{left}, {bottom}], '
                f'[{left}, {top}]]]}}, "properties": {classes[chosen]}, "measurements": {{{values}}}}}}}'
            )
        file.write("\n]}\n")


def slide_mpp(slide: Slide, settings: SlideSettings) -> Pair:
    """µm per pixel of level 0 in x and y; HistoError where neither the settings nor the slide state it."""
    mpp = slide.mpp if settings.mpp is None else (settings.mpp, settings.mpp)
    if mpp is None:
        raise HistoError(slide.path, NO_SCALE, "State it with --mpp, e.g. --mpp 0.25")
    return mpp


def check_scale(slide: Slide, mpp: Pair, layout: Layout, spec: ModelSpec) -> tuple[str, ...]:
    """Warnings where the slide is coarser than the model.

    Args:
        slide: opened.
        mpp: µm per pixel of level 0.
        layout: of its grid.
        spec: of the model; its µm per pixel is known.

    Raises:
        HistoError: the slide is so much coarser or finer that its µm per pixel is most likely wrong.
    """
    assert spec.mpp is not None
    enlarged = max(mpp) / spec.mpp
    scales = f"has {_text(mpp)} µm per pixel, and the model {spec.mpp:g}"
    if enlarged > MAX_ENLARGED:
        raise HistoError(
            slide.path,
            f"{scales}: its pixels would be enlarged {enlarged:.3g} times (at most {MAX_ENLARGED:g})",
            "Check its µm per pixel (--mpp sets it), or use a model for this resolution",
        )
    downsample = slide.levels[slide.level_for(min(layout.tile) / spec.tile_size)].downsample
    width, height = (round(side / downsample) for side in layout.tile)
    if width * height > MAX_READ_PIXELS:
        raise HistoError(
            slide.path,
            f"{scales}: one tile would take {width:,}×{height:,} of its pixels",
            "Check its µm per pixel (--mpp sets it), or add coarser levels to it, e.g. with vips tiffsave --pyramid",
        )
    if enlarged < WARN_ENLARGED - 1e-9:
        return ()
    return (
        f"The slide {scales}: its pixels are enlarged {enlarged:.3g} times and lack details that the model learned "
        "from. Check the µm per pixel, or use a model for this resolution.",
    )


@dataclass(frozen=True)
class PreparedSlide:
    """A slide whose squares are known, so that only their tiles are left to run.

    Attributes:
        slide: opened; `close` closes it.
        spec: of the model.
        settings: how the slide is cut.
        mpp: µm per pixel of level 0, in x and y.
        layout, grid: its squares.
        cells: float64 `(n,)`, the tissue of each square's cell in pixels² of level 0.
        tissue, background, warnings, regions: see `SlidePrediction`.
        region_facts: for summary.json.
        seconds: that preparing took.
    """

    slide: Slide
    spec: ModelSpec
    settings: SlideSettings
    mpp: Pair
    layout: Layout
    grid: Grid
    cells: Floats
    tissue: Tissue
    background: Background
    warnings: tuple[str, ...]
    seconds: float
    regions: RegionAreas | None = None
    region_facts: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Closes the slide."""
        self.slide.close()

    def tissue_picture(self) -> bytes:
        """The content of tissue.png."""
        return tissue_picture(self.background, self.grid, self.tissue)

    @property
    def level(self) -> int:
        """The level that tiles are read from."""
        return self.slide.level_for(min(self.layout.tile) / self.spec.tile_size)

    def run(
        self,
        loop: TileLoop,
        progress: Callable[[int, int], None] = lambda done, tiles: None,
        keep: KeepTile = lambda corner, pixels: None,
        *,
        features: bool = False,
    ) -> SlidePrediction:
        """Runs the tiles.

        Args:
            loop: what runs them.
            progress: told the number of tiles done and in all.
            keep: gets each tile, in one of several threads.
            features: keep the feature vectors, too; the runtime must give them.

        Raises:
            HistoError: a part of the slide can't be read, or the runtime failed.
        """
        slide, grid, spec, mpp = self.slide, self.grid, self.spec, self.mpp
        order = grid.reading_order(slide.levels[self.level].downsample)
        probabilities = np.empty((len(grid), len(spec.classes)), np.float32)
        samples = PassingSamples(spec)
        store = VectorStore(len(grid), loop.runtime.features) if features else None
        done = 0

        def read(first: int) -> tuple[tuple[Integers, Pixels], Pixels]:
            # A HistoError ends the slide: without one of its tiles it would look as if there were glass.
            squares = order[first : first + loop.batch]
            corners = grid.corners_of(squares)
            tiles = slide.tiles(corners, self.layout.tile, spec.tile_size, self.settings.resample)
            for corner, pixels in zip(corners.tolist(), tiles, strict=True):
                keep(corner, pixels)
            return (squares, tiles), tiles

        def deliver(place: tuple[Integers, Pixels], logits: Logits) -> None:
            nonlocal done
            squares, tiles = place
            probabilities[squares] = softmax(logits[:, : len(spec.classes)])
            samples.add(squares, probabilities[squares], tiles)
            if store is not None:
                store.put(squares, logits[:, len(spec.classes) :])
            done += len(squares)
            progress(done, len(grid))

        seconds = loop.run_batches(range(0, len(grid), loop.batch), read, deliver, features=features)
        seconds.prepare = self.seconds
        mm2 = mpp[0] * mpp[1] / 1e6
        areas = np.bincount(probabilities.argmax(1), weights=self.cells, minlength=len(spec.classes)) * mm2
        origin = slide.bounds[:2] if slide.bounds and self.settings.geojson_origin == "bounds" else (0, 0)
        return SlidePrediction(
            classes=spec.classes,
            grid=grid,
            probabilities=probabilities,
            mpp=mpp,
            area_mm2=dict(zip(spec.classes, areas.tolist(), strict=True)),
            unanalysed_mm2=max(0.0, self.tissue.area * mm2 - float(areas.sum())),
            tissue=self.tissue,
            background=self.background,
            cell_mm2=self.cells * mm2,
            samples=samples.chosen,
            seconds=seconds,
            name=text_of(slide.path.name),
            facts=_facts(self, loop.runtime.executed) | {"geojson_origin": list(origin)},
            geojson_origin=origin,
            warnings=self.warnings,
            regions=self.regions,
            smooth=self.settings.smooth and can_average(grid),
            features=None if store is None else (self._feature_places(), store),
        )

    def _feature_places(self) -> FeaturePlaces:
        corners, tile_size = self.grid.tile_corners, self.spec.tile_size
        return FeaturePlaces(text_of(self.slide.path.name), corners, self.layout.tile, tile_size, self.mpp)


def prepare_slide(slide: Slide, spec: ModelSpec, settings: SlideSettings, map_all: MapAll = map) -> PreparedSlide:
    """Finds the tissue of a slide and its squares.

    Args:
        slide: opened; it stays open.
        spec: of the model.
        settings: how the slide is cut.
        map_all: see `Slide.overview`.

    Raises:
        HistoError: no µm per pixel, or an absurd one; no tissue; too many squares; or an unreadable part.
    """
    start = time.perf_counter()
    if spec.mpp is None:
        raise HistoError("The model", NO_SCALE, "Export it again with --mpp, e.g. --mpp 0.5")
    mpp = slide_mpp(slide, settings)
    layout = make_layout(spec, mpp, settings)
    warnings = (*check_scale(slide, mpp, layout, spec), *_check_dct(slide, settings))
    background, tissue = _survey(slide, mpp, settings, map_all)
    drawn = draw_regions(slide, settings, tissue.mask.shape, tissue.downsample)
    tissue = inside_regions(tissue, drawn)
    grid, cells, of_places = _place_squares(slide, layout, settings, tissue)
    regions = region_areas(drawn, tissue, grid)
    warnings += (*of_places, *(drawn.warnings if drawn else ()))
    seconds = time.perf_counter() - start
    found = layout, grid, cells, tissue, background, tuple(warnings), seconds, regions, drawn.facts if drawn else {}
    return PreparedSlide(slide, spec, settings, mpp, *found)


def predict_slide(
    slide: Slide,
    loop: TileLoop,
    settings: SlideSettings,
    progress: Callable[[int, int], None] = lambda done, tiles: None,
) -> SlidePrediction:
    """Runs a slide.

    Args:
        slide: opened; it stays open.
        loop: what runs its tiles.
        settings: how the slide is cut.
        progress: told the number of tiles done and in all.

    Raises:
        HistoError: as `prepare_slide` and `PreparedSlide.run`.
    """
    with ThreadPoolExecutor(loop.readers, thread_name_prefix="survey") as pool:
        prepared = prepare_slide(slide, loop.spec, settings, pool.map)
    return prepared.run(loop, progress)


def _place_squares(
    slide: Slide, layout: Layout, settings: SlideSettings, tissue: Tissue
) -> tuple[Grid, Floats, tuple[str, ...]]:
    """The squares, tissue in the cell of each in pixels² of level 0, and warnings; HistoError where there are none."""
    size = slide.width, slide.height
    if settings.coords is not None:
        grid, cells, warnings = patch_grid(size, layout, read_coords(coords_file(settings.coords, slide.path)), tissue)
    else:
        (grid, cells), warnings = make_grid(size, layout, settings, tissue), ()
    if not len(grid):
        raise HistoError(
            slide.path,
            f"has no tile with enough tissue{'' if settings.everywhere else ' in the region'}",
            "Look at it, or use --everything or --tissue-threshold",
        )
    if settings.smooth and not can_average(grid):
        strides = zip(layout.stride, layout.square, strict=True)
        if settings.coords is not None or all(stride >= side for stride, side in strides):
            cause = "has no squares that overlap, or they have no common rows"
            raise HistoError(slide.path, cause, "Leave --smooth out")
        warnings = (*warnings, "No squares overlap here: the heat map shows the single squares, as without --smooth.")
    return grid, cells, warnings


def _check_dct(slide: Slide, settings: SlideSettings) -> tuple[str, ...]:
    """A warning where `dct` is asked of a slide that can't be decoded smaller."""
    if settings.resample != "dct" or any(slide.shrink_of(i) > 1 for i in range(len(slide.levels))):
        return ()
    return (f"The slide is resampled with bilinear, because it cannot be decoded smaller ({slide.chosen}).",)


def _survey(slide: Slide, mpp: Pair, settings: SlideSettings, map_all: MapAll) -> tuple[Background, Tissue]:
    """An image of the slide for its pictures, and its tissue."""
    overview, downsample = slide.overview((max(1.0, TISSUE_UM / mpp[0]), max(1.0, TISSUE_UM / mpp[1])), map_all)
    picture, picture_downsample = overview, downsample
    if max(overview.shape) < PICTURE_SIDE:
        longer = max(slide.width * mpp[0], slide.height * mpp[1]) / PICTURE_SIDE
        finer = max(1.0, longer / mpp[0]), max(1.0, longer / mpp[1])
        picture, picture_downsample = slide.overview(finer, map_all)
    extent = (0.0, 0.0, float(slide.width), float(slide.height))
    if settings.everything:
        if slide.bounds:
            x, y, width, height = slide.bounds
            extent = (max(0, x), max(0, y), min(slide.width, x + width), min(slide.height, y + height))
        tissue = Tissue(np.ones(overview.shape[:2], np.bool_), downsample, 0, extent)
    else:
        tissue = find_tissue(overview, downsample, mpp, settings.tissue, extent)
    return Background(picture, picture_downsample, mpp, text_of(slide.path.name)), tissue


def _facts(prepared: PreparedSlide, executed: str) -> dict[str, Any]:
    """What summary.json tells of the slide and of how it was cut. Lengths are pairs of x and y."""
    slide, mpp, layout, settings = prepared.slide, prepared.mpp, prepared.layout, prepared.settings
    shrink = slide.shrink_of(prepared.level)

    def lengths(name: str, pixels: Pair) -> dict[str, list[float]]:
        um = pixels[0] * mpp[0], pixels[1] * mpp[1]
        return {f"{name}_pixels": [round(each, 3) for each in pixels], f"{name}_um": [round(each, 3) for each in um]}

    facts = {
        "slide": text_of(slide.path.name),
        "executed": executed,
        "vendor": slide.vendor,
        "width": slide.width,
        "height": slide.height,
        "mpp": list(mpp),
        "bounds": list(slide.bounds) if slide.bounds else None,
        "grid": settings.grid,
        **lengths("seen", layout.seen),
        **lengths("tile", layout.tile),
        **lengths("stride", layout.stride),
        "seen_share_of_tile": round(layout.seen_share, 4),
        "resample": settings.resample,
        **({"decoded_at": f"1/{shrink}"} if settings.resample == "dct" else {}),
        "csv_origin": [0, 0],
        **prepared.region_facts,
    }
    if settings.coords is None:
        return facts
    return without_stride(facts) | {"coords": text_of(coords_file(settings.coords, slide.path).name)}


def _text(mpp: Pair) -> str:
    return f"{mpp[0]:.4g}" if mpp[0] == mpp[1] else f"{mpp[0]:.4g} × {mpp[1]:.4g}"
