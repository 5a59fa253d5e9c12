"""Where to look on a slide: areas that were drawn in QuPath (`--roi`, GeoJSON), and masks (`--mask`, PNG or TIFF).

A region takes part as tissue does: what lies outside of it counts as glass. So one rule decides which squares are run
(`--min-tissue` of a square must be tissue inside the region), and areas are those of tissue inside the region. Regions
are drawn at the resolution of the overview in which tissue is found: a pixel is inside if its centre is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from histo_export.data.pillow import quiet_pillow
from histo_export.errors import HistoError, one_line
from histo_export.predict.grid import Floats, Grid, Integers, cell_areas
from histo_export.predict.inputs import text_of
from histo_export.predict.per_slide import file_of
from histo_export.predict.settings import SlideSettings
from histo_export.predict.slide import Pair, Slide
from histo_export.predict.tissue import Tissue

ROI, MASK = "GeoJSON file", "mask"
ROI_ENDINGS = (".geojson", ".json")
MASK_ENDINGS = (".png", ".tif", ".tiff", "_mask.png", "_mask.tif", "_mask.tiff")
LARGEST = 256 << 20
"""Bytes of a GeoJSON file."""
MAX_REGIONS = 1000
MAX_POINTS = 2_000_000
"""Of all outlines together."""
FARTHEST = float(1 << 31)
"""Pixels; no slide is as large."""
MAX_MASK_PIXELS = 1 << 28
SPANS = 1 << 20
"""Crossings of outlines with rows that are computed at a time."""
Rings = list[Floats]
"""The outline of a polygon and those of its holes, `(n, 2)` each, x and y in pixels of level 0."""


@dataclass(frozen=True)
class Region:
    """An area: its name, and its polygons."""

    name: str
    polygons: list[Rings]


@dataclass(frozen=True)
class RegionMap:
    """Regions, drawn over the overview of a slide.

    Attributes:
        names: of the regions; none where only a mask is given.
        index: int32 `(height, width)`: 1 + the region of each pixel, the first one where several overlap; 0 outside.
        warnings: sentences.
        facts: for summary.json.
    """

    names: tuple[str, ...]
    index: npt.NDArray[np.int32]
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RegionAreas:
    """What of each region is in which square.

    Attributes:
        names: of the regions.
        tissue: float64 `(regions,)`, pixels² of level 0.
        of_square: int64 `(squares,)`, the region with the most tissue in its cell.
        parts: of each region the squares that hold a part of it, and the area of tissue in each, pixels² of level 0.
    """

    names: tuple[str, ...]
    tissue: Floats
    of_square: Integers
    parts: list[tuple[Integers, Floats]]


def draw_regions(slide: Slide, settings: SlideSettings, shape: tuple[int, int], downsample: Pair) -> RegionMap | None:
    """The regions that the settings name for a slide; None where they name none.

    Args:
        slide: opened.
        settings: `roi`, `mask` and the origin of coordinates.
        shape: height and width of the overview.
        downsample: pixels of level 0 for one of the overview, in x and y.

    Raises:
        HistoError: there is no file for this slide, it can't be read, or no area lies on the slide.
    """
    if settings.everywhere:
        return None
    origin = slide.bounds[:2] if slide.bounds and settings.geojson_origin == "bounds" else (0, 0)
    index = np.ones(shape, np.int32)
    names: tuple[str, ...] = ()
    warnings: list[str] = []
    facts: dict[str, Any] = {}
    if settings.roi is not None:
        path = file_of(settings.roi, slide.path, ROI_ENDINGS, ROI)
        regions, left_out = read_geojson(path)
        index = _drawn(regions, shape, downsample, origin, (slide.width, slide.height))
        names = tuple(region.name for region in regions)
        missing = [name for i, name in enumerate(names, 1) if not (index == i).any()]
        if len(missing) == len(names):
            step = "Check that it is of this slide (--geojson-origin says what (0, 0) is)"
            raise HistoError(path, f"has no area that lies on {text_of(slide.path.name)}", step)
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            warnings.append(f"Areas outside of the slide, below others or smaller than 8 µm have no result: {shown}.")
        if left_out:
            warnings.append(f"{text_of(path.name)}: {left_out:,} points and lines have no area and were left out.")
        facts["roi"] = text_of(path.name)
    if settings.mask is not None:
        path = file_of(settings.mask, slide.path, MASK_ENDINGS, MASK)
        inside, covers = _mask_on(path, read_mask(path), slide, settings, shape, downsample)
        index = np.where(inside, index, 0)
        facts |= {"mask": text_of(path.name), "mask_covers": covers}
    return RegionMap(names, index.astype(np.int32), tuple(warnings), facts)


def inside_regions(tissue: Tissue, regions: RegionMap | None) -> Tissue:
    """The tissue inside the regions."""
    if regions is None:
        return tissue
    return Tissue(tissue.mask & (regions.index > 0), tissue.downsample, tissue.threshold, tissue.extent)


def region_areas(regions: RegionMap | None, tissue: Tissue, grid: Grid) -> RegionAreas | None:
    """What of each named region is in which square; None where no region has a name."""
    if regions is None or not regions.names:
        return None
    most, of_square = np.zeros(len(grid)), np.zeros(len(grid), np.int64)
    whole, parts = [], []
    for i in range(len(regions.names)):
        own = Tissue(tissue.mask & (regions.index == i + 1), tissue.downsample, tissue.threshold, tissue.extent)
        cells = cell_areas(grid, own)
        of_square[cells > most] = i
        most = np.maximum(most, cells)
        squares = np.flatnonzero(cells > 0)
        parts.append((squares, cells[squares]))
        whole.append(own.area)
    return RegionAreas(regions.names, np.array(whole), of_square, parts)


def read_geojson(path: Path) -> tuple[list[Region], int]:
    """The areas in a GeoJSON file: a FeatureCollection, a list of features, a Feature or a geometry.

    Names are those of QuPath: the object's, or else that of its class, or else "region 1" and so on. Where several
    areas have one name, all but the first get a number: "Tumor (2)".

    Returns:
        The areas, and how many features have none.

    Raises:
        HistoError: it can't be read, is no GeoJSON, or holds no area.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise HistoError(path, f"is larger than {LARGEST >> 20} MiB", "Export the areas alone, without cells")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror or error})", "Check the path") from error
    except (ValueError, RecursionError) as error:
        raise HistoError(path, f"is not GeoJSON ({one_line(error, 100)})", "Export it from QuPath again") from error
    features = content.get("features") if isinstance(content, dict) and "features" in content else content
    regions: list[Region] = []
    names: set[str] = set()
    left_out = points = 0
    for feature in features if isinstance(features, list) else [features]:
        number = len(regions) + 1
        polygons = list(_polygons(path, _geometry(path, feature), number))
        if not polygons:
            left_out += 1
            continue
        points += sum(len(ring) for rings in polygons for ring in rings)
        regions.append(Region(_unlike(_name(feature) or f"region {number}", names), polygons))
        if len(regions) > MAX_REGIONS or points > MAX_POINTS:
            cause = f"holds more than {MAX_REGIONS:,} areas, or {MAX_POINTS:,} corners"
            raise HistoError(path, cause, "Export the annotations alone, without cells or tiles")
    if not regions:
        raise HistoError(path, "holds no area (Polygon or MultiPolygon)", "Draw one in QuPath and export it")
    return regions, left_out


