"""What predictions look like: the tissue mask, the heat map over the slide, the worst mistakes."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredText
from matplotlib.patches import Patch, Rectangle

from histo_export.figures import new_figure, save_figure, shown

if TYPE_CHECKING:  # they need the packages for slides, which sets of tiles do without
    from histo_export.predict.grid import Grid
    from histo_export.predict.tissue import Tissue

CLASS_COLOURS = (
    *("#2288DD", "#CC0000", "#AADD00", "#3311BB", "#EEBB88", "#772255", "#00EEEE", "#FF6699", "#778844", "#AA1199"),
    *("#AAAA22", "#22BBEE", "#227755", "#880011", "#4455DD", "#88EE66", "#EE2299", "#660099", "#DD8877", "#77AA44"),
)
"""Colours that are far apart, also over grey and for readers who are blind to red or green.

Chosen from a grid of sRGB so that the least CIELAB distance is large, with full colour vision and with protanopia and
deuteranopia as simulated by Machado et al. 2009; none is the pink or purple of a stain. The first seven were chosen
together, each further one for the rest.
"""

LONG_SIDE = 9.0
"""Inches of the longer side of a slide's picture."""


@dataclass(frozen=True)
class Background:
    """A small image of a slide, which its pictures are drawn over.

    Attributes:
        pixels: uint8 RGB `(height, width, 3)`.
        mm_per_pixel: of `pixels`.
        name: of the slide's file.
    """

    pixels: npt.NDArray[np.uint8]
    mm_per_pixel: float
    name: str

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in mm; y grows downwards."""
        height, width = self.pixels.shape[:2]
        return 0, width * self.mm_per_pixel, height * self.mm_per_pixel, 0


def class_colours(classes: int) -> list[tuple[float, float, float]]:
    """A colour for each class, as red, green and blue in [0, 1]; the same for a class in every output."""
    colours = [matplotlib.colors.to_rgb(colour) for colour in CLASS_COLOURS]
    # Steps of the golden ratio around the colour circle keep neighbours apart, however many follow.
    colours += [colorsys.hsv_to_rgb(0.618 * i % 1, 0.8, 0.85) for i in range(len(colours), classes)]
    return colours[:classes]


def save_heat_map(
    path: Path,
    background: Background,
    grid: Grid,
    mpp: float,
    probabilities: npt.NDArray[np.float32],
    area_mm2: Mapping[str, float],
) -> None:
    """Draws each tile in its class's colour, the stronger the higher its probability, over the slide in grey.

    Args:
        path: the PNG.
        background: the slide.
        grid: its tiles.
        mpp: µm per pixel of level 0.
        probabilities: float32 `(n, classes)` of the tiles.
        area_mm2: area of tissue by class, in the order of the probabilities.
    """
    figure, axes = _canvas(background)
    grey = background.pixels.mean(axis=2)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=background.extent, interpolation="antialiased")
    scale = mpp / 1000
    cells = np.zeros((int(grid.row.max()) + 1, int(grid.column.max()) + 1, 4))
    colours = np.array(class_colours(len(area_mm2)))
    highest = probabilities.max(1)
    chance = 1 / len(area_mm2)
    cells[grid.row, grid.column, :3] = colours[probabilities.argmax(1)]
    cells[grid.row, grid.column, 3] = 0.15 + 0.6 * (highest - chance) / (1 - chance)
    margin = (grid.side - grid.stride) / 2
    left, top = margin * scale, margin * scale
    width, height = cells.shape[1] * grid.stride * scale, cells.shape[0] * grid.stride * scale
    axes.imshow(cells, extent=(left, left + width, top + height, top), interpolation="nearest")
    _crop(axes, background)
    handles = [
        Patch(color=tuple(colours[i]), label=f"{shown(name, 30)}  {area:.2f} mm²")
        for i, (name, area) in enumerate(area_mm2.items())
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=9,
        title="class of a tile and area of its tissue; the stronger, the surer",
        title_fontsize=8,
    )
    axes.set_title(shown(background.name), fontsize=10)
    save_figure(figure, path)


def save_tissue(path: Path, background: Background, grid: Grid, mpp: float, tissue: Tissue) -> None:
    """Draws the slide with the outline of its tissue, and the tiles that were taken.

    Args:
        path: the PNG.
        background: the slide.
        grid: its tiles.
        mpp: µm per pixel of level 0.
        tissue: the mask.
    """
    figure, axes = _canvas(background)
    axes.imshow(background.pixels, extent=background.extent, interpolation="antialiased")
    mask = tissue.mask
    scale = tissue.downsample * mpp / 1000
    if mask.any() and not mask.all():
        padded = np.pad(mask, 1)
        x, y = ((np.arange(size + 2) - 0.5) * scale for size in (mask.shape[1], mask.shape[0]))
        axes.contour(x, y, padded.astype(np.float64), levels=[0.5], colors="#0072B2", linewidths=1.0)
    mm = mpp / 1000
    if len(grid) <= 20_000:  # more outlines would cover the slide in grey
        for left, top in zip((grid.x * mm).tolist(), (grid.y * mm).tolist(), strict=True):
            axes.add_patch(
                Rectangle((left, top), grid.side * mm, grid.side * mm, fill=False, color="#333333", linewidth=0.25)
            )
    _crop(axes, background)
    area = mask.sum() * scale**2
    facts = f"{area:.2f} mm² of tissue (saturation above {tissue.threshold}), {len(grid):,} tiles"
    axes.set_title(f"{shown(background.name)}: {facts}", fontsize=10)
    save_figure(figure, path)


@dataclass(frozen=True)
class Mistake:
    """A tile whose class was predicted wrongly.

    Attributes:
        pixels: uint8 RGB `(crop, crop, 3)`, the part of the tile that the network saw.
        name: of the tile's file.
        truth, predicted: classes.
        probability: of the predicted class.
    """

    pixels: npt.NDArray[np.uint8]
    name: str
    truth: str
    predicted: str
    probability: float


def save_mistakes(path: Path, mistakes: Sequence[Mistake], *, title: str, columns: int = 6) -> None:
    """Draws what the network saw in rows of `columns`, each below the tile's name and its classes."""
    columns = min(columns, max(3, len(mistakes)))  # the title needs the room of three
    rows = math.ceil(len(mistakes) / columns)
    figure = new_figure(1.75 * columns, 2.2 * rows + 0.4)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        axes.imshow(mistake.pixels)
        truth, predicted = shown(mistake.truth, 26), shown(mistake.predicted, 18)
        axes.set_title(
            f"{shown(mistake.name, 32)}\ntrue: {truth}\npredicted: {predicted} {mistake.probability:.1%}", fontsize=6
        )
    side = mistakes[0].pixels.shape[0]
    figure.suptitle(f"{title}\n(the centre {side} × {side} pixels, which the network sees)", fontsize=9.5)
    save_figure(figure, path)


def _canvas(background: Background) -> tuple[matplotlib.figure.Figure, Axes]:
    height, width = background.pixels.shape[:2]
    longest = max(height, width)
    figure = new_figure(max(4.0, LONG_SIDE * width / longest), max(3.0, LONG_SIDE * height / longest) + 0.9)
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes


def _crop(axes: Axes, background: Background) -> None:
    """Shows the slide and nothing around it, with a scale bar."""
    _, right, bottom, _ = background.extent
    axes.set_xlim(0, right)
    axes.set_ylim(bottom, 0)
    exponent = math.floor(math.log10(right / 4))
    length = max(step * 10**exponent for step in (1, 2, 5) if step * 10**exponent <= right / 4)
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    y = bottom * 0.975
    axes.plot([right * 0.025, right * 0.025 + length], [y, y], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([right * 0.025, right * 0.025 + length], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    box = AnchoredText(
        text, loc="lower left", bbox_to_anchor=(0.02, 0.03), bbox_transform=axes.transAxes, frameon=True, pad=0.15
    )
    box.patch.set(facecolor="white", edgecolor="none", alpha=0.8)
    axes.add_artist(box)
