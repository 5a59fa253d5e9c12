"""What predictions look like: the tissue mask, the heat map over the slide, the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.offsetbox import AnchoredText
from matplotlib.patches import Patch

from histo_export.figures import (
    INK,
    LABEL,
    TICK,
    TITLE,
    add_title,
    new_figure,
    percent_ticks,
    png_of,
    save_figure,
    shown,
)
from histo_export.predict.colours import class_colours
from histo_export.predict.smooth import mean_at
from histo_export.spec import percent

if TYPE_CHECKING:  # they need the packages for slides, which sets of tiles do without
    from histo_export.predict.grid import Grid
    from histo_export.predict.tissue import Tissue

LONG_SIDE = 9.0
"""Inches of the longer side of a slide's picture."""

PALE = 0.6
"""How much of the slide's darkness is left under a heat map, so that dark tissue is not taken for a strong colour."""

WEAKEST, STRONGEST = 0.3, 0.9
"""Opacity at a probability of chance and of 1; an unsure cell must still have a colour."""


@dataclass(frozen=True)
class Background:
    """A small image of a slide, which its pictures are drawn over.

    Attributes:
        pixels: uint8 RGB `(height, width, 3)`.
        downsample: pixels of level 0 for one of `pixels`, in x and y.
        mpp: µm per pixel of level 0, in x and y.
        name: of the slide's file.
    """

    pixels: npt.NDArray[np.uint8]
    downsample: tuple[float, float]
    mpp: tuple[float, float]
    name: str

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in mm; y grows downwards."""
        height, width = self.pixels.shape[:2]
        mm_x, mm_y = (step * um / 1000 for step, um in zip(self.downsample, self.mpp, strict=True))
        return 0, width * mm_x, height * mm_y, 0

    @property
    def centres(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The columns' and the rows' centres in pixels of level 0, float64 `(width,)` and `(height,)`."""
        height, width = self.pixels.shape[:2]
        x: npt.NDArray[np.float64] = (np.arange(width, dtype=np.float64) + 0.5) * np.float64(self.downsample[0])
        y: npt.NDArray[np.float64] = (np.arange(height, dtype=np.float64) + 0.5) * np.float64(self.downsample[1])
        return x, y


@dataclass(frozen=True)
class Areas:
    """Tissue in mm²: `classes` by the class of its cell, in the order of the probabilities; `unanalysed` in no cell."""

    classes: Mapping[str, float]
    unanalysed: float


def heat_map(
    background: Background,
    grid: Grid,
    tissue: Tissue,
    probabilities: npt.NDArray[np.float32],
    areas: Areas,
    *,
    smooth: bool = False,
) -> bytes:
    """A PNG of the slide in grey, with the tissue of each cell in the colour of its class.

    The colour is the stronger, the higher the probability of the class. Tissue in no cell is hatched; glass is not
    painted.

    Args:
        background: the slide.
        grid: its squares.
        tissue: the mask.
        probabilities: float32 `(n, classes)` of the squares.
        areas: for the legend.
        smooth: see `paint_cells`.
    """
    figure, axes = _canvas(background)
    layer = paint_cells(background, grid, tissue, probabilities, smooth=smooth)
    # One image, because matplotlib resamples each one twice.
    axes.imshow(over_grey(background, layer), extent=background.extent, interpolation="antialiased")
    _crop(axes, background)
    chosen = probabilities.argmax(1)
    colours = class_colours(len(areas.classes))
    handles = [
        Patch(color=colours[i], label=f"{shown(name, 30)}  {_mm2(area)}")
        for i, (name, area) in enumerate(areas.classes.items())
        if (chosen == i).any()
    ]
    if round(areas.unanalysed, 6) > 0:
        label = f"not analysed  {_mm2(areas.unanalysed)}"
        handles.append(Patch(facecolor="white", edgecolor="black", hatch="/////", linewidth=0, label=label))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(handles), 4), "frameon": False}
    figure.legend(handles=handles, fontsize=LABEL, **place)
    _add_certainty(figure, axes, 1 / len(areas.classes))
    of_what = "tissue by the mean of its squares" if smooth else "tissue by its most probable class"
    axes.set_title(f"{shown(background.name)}: {of_what}", fontsize=TITLE)
    return png_of(figure, compression=1)


