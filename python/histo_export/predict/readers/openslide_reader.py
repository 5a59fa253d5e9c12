"""Slides of the formats that OpenSlide knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import openslide
from PIL import Image

from histo_export.errors import HistoError
from histo_export.predict.slide import Level, Slide, on_white, plausible, text_of_error


class OpenSlideReader(Slide):
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

    @staticmethod
    def _find_mpp(properties: Mapping[str, str]) -> float | None:
        try:
            if stated := properties.get("openslide.mpp-x"):
                return plausible(float(stated))
            unit = {"centimeter": 1e4, "inch": 25400.0}.get(properties.get("tiff.ResolutionUnit", ""))
            resolution = float(properties.get("tiff.XResolution", "0"))
        except ValueError:
            return None
        return plausible(unit / resolution) if unit and resolution > 0 else None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image.Image:
        try:
            region = self._slide.read_region((x, y), level, (width, height))
        except Exception as error:  # OpenSlideError, or whatever the damage makes of it
            raise HistoError(
                self.path,
                f"is damaged at ({x}, {y}), level {level} ({text_of_error(error)})",
                "Compare it with the original, and copy it again",
            ) from error
        return on_white(region)

    def close(self) -> None:
        self._slide.close()
