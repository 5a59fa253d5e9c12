"""Slides of the formats that OpenSlide knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import openslide
from PIL import Image

from histo_export.errors import HistoError, one_line
from histo_export.predict.readers.resolution import tiff_mpp
from histo_export.predict.slide import Level, Pair, Slide, on_white, plausible

BOUNDS = ("x", "y", "width", "height")


class OpenSlideReader(Slide):
    reader = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide = openslide.OpenSlide(str(path))
        properties = self._slide.properties
        self.vendor = properties.get("openslide.vendor", "unknown")
        self.levels = [
            Level(*size, downsample)
            for size, downsample in zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        ]
        self.mpp = self._find_mpp(properties)
        self.bounds = self._find_bounds(properties)

    @staticmethod
    def _find_mpp(properties: Mapping[str, str]) -> Pair | None:
        try:
            # Of a plain TIFF, OpenSlide's figure is that of the tags alone.
            plain = properties.get("openslide.vendor") == "generic-tiff"
            if not plain and (stated := properties.get("openslide.mpp-x")):
                return plausible(float(stated), float(properties.get("openslide.mpp-y", stated)))
            resolution = tuple(float(properties.get(f"tiff.{axis}Resolution", "0")) for axis in "XY")
        except ValueError:
            return None
        unit = properties.get("tiff.ResolutionUnit", "inch")
        return tiff_mpp((resolution[0], resolution[1]), unit, properties.get("tiff.ImageDescription", ""))

    @staticmethod
    def _find_bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
        try:
            x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in BOUNDS)
        except (KeyError, ValueError):
            return None
        return (x, y, width, height) if width > 0 and height > 0 else None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except Exception as error:  # OpenSlideError, or whatever the damage makes of it
            raise HistoError(
                self.path,
                f"is damaged at ({x}, {y}), level {level} ({one_line(error)})",
                "Compare it with the original, and copy it again",
            ) from error
        return on_white(region)

    def close(self) -> None:
        self._slide.close()