def over_grey(background: Background, layer: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """What `paint_cells` gives over the slide in pale grey: uint8 RGB `(height, width, 3)`."""
    grey = 255 - PALE * (255 - background.pixels.mean(axis=2, keepdims=True, dtype=np.float32))
    opacity = layer[..., 3:]
    painted: npt.NDArray[np.uint8] = np.rint(grey * (1 - opacity) + 255 * layer[..., :3] * opacity).astype(np.uint8)
    return painted


def paint_cells(
    background: Background,
    grid: Grid,
    tissue: Tissue,
    probabilities: npt.NDArray[np.float32],
    *,
    smooth: bool = False,
) -> npt.NDArray[np.float32]:
    """The colours of a heat map over the background's pixels.

    Args:
        background: the slide.
        grid: its squares.
        tissue: the mask.
        probabilities: float32 `(n, classes)` of the squares.
        smooth: paint the mean of all squares at each point (`smooth.mean_at`) in place of the cell's one square.

    Returns:
        Red, green, blue and opacity in [0, 1], float32 `(height, width, 4)`: of the class where there is tissue in a
        cell, black stripes where there is tissue in no cell, transparent elsewhere.
    """
    x, y = background.centres
    if smooth:
        chosen, top = mean_at(grid, probabilities, x, y)
    else:
        index = grid.index_at(x, y)
        chosen = np.where(index >= 0, probabilities.argmax(1)[index], -1)
        top = probabilities.max(1)[index]
    has_tissue = tissue.at(x[None, :], y[:, None])
    classes = probabilities.shape[1]
    chance = 1 / classes
    layer = np.zeros((*chosen.shape, 4), np.float32)
    painted = has_tissue & (chosen >= 0)
    layer[painted, :3] = np.array(class_colours(classes))[chosen[painted]]
    layer[painted, 3] = WEAKEST + (STRONGEST - WEAKEST) * (top[painted] - chance) / (1 - chance)
    period = max(4, max(chosen.shape) // 200)
    rows, columns = np.ogrid[: chosen.shape[0], : chosen.shape[1]]
    stripes = (rows + columns) % period < max(1, period // 4)
    layer[has_tissue & (chosen < 0) & stripes] = (0, 0, 0, 1)
    return layer


def _mm2(area: float) -> str:
    return f"{area:,.3g} mm²" if area >= 0.0005 else "under 0.001 mm²"


def _add_certainty(figure: matplotlib.figure.Figure, axes: Axes, chance: float) -> None:
    """A bar that shows how strong a colour is at which probability."""
    strengths = np.linspace(WEAKEST, STRONGEST, 256)[:, None]
    ink = np.array(matplotlib.colors.to_rgb(INK))
    ramp = matplotlib.colors.ListedColormap(1 - strengths * (1 - ink))
    values = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(chance, 1), ramp)
    where: dict[str, Any] = {
        "ax": axes,
        "location": "bottom",
        "fraction": 0.03,
        "pad": 0.02,
        "shrink": 0.5,
        "aspect": 40,
    }
    bar = figure.colorbar(values, format=percent_ticks(), **where)
    bar.set_label("strength of a colour: probability of the class", fontsize=TICK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK, length=2)


def tissue_picture(background: Background, grid: Grid, tissue: Tissue) -> bytes:
    """A PNG of the slide with the outline of its tissue, and the squares that were taken.

    Args:
        background: the slide.
        grid: its squares.
        tissue: the mask.
    """
    figure, axes = _canvas(background)
    axes.imshow(background.pixels, extent=background.extent, interpolation="antialiased")
    mask = tissue.mask
    mm_x, mm_y = (um / 1000 for um in background.mpp)
    if mask.any() and not mask.all():
        padded = np.pad(mask, 1)
        x = (np.arange(mask.shape[1] + 2) - 0.5) * tissue.downsample[0] * mm_x
        y = (np.arange(mask.shape[0] + 2) - 0.5) * tissue.downsample[1] * mm_y
        axes.contour(x, y, padded.astype(np.float64), levels=[0.5], colors="#0072B2", linewidths=1.0)
    if len(grid) <= 20_000:  # more outlines would cover the slide in grey
        width, height = grid.layout.square
        corners = np.stack([grid.columns.start[grid.column], grid.rows.start[grid.row]], 1)[:, None]
        outlines = (corners + np.array([(0, 0), (width, 0), (width, height), (0, height)])) * (mm_x, mm_y)
        squares = PolyCollection(outlines, facecolors="none", edgecolors=INK, linewidths=0.25)
        axes.add_collection(squares, autolim=False)
    _crop(axes, background)
    facts = (
        f"{tissue.area * mm_x * mm_y:.2f} mm² of tissue (saturation above {tissue.threshold}), {len(grid):,} squares"
    )
    axes.set_title(f"{shown(background.name)}: {facts}", fontsize=TITLE)
    return png_of(figure, compression=1)


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
    figure = new_figure(2.1 * columns, 2.7 * rows + 0.4)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        axes.imshow(mistake.pixels)
        truth, predicted = shown(mistake.truth, 25), shown(mistake.predicted, 16)
        axes.set_title(
            f"{shown(mistake.name, 30)}\ntrue: {truth}\npredicted: {predicted} {percent(mistake.probability)}",
            fontsize=TICK - 1,
        )
    side = mistakes[0].pixels.shape[0]
    add_title(figure, title, f"the centre {side} × {side} pixels, which the network sees")
    save_figure(figure, path)


def _canvas(background: Background) -> tuple[matplotlib.figure.Figure, Axes]:
    _, width, height, _ = background.extent
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
