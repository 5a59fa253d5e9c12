"""The page of a set of tiles: its classes, its accuracy where the tiles are labelled, and tiles as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histo_export.predict.colours import hex_colours
from histo_export.predict.pages.images import Pixels, data_uri, fitted_square, jpeg
from histo_export.predict.pages.samples import Sample, Samples
from histo_export.predict.pages.templates import PAGE, THUMBNAIL, page

THUMBNAIL_SIDE = 480
"""Pixels of the longer side."""
PICTURES = (".png",)
TABLES = (".csv", ".parquet", ".json")


def write_set_page(
    folder: Path, name: str, samples: Samples, label: Callable[[int], str], summary: Mapping[str, Any]
) -> None:
    """Writes the page of a set, and its thumbnail.

    Args:
        folder: of the result. The pictures in it become part of the page.
        name: of the set.
        samples: tiles to show.
        label: the name of a tile, by its index.
        summary: the content of its summary.json.

    Raises:
        OSError: they can't be written.
    """
    names = sorted(path.name for path in folder.iterdir())
    data = set_data(name, samples, label, summary) | {
        "pictures": [each for each in names if each.endswith(PICTURES)],
        "files": [each for each in names if each.endswith(TABLES)],
        "home": f"../{PAGE}",
    }
    (folder / PAGE).write_text(page("tile_set", name, data), encoding="utf-8")
    if shown := _first_of_each(samples):
        (folder / THUMBNAIL).write_bytes(jpeg(_mosaic(shown)))


def set_data(name: str, samples: Samples, label: Callable[[int], str], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a set's page."""
    classes = list(summary["classes"])

    def tile(sample: Sample) -> dict[str, Any]:
        facts = {"name": label(sample.index), "chosen": sample.chosen, "probability": round(sample.probability, 6)}
        return facts | {"src": data_uri(sample.pixels)}

    return {
        "name": name,
        "classes": [
            {"name": each, "colour": colour, "tiles": summary["classes"][each]}
            for each, colour in zip(classes, hex_colours(len(classes)), strict=True)
        ],
        "surest": [[tile(sample) for sample in tiles] for tiles in samples.surest],
        "leastSure": [tile(sample) for sample in samples.least_sure],
        "summary": summary,
    }


def _first_of_each(samples: Samples, most: int = 8) -> list[Pixels]:
    """Tiles of as many classes as there are, the surest first."""
    depth = max((len(tiles) for tiles in samples.surest), default=0)
    return [tiles[i].pixels for i in range(depth) for tiles in samples.surest if i < len(tiles)][:most]


def _mosaic(tiles: Sequence[Pixels], columns: int = 4) -> Pixels:
    """Tiles in rows of `columns`, on white."""
    side = THUMBNAIL_SIDE // columns
    rows = -(-len(tiles) // columns)
    picture = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for i, pixels in enumerate(tiles):
        top, left = i // columns * side, i % columns * side
        picture[top : top + side - 2, left : left + side - 2] = fitted_square(pixels, side - 2)
    return picture
