"""The page of a slide: the slide under its heat map, and tiles as pictures. One file, which contains all that it shows.

The page paints the heat map itself, so that it can leave out classes and tiles: it gets each square's probabilities and
cell, and the tissue. So it paints what `pictures.paint_cells` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.predict.colours import hex_colours
from histo_export.predict.grid import Grid
from histo_export.predict.pages.images import base64_of, data_uri, jpeg, reduced
from histo_export.predict.pages.samples import Sample, Samples
from histo_export.predict.pages.templates import PAGE, THUMBNAIL, page
from histo_export.predict.pictures import STRONGEST, WEAKEST, Background, over_grey, paint_cells
from histo_export.predict.smooth import can_average
from histo_export.predict.tissue import Tissue

PICTURE_SIDE, THUMBNAIL_SIDE = 2400, 480
"""Most pixels of the longer side: of the slide in its page, and of its thumbnail with the heat map."""
STEPS = 65535
"""Of probabilities in the page, which are integers of 16 bits there: more digits than anyone reads on a screen."""


@dataclass(frozen=True)
class SlideView:
    """What the page of a slide is made of.

    Attributes:
        background: a small image of the slide.
        grid: its squares.
        tissue: the mask.
        probabilities: float32 `(n, classes)` of the squares.
        cell_mm2: float64 `(n,)`, tissue in the cell of each square in mm².
        samples: tiles to show.
        smooth: whether the heat map is the mean of overlapping squares at first.
    """

    background: Background
    grid: Grid
    tissue: Tissue
    probabilities: npt.NDArray[np.float32]
    cell_mm2: npt.NDArray[np.float64]
    samples: Samples
    smooth: bool


def write_slide_page(folder: Path, view: SlideView, summary: Mapping[str, Any], *, in_run: bool) -> None:
    """Writes the page and the thumbnail of a slide.

    Args:
        folder: of the result. The page links the files in it.
        view: what is shown.
        summary: the content of its summary.json.
        in_run: whether the page of a run lies in the folder above, to which this page then leads back.

    Raises:
        OSError: they can't be written.
    """
    files = sorted(path.name for path in folder.iterdir())
    data = slide_data(view, summary) | {"home": f"../{PAGE}" if in_run else "", "files": files}
    (folder / PAGE).write_text(page("slide", view.background.name, data), encoding="utf-8")
    (folder / THUMBNAIL).write_bytes(jpeg(_thumbnail(view)))


def slide_data(view: SlideView, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a slide's page. Arrays are little-endian in base64."""
    background = _smaller(view.background, PICTURE_SIDE)
    grid, probabilities = view.grid, view.probabilities
    height, width = background.pixels.shape[:2]
    x, y = background.centres
    classes = list(summary["classes"])
    return {
        "name": background.name,
        "classes": [
            {"name": name, "colour": colour} for name, colour in zip(classes, hex_colours(len(classes)), strict=True)
        ],
        "strength": [WEAKEST, STRONGEST],
        "picture": {"src": data_uri(background.pixels), "size": [width, height]},
        "downsample": list(background.downsample),
        "mpp": list(background.mpp),
        "size": list(grid.size),
        "square": list(grid.layout.square),
        "columns": _axis(grid.columns),
        "rows": _axis(grid.rows),
        "column": base64_of(grid.column.astype(np.int32)),
        "row": base64_of(grid.row.astype(np.int32)),
        "probabilities": base64_of(np.rint(probabilities * np.float64(STEPS)).astype(np.uint16)),
        "chosen": base64_of(probabilities.argmax(1).astype(np.uint16)),
        "area": base64_of(view.cell_mm2.astype(np.float32)),
        "tissue": base64_of(_runs(view.tissue.at(x[None, :], y[:, None]))),
        "overlap": can_average(grid),
        "smooth": view.smooth,
        "surest": [[_tile(sample) for sample in tiles] for tiles in view.samples.surest],
        "leastSure": [_tile(sample) for sample in view.samples.least_sure],
        "summary": summary,
    }


def _axis(axis: Any) -> dict[str, list[float]]:
    return {"start": axis.start.tolist(), "low": axis.low.tolist(), "high": axis.high.tolist()}


def _tile(sample: Sample) -> dict[str, Any]:
    return {"index": sample.index, "src": data_uri(sample.pixels)}


def _runs(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Lengths of the runs of a mask, row by row; the first one is of False and may be 0."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.flat[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(ends, prepend=0).astype(np.uint32)


def _smaller(background: Background, most: int) -> Background:
    pixels, factor = reduced(background.pixels, most)
    x, y = background.downsample
    return replace(background, pixels=pixels, downsample=(x * factor, y * factor))


def _thumbnail(view: SlideView) -> npt.NDArray[np.uint8]:
    """The heat map, small."""
    background = _smaller(view.background, THUMBNAIL_SIDE)
    layer = paint_cells(background, view.grid, view.tissue, view.probabilities, smooth=view.smooth)
    return over_grey(background, layer)
