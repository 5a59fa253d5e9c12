"""Results as AnnData, which squidpy, scanpy, LazySlide and SpatialData read: `tiles.h5ad` or `tiles.zarr`.

`X` has the probabilities, one column for each class. Of a slide `obsm["spatial"]` has the centres of the squares in
pixels of level 0, and `uns["spatial"]` the picture and the scales that squidpy draws with.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histo_export import __version__
from histo_export.bundle_files import hub_origin
from histo_export.export.bundle import Bundle
from histo_export.extras import needs
from histo_export.predict.loop import Probabilities
from histo_export.predict.settings import PredictSettings, TableFormat
from histo_export.strict_json import dump_json

if TYPE_CHECKING:
    from histo_export.predict.whole_slide import SlidePrediction

FILES = {"h5ad": "tiles.h5ad", "zarr": "tiles.zarr"}
"""Format → name of the file, or of the folder, in the folder of a result."""


def check_table(kind: TableFormat) -> None:
    """MissingExtraError where the packages that write AnnData are not installed."""
    needs(f"--table {kind}", "anndata")


def run_record(bundle: Bundle, settings: PredictSettings) -> dict[str, str]:
    """What `uns["histo"]` tells of a run: texts, of which those of several values are JSON."""
    files = {name: entry.sha256 for name, entry in bundle.config.histo.files.items()}
    model = {"name": bundle.path.absolute().name, "hub": hub_origin(bundle.path), "sha256": files}
    return {"version": __version__, "settings": dump_json(asdict(settings)), "bundle": dump_json(model)}


def write_slide_table(folder: Path, kind: TableFormat, prediction: SlidePrediction, record: Mapping[str, str]) -> None:
    """Writes the squares of a slide, in the order of tiles.csv.

    `obs` has `class`, `x` and `y` (the upper left corner, pixels of level 0); `obsm["features"]` the feature vectors,
    float32 `(n, length)`, where they were asked for.

    Raises:
        OSError: it can't be written.
    """
    grid, (width, height) = prediction.grid, prediction.grid.size
    centres = np.stack([grid.x + width / 2, grid.y + height / 2], 1)
    obsm = {"spatial": centres}
    if prediction.features is not None:
        store = prediction.features[1]
        obsm["features"] = np.concatenate([np.empty((0, store.length), np.float32), *store.batches()])
    background = prediction.background
    drawn = {
        "images": {"hires": background.pixels},
        "scalefactors": {
            "tissue_hires_scalef": 1 / background.downsample[0],
            "spot_diameter_fullres": float(min(width, height)),
        },
    }
    uns = {
        "spatial": {prediction.name: drawn},
        "histo": {**record, "summary": dump_json(prediction.summary()), "square": np.array([width, height])},
    }
    columns = {"x": grid.x, "y": grid.y}
    _write(folder / FILES[kind], prediction.classes, prediction.probabilities, columns, obsm, uns)


class TileSetTable:
    """The tiles of a set, collected row by row and written at the end. `obs` has the columns of tiles.csv but the
    probabilities: path, class, and of a labelled set label and split.

    Args:
        folder: gets the file.
        kind: its format.
        classes: names.
        columns: after the class: of a labelled set "label", "split".
        record: see `run_record`.
    """

    def __init__(
        self,
        folder: Path,
        kind: TableFormat,
        classes: tuple[str, ...],
        columns: Sequence[str],
        record: Mapping[str, str],
    ) -> None:
        self.path, self.classes, self.record = folder / FILES[kind], classes, record
        self.names = ("path", *columns)
        self.rows: list[tuple[str, ...]] = []
        self.probabilities: list[Probabilities] = []

    def add(self, path: str, probabilities: Probabilities, label: Sequence[str]) -> None:
        """Adds a tile: its path, float32 `(classes,)`, and the values of the further columns."""
        self.rows.append((path, *label))
        self.probabilities.append(probabilities)

    def close(self) -> None:
        """Writes the file; OSError if that fails."""
        if not self.rows:  # the set is refused then
            return
        texts = zip(*self.rows, strict=True)
        columns = {name: np.array(column, object) for name, column in zip(self.names, texts, strict=True)}
        uns = {"histo": dict(self.record)}
        _write(self.path, self.classes, np.stack(self.probabilities), columns, {}, uns)


def _write(
    path: Path,
    classes: Sequence[str],
    probabilities: Probabilities,
    columns: Mapping[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
) -> None:
    """Writes AnnData in the format that the path's ending names."""
    needs("Writing AnnData", "anndata")
    import anndata
    import pandas as pd

    chosen = pd.Categorical.from_codes(probabilities.argmax(1), categories=list(classes))
    index = [str(i) for i in range(len(probabilities))]
    obs = pd.DataFrame({"class": chosen, **columns}, index=index)
    var = pd.DataFrame(index=list(classes))
    data = anndata.AnnData(X=probabilities, obs=obs, var=var, obsm=dict(obsm), uns=dict(uns))
    if path.suffix == ".h5ad":
        data.write_h5ad(path, compression="gzip")
        return
    with anndata.settings.override(zarr_write_format=2), warnings.catch_warnings():
        # Format 3 has no stable form of the texts in `uns`, and zarr warns of that; anndata warns of format 2.
        warnings.filterwarnings("ignore", message="Writing zarr v2 data")
        data.write_zarr(path)