def _unlike(name: str, names: set[str]) -> str:
    """The name, with a number where it is one of `names`, to which it is added."""
    found = next(each for each in (name, *(f"{name} ({i})" for i in range(2, len(names) + 3))) if each not in names)
    names.add(found)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _geometry(path: Path, feature: Any) -> dict[str, Any]:
    geometry = feature.get("geometry", feature) if isinstance(feature, dict) else None
    if geometry is None and isinstance(feature, dict) and feature.get("type") == "Feature":
        return {"type": "GeometryCollection", "geometries": []}  # a feature without a place
    if not isinstance(geometry, dict) or not isinstance(geometry.get("type"), str):
        raise HistoError(path, "is not GeoJSON (a feature without geometry)", "Export it from QuPath again")
    return geometry


def _name(feature: Any) -> str:
    """The name of a feature, on one line and as any file can hold it; "" where it has none."""
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    kind = properties.get("classification")
    names = properties.get("name"), kind.get("name") if isinstance(kind, dict) else None
    return next((text for name in names if isinstance(name, str) and (text := _one_line(name))), "")


def _one_line(name: str) -> str:
    printed = "".join(letter if letter.isprintable() or letter.isspace() else " " for letter in text_of(name))
    return " ".join(printed.split())[:200]


def _polygons(path: Path, geometry: dict[str, Any], number: int) -> Iterator[Rings]:
    """The polygons of a geometry; none of points and lines."""
    kind = geometry["type"]
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if kind == "GeometryCollection" and isinstance(parts, list):
        for part in parts:
            if isinstance(part, dict) and part.get("type") in ("Polygon", "MultiPolygon"):
                yield from _polygons(path, part, number)
    elif kind in ("Polygon", "MultiPolygon"):
        try:
            polygons: list[Any] = [parts] if kind == "Polygon" else list(parts or ())
            for polygon in polygons:
                rings = [np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in polygon]
                if any(not (np.abs(ring) <= FARTHEST).all() for ring in rings):  # NaN is not, either
                    raise ValueError("a corner that no slide has")
                if rings and len(rings[0]) >= 3:
                    yield rings
        except (
            ArithmeticError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
        ) as error:  # also whole numbers of any size
            cause = f"has a damaged outline in area {number} ({one_line(error, 80)})"
            raise HistoError(path, cause, "Export it from QuPath again") from error


