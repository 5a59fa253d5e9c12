"""The bundle in WSInfer's own command, beside this package on the same slide; nothing is downloaded.

WSInfer 0.6.1 runs with zarr 2 only, and so with an older tifffile than this package asks for. It needs an environment
of its own, whose Python HISTO_WSINFER_PYTHON names (docs/environment.md).
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import histo_export

from .conftest import Pixels

pytestmark = pytest.mark.wsinfer

RunWsinfer = Callable[[Path], tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]]


@pytest.fixture(scope="session")
def python() -> str:
    named = os.environ.get("HISTO_WSINFER_PYTHON")
    tried = subprocess.run([named or sys.executable, "-c", "import wsinfer"], capture_output=True, text=True)
    if tried.returncode and named is None:
        pytest.skip("needs WSInfer: HISTO_WSINFER_PYTHON names no Python that has it")
    assert tried.returncode == 0, tried.stderr
    return named or sys.executable


@pytest.fixture
def run_wsinfer(python: str, bundle: Path, tmp_path: Path) -> RunWsinfer:
    """`wsinfer run` over one slide; returns its columns, `minx, miny, width, height` and the probabilities."""

    def run(slide: Path) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        registry = tmp_path / "home" / ".wsinfer-zoo" / "wsinfer-zoo-registry.json"  # else it would be downloaded
        registry.parent.mkdir(parents=True)
        registry.write_text(json.dumps({"models": {}}))
        files = ["--config", bundle / "config.json", "--model-path", bundle / "torchscript_model.pt"]
        slides = ["--wsi-dir", slide.parent, "--results-dir", tmp_path / "results", "--num-workers", "1"]
        done = subprocess.run(
            [python, "-W", "ignore", "-m", "wsinfer", "run", *files, *slides],
            env=os.environ | {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "WSINFER_FORCE_CPU": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with (tmp_path / "results" / "model-outputs-csv" / f"{slide.stem}.csv").open() as file:
            columns, *rows = csv.reader(file)
        values = np.array(rows, np.float64)
        return columns, values[:, :4].astype(np.int64), values[:, 4:].astype(np.float32)

    return run


@pytest.fixture(scope="module")
def patchwork() -> Pixels:
    """Patches of many colours and textures: an untrained model tells tiles of one kind of tissue hardly apart."""
    rng = np.random.default_rng(8)
    colours = rng.integers(0, 256, (7, 10, 3)) * [1.0, 0.5, 0.9]
    texture = rng.normal(0, 1, (700, 1000, 3)) * np.kron(rng.uniform(0, 60, (7, 10)), np.ones((100, 100)))[..., None]
    return (np.kron(colours, np.ones((100, 100, 1))) + texture).clip(0, 255).astype(np.uint8)


def assert_equal(theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.float32]) -> None:
    """Up to the rounding of two fp32 runtimes, of which the tiles' own differences are a thousandfold."""
    assert np.ptp(ours, axis=0).max() > 1e-3
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("runtime", ["native", "torchscript"])
def test_the_same_slide_gets_the_same_probabilities(
    run_wsinfer: RunWsinfer,
    bundle: Path,
    patchwork: Pixels,
    write_tiff: Callable[..., Path],
    tmp_path: Path,
    runtime: str,
) -> None:
    """At the model's µm per pixel both take the slide's own pixels, from the same grid."""
    (tmp_path / "slides").mkdir()
    slide = write_tiff(tmp_path / "slides" / "made.tif", patchwork, mpp=0.495)
    columns, tiles, theirs = run_wsinfer(slide)
    ours = histo_export.load(bundle, runtime=runtime).predict_slide(slide, grid="tile", everything=True)
    (tmp_path / "ours").mkdir()
    ours.write(tmp_path / "ours")
    assert (tmp_path / "ours" / "tiles.csv").read_text().splitlines()[0] == ",".join(columns)
    assert len(tiles) > 30
    assert (tiles[:, 2:] == ours.grid.size).all()
    at = {place: i for i, place in enumerate(zip(ours.grid.x.tolist(), ours.grid.y.tolist(), strict=True))}
    same = ours.probabilities[[at[x, y] for x, y in tiles[:, :2].tolist()]]
    assert_equal(theirs, same)


def test_a_finer_slide_is_resized_to_the_models_tiles(
    run_wsinfer: RunWsinfer, bundle: Path, patchwork: Pixels, write_tiff: Callable[..., Path], tmp_path: Path
) -> None:
    """Without the step that asks for it, WSInfer would give the model 112 pixels of a tile of half the width."""
    (tmp_path / "slides").mkdir()
    slide = write_tiff(tmp_path / "slides" / "fine.tif", patchwork, mpp=0.33)
    _, tiles, theirs = run_wsinfer(slide)
    assert (tiles[:, 2:] == 112).all()
    ours = histo_export.load(bundle).predict_slide(slide, grid="tile", everything=True)
    at = {place: i for i, place in enumerate(zip(ours.grid.x.tolist(), ours.grid.y.tolist(), strict=True))}
    # Beyond the edge of a slide WSInfer fills with black, and this package with white.
    inside = (tiles[:, 0] + 112 <= patchwork.shape[1]) & (tiles[:, 1] + 112 <= patchwork.shape[0])
    assert inside.sum() > 20
    same = ours.probabilities[[at[x, y] for x, y in tiles[inside, :2].tolist()]]
    assert_equal(theirs[inside], same)
