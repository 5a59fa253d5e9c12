"""`histo predict --table`: what anndata reads back is what the other tables say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export import UsageError
from histo_export.extras import MissingExtraError
from histo_export.predict import anndata_table, work
from histo_export.predict.run import predict
from histo_export.predict.settings import PredictSettings
from stub_model import SIDE, SPEC, StubRuntime, stub_model

SETTINGS = PredictSettings(threads=2, batch=4)
KINDS = pytest.mark.parametrize("kind", ["h5ad", "zarr"])


def read(folder: Path, kind: str) -> Any:
    anndata = pytest.importorskip("anndata", reason='needs pip install "histo-export[anndata]"')
    return getattr(anndata, f"read_{kind}")(folder / f"tiles.{kind}")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "tiles.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[f"prob_{name}"]) for name in SPEC.classes] for row in rows])


class WithFeatures(StubRuntime):
    """Its feature vector is the mean of each channel."""

    features = 3

    def run_with_features(self, tiles: Any) -> Any:
        return np.concatenate([self.run(tiles), tiles.mean((1, 2)).astype(np.float32)], axis=1)


@KINDS
def test_a_slide(large_slide_file: Path, tmp_path: Path, kind: Any) -> None:
    pytest.importorskip("anndata", reason='needs pip install "histo-export[anndata]"')
    with stub_model(tmp_path / "bundle") as bundle, pytest.MonkeyPatch.context() as patch:  # undone before the stub's
        patch.setattr(work, "open_model", lambda *_: WithFeatures())
        settings = replace(SETTINGS, table=kind, features="h5")
        outcome = predict(bundle, [large_slide_file], tmp_path / "out", settings)
        with pytest.raises(UsageError, match="other settings"):
            predict(bundle, [large_slide_file], tmp_path / "out", SETTINGS)
    assert not outcome.failures
    folder = tmp_path / "out/large"
    table, rows = read(folder, kind), rows_of(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert table.shape == (len(rows), len(SPEC.classes))
    assert list(table.var_names) == list(SPEC.classes)
    assert table.X.dtype == np.float32
    np.testing.assert_allclose(table.X, probabilities(rows), atol=1e-7)
    assert list(table.obs["class"]) == [SPEC.classes[i] for i in probabilities(rows).argmax(1)]
    corners = np.array([[int(row["minx"]), int(row["miny"])] for row in rows])
    side = np.array([int(rows[0]["width"]), int(rows[0]["height"])])
    np.testing.assert_array_equal(table.obs[["x", "y"]].to_numpy(), corners)
    np.testing.assert_array_equal(table.obsm["spatial"], corners + side / 2)
    # squidpy's convention: with its scale, a place is a pixel of the picture.
    drawn = table.uns["spatial"]["large.tiff"]
    height, width, _ = drawn["images"]["hires"].shape
    places = table.obsm["spatial"] * drawn["scalefactors"]["tissue_hires_scalef"]
    assert (places < [width, height]).all()
    assert places.max(0)[0] > width / 2
    assert drawn["scalefactors"]["spot_diameter_fullres"] == side[0]
    assert table.obsm["features"].shape == (len(rows), 3)
    histo = table.uns["histo"]
    assert json.loads(str(histo["summary"])) == summary
    assert json.loads(str(histo["settings"]))["table"] == kind
    assert json.loads(str(histo["bundle"]))["name"] == "bundle"
    assert f"tiles.{kind}" in (folder / "index.html").read_text(encoding="utf-8")


@KINDS
def test_a_labelled_set(tmp_path: Path, kind: Any) -> None:
    pytest.importorskip("anndata", reason='needs pip install "histo-export[anndata]"')
    rng = np.random.default_rng(0)
    for name in SPEC.classes:
        (tmp_path / "tiles é" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tiles é" / name / f"{i}.png")
    (tmp_path / "tiles é" / SPEC.classes[0] / "broken.png").write_bytes(b"no image")
    with stub_model(tmp_path / "bundle") as bundle:
        outcome = predict(bundle, [tmp_path / "tiles é"], tmp_path / "out", replace(SETTINGS, table=kind))
    assert len(outcome.failures) == 1
    folder = tmp_path / "out/tiles é"
    table, rows = read(folder, kind), rows_of(folder)
    assert table.shape == (3 * len(SPEC.classes), len(SPEC.classes))
    np.testing.assert_allclose(table.X, probabilities(rows), atol=1e-7)
    for column in ("path", "class", "label", "split"):
        assert list(table.obs[column]) == [row[column] for row in rows], column


def test_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_slide_file: Path) -> None:
    """It is told before any tile is read."""
    from histo_export import extras

    monkeypatch.setattr(extras, "installed", lambda module: module != "anndata")
    with stub_model(tmp_path / "bundle") as bundle, pytest.raises(MissingExtraError, match=r"histo-export\[anndata\]"):
        predict(bundle, [large_slide_file], tmp_path / "out", replace(SETTINGS, table="h5ad"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_format() -> None:
    with pytest.raises(UsageError, match=r"--table csv: is unknown. Use h5ad or zarr"):
        PredictSettings(table="csv")  # type: ignore[arg-type]
    assert set(anndata_table.FILES) == {"h5ad", "zarr"}