def _drawn(
    regions: Sequence[Region],
    shape: tuple[int, int],
    downsample: Pair,
    origin: tuple[int, int],
    size: tuple[int, int],
) -> npt.NDArray[np.int32]:
    """`RegionMap.index` of these areas.

    The last pixels of the overview reach beyond the slide, so that their centres may lie outside. So an area that
    reaches the edge of the slide is drawn as if it reached the edge of the overview.

    Args:
        regions: the areas.
        shape, downsample: as in `draw_regions`.
        origin: what their (0, 0) is, in pixels of level 0.
        size: width and height of the slide.
    """
    edge = np.array(shape[::-1], np.float64) * downsample
    index = np.zeros(shape, np.int32)
    for number, region in enumerate(regions, 1):
        for rings in region.polygons:
            placed = (ring + origin for ring in rings)
            _fill(index, [np.where(ring >= size, np.maximum(ring, edge), ring) / downsample for ring in placed], number)
    return index


def _fill(index: npt.NDArray[np.int32], rings: Rings, number: int) -> None:
    """Sets the pixels of `index` that are 0 yet, and whose centre is inside of a polygon, by the even-odd rule.

    In each row, a pixel is inside if the number of outlines left of its centre is odd; so holes need no care.
    """
    height, width = index.shape
    corners = np.concatenate(rings)
    (left, top), (right, bottom) = np.floor(corners.min(0)), np.ceil(corners.max(0))
    left, right = (int(min(max(side, 0), width)) for side in (left, right))
    top, bottom = (int(min(max(side, 0), height)) for side in (top, bottom))
    if left >= right or top >= bottom:
        return
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    starts, ends = np.concatenate(rings), np.concatenate([np.roll(ring, -1, 0) for ring in rings])
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.clip(np.ceil(low - 0.5), top, bottom).astype(np.int64)  # rows whose centre lies in [low, high)
    count = np.clip(np.ceil(high - 0.5), top, bottom).astype(np.int64) - first
    crossing = np.flatnonzero(count > 0)
    at = 0
    while at < len(crossing):
        total = np.cumsum(count[crossing[at : at + SPANS]])
        some = crossing[at : at + max(1, int(np.searchsorted(total, SPANS, side="right")))]
        at += len(some)
        edge = np.repeat(some, count[some])
        before = np.repeat(np.cumsum(count[some]) - count[some], count[some])
        row = first[edge] + np.arange(len(edge)) - before
        (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
        x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
        np.add.at(toggles, (row - top, column), 1)
    inside = (toggles.cumsum(1)[:, :-1] & 1).astype(np.bool_)
    part = index[top:bottom, left:right]
    part[inside & (part == 0)] = number


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """A mask, bool `(height, width)`: where a grey or palette image is not 0.

    Raises:
        HistoError: it can't be read, has colours, is empty, or is too large; or the entries of its palette and their
            colours disagree on what is outside.
    """
    step = "Save it as a grey PNG or TIFF, 0 outside"
    try:
        with quiet_pillow(), Image.open(path, formats=("PNG", "TIFF")) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise HistoError(path, f"is {image.width:,}×{image.height:,} pixels", "Save it at a lower resolution")
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise HistoError(path, f"holds {pages} pages, and it is unclear which one counts", "Save one image")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise HistoError(path, f"is no mask (PIL mode {image.mode})", step)
            pixels = np.asarray(image)
            if image.mode == "P" and _is_ambiguous(image, pixels):
                raise HistoError(path, "has a palette in which black is not entry 0: both may be the outside", step)
            mask: npt.NDArray[np.bool_] = pixels != 0
    except HistoError:
        raise
    except Exception as error:  # Pillow raises errors of many types where bytes are damaged
        raise HistoError(path, f"cannot be read as a mask ({one_line(error, 100)})", step) from error
    if not mask.any():
        raise HistoError(path, "is 0 everywhere", "Save 1 or 255 where tiles are to be taken")
    return mask


def _is_ambiguous(image: Image.Image, pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a palette image has black pixels, and entry 0 of the palette is another colour.

    Programs that make files smaller sort a palette as they like. QuPath gives entry 0 to the background, in any colour.
    """
    colours = image.convert("L").point(lambda level: 255 * (level > 0))
    black = np.asarray(colours) == 0
    return bool((black & (pixels != 0)).any() and (~black & (pixels == 0)).any())


def _mask_on(
    path: Path,
    mask: npt.NDArray[np.bool_],
    slide: Slide,
    settings: SlideSettings,
    shape: tuple[int, int],
    downsample: Pair,
) -> tuple[npt.NDArray[np.bool_], str]:
    """The mask at the pixels of the overview, and what it covers: "bounds", as what QuPath exports, or "level0".

    Raises:
        HistoError: the mask has another ratio of its sides than both.
    """
    whole = "level0", (0, 0, slide.width, slide.height)
    places = [("bounds", slide.bounds)] if slide.bounds and settings.geojson_origin == "bounds" else []
    fits = [place for place in (*places, whole) if _same_shape(mask.shape[::-1], place[1][2:])]
    if not fits:
        sizes = f"{mask.shape[1]:,}×{mask.shape[0]:,} pixels, and the slide {slide.width:,}×{slide.height:,}"
        raise HistoError(path, f"has another shape than the slide: {sizes}", "Save it over the complete slide")
    covers, (x, y, width, height) = fits[0]
    # The centres of the overview's pixels; the last ones may lie beyond the slide, see `_drawn`.
    columns = np.minimum((np.arange(shape[1]) + 0.5) * downsample[0], slide.width - 0.5) - x
    rows = np.minimum((np.arange(shape[0]) + 0.5) * downsample[1], slide.height - 0.5) - y
    column = np.floor(columns * (mask.shape[1] / width)).astype(np.int64)
    row = np.floor(rows * (mask.shape[0] / height)).astype(np.int64)
    inside = mask[np.clip(row, 0, mask.shape[0] - 1)][:, np.clip(column, 0, mask.shape[1] - 1)]
    inside &= ((row >= 0) & (row < mask.shape[0]))[:, None] & ((column >= 0) & (column < mask.shape[1]))[None, :]
    return inside, covers


def _same_shape(mask: tuple[int, ...], slide: tuple[int, int]) -> bool:
    """Whether one downsample explains both sides of a mask, each rounded up or down to whole pixels."""
    lows, highs = zip(
        *((length / (side + 1), length / max(side - 1, 0.5)) for side, length in zip(mask, slide, strict=True)),
        strict=True,
    )
    return bool(max(lows) < min(highs))
